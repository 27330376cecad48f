"""Episodes that nothing is trained on: games played for scores, starts for pictures and play."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.systems.diamond import segments
from diffjax.systems.diamond.collect import Played, Policy, collect
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.segments import Episode

SEED = 1_000_003  # added to the run's: these games are not those of the training


def uniform(actions: int) -> Policy:
    """The policy that knows nothing: every action is as likely."""
    return lambda obs, memory: (np.zeros((len(obs), actions)), np.zeros(len(obs)), memory)


def play(
    games: Games,
    policy: Policy,
    memory: Any,
    count: int,
    *,
    seed: int = 0,
    keep: int = 1000,
    most: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Played], list[Episode]]:
    """Plays games 0 to count - 1, as `collect.play_games`, and records their beginnings.

    Args:
      games: fresh, made without `life_ends`, so that an episode is a game.
      keep: how many steps of each are recorded.
      most: steps after which no game is waited for; those that are not over then have no score.
      stop: asked after every step; True: what was played so far is returned.

    Returns:
      (the games that were ended, the episodes of games 0, 1, ... as far as they came).
    """
    rows: dict[int, list[tuple]] = {}
    finals: dict[int, np.ndarray] = {}
    score: dict[int, float] = {}
    ended = []
    waited = lambda: (games.game < count) & (games.played < (most or np.inf))
    while waited().any() and not stop():
        found, memory = collect(games, policy, memory, 1, seed=seed)
        for n in range(games.count):
            game, played = int(found.game[0, n]), int(found.played[0, n])
            if game >= count:
                continue
            score[game] = score.get(game, 0.0) + float(found.rew[0, n])
            if played < keep:
                row = (found.obs, found.act, found.rew, found.end, found.trunc)
                rows.setdefault(game, []).append(tuple(part[0, n] for part in row))
            if found.over[0, n]:
                ended.append(Played(game, score[game], played + 1))
                if played < keep:
                    finals[game] = found.final[0, n]
    episodes = [
        Episode(*map(np.stack, zip(*rows[game], strict=True)), finals.get(game))
        for game in sorted(rows)
    ]
    return sorted(ended), episodes


def starts_of(episodes: Sequence[Episode], past: int, horizon: int, count: int) -> dict:
    """Cuts recorded roll-outs out of episodes: what a run keeps in its assets.

    Windows that are whole are taken first, spread evenly over all there are; where there are too
    few, the beginnings of episodes, the longest first.

    Returns:
      {"starts_obs": uint8 [S, past + horizon, H, W, 3], "starts_act": int32 [S, past + horizon],
      the action after each frame, "starts_length": int32 [S], how many frames are real: what
      comes after repeats the last}.

    Raises:
      UserError: no episode of more than `past` frames.
    """
    length = past + horizon
    frames = [
        e.obs if e.final is None else np.concatenate([e.obs, e.final[None]]) for e in episodes
    ]
    whole = [(i, t) for i, f in enumerate(frames) for t in range(len(f) - length + 1)]
    if len(whole) > count:
        whole = [whole[i] for i in np.linspace(0, len(whole) - 1, count).astype(int)]
    taken = {i for i, _ in whole}
    others = sorted(
        (i for i, f in enumerate(frames) if i not in taken and len(f) > past),
        key=lambda i: -len(frames[i]),
    )
    places = whole + [(i, 0) for i in others[: count - len(whole)]]
    if not places:
        raise UserError(f"no recorded episode has more than {past} frames: nothing can begin there")
    obs, act, real = [], [], []
    for i, t in places:
        seen, done = frames[i][t : t + length], episodes[i].act[t : t + length]
        real.append(len(seen))
        obs.append(np.concatenate([seen, np.repeat(seen[-1:], length - len(seen), 0)]))
        act.append(np.concatenate([done, np.zeros(length - len(done), np.int32)]))
    return {
        "starts_obs": np.stack(obs),
        "starts_act": np.stack(act).astype(np.int32),
        "starts_length": np.array(real, np.int32),
    }


class Some:
    """A part of a sequence of episodes, with `lengths`."""

    def __init__(self, episodes: Sequence[Episode], numbers: Sequence[int]):
        self._episodes, self._numbers = episodes, list(numbers)
        self.lengths = np.array([len(episodes[i].act) for i in numbers], np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> Episode:
        return self._episodes[self._numbers[i]]


def split(episodes, share: float, where: str) -> tuple[Some, Some]:
    """Returns (what is trained on, what is held out), the last `share` of the episodes.

    Raises:
      UserError: a single episode.
    """
    count = len(episodes)
    if count < 2:
        raise UserError(f"{where}: a single episode; at least two are wanted, as one is held out")
    held = min(count - 1, max(1, round(share * count)))
    return Some(episodes, range(count - held)), Some(episodes, range(count - held, count))


def losses(
    loss: Callable, params, episodes: Sequence[Episode], batch: int, span: int, names, seed: int
) -> dict[str, np.ndarray]:
    """The mean of a network's loss and metrics over a walk through all of the episodes.

    Args:
      loss: jitted (params, batch, keys [B]) -> (scalar, {name: array}), see `state.loss_of`.
      batch, span: as in training; segments of fewer than two steps are left out.
      names: fields of a batch.
      seed: of the noise, which is the same at every call.

    Returns:
      {"loss": float64, name: array}: confusion matrices are sums, the rest means over batches,
      each counted by its segments; {} where there is no segment.
    """
    pieces = segments.traversal([len(e.act) for e in episodes], span)
    base, totals, weights = jax.random.key(seed), {}, 0
    for first in range(0, len(pieces), batch):
        some = pieces[first : first + batch]
        rows = [segments.segment(episodes[e], start, start + span) for e, start, _ in some]
        missing = batch - len(rows)
        made = {name: np.stack([row[name] for row in rows + rows[:1] * missing]) for name in names}
        made["mask"][len(rows) :] = False
        index = np.arange(first, first + batch)
        keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(index)
        value, metrics = jax.device_get(loss(params, made, keys))
        for name, x in {"loss": value, **metrics}.items():
            share = 1 if name.startswith("confusion") else len(rows)
            totals[name] = totals.get(name, 0) + share * np.asarray(x, np.float64)
        weights += len(rows)
    return {k: v if k.startswith("confusion") else v / weights for k, v in totals.items()}


def of_confusion(name: str, counts: np.ndarray) -> dict[str, float]:
    """{"NAME_accuracy", "NAME_precision_K", "NAME_recall_K", "NAME_f1_K"} for each class K there
    is, of counts with a row a truth and a column a prediction."""
    counts = np.asarray(counts, np.float64)
    found = {f"{name}_accuracy": float(np.trace(counts) / max(counts.sum(), 1))}
    for k in range(len(counts)):
        hit, truth, guess = counts[k, k], counts[k].sum(), counts[:, k].sum()
        if truth:
            found[f"{name}_recall_{k}"] = float(hit / truth)
        if guess:
            found[f"{name}_precision_{k}"] = float(hit / guess)
        if truth or guess:
            found[f"{name}_f1_{k}"] = float(2 * hit / (truth + guess))
    return found
