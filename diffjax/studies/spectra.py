"""Spectra of pictures and of noise in the DCT, by radius: what a noise level hides.

The orthonormal DCT-II of a picture of H x W pixels; radius r = sqrt(k^2 + l^2) of coefficient
(k, l), counted in half periods over the picture (over the shorter side, where it is not square). A
picture or a noise of lower resolution is first repeated to the higher one, or where that is no
whole number of times its spectrum is put in the corner of the larger one, so that r means the same
for both. Noise has an exact mean spectrum here: its covariance is a product of two circulant ones,
one an axis, so none is drawn.

Teng et al. 2023, section 3.1: at the same sigma a picture of p times the resolution has p^2 times
the signal-to-noise ratio at low frequencies, and block noise of size p takes that back.
"""

from collections.abc import Iterable

import numpy as np
import scipy.fft

from diffjax.core import patches


def radius(height: int, width: int) -> np.ndarray:
    """[H, W]: the radius of each coefficient."""
    short = min(height, width)
    k, l = np.arange(height) * short / height, np.arange(width) * short / width
    return np.hypot(k[:, None], l)


def picture_power(images: Iterable[np.ndarray]) -> np.ndarray:
    """The mean power of each DCT coefficient over pictures and channels.

    Args:
      images: of one shape [H, W, C], any float range.

    Returns:
      [H, W] float64.
    """
    total, count = 0.0, 0
    for image in images:
        u = scipy.fft.dctn(np.asarray(image, np.float64), axes=(0, 1), norm="ortho")
        total, count = total + (u**2).mean(-1), count + 1
    return total / count


def repeated(image: np.ndarray, times: tuple[int, int]) -> np.ndarray:
    """A picture [h, w, C] with every pixel repeated: [h p, w p, C]."""
    return image.repeat(times[0], 0).repeat(times[1], 1)


def repeated_noise_power(height: int, width: int, times: tuple[int, int]) -> np.ndarray:
    """[H, W]: the mean spectrum of white noise of H/p x W/p, every value repeated p x p times."""

    def axis(size, p):
        return (patches.dct_matrix(size).reshape(size, size // p, p).sum(-1) ** 2).sum(-1)

    return np.outer(axis(height, times[0]), axis(width, times[1]))


def enlarged(power: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W]: a spectrum [h, w] as that of the same picture, or noise, interpolated to H x W.

    Amplitudes grow by sqrt(HW/hw), as they do where pixels are repeated; above are zeros.
    """
    h, w = power.shape
    out = np.zeros((height, width))
    out[:h, :w] = power * (height * width / (h * w))
    return out


def block_noise_power(height: int, width: int, size: int) -> np.ndarray:
    """[H, W]: the mean spectrum of `patches.block_noise` of a size; 1 everywhere for size 1."""

    def axis(length):
        kernel = sum(np.roll(np.eye(length), i, 0) for i in range(size)) / np.sqrt(size)
        return ((patches.dct_matrix(length) @ kernel) ** 2).sum(-1)

    return np.outer(axis(height), axis(width))


def mixed_noise_power(
    height: int, width: int, size: int, weight: float, normalize: bool
) -> np.ndarray:
    """[H, W]: the mean spectrum of white noise plus weight times block noise."""
    power = 1 + weight**2 * block_noise_power(height, width, size)
    return power / (1 + weight**2) if normalize else power


def bands(limit: int) -> list[tuple[int, int]]:
    """[(1, 4), (4, 8), (8, 16), ...] up to `limit`: octaves of radius."""
    edges = [1, *(4 * 2**i for i in range(32) if 4 * 2**i < limit), limit]
    return list(zip(edges, edges[1:]))


def in_bands(power: np.ndarray, edges: list[tuple[float, float]]) -> np.ndarray:
    """[len(edges)]: mean power over lowest <= r < highest of each band."""
    r = radius(*power.shape)
    return np.array([power[(r >= low) & (r < high)].mean() for low, high in edges])


def by_radius(power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r, power): means over rings one unit wide, from r = 1 to the shorter side."""
    limit = min(power.shape)
    ring = np.round(radius(*power.shape)).astype(int)
    kept = (ring >= 1) & (ring < limit)
    total = np.bincount(ring[kept], power[kept], limit)[1:]
    return np.arange(1, limit), total / np.bincount(ring[kept], minlength=limit)[1:]


def decibel(power) -> np.ndarray:
    """10 log10 of a power; the smallest that a float has stands for 0."""
    return 10 * np.log10(np.maximum(power, np.finfo(np.float64).tiny))


def mismatch(power: np.ndarray, low: np.ndarray, limit: int) -> float:
    """The mean |dB| between two spectra [H, W] at radii from 1 to below `limit`."""
    a, b = (decibel(by_radius(p)[1][: limit - 1]) for p in (power, low))
    return float(np.abs(a - b).mean())


def deviations(power: np.ndarray, low: np.ndarray, limit: int, width: int = 8) -> np.ndarray:
    """[limit/width]: dB of one spectrum [H, W] over another in bins of radius, from 1 to `limit`.

    The bins are [1, width), [width, 2 width), ...; the last may be narrower.
    """
    edges = [1, *range(width, limit, width), limit]
    pairs = [pair for pair in zip(edges, edges[1:]) if pair[0] < pair[1]]
    return decibel(in_bands(power, pairs) / in_bands(low, pairs))
