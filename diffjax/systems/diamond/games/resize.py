"""Reducing pictures by averaging areas, equal to OpenCV's INTER_AREA to the last bit.

Published Atari models saw frames that OpenCV had reduced; this is the same arithmetic in NumPy.
"""

import functools

import numpy as np

SLIVER = 1e-3  # overlaps below this share of a source pixel are left out, as OpenCV does


@functools.lru_cache(maxsize=16)
def area_weights(source: int, target: int) -> np.ndarray:
    """Returns the weights float32 [target, source] of averaging `source` pixels into `target`.

    With q = source / target, pixel d of the result is the mean over [d q, (d + 1) q): a source
    pixel weighs its overlap with that interval, divided by q.
    """
    ratio = source / target
    weights = np.zeros((target, source), np.float32)
    for d in range(target):
        low, high = d * ratio, (d + 1) * ratio
        width = min(ratio, source - low)
        for s in range(int(low), min(int(np.ceil(high)), source)):
            overlap = min(high, s + 1) - max(low, s)
            if overlap > SLIVER:
                weights[d, s] = overlap / width
    return weights


@functools.lru_cache(maxsize=16)
def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights without their zeros: indices int [target, K] and weights float32 [target, K]."""
    weights = area_weights(source, target)
    first = (weights > 0).argmax(1)
    width = int((weights > 0).sum(1).max())
    index = np.minimum(first[:, None] + np.arange(width), source - 1)
    taken = np.take_along_axis(weights, index, 1)
    # Past the last pixel the index repeats; its weight counts once.
    taken[(first[:, None] + np.arange(width)) >= source] = 0
    return index, taken


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns an image at another size, each pixel the mean of the area that it covers.

    Args:
      image: uint8 [H, W, C].
      height, width: of the result.

    Returns:
      uint8 [height, width, C], rounded half to even. First the rows, then the columns, in float32:
      the order matters for ties.
    """
    if image.shape[:2] == (height, width):
        return image
    index, weight = _taps(image.shape[1], width)
    rows = np.zeros((image.shape[0], width, image.shape[2]), np.float32)
    for k in range(index.shape[1]):
        rows += image[:, index[:, k]] * weight[:, k, None]
    index, weight = _taps(image.shape[0], height)
    out = np.zeros((height, width, image.shape[2]), np.float32)
    for k in range(index.shape[1]):
        out += rows[index[:, k]] * weight[:, k, None, None]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
