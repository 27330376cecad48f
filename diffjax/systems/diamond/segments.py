"""Which parts of which episodes a batch is made of: functions of lengths, seed and step.

The rules are those of DIAMOND's released code (Alonso et al. 2024): newer episodes are drawn more
often, segments may begin before an episode or end after it, and what is not there is padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.errors import UserError

WEIGHTS = (0.1, 0.1, 0.1, 0.7)  # of the quarters of the episodes, oldest first

# uint8 -> float32 in [-1, 1], computed by NumPy: XLA turns the division into a product, which
# changes the last bit of most of these numbers.
PIXELS = (np.arange(256, dtype=np.float32) / np.float32(255)) * np.float32(2) - np.float32(1)


class Episode(NamedTuple):
    """One life, or one game.

    Attributes:
      obs: uint8 [T, H, W, 3], the frame before each action; it may be mapped from a file.
      act: int32 [T].
      rew: float32 [T], as the game gives it.
      end, trunc: bool [T]; where either is true, which only the last may be, the episode is over.
      final: uint8 [H, W, 3], the frame after the last action, or None where it is not known.
    """

    obs: np.ndarray
    act: np.ndarray
    rew: np.ndarray
    end: np.ndarray
    trunc: np.ndarray
    final: np.ndarray | None = None


def probabilities(lengths: Sequence[int], weights: Sequence[float] | None = WEIGHTS) -> np.ndarray:
    """Returns each episode's probability in a draw, float64 [n].

    Args:
      lengths: of the episodes in the order of their collection, n >= 1.
      weights: the episodes are cut into as many groups of n // len(weights) (the last takes what
        remains); a group has its weight, and its episodes share it evenly. With fewer episodes than
        weights, or with None, an episode is as likely as it is long.
    """
    lengths = np.asarray(lengths)
    if not len(lengths) or lengths.min() < 1:
        raise UserError("a batch needs at least one episode, each of at least one step")
    if weights is None or len(lengths) < len(weights):
        return lengths / lengths.sum()
    weights = np.asarray(weights, np.float64)
    if weights.min() < 0 or not weights.sum() > 0:
        raise UserError(f"sample weights {weights.tolist()}: not below 0, and not all of them 0")
    group = len(lengths) // len(weights)
    sizes = [group] * (len(weights) - 1) + [len(lengths) - group * (len(weights) - 1)]
    each = np.repeat(weights / sizes, sizes)
    return each / each.sum()


def draw(
    lengths: Sequence[int],
    chances: np.ndarray,
    batch: int,
    span: int,
    *,
    seed: Sequence[int],
    step: int,
    both: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the segments of one batch; it is a function of its arguments alone.

    An episode is drawn, then one of its T steps, t, then where in the segment it lies.

    Args:
      lengths, chances: of the episodes, as `probabilities` returns them.
      batch: B, how many segments.
      span: L, steps in a segment.
      seed: whole numbers, such as (the run's seed, which of its models).
      step: of the training.
      both: whether a segment may lie beyond the episode's end too (the reward model's do). If not,
        it ends at the end at the latest, and only what is before the episode is padding.

    Returns:
      (episode int64 [B], start int64 [B]); a segment is [start, start + L), and start may be
      negative.
    """
    lengths = np.asarray(lengths)
    random = np.random.default_rng([*seed, step])
    u = random.random((3, batch))
    episode = np.searchsorted(np.cumsum(chances), u[0], side="right")
    episode = np.minimum(episode, len(lengths) - 1)  # the last sum may round to less than 1
    length = lengths[episode]
    t, offset = (u[1] * length).astype(np.int64), (u[2] * span).astype(np.int64)
    if both:
        return episode, t - offset
    return episode, np.minimum(length, t + 1 + offset) - span


def segment(episode: Episode, start: int, stop: int) -> dict[str, np.ndarray]:
    """Cuts [start, stop) out of an episode, and pads with zeros what is not in it.

    Returns:
      obs uint8 [L, H, W, 3], act int32, rew float32, end, trunc bool [L]; mask bool [L], true where
      the episode is; final uint8 [H, W, 3], the episode's, and has_final bool. Padding is action 0
      and, after `pixels`, mid-grey.
    """
    length, span = len(episode.act), stop - start
    low, high = max(start, 0), min(stop, length)
    if low >= high:
        raise UserError(f"segment [{start}, {stop}) has no step of an episode of {length}")

    def cut(x: np.ndarray) -> np.ndarray:
        out = np.zeros((span, *x.shape[1:]), x.dtype)
        out[low - start : high - start] = x[low:high]
        return out

    mask = np.zeros(span, bool)
    mask[low - start : high - start] = True
    final = episode.final
    return {
        **{k: cut(getattr(episode, k)) for k in ("obs", "act", "rew", "end", "trunc")},
        "mask": mask,
        "final": np.zeros(episode.obs.shape[1:], np.uint8) if final is None else np.array(final),
        "has_final": np.array(final is not None),
    }


def batch_of(episodes, episode: np.ndarray, start: np.ndarray, span: int) -> dict[str, np.ndarray]:
    """Stacks the segments [start_b, start_b + span) of `episodes[episode_b]`; see `segment`."""
    rows = [segment(episodes[int(e)], int(s), int(s) + span) for e, s in zip(episode, start)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def traversal(lengths: Sequence[int], span: int) -> list[tuple[int, int, int]]:
    """Returns every (episode, start, stop) of a walk through all episodes, for test losses.

    Each is cut into pieces of `span` steps; a last piece of a single step is left out. `stop` is
    clipped to the episode: `segment(e, start, start + span)` pads the rest.
    """
    return [
        (e, start, min(start + span, length))
        for e, length in enumerate(map(int, lengths))
        for start in range(0, length, span)
        if min(start + span, length) - start > 1
    ]


def pixels(obs, mask=None, xp=np):
    """Turns levels into float32 pixels in [-1, 1]; padding becomes 0, mid-grey.

    Args:
      obs: uint8 [..., H, W, 3].
      mask: bool [...], false where obs is padding; None: nowhere.
      xp: numpy, or jax.numpy under jit.
    """
    x = xp.take(xp.asarray(PIXELS), obs.astype("int32"), axis=0)
    return x if mask is None else xp.where(mask[..., None, None, None], x, xp.zeros_like(x))
