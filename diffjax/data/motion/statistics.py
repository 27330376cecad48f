"""Normalisation of features, and which of them belong to what part of the body."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from diffjax.data.motion.features import channels
from diffjax.data.motion.rotations import Array
from diffjax.data.motion.skeletons import Skeleton
from diffjax.errors import UserError, choose

LEAST = 1e-6  # a channel that varies less is only shifted


class Statistics(NamedTuple):
    """float32 [D] each: (features - mean) / std is what networks see."""

    mean: np.ndarray
    std: np.ndarray


def measure(clips: Iterable[np.ndarray]) -> Statistics:
    """Returns the mean of each channel and the standard deviation, averaged inside each block of
    `features.channels`, over all frames of the clips.

    Averaging keeps joints comparable inside a block (Guo et al. 2022).

    Args:
      clips: features [N_i, 12J - 1]; read once.

    Raises:
      UserError: no frames.
    """
    count, total, square = 0, 0.0, 0.0
    for clip in clips:
        clip = np.asarray(clip, np.float64)
        count += len(clip)
        total, square = total + clip.sum(0), square + (clip**2).sum(0)
    if not count:
        raise UserError("no motion to measure the statistics of")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    for block in channels((len(mean) + 1) // 12).values():
        std[block] = std[block].mean()
    std = np.where(std < LEAST, 1.0, std)
    return Statistics(mean.astype(np.float32), std.astype(np.float32))


def normalise(features: Array, statistics: Statistics) -> Array:
    """Returns (features - mean) / std, on NumPy or JAX arrays [..., D]."""
    return (features - statistics.mean) / statistics.std


def denormalise(x: Array, statistics: Statistics) -> Array:
    """Returns the features of what `normalise` gave."""
    return x * statistics.std + statistics.mean


def check_statistics(mean: np.ndarray, std: np.ndarray, size: int, name: str) -> Statistics:
    """Returns stored statistics; raises `UserError` if they are not `size` finite numbers each, the
    deviations positive."""
    for what, value in (("mean", mean), ("std", std)):
        if value.shape != (size,) or value.dtype.kind != "f":
            raise UserError(f"{name}: {what} is {value.dtype} {value.shape}, expected ({size},)")
        if not np.isfinite(value).all() or (what == "std" and not (value > 0).all()):
            raise UserError(f"{name}: {what} has a number that is not finite, or not positive")
    return Statistics(mean.astype(np.float32), std.astype(np.float32))


def body_mask(skeleton: Skeleton, part: str) -> np.ndarray:
    """Returns which features belong to a part of the body, bool [12J - 1].

    For HumanML3D's skeleton these are the masks of MDM's editing (Tevet et al. 2023).

    Args:
      skeleton: whose `lower` joints are the lower body.
      part: "lower_body", with the root and the contacts; "upper_body", all else; "root", the root's
        motion; "root_horizontal", its turning and its way over the floor.
    """
    blocks = channels(len(skeleton))
    lower = np.isin(np.arange(len(skeleton)), skeleton.lower)

    def joints(chosen: np.ndarray, whole: bool) -> np.ndarray:
        mask = np.zeros(skeleton.size, bool)
        mask[blocks["positions"]] = whole & chosen[1:].repeat(3)
        mask[blocks["rotations"]] = whole & chosen[1:].repeat(6)
        mask[blocks["velocities"]] = chosen.repeat(3)
        return mask

    first = np.arange(skeleton.size) < blocks["height"].stop
    below = joints(lower, True) | first
    below[blocks["contacts"]] = True
    root = first | joints(np.arange(len(skeleton)) == 0, False)
    flat = np.arange(skeleton.size) < blocks["velocity"].stop
    parts = {"lower_body": below, "upper_body": ~below, "root": root, "root_horizontal": flat}
    return choose(part, parts, "part of the body")
