"""Batches of episodes for calls of several updates: functions of seed, network, step and episodes.

Nothing is drawn that is stored, so that training goes on anywhere.
"""

from collections.abc import Sequence

import numpy as np

from diffjax.systems.diamond import segments
from diffjax.systems.diamond.settings import GROUPS


class Before:
    """A replay as it was after `steps` steps a seat, `segments.Episode`s with `lengths`.

    A run that was killed may go on from before what is on disk already; it is to learn from what it
    would have had, were it not for the kill. An episode is numbered by its first step, so what came
    later comes last.
    """

    def __init__(self, replay, steps: int):
        self._replay = replay
        firsts = (entry.where.first for entry in replay.entries)
        left = [steps - first for first in firsts if first < steps]
        self.lengths = np.minimum(replay.lengths[: len(left)], left).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> segments.Episode:
        episode, length = self._replay[number], self.lengths[number]
        if length == len(episode.act):
            return episode
        return segments.Episode(*(x[:length] for x in episode[:5]), None)


class Batches:
    """What one network is trained on.

    Args:
      episodes: a sequence of `segments.Episode` with `lengths`, as `replay.Replay`. It may grow; of
        what it has when this is made batches are drawn.
      batch: B.
      span: steps in a segment.
      seed: whole numbers, such as (the run's seed, the network's number).
      weights: of the quarters of the episodes, or None, as `segments.probabilities` takes them.
      both: whether a segment may lie beyond the episode's end.
    """

    def __init__(
        self,
        episodes,
        batch: int,
        span: int,
        seed: Sequence[int],
        weights: Sequence[float] | None,
        *,
        both: bool = False,
    ):
        self.episodes, self.lengths = episodes, np.asarray(episodes.lengths)
        self._chances = segments.probabilities(self.lengths, weights)
        self._how = {"batch": batch, "span": span, "seed": seed, "both": both}

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, {name: [B, ...]}; see `segments.segment`."""
        drawn = segments.draw(self.lengths, self._chances, step=step, **self._how)
        return segments.batch_of(self.episodes, *drawn, span=self._how["span"])

    def stack(self, first: int, count: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some fields of batches first ... first + count - 1, {name: [count, B, ...]}."""
        rows = [self[step] for step in range(first, first + count)]
        return {name: np.stack([row[name] for row in rows]) for name in names}


FIELDS = {
    "denoiser": ("obs", "act", "mask"),
    "rew_end_model": ("obs", "act", "rew", "end", "mask", "final", "has_final"),
}


def spans(config) -> dict[str, int]:
    """{network: steps in its segments}; the policy's are what an imagined episode begins from."""
    past = config.past_frames
    return {
        "denoiser": past + 1 + config.denoiser.generated_frames,
        "rew_end_model": config.reward_end.segment,
        "actor_critic": past,
    }


def make(config, episodes, network: str, *, static: bool, epoch: int = 0) -> Batches:
    """Returns the `Batches` of a network.

    Args:
      static: recorded episodes rather than a replay: each is then as likely as it is long.
      epoch: the policy's are counted from 0 in each, the others go on.
    """
    number = list(spans(config)).index(network)
    seed = (config.seed, number, epoch) if network == "actor_critic" else (config.seed, number)
    return Batches(
        episodes,
        config[GROUPS[network]].batch_size,
        spans(config)[network],
        seed,
        None if static else tuple(config.sample_weights),
        both=network == "rew_end_model",
    )
