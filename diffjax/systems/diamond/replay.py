"""What was played, on disk: it survives a kill at any moment, and nothing is stored twice.

A replay is a folder of episodes (`episodes.py`) and one small file, `seats.npz`, that says how far
each seat has come. Episodes are written first, each whole or not at all, `seats.npz` last: what it
does not confirm was cut off by a kill: it does not count, and is written over by what comes next.
Nothing else is remembered: the list of episodes is made from the files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax.data.npz import read_array
from diffjax.data.reading import open_zip, size_text
from diffjax.errors import UserError
from diffjax.systems.diamond.collect import Steps
from diffjax.systems.diamond.episodes import (
    FRAMES,
    MEMORY,
    SMALL,
    Kept,
    Where,
    episode_path,
    read_episode,
    write_arrays,
    write_episode,
)
from diffjax.systems.diamond.segments import Episode

SEATS = "seats.npz"


class Entry(NamedTuple):
    """What is known of an episode without its frames.

    Attributes:
      length: how many of its steps count.
      where: see `Where`.
      open: whether it goes on: it has neither ended nor been cut.
      signs: how many rewards are negative, zero and positive.
      ends: how many of its steps end an episode, 0 or 1.
    """

    length: int
    where: Where
    open: bool
    signs: tuple[int, int, int]
    ends: int


class Resume(NamedTuple):
    """What it takes to play on: for `Games.restore` and `collect`.

    Attributes:
      game: int64 [N], the number of the game that each seat plays.
      actions: N lists, what was done in that game so far.
      memory: the policy's, as it was given to `Replay.add`; before the first, as asked for.
    """

    game: np.ndarray
    actions: list[np.ndarray]
    memory: Any


class Replay:
    """The episodes of N seats. One process writes; others may read and `refresh`.

    `replay[i]` is an `Episode` in the order of collection.

    Args:
      path: the folder; made where it is not there.
      seats: N.
      writable: whether `add` and `clear` may be called.
      memory: bytes of frames that are kept in memory; those beyond are mapped from their files.

    Attributes:
      seats: N.
      steps: in each seat.
      shapes, actions: of what was in the files when they were last looked through: every shape of
        frames, and 1 + the largest action.

    Raises:
      UserError: a folder with another number of seats, files that are damaged or missing.
    """

    def __init__(
        self, path: str | Path, seats: int = 1, *, writable: bool = True, memory: int = MEMORY
    ):
        self.path, self.seats, self.writable = Path(path), seats, writable
        self._memory_bytes = memory
        if seats < 1:
            raise UserError(f"{path}: {seats} seats, at least 1 is wanted")
        if writable:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / SEATS).exists() and not any(self._files("*.npz")):
                self._confirm(0, np.arange(seats), np.zeros(seats, np.int64), None)
            for file in (self.path / f"{SEATS}.tmp", *self._files("*.npz.tmp")):
                file.unlink(missing_ok=True)  # of a process that was killed
        self.refresh()

    def refresh(self) -> None:
        """Makes the list of episodes from the files again."""
        self.steps, self._game, self._played, self._memory = self._confirmed()
        self.entries: list[Entry] = []
        self.shapes, self.actions = set(), 0
        self._opened = Kept(self._memory_bytes)
        total = np.zeros(self.seats, np.int64)
        while (total < self.steps).any():
            number = len(self.entries)
            file = self.path / episode_path(number)
            if not file.is_file():
                raise UserError(
                    f"{file}: not there, and {SEATS} says {self.steps} steps a seat; a replay "
                    "cannot do without one of its episodes"
                )
            episode, where = read_episode(file)
            if where is None or where.seat >= self.seats or where.first != total[where.seat]:
                raise UserError(f"{file}: it is not the episode that comes here; is it a copy?")
            entry = _entry(episode, where, self.steps - where.first)
            total[where.seat] += entry.length
            self.entries.append(entry)
            self.shapes.add(episode.obs.shape[1:])
            self.actions = max(self.actions, 1 + int(episode.act.max()))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Episode:
        number = range(len(self.entries))[number]
        entry = self.entries[number]
        file = self.path / episode_path(number)
        return self._opened.get(number, lambda: _first(read_episode(file)[0], entry.length))

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, int64 [n]."""
        return np.array([entry.length for entry in self.entries], np.int64)

    @property
    def signs(self) -> np.ndarray:
        """How many rewards are negative, zero and positive, int64 [3]."""
        return np.array([e.signs for e in self.entries], np.int64).reshape(-1, 3).sum(0)

    @property
    def ends(self) -> int:
        """How many episodes ended, not counting those that were cut."""
        return sum(entry.ends for entry in self.entries)

    def add(self, steps: Steps, memory: Any = None) -> None:
        """Appends what was collected, all of it or, if this process is killed, nothing.

        Args:
          steps: of N seats, from where the last call ended.
          memory: the policy's after them, a pytree of arrays, or None. It is stored.

        Raises:
          UserError: steps of other seats, or that do not follow those that are here.
        """
        self._may_write()
        count, seats = steps.act.shape
        follows = (steps.game[0] == self._game) & (steps.played[0] == self._played)
        if seats != self.seats or not follows.all():
            raise UserError(
                f"{self.path}: the steps are of games {steps.game[0].tolist()} after "
                f"{steps.played[0].tolist()} steps, where games {self._game.tolist()} after "
                f"{self._played.tolist()} come next"
            )
        dead = steps.end | steps.trunc
        fresh = []
        for seat in range(seats):
            stops = [*(np.flatnonzero(dead[:-1, seat]) + 1).tolist(), count]
            for start, stop in zip([0, *stops], stops):
                fresh.append((self.steps + start, seat, start, stop))
        going = {e.where.seat: i for i, e in enumerate(self.entries) if e.open}
        entries = dict(enumerate(self.entries))
        # By their first steps: then numbers do not depend on how much is added at once.
        for first, seat, start, stop in sorted(fresh):
            piece = _piece(steps, seat, start, stop)
            over = int(steps.over[stop - 1, seat])
            if start == 0 and seat in going:
                number = going[seat]
                piece = _joined(self[number], piece)
                where = self.entries[number].where._replace(over=over)
            else:
                number = len(entries)
                game, played = int(steps.game[start, seat]), int(steps.played[start, seat])
                where = Where(seat, first, game, played, over)
            write_episode(self.path / episode_path(number), piece, where)
            entries[number] = _entry(piece, where, len(piece.act))
            self._opened.drop(number)
        last_over = steps.over[-1]
        self._confirm(
            self.steps + count,
            np.where(last_over, steps.game[-1] + seats, steps.game[-1]),
            np.where(last_over, 0, steps.played[-1] + 1),
            memory,
        )
        self.entries = [entries[i] for i in range(len(entries))]

    def resume(self, like: Any = None) -> Resume:
        """Returns what it takes to play on; raises `UserError` where the files do not have it.

        Args:
          like: a memory as it is at the very start, or None to do without.
        """
        actions: list[list[np.ndarray]] = [[] for _ in range(self.seats)]
        for number, entry in enumerate(self.entries):
            if entry.where.game == self._game[entry.where.seat]:
                actions[entry.where.seat].append(self[number].act)
        joined = [np.concatenate([np.zeros(0, np.int32), *parts]) for parts in actions]
        if [len(a) for a in joined] != self._played.tolist():
            raise UserError(f"{self.path}: the games that go on lack some of their episodes")
        if like is None or not self.steps:
            return Resume(self._game, joined, like)
        if [x.shape for x in jax.tree.leaves(like)] != [x.shape for x in self._memory]:
            raise UserError(f"{self.path / SEATS}: the memory in it is of another policy")
        memory = jax.tree.unflatten(jax.tree.structure(like), self._memory)
        return Resume(self._game, joined, memory)

    def clear(self) -> None:
        """Removes everything; the games' numbers begin at 0 again."""
        self._may_write()
        self._confirm(0, np.arange(self.seats), np.zeros(self.seats, np.int64), None)
        for file in self._files("*.npz"):
            file.unlink()
        self.refresh()

    # ---- the file that confirms ----------------------------------------------------------------

    def _confirmed(self) -> tuple[int, np.ndarray, np.ndarray, list[np.ndarray]]:
        file = self.path / SEATS
        if not file.is_file():
            raise UserError(f"{self.path}: no replay, it has no {SEATS}")
        with open_zip(file) as archive:
            names = archive.namelist()
            for name in ("steps", "game", "played"):
                if f"{name}.npy" not in names:
                    raise UserError(f"{file}: has no array {name!r}")
            steps, game, played = (
                read_array(archive, k, "i", SMALL) for k in ("steps", "game", "played")
            )
            count = sum(n.startswith("memory_") for n in names)
            keys = [f"memory_{i}" for i in range(count)]
            if not {f"{k}.npy" for k in keys} <= set(names):
                raise UserError(f"{file}: some of the policy's memory is missing")
            memory = [read_array(archive, k, "fiub", SMALL) for k in keys]
        if steps.shape or game.shape != (self.seats,) or played.shape != game.shape or steps < 0:
            raise UserError(f"{file}: it is of {game.size} seats, not {self.seats}")
        return int(steps), game, played, memory

    def _confirm(self, steps: int, game: np.ndarray, played: np.ndarray, memory: Any) -> None:
        leaves = [np.asarray(x) for x in jax.tree.leaves(memory)]
        arrays = {"steps": np.int64(steps), "game": game, "played": played}
        arrays |= {f"memory_{i}": leaf for i, leaf in enumerate(leaves)}
        write_arrays(self.path / SEATS, arrays)
        self.steps, self._game, self._played, self._memory = steps, game, played, leaves

    def _may_write(self) -> None:
        if not self.writable:
            raise UserError(f"{self.path}: opened to be read only")

    def _files(self, pattern: str):
        return [f for f in self.path.glob(f"*/*/*/{pattern}") if f.name.split(".")[0].isdigit()]


