"""Many games at once, played step by step; every game can be made again alone from its number.

`count` seats play games 0, 1, 2, ...: seat i plays i, i + count, i + 2 count and so on. Game g is
reset with a seed that depends on (seed, g) alone, so neither the number of seats nor the processes
that they live in change it, and a game that was interrupted is restored by playing its actions.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffjax.errors import UserError


class Step(NamedTuple):
    """What one step did in N seats.

    Attributes:
      obs: uint8 [N, H, W, 3], what is seen next: where the game is over, the next game's start.
      reward: float32 [N], as the game gives it.
      end: bool [N], whether the episode ended: the game did, or a life was lost and that ends one.
      trunc: bool [N], whether the game was stopped by its time limit.
      over: bool [N], whether the game is over, for either reason.
      final: uint8 [N, H, W, 3], the frame after the step: `obs`, but where a game is over its last.
    """

    obs: np.ndarray
    reward: np.ndarray
    end: np.ndarray
    trunc: np.ndarray
    over: np.ndarray
    final: np.ndarray


class Seat:
    """One place where games are played one after the other; see the module."""

    def __init__(
        self,
        make: Callable[[], Any],
        seed: int,
        first: int,
        stride: int,
        life_ends: bool,
        limit: int,
    ):
        self._env, self._seed, self._stride, self._life_ends = make(), seed, stride, life_ends
        self._game, self._limit, self._played = first, limit, 0
        self.num_actions = int(self._env.action_space.n)

    def begin(self) -> np.ndarray:
        (word,) = np.random.SeedSequence([self._seed, self._game]).generate_state(1)
        self._played = 0
        return self._env.reset(seed=int(word) >> 1)[0]  # some games take 31 bits

    def step(self, action: int) -> tuple:
        obs, reward, terminated, truncated, info = self._env.step(int(action))
        self._played += 1
        truncated = truncated or (not terminated and self._played == self._limit)
        end = terminated or (self._life_ends and bool(info.get("life_loss", False)))
        final, over = obs, terminated or truncated
        if over:
            self._game += self._stride
            obs = self.begin()
        return obs, reward, end, truncated, over, final

    def restore(self, game: int, actions: Sequence[int]) -> np.ndarray:
        """Plays game `game` up to where these actions lead; returns the frame there."""
        self._game = int(game)
        obs = self.begin()
        for action in actions:
            obs, *_, over, _ = self.step(action)
            if over:
                raise UserError(
                    f"game {game} ended before its recorded actions did: it is not the same game, "
                    "or it is not determined by its seed"
                )
        return obs

    def close(self) -> None:
        self._env.close()


class Games:
    """N seats; a context manager, since some games hold processes or windows.

    Args:
      make: returns one game, see `diffjax.systems.diamond.games.make`. With processes it has to be
        picklable: `functools.partial(make, "Breakout")` is.
      count: N, the number of seats.
      seed: of all games.
      life_ends: whether a lost life ends an episode (not the game), as in DIAMOND's training.
      limit: steps after which a game that is not over is cut; 0: none is.
      processes: 0: the games are stepped one after the other in this process. Above 0: by so many
        others, each with its share of the seats. The same games either way.

    Attributes:
      num_actions: actions are 0 to num_actions - 1.
      obs: uint8 [N, H, W, 3], what the seats show now.
      game: int64 [N], the number of the game that each seat plays.
      played: int64 [N], how many steps of it are done.
    """

    def __init__(
        self,
        make,
        count: int = 1,
        seed: int = 0,
        *,
        life_ends: bool = False,
        limit: int = 0,
        processes: int = 0,
    ):
        if count < 1 or min(processes, seed, limit) < 0:
            raise UserError(
                f"games: count {count}, processes {processes}, seed {seed}, limit {limit}"
            )
        self.count = count
        share = [range(k, count, max(1, processes)) for k in range(min(max(1, processes), count))]
        words = [(make, seed, list(rows), count, life_ends, limit) for rows in share]
        self._groups = [_Remote(*w) if processes else _Local(*w) for w in words]
        self._rows = [list(rows) for rows in share]
        try:
            self.num_actions = self._ask("num_actions")[0]
            self.obs = np.stack(self._ask("begin"))
        except BaseException:
            self.close()
            raise
        self.game = np.arange(count, dtype=np.int64)
        self.played = np.zeros(count, np.int64)

    def step(self, actions: Sequence[int] | np.ndarray) -> Step:
        """Takes one action a seat, int [N]; raises `UserError` for one that does not exist."""
        actions = np.asarray(actions)
        if actions.shape != (self.count,) or actions.dtype.kind not in "iu":
            raise UserError(f"actions are int [{self.count}], not {actions.dtype} {actions.shape}")
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise UserError(f"actions {actions.tolist()}: there are 0 to {self.num_actions - 1}")
        found = self._ask("step", [(int(a),) for a in actions])
        obs, reward, end, trunc, over, final = zip(*found, strict=True)
        over = np.array(over, bool)
        self.obs = np.stack(obs)
        self.played = np.where(over, 0, self.played + 1)
        self.game = np.where(over, self.game + self.count, self.game)
        flags = np.array(end, bool), np.array(trunc, bool), over
        return Step(self.obs, np.array(reward, np.float32), *flags, np.stack(final))

    def restore(self, game: Sequence[int], actions: Sequence[Sequence[int]]) -> None:
        """Puts each seat where a game of number `game[i]` is after its first actions."""
        words = [(int(g), [int(a) for a in acts]) for g, acts in zip(game, actions, strict=True)]
        self.obs = np.stack(self._ask("restore", words))
        self.game = np.array([g for g, _ in words], np.int64)
        self.played = np.array([len(a) for _, a in words], np.int64)

    def close(self) -> None:
        for group in self._groups:
            group.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _ask(self, what: str, words: list[tuple] | None = None) -> list:
        """Calls a method of every seat, or reads an attribute; all groups work at once."""
        words = [()] * self.count if words is None else words
        for group, rows in zip(self._groups, self._rows, strict=True):
            group.send(what, [words[i] for i in rows])
        answers: list = [None] * self.count
        for group, rows in zip(self._groups, self._rows, strict=True):
            for i, answer in zip(rows, group.receive(), strict=True):
                answers[i] = answer
        return answers


class _Local:
    """Some seats in this process."""

    def __init__(self, make, seed: int, rows: list[int], *how):
        self._seats = [Seat(make, seed, row, *how) for row in rows]

    def send(self, what: str, words: list[tuple]) -> None:
        found = [getattr(seat, what) for seat in self._seats]
        self._answer = [f(*w) if callable(f) else f for f, w in zip(found, words, strict=True)]

    def receive(self) -> list:
        return self._answer

    def close(self) -> None:
        for seat in self._seats:
            seat.close()


class _Remote:
    """The same in another process. It is spawned: JAX's threads do not survive a fork."""

    def __init__(self, *words):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, words), daemon=True)
        self._process.start()
        there.close()

    def send(self, what: str, words: list[tuple]) -> None:
        with contextlib.suppress(OSError):  # why it ended is read below, if it said so
            self._pipe.send((what, words))

    def receive(self) -> list:
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            code = self._process.exitcode
            raise RuntimeError(f"a process that plays games ended (exit code {code})") from None
        if kind == "user":
            raise UserError(answer)
        if kind == "error":
            raise RuntimeError(f"a game failed in its process:\n{answer}")
        return answer

    def close(self) -> None:
        self._pipe.close()  # at which the process leaves
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe, words) -> None:
    try:
        group = _Local(*words)
        while True:
            group.send(*pipe.recv())
            pipe.send(("answer", group.receive()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return
    except UserError as error:
        pipe.send(("user", str(error)))
    except Exception:
        pipe.send(("error", traceback.format_exc()))
