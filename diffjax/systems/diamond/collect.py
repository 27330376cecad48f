"""Playing real games with a recurrent policy, on the host; `rollout.py` has the imagined ones.

A policy is a function (obs, memory) -> (logits [N, A], value [N], memory): one row a game, the
memory a pytree of arrays [N, ...] that is zero at the start of an episode. As in DIAMOND's released
loop (Alonso et al. 2024, Algorithm 1) it is set to zero where an episode ended, and actions are
always drawn from the policy, in evaluation too.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.rollout import categorical

Policy = Callable[[Any, Any], tuple[Any, Any, Any]]


def forget(memory, dead):
    """Returns the memory with zeros in the rows where `dead`, bool [N], is true."""
    return jax.tree.map(lambda m: jnp.where(_rows(dead, m), jnp.zeros_like(m), m), memory)


def _rows(dead, like):
    return dead.reshape(dead.shape + (1,) * (like.ndim - 1))


class Steps(NamedTuple):
    """T steps in N seats, as a replay stores them.

    Attributes:
      obs: uint8 [T, N, H, W, 3], what was seen before each action.
      act: int32 [T, N].
      rew: float32 [T, N], as the games give it.
      end, trunc, over: bool [T, N]: the episode ended; was cut; the whole game is over.
      game: int64 [T, N], the number of the game; played: int64 [T, N], its steps before this one.
      final: {(t, n): uint8 [H, W, 3]}, the last frame where an episode ended or was cut.
    """

    obs: np.ndarray
    act: np.ndarray
    rew: np.ndarray
    end: np.ndarray
    trunc: np.ndarray
    over: np.ndarray
    game: np.ndarray
    played: np.ndarray
    final: dict[tuple[int, int], np.ndarray]


@jax.jit
def _choose(logits, uniform, temperature):
    return categorical(logits / temperature, uniform)


def draws(seed: int, game: np.ndarray, played: np.ndarray, actions: int):
    """Returns what chance decides in one step: a function of seed, game and step, nothing else.

    Args:
      seed: of the player.
      game, played: int [N], the number of each seat's game and how many steps of it are done.
      actions: how many there are.

    Returns:
      (uniform float32 [N] for the policy's action, one uniform number for "explore or not", which
      is asked once for all seats, and a random action int32 [N]).
    """
    rows = [np.random.default_rng([seed, int(g), int(t)]) for g, t in zip(game, played)]
    table = np.array([r.random(3) for r in rows])
    # Rounded to float32, a number just below 1 would be 1.
    uniform = np.minimum(table[:, 0].astype(np.float32), np.float32(1 - 2**-24))
    return uniform, table[0, 1], (table[:, 2] * actions).astype(np.int32)


def collect(
    games: Games,
    policy: Policy,
    memory,
    steps: int,
    *,
    seed: int = 0,
    epsilon: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Steps, Any]:
    """Plays on from where the games are.

    Args:
      games: see `diffjax.systems.diamond.games.seats`.
      policy: compiled; its obs are uint8 [N, H, W, 3].
      memory: the policy's for these seats, zero at the very start.
      steps: T, in each seat.
      seed: of the actions; with the games' own it decides everything.
      epsilon: the probability that one step's actions are uniformly random; one draw decides it for
        all seats.
      temperature: divides the policy's logits; below 1 the likelier actions are drawn more often.
        DIAMOND's is 1; for Freeway, where random play never scores, its authors lowered it.

    Returns:
      (Steps, memory).

    Raises:
      UserError: epsilon outside [0, 1], a temperature of 0 or less, fewer steps than 1.
    """
    if not 0 <= epsilon <= 1 or not temperature > 0 or steps < 1:
        raise UserError(
            f"collection: epsilon {epsilon} (0 to 1), temperature {temperature} (above 0), "
            f"steps {steps} (at least 1)"
        )
    rows, final = [], {}
    for t in range(steps):
        obs, game, played = games.obs, games.game, games.played
        uniform, explore, other = draws(seed, game, played, games.num_actions)
        logits, _, memory = policy(obs, memory)
        action = np.asarray(_choose(logits, uniform, temperature))
        if explore < epsilon:
            action = other
        out = games.step(action)
        dead = out.end | out.trunc
        if dead.any():
            memory = forget(memory, dead)
        final |= {(t, int(n)): out.final[n] for n in np.flatnonzero(dead)}
        rows.append((obs, action, out.reward, out.end, out.trunc, out.over, game, played))
    return Steps(*map(np.stack, zip(*rows, strict=True)), final), memory


class Played(NamedTuple):
    """A whole game: its number, the sum of its rewards, and its steps."""

    game: int
    score: float
    length: int


def play_games(
    games: Games, policy: Policy, memory, count: int, *, seed: int = 0, temperature: float = 1.0
) -> list[Played]:
    """Plays games 0 to count - 1 to their ends, to see how well a policy plays.

    Each game's score depends on its number and the seeds alone, not on how many are played at once,
    up to the rounding of a policy on batches of other sizes. So short games do not come first.

    Args:
      games: fresh, made without `life_ends`.
      policy, memory, seed, temperature: as in `collect`.
      count: how many.
    """
    return sorted(
        played
        for played in _finished(games, policy, memory, count, seed, temperature)
        if played.game < count
    )


def _finished(games, policy, memory, count, seed, temperature) -> Iterator[Played]:
    score = np.zeros(games.count)
    while (games.game < count).any():
        number, length = games.game, games.played
        found, memory = collect(games, policy, memory, 1, seed=seed, temperature=temperature)
        score += found.rew[0]
        for n in np.flatnonzero(found.over[0]):
            yield Played(int(number[n]), float(score[n]), int(length[n]) + 1)
            score[n] = 0.0
