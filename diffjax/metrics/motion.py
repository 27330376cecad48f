"""Numbers about generated motion: of embeddings of clips and texts, and of joints.

The first five are those of text-to-motion (Guo et al. 2022, section 5; the settings of the numbers
that Tevet et al. 2023 report): they compare only on one evaluator, at equal batch and sample
counts. The FID of that literature is `frechet.frechet_distance` of the same embeddings. The last
two look at the bodies themselves and need no evaluator.
"""

from typing import NamedTuple

import chex
import numpy as np

from diffjax.errors import UserError

BATCH = 32  # clips that a text is told apart from, itself included
DIVERSITY_PAIRS = 300
MULTIMODALITY_PAIRS = 10


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances, [n, d] and [m, d] -> [n, m] float64."""
    return np.sqrt(np.sum((a[:, None] - b[None]) ** 2, -1))


def _paired(text, motion) -> tuple[np.ndarray, np.ndarray]:
    chex.assert_rank([text, motion], 2)
    chex.assert_equal_shape([text, motion])
    if not len(text):
        raise UserError("matching needs at least one pair of a text and a motion")
    return np.asarray(text, np.float64), np.asarray(motion, np.float64)


def matching_score(text, motion) -> float:
    """Returns the mean distance of each text's embedding to its motion's ("multimodal distance").

    Guo et al. 2022. Lower is better.

    Args:
      text, motion: [n, d], row i of one belongs to row i of the other; n >= 1.

    Raises:
      UserError: no pairs.
    """
    text, motion = _paired(text, motion)
    return float(np.mean(np.sqrt(np.sum((text - motion) ** 2, -1))))


def r_precision(text, motion, *, top: int = 3, batch: int = BATCH) -> np.ndarray:
    """Returns how often a text's own motion is among the 1, ..., top nearest of its batch.

    Guo et al. 2022. Batches are of consecutive rows; a last one that is not full is as large as it
    is, and easier. The number depends on the batch: nearly everything is found among few.

    Args:
      text, motion: [n, d], row i of one belongs to row i of the other; n >= 1.
      top: how many of the nearest.
      batch: motions that each text is compared with; 32 in all published numbers.

    Returns:
      [top] float64 in [0, 1], not decreasing.

    Raises:
      UserError: no pairs, top or batch below 1.
    """
    text, motion = _paired(text, motion)
    if top < 1 or batch < 1:
        raise UserError(f"R-precision needs top and batch of at least 1, got {top} and {batch}")
    found = np.zeros(top)
    for start in range(0, len(text), batch):
        distance = _distances(text[start : start + batch], motion[start : start + batch])
        order = np.argsort(distance, axis=1, kind="stable")
        rank = np.argmax(order == np.arange(len(distance))[:, None], axis=1)
        found += np.sum(rank[:, None] < np.arange(1, top + 1), 0)
    return found / len(text)


def accuracy(logits, labels) -> float:
    """Returns the share of rows whose largest logit is their label's, in [0, 1].

    Args:
      logits: [n, classes]; labels: int [n]; n >= 1.
    """
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    if not len(labels):
        raise UserError("accuracy needs at least one clip")
    return float(np.mean(np.argmax(np.asarray(logits), -1) == np.asarray(labels)))


def draw_pairs(n: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Returns int [2, pairs]: two draws from 0 .. n - 1, each without replacement.

    A pair may be one number twice, as in the published evaluations.

    Raises:
      UserError: more pairs than there are numbers.
    """
    if not 1 <= pairs <= n:
        raise UserError(f"{pairs} pairs of {n}: must be from 1 to {n}")
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(n)[:pairs] for _ in range(2)])


def diversity(features, pairs: int | np.ndarray = DIVERSITY_PAIRS, seed: int = 0) -> float:
    """Returns the mean distance over random pairs of embeddings.

    Guo et al. 2020. Best near the same number of real clips: neither high nor low is good.

    Args:
      features: [n, d].
      pairs: how many, drawn by `draw_pairs`; or int [2, pairs], the pairs themselves.
      seed: of the draw.

    Raises:
      UserError: more pairs than clips.
    """
    chex.assert_rank(features, 2)
    features = np.asarray(features, np.float64)
    first, second = draw_pairs(len(features), pairs, seed) if np.ndim(pairs) == 0 else pairs
    return float(np.mean(np.linalg.norm(features[first] - features[second], axis=-1)))


def multimodality(features, pairs: int | np.ndarray = MULTIMODALITY_PAIRS, seed: int = 0) -> float:
    """Returns the mean distance between clips that were made for one condition.

    Guo et al. 2020. The same pairs of repetitions are taken for all conditions.

    Args:
      features: [conditions, repetitions, d].
      pairs: how many, drawn by `draw_pairs`; or int [2, pairs], the pairs themselves.
      seed: of the draw.

    Raises:
      UserError: more pairs than repetitions.
    """
    chex.assert_rank(features, 3)
    features = np.asarray(features, np.float64)
    first, second = draw_pairs(features.shape[1], pairs, seed) if np.ndim(pairs) == 0 else pairs
    return float(np.mean(np.linalg.norm(features[:, first] - features[:, second], axis=-1)))