def _entry(episode: Episode, where: Where, limit: int) -> Entry:
    """The entry of an episode of which only the first `limit` steps are confirmed."""
    length = min(len(episode.act), limit)
    rew, end = episode.rew[:length], episode.end[:length]
    signs = int((rew < 0).sum()), int((rew == 0).sum()), int((rew > 0).sum())
    over = bool(end.any() or episode.trunc[:length].any())
    if length < len(episode.act):
        where = where._replace(over=0)
    return Entry(length, where, not over, signs, int(end.sum()))


def _first(episode: Episode, length: int) -> Episode:
    if length == len(episode.act):
        return episode
    return Episode(*(x[:length] for x in episode[:5]), None)


def _piece(steps: Steps, seat: int, start: int, stop: int) -> Episode:
    rows = (slice(start, stop), seat)
    parts = (steps.obs[rows], steps.act[rows], steps.rew[rows], steps.end[rows], steps.trunc[rows])
    return Episode(*parts, steps.final.get((stop - 1, seat)))


def _joined(before: Episode, after: Episode) -> Episode:
    parts = [np.concatenate([a, b]) for a, b in zip(before[:5], after[:5], strict=True)]
    return Episode(*parts, after.final)


# ---- other episodes ----------------------------------------------------------------------------


class Folder(Sequence):
    """Recorded episodes of one's own: every .npz in a folder and below it, by name.

    `folder[i]` is an `Episode`; `lengths` int64 [n]; `actions`, 1 + the largest there is. See
    `episodes.py` for what a file holds. Frames are kept in memory up to `memory` bytes, those
    beyond are mapped from their files.

    Raises:
      UserError: no such folder, no files in it, a damaged one, or frames of several sizes.
    """

    def __init__(self, path: str | Path, *, memory: int = MEMORY):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{path}: no such folder of episodes")
        self.files = sorted(f for f in self.path.rglob("*.npz") if f.name != SEATS)
        if not self.files:
            raise UserError(f"{path}: no episodes in it (.npz files)")
        self._opened, lengths, room, first = Kept(memory), [], FRAMES, None
        self.actions = 0
        for file in self.files:
            episode = read_episode(file)[0]
            obs = episode.obs
            room -= 0 if isinstance(obs, np.memmap) else obs.nbytes
            if room < 0:
                raise UserError(
                    f"{path}: more than {size_text(FRAMES)} of compressed frames; write them with "
                    "np.savez, so that they need not be in memory"
                )
            first = obs.shape[1:] if first is None else first
            if obs.shape[1:] != first:
                found = list(obs.shape[1:])
                raise UserError(f"{file}: frames of {found}, the others are {list(first)}")
            lengths.append(len(episode.act))
            self.actions = max(self.actions, 1 + int(episode.act.max()))
        self.lengths = np.array(lengths, np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Episode:
        number = range(len(self.files))[number]
        return self._opened.get(number, lambda: read_episode(self.files[number])[0])


# ---- how much to collect -----------------------------------------------------------------------


def fill(
    replay: Replay,
    collect: Callable[[int, Any], tuple[Steps, Any]],
    memory: Any,
    target: int,
    *,
    piece: int = 100,
) -> Any:
    """Collects until a replay has `target` steps a seat; returns the policy's memory.

    Each piece is confirmed before the next begins, so a kill loses less than one.

    Args:
      replay: may have some of them already, after a kill.
      collect: (steps, memory) -> (Steps, memory), as `collect.collect` with the rest given.
      memory: the policy's.
      target: steps a seat.
      piece: how many at once. Pieces end at its multiples, wherever the replay begins.
    """
    while replay.steps < target:
        steps = min(target, replay.steps // piece * piece + piece) - replay.steps
        found, memory = collect(steps, memory)
        replay.add(found, memory)
    return memory


def first_target(
    replay: Replay, least: int = 5000, most: int = 10_000, *, enough: int = 10, piece: int = 100
) -> int:
    """Returns how many steps a seat DIAMOND's first collection has, or has next.

    There has to be something to learn a reward from: it goes on from `least` steps, by `piece`, to
    `most` at the latest, until `enough` rewards have one of the two signs that are rarest. It is a
    function of the first steps alone, so it is the same at any later time; call it and `fill` until
    the replay has as many.
    """
    rew = np.full((most, replay.seats), np.nan, np.float32)
    for number, entry in enumerate(replay.entries):
        if entry.where.first < most:
            piece_of = replay[number].rew[: most - entry.where.first]
            rew[entry.where.first : entry.where.first + len(piece_of), entry.where.seat] = piece_of
    for steps in range(least, most, piece):
        signs = np.sign(rew[:steps])
        counts = [int((signs == sign).sum()) for sign in (-1, 0, 1)]
        if steps > replay.steps or sum(sorted(counts)[:2]) >= enough:
            return steps
    return most
