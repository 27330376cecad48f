"""DIAMOND's actor-critic at work: a policy and an environment, step by step, with a gradient.

Alonso et al. 2024, released code. The environment is any pure function, an imagined world or a
scripted one, so a whole rollout is one `lax.scan`, and the policy's loss has a gradient through it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.nets.diamond_blocks import State, no_state


class Outcome(NamedTuple):
    """What a step of B environments led to. Those that ended have begun anew already.

    Attributes:
      obs: the frames to act on next, [B, H, W, C] in [-1, 1]; of a new episode where one ended.
      rew: float32 [B].
      end, trunc: bool [B], died and cut short.
      final: the frames that the step itself led to, [B, H, W, C]; looked at where one ended.
      burn_in: [B, k, H, W, C], what came before `obs` in a new episode, oldest first; looked at
        where one ended. k may be 0.
    """

    obs: jax.Array
    rew: jax.Array
    end: jax.Array
    trunc: jax.Array
    final: jax.Array
    burn_in: jax.Array


class Seat(NamedTuple):
    """Where a policy is between steps: the frames in front of it and what it remembers.

    Attributes:
      obs: [B, H, W, C].
      state: of its LSTM.
    """

    obs: jax.Array
    state: State


class Trajectory(NamedTuple):
    """What T steps gave, [B, T] each but logits [B, T, A]; `bootstrap` is V', without a gradient:
    the value of the state after a step, at an end that of the frame that the step led to."""

    logits: jax.Array
    values: jax.Array
    act: jax.Array
    rew: jax.Array
    end: jax.Array
    trunc: jax.Array
    bootstrap: jax.Array


def take_seat(obs: jax.Array, hidden: int) -> Seat:
    """A policy at its first frames, which remembers nothing."""
    return Seat(obs, no_state(obs.shape[0], hidden))


def categorical(logits: jax.Array, u: jax.Array) -> jax.Array:
    """Draws an index a row by the inverse of the distribution function, int32 [...].

    Args:
      logits: float [..., K].
      u: uniform in [0, 1), [...].
    """
    below = jnp.cumsum(jax.nn.softmax(logits), -1) <= u[..., None]
    # The sum may end a little below 1, and u above it.
    return jnp.minimum(jnp.sum(below, -1), logits.shape[-1] - 1).astype(jnp.int32)


def rollout(
    net, params, env_step: Callable, env: Any, seat: Seat, uniforms: Callable, steps: int
) -> tuple[Trajectory, Any, Seat]:
    """Lets a policy act for some steps; differentiable in its parameters.

    The gradient runs back through the policy's memory to the first step, where the state comes in
    without one. At an end the memory is emptied and then filled with the burn-in frames of the new
    episode, through which the gradient runs too. Activations are computed again on the way back.

    Args:
      net: as `nets.actor_critic.ActorCritic`.
      env_step: (env, act int32 [B], k) -> (env, Outcome).
      env: any tree.
      uniforms: k -> [B] in [0, 1), by which the k-th actions are drawn; k is a traced integer.
      steps: T.

    Returns:
      (Trajectory, env, Seat): the last two are where the next rollout goes on.
    """
    apply = lambda obs, state: net.apply({"params": params}, obs, state)
    policy = jax.checkpoint(apply, prevent_cse=False)  # a scan keeps the two computations apart

    def anew(state: State, outcome: Outcome, dead) -> State:
        """The memory after a step in which some ended."""
        empty = jax.tree.map(jnp.zeros_like, state)
        watch = lambda state, obs: (policy(obs, state)[2], None)
        warm, _ = jax.lax.scan(watch, empty, jnp.swapaxes(outcome.burn_in, 0, 1))
        return jax.tree.map(lambda new, old: jnp.where(dead[:, None], new, old), warm, state)

    def step(carry, k):
        env, obs, state = carry
        logits, value, state = policy(obs, state)
        act = categorical(jax.lax.stop_gradient(logits), uniforms(k))
        env, outcome = env_step(env, act, k)
        outcome = jax.lax.stop_gradient(outcome)
        dead = outcome.end | outcome.trunc

        def ended(state):
            value = policy(outcome.final, jax.lax.stop_gradient(state))[1]
            return jax.lax.stop_gradient(value), anew(state, outcome, dead)

        # Most steps of most worlds end nothing: they pay for neither.
        final, state = jax.lax.cond(
            dead.any(), ended, lambda state: (jnp.zeros_like(value), state), state
        )
        seen = (logits, value, act, outcome.rew, outcome.end, outcome.trunc, final)
        return (env, outcome.obs, state), seen

    state = jax.lax.stop_gradient(seat.state)
    (env, obs, state), seen = jax.lax.scan(step, (env, seat.obs, state), jnp.arange(steps))
    logits, values, act, rew, end, trunc, final = (jnp.swapaxes(a, 0, 1) for a in seen)
    after = jnp.concatenate([values[:, 1:], policy(obs, state)[1][:, None]], 1)
    bootstrap = jax.lax.stop_gradient(jnp.where(end | trunc, final, after))
    trajectory = Trajectory(logits, values, act, rew, end, trunc, bootstrap)
    return trajectory, env, jax.lax.stop_gradient(Seat(obs, state))
