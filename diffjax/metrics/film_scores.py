"""Scores of generated films against real ones: of their frames, and of what moves between them.

    kid_frames   the mean over t of KID between frame t of the made films and frame t of the real
    kid_motion   the same of the differences of features between frames t + 1 and t, of bounded size
                 (`bounded`)

Both compare films by films: frames of one film are no independent samples, and KID of all frames in
one heap would be biased. A film whose frames are in a wrong order has good frames and bad motion.
What takes longer than one frame is not heard.

Differences as they are would not do. They are small, and a cubic kernel of small features hears
their mean alone, which for films that go all ways is 0; enlarged, it hears the few hard cuts of a
set alone; whitened, too many directions. On animated emoji, 100 against 100 films, only bounded
ones told films that stand still from real ones.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffjax.errors import UserError, choose
from diffjax.metrics.features import FeatureNet, extract, feature_net
from diffjax.metrics.kid import kid

LEAST = 2  # films of a set that KID is taken of


def of_frames(made: np.ndarray, real: np.ndarray, seed: int = 0) -> float:
    """The mean over t of KID between [:, t] of two sets, float32 [n, T, d] and [m, T, d].

    Raises:
      UserError: films of different lengths, or fewer than two in a set.
    """
    if made.shape[1] != real.shape[1]:
        raise UserError(f"films of {made.shape[1]} frames against films of {real.shape[1]}")
    at = lambda t: kid(made[:, t], real[:, t], seed=seed).value
    return float(np.mean([at(t) for t in range(real.shape[1])]))


def motion(features: np.ndarray) -> np.ndarray:
    """[n, T, d] -> [n, T - 1, d]: from each frame to the next."""
    return np.diff(features, axis=1)


def typical(moved: np.ndarray) -> float:
    """The median over films and times of the mean square of a difference [n, T - 1, d]."""
    return max(float(np.median(np.mean(np.square(moved, dtype=np.float64), -1))), 1e-12)


def bounded(moved: np.ndarray, size: float) -> np.ndarray:
    """x/sqrt(mean(x^2) + size) of differences [n, T - 1, d]: their mean squares stay below 1.

    size: `typical` of the real films', whose mean squares become 1/2.
    """
    moved = np.asarray(moved, np.float64)
    return moved / np.sqrt(np.mean(moved**2, -1, keepdims=True) + size)


def features_of(net: FeatureNet, films: np.ndarray, sharding=None) -> np.ndarray:
    """The net's features of every frame: uint8 [n, T, H, W, C] -> float32 [n, T, d]."""
    films = np.asarray(films)
    frames = films.reshape(-1, *films.shape[2:])
    return extract(net, frames, sharding=sharding).reshape(*films.shape[:2], -1)


def _frames(made, real, size: float, seed: int) -> float:
    return of_frames(made, real, seed)


def _motion(made, real, size: float, seed: int) -> float:
    return of_frames(bounded(motion(made), size), bounded(motion(real), size), seed)


METRICS = {"kid_frames": _frames, "kid_motion": _motion}


def scorer(
    source,
    metrics: Sequence[str],
    net: str,
    *,
    limit: int = 5_000,
    sharding=None,
    cache: Path | None = None,
) -> Callable:
    """Returns score(outputs, seed) -> a JSON-ready dict, for samples against a source's films.

    Each score stands beside its floor, the same score of one random half of the real films against
    the other.

    Args:
      source: of films (`data.films`); more than `limit` are thinned evenly.
      metrics: of METRICS.
      net: a feature net's name.
      sharding: of a batch over devices, as in `features.batches`.
      cache: not used.

    Raises:
      UserError: an unknown net or metric, or too few films.
    """
    made_by = feature_net(net)
    if not metrics:
        raise UserError(f"--metrics is empty (of films: {', '.join(METRICS)})")
    for name in metrics:
        choose(name, METRICS, "metric of films:")
    if len(source) < LEAST:
        raise UserError(f"scores of films need at least {LEAST} of them, {source.name} has fewer")

    @functools.cache
    def reference() -> np.ndarray:
        at = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))
        return features_of(made_by, np.stack([source[int(i)]["image"] for i in at]), sharding)

    @functools.cache
    def floor_of(name: str, seed: int) -> float | None:
        real = reference()
        order, half = np.random.default_rng(seed).permutation(len(real)), len(real) // 2
        one, other = real[order[:half]], real[order[half : 2 * half]]
        return METRICS[name](one, other, typical(motion(real)), seed) if half >= LEAST else None

    def score(outputs: dict, seed: int) -> dict:
        made = np.asarray(outputs["image"])
        if len(made) < LEAST:
            raise UserError(f"scores of films need at least {LEAST} samples, got {len(made)}")
        real, made = reference(), features_of(made_by, made, sharding)
        size, scores = typical(motion(real)), {}
        for name in dict.fromkeys(metrics):
            value = METRICS[name](made, real, size, seed)
            scores[name] = {"value": value, "floor": floor_of(name, seed)}
        return {
            "feature_net": made_by.name,
            "num_fake": len(made),
            "num_real": len(real),
            "floor_num": len(real) // 2,
            "seed": seed,
            "scores": scores,
        }

    return score
