"""Imagined frames under given actions, from real ones: roll-outs of the denoiser without a game.

`forecast` is what studies of drift call: frames after frames under recorded actions, each sampler
started from the same noise for the same key whatever its settings, so that arms are paired.
`improvise` lets a policy choose the actions, and `judged` reads rewards and ends off frames.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.nets.diamond_blocks import no_state
from diffjax.systems.diamond import imagination, sampling
from diffjax.systems.diamond.denoiser import Denoiser, stack
from diffjax.systems.diamond.rollout import categorical
from diffjax.systems.diamond.sampling import Sampler

ACTION = 2**31 - 1  # what a step's key is folded with for the action, above all other draws


def step_keys(keys: jax.Array, k) -> jax.Array:
    """The keys of the k-th step of roll-outs whose keys are [B]; all of its draws are from these.

    They are used as in `imagination.draw`, so that a world that is stepped with them is the same.
    """
    return jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)


def forecast(
    denoiser: Denoiser,
    sampler: Sampler,
    params,
    past: jax.Array,
    act: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """Imagines what follows under given actions, float32 [B, T, H, W, C] in [-1, 1].

    Pure; to be jitted by the caller, with the first two static. The imagined frames take the place
    of the past ones as they come (Alonso et al. 2024, section 3).

    Args:
      params: of the denoiser's network.
      past: n real frames, oldest first, float32 [B, n, H, W, C] in [-1, 1].
      act: int [B, n - 1 + T], the action after each frame: the first imagined frame is of the
        first n of them.
      keys: typed keys [B]; a roll-out depends on its own alone.
    """
    count = past.shape[1]
    steps = act.shape[1] - count + 1

    def step(frames, k):
        told = jax.lax.dynamic_slice_in_dim(act, k, count, 1)
        following = _next(denoiser, sampler, params, frames, told, step_keys(keys, k))
        return jnp.concatenate([frames[:, 1:], following[:, None]], 1), following

    _, made = jax.lax.scan(step, past, jnp.arange(steps))
    return jnp.swapaxes(made, 0, 1)


def _next(denoiser, sampler, params, frames, act, keys) -> jax.Array:
    drawn = imagination.draw(keys, frames.shape[2:])
    denoise = sampling.bound(denoiser, params, act)
    return sampling.next_frame(sampler, denoise, drawn.start, stack(frames), drawn.churn)


class Improvised(NamedTuple):
    """What `improvise` returns: frames float32 [B, T, H, W, C] and the actions int32 [B, T]."""

    frames: jax.Array
    act: jax.Array


def improvise(
    denoiser: Denoiser,
    sampler: Sampler,
    policy: Callable,
    params,
    past: jax.Array,
    act: jax.Array,
    keys: jax.Array,
    steps: int,
    memory: Any,
) -> Improvised:
    """As `forecast`, but the actions are drawn from a policy that sees the imagined frames.

    Args:
      policy: (frames [B, H, W, C], memory) -> (logits [B, A], value [B], memory). It is shown the
        past frames first, as where an imagined episode begins.
      act: int [B, n - 1], the actions between the past frames.
      memory: of a policy that has seen nothing.
      steps: T.
    """

    def watch(memory, frame):
        return policy(frame, memory)[2], None

    before = jnp.swapaxes(past[:, :-1], 0, 1)
    memory, _ = jax.lax.scan(watch, memory, before)

    def step(carry, k):
        frames, told, memory = carry
        here = step_keys(keys, k)
        logits, _, memory = policy(frames[:, -1], memory)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, ACTION)))(here)
        chosen = categorical(logits, uniform)
        told = jnp.concatenate([told, chosen[:, None]], 1)
        following = _next(denoiser, sampler, params, frames, told, here)
        frames = jnp.concatenate([frames[:, 1:], following[:, None]], 1)
        return (frames, told[:, 1:], memory), (following, chosen)

    start = past, act.astype(jnp.int32), memory
    _, (made, chosen) = jax.lax.scan(step, start, jnp.arange(steps))
    return Improvised(jnp.swapaxes(made, 0, 1), jnp.swapaxes(chosen, 0, 1))


class Judged(NamedTuple):
    """What the second model says of imagined steps, [B, T]: drawn, as in training.

    Attributes:
      rew: float32, -1, 0 or 1.
      end: bool.
    """

    rew: jax.Array
    end: jax.Array


def judged(reward_end, params, frames: jax.Array, act: jax.Array, keys: jax.Array, past: int):
    """Returns the `Judged` steps that follow `past` real frames.

    The model runs over all transitions from no state, those between the real frames included.

    Args:
      reward_end: the network; params: its parameters.
      frames: real ones, then imagined ones, float32 [B, past + T, H, W, C].
      act: int [B, past - 1 + T].
      keys: as `forecast` was given them.
    """
    inputs = frames[:, :-1], act, frames[:, 1:]
    of_rew, of_end, _ = reward_end.apply({"params": params}, *inputs)
    steps = frames.shape[1] - past
    at = lambda k: imagination.draw(step_keys(keys, k), (1, 1, 1))

    def one(k):
        drawn = at(k)
        here = past - 1 + k
        rew = categorical(of_rew[:, here], drawn.reward) - 1
        return rew.astype(jnp.float32), categorical(of_end[:, here], drawn.end) > 0

    rew, end = jax.vmap(one)(jnp.arange(steps))
    return Judged(rew.T, end.T)


def no_memory(batch: int, net) -> Any:
    """The memory of an actor-critic that has seen nothing."""
    return no_state(batch, net.lstm_dim)