def replications(values) -> tuple[float, float]:
    """Returns (mean, half of the published 95 % interval) of a metric that was taken again.

    1.96 standard deviations over sqrt(n), with the standard deviation divided by n and not by
    n - 1, as published. It says how far more replications of one network would move the mean; for
    comparing networks take `intervals`.

    Args:
      values: [n], one a replication; n >= 1.
    """
    values = np.asarray(values, np.float64)
    chex.assert_rank(values, 1)
    if not len(values):
        raise UserError("an interval over replications needs at least one")
    return float(values.mean()), float(1.96 * values.std() / np.sqrt(len(values)))


def _moves(joints, mask) -> tuple[np.ndarray, np.ndarray]:
    """(joints float64 [B, N, J, 3], which pairs of frames are inside the clip, bool [B, N - 1])."""
    chex.assert_rank(joints, 4)
    joints = np.asarray(joints, np.float64)
    if joints.shape[1] < 2 or joints.shape[-1] != 3:
        raise UserError(f"joints must be [clips, frames >= 2, joints, 3], got {joints.shape}")
    if mask is None:
        return joints, np.ones((len(joints), joints.shape[1] - 1), bool)
    mask = np.asarray(mask, bool)
    if mask.shape != joints.shape[:2]:
        raise UserError(f"the mask is {mask.shape}, the joints have frames {joints.shape[:2]}")
    return joints, mask[:, 1:] & mask[:, :-1]


def joint_speed(joints, fps: float, mask=None) -> np.ndarray:
    """Returns each clip's mean speed over joints and frames, [B] float64, units a second.

    Near 0 for a body that stands frozen. A clip of fewer than two frames has NaN.

    Args:
      joints: positions [B, N, J, 3].
      fps: frames a second.
      mask: bool [B, N], the frames of each clip; None: all.
    """
    joints, inside = _moves(joints, mask)
    speed = fps * np.linalg.norm(np.diff(joints, axis=1), axis=-1).mean(-1)
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(inside, speed, 0), 1) / np.sum(inside, 1)


class FootSkate(NamedTuple):
    """How much feet slide while they stand.

    Attributes:
      ratio: share of frames in which a foot in contact slides further than the threshold.
      of_contact: the same as a share of the frames in which a foot is in contact.
      speed: mean horizontal speed of a foot in contact, units a second.
      contact: share of frames in which a foot is in contact: without it a ratio of 0 says little.
    """

    ratio: float
    of_contact: float
    speed: float
    contact: float


def foot_skate(
    joints, feet, fps: float, mask=None, *, height: float = 0.05, slide: float = 0.025, up: int = 1
) -> FootSkate:
    """Returns how much feet slide while they stand, over all frames of all clips.

    A foot is in contact from frame t to t + 1 where its joint is lower than `height` above the
    floor in both; it slides where it then moves by more than `slide` in the horizontal plane. A
    frame counts as sliding if one foot of it does. Karunratanakul et al. 2023 (their "foot skating
    ratio", 2.5 cm a frame at 20 frames a second under 5 cm of height); `of_contact` and `speed` are
    ours. At another frame rate scale `slide`, or compare `speed`.

    The floor is at 0 of the axis `up`. Shares are of pairs of consecutive frames. NaN where there
    is nothing to take a share or a mean of.

    Args:
      joints: positions [B, N, J, 3], in metres for the default thresholds.
      feet: which joints are feet, one index a foot.
      fps: frames a second.
      mask: bool [B, N], the frames of each clip; None: all.
      height, slide: the thresholds, in units of the positions.
      up: which axis is vertical.

    Raises:
      UserError: a joint that is not there, a threshold not above 0, positions or mask of another
        shape.
    """
    joints, inside = _moves(joints, mask)
    feet = np.asarray(feet)
    if feet.ndim != 1 or not len(feet) or feet.min() < 0 or feet.max() >= joints.shape[2]:
        raise UserError(f"feet {feet.tolist()}: joints are 0 .. {joints.shape[2] - 1}")
    if not (height > 0 and slide > 0):
        raise UserError(f"height {height} and slide {slide} must be above 0")
    foot = joints[:, :, feet]
    low = foot[..., up] < height
    contact = low[:, 1:] & low[:, :-1] & inside[..., None]
    moved = np.linalg.norm(np.delete(np.diff(foot, axis=1), up, axis=-1), axis=-1)
    sliding = np.any(contact & (moved > slide), -1).sum()
    standing, total = np.any(contact, -1).sum(), inside.sum()
    share = lambda part, whole: float(part / whole) if whole else float("nan")
    return FootSkate(
        ratio=share(sliding, total),
        of_contact=share(sliding, standing),
        speed=share(fps * np.sum(moved[contact]), contact.sum()),
        contact=share(standing, total),
    )
