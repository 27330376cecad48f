"""The world that DIAMOND's policy learns in: the denoiser makes frames, a second model rewards.

Alonso et al. 2024, released code. Everything is a pure function of arrays on the device: a rollout
of the policy in B imagined worlds, with worlds that end and begin again, and the policy's update
are one program (`update`), and nothing crosses to the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from diffjax.nets.diamond_blocks import State
from diffjax.systems.diamond import losses, sampling
from diffjax.systems.diamond.denoiser import Denoiser, stack
from diffjax.systems.diamond.quantise import to_float
from diffjax.systems.diamond.rollout import Outcome, Seat, categorical, rollout
from diffjax.systems.diamond.sampling import Sampler


class Starts(NamedTuple):
    """Segments of real episodes, which imagined ones begin from, in the order of their use.

    Attributes:
      obs: uint8 [P, n, H, W, C].
      act: int32 [P, n].
      state: of the reward and end model, after the n - 1 transitions.
    """

    obs: jax.Array
    act: jax.Array
    state: State


class World(NamedTuple):
    """B imagined environments.

    Attributes:
      obs: the last n frames, float32 [B, n, H, W, C] in [-1, 1].
      act: int32 [B, n]; the last is overwritten by the next action.
      state: of the reward and end model.
      length: int32 [B], steps since each began.
      cursor: int32, the next of `Starts` that is not used yet. Whoever brings new starts, between
        updates and before it reaches their number, sets it to 0.
    """

    obs: jax.Array
    act: jax.Array
    state: State
    length: jax.Array
    cursor: jax.Array


class Draws(NamedTuple):
    """What a step draws.

    Attributes:
      start: unit normal [B, H, W, C], which the sampler begins from.
      reward, end: uniform [B].
      churn: k -> unit normal [B, H, W, C], for a sampler that churns, or None.
    """

    start: jax.Array
    reward: jax.Array
    end: jax.Array
    churn: Callable | None = None


def draw(keys: jax.Array, shape: tuple[int, int, int]) -> Draws:
    """`Draws` with a key a world, so that no world depends on the others; shape: of a frame."""
    normal = lambda tag: jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, tag), shape)
    )(keys)
    uniform = lambda tag: jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, tag)))(
        keys
    )
    return Draws(normal(0), uniform(1), uniform(2), lambda k: normal(3 + k))


def split(key: jax.Array, batch: int) -> jax.Array:
    """[batch] keys, of which the i-th does not depend on how many there are."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


@dataclass(frozen=True)
class Imagination:
    """What a world is made of.

    Attributes:
      denoiser, sampler: make the next frame.
      reward_end: the network `nets.reward_end.RewardEnd`; None: nothing is paid and nothing ends.
      horizon: steps after which a world is cut short.
    """

    denoiser: Denoiser
    reward_end: Any
    sampler: Sampler = Sampler()
    horizon: int = 15

    def preload(self, params, obs: jax.Array, act: jax.Array) -> Starts:
        """Returns the `Starts` of segments uint8 [K, B, n, H, W, C], act [K, B, n].

        The reward and end model runs over them batch by batch, K in all.
        """

        if self.reward_end is None:
            flat = lambda a: a.reshape(-1, *a.shape[2:])
            return Starts(flat(obs), flat(act).astype(jnp.int32), ())

        def last_state(segment):
            obs, act = to_float(segment[0]), segment[1]
            inputs = obs[:, :-1], act[:, :-1], obs[:, 1:]
            return self.reward_end.apply({"params": params}, *inputs)[2]

        state = jax.lax.map(last_state, (obs, act))
        flat = lambda a: a.reshape(-1, *a.shape[2:])
        return Starts(flat(obs), flat(act).astype(jnp.int32), jax.tree.map(flat, state))

    def reset(self, starts: Starts, batch: int) -> World:
        """The first `batch` of the starts; those after them come where one of these ends."""
        chex.assert_axis_dimension_gteq(starts.act, 0, batch)
        begin = lambda a: a[:batch]
        state = jax.tree.map(begin, starts.state)
        length = jnp.zeros(batch, jnp.int32)
        return World(
            to_float(begin(starts.obs)), begin(starts.act), state, length, length[0] + batch
        )

    def step(self, params: dict, starts: Starts, world: World, act, draws: Draws):
        """One step of all worlds -> (World, Outcome). No gradient is meant to run through it.

        Both the reward and the end are drawn, not the likelier taken. Where fewer starts are left
        than worlds that ended, the rest is dropped and they begin over again from the first.

        Args:
          params: {"denoiser", "rew_end_model"}.
          act: int32 [B].
        """
        acts = world.act.at[:, -1].set(act)
        following = sampling.next_frame(
            self.sampler,
            sampling.bound(self.denoiser, params["denoiser"], acts),
            *(draws.start, stack(world.obs), draws.churn),
        )
        rew, end, state = self._judge(params, world, acts, following, draws)
        length = world.length + 1
        trunc = length >= self.horizon
        gone_on = World(
            jnp.concatenate([world.obs[:, 1:], following[:, None]], 1),
            jnp.roll(acts, -1, 1),
            *(state, length, world.cursor),
        )
        world = begin_again(gone_on, starts, end | trunc)
        outcome = Outcome(
            world.obs[:, -1], rew.astype(jnp.float32), end, trunc, following, world.obs[:, :-1]
        )
        return world, outcome

    def _judge(self, params: dict, world: World, acts, following, draws: Draws):
        """(reward's sign, whether it ended, the model's state) of the step to `following`."""
        if self.reward_end is None:
            return jnp.zeros_like(world.length), jnp.zeros_like(world.length, bool), ()
        transition = world.obs[:, -1:], acts[:, -1:], following[:, None]
        of_rew, of_end, state = self.reward_end.apply(
            {"params": params["rew_end_model"]}, *transition, world.state
        )
        rew = categorical(of_rew[:, 0], draws.reward) - 1
        return rew, categorical(of_end[:, 0], draws.end) > 0, state


def begin_again(world: World, starts: Starts, dead: jax.Array) -> World:
    """Puts the next unused starts in the place of worlds that ended, dead bool [B]."""
    wanted = dead.sum(dtype=jnp.int32)
    cursor = jnp.where(world.cursor + wanted > starts.act.shape[0], 0, world.cursor)
    index = jnp.where(dead, cursor + jnp.cumsum(dead) - 1, 0)

    def place(new, old, read=lambda a: a):
        return jnp.where(dead.reshape(-1, *[1] * (old.ndim - 1)), read(new[index]), old)

    return World(
        place(starts.obs, world.obs, to_float),
        place(starts.act, world.act),
        jax.tree.map(place, starts.state, world.state),
        jnp.where(dead, 0, world.length),
        cursor + wanted,
    )


# ---- the policy's update -------------------------------------------------------------------------


@dataclass(frozen=True)
class Learning:
    """How the policy learns; the defaults are the Atari agents'.

    Attributes:
      steps: of a rollout, the backup's length.
      gamma, lam: of the returns.
      value_weight, entropy_weight: of the loss.
    """

    steps: int = 15
    gamma: float = 0.985
    lam: float = 0.95
    value_weight: float = 1.0
    entropy_weight: float = 0.001

    def loss(self, trajectory) -> tuple[jax.Array, dict]:
        """(scalar, metrics) of a `rollout.Trajectory`."""
        t = trajectory
        returns = losses.lambda_returns(t.rew, t.end, t.trunc, t.bootstrap, self.gamma, self.lam)
        weights = self.value_weight, self.entropy_weight
        return losses.actor_critic_loss(t.logits, t.values, t.act, returns, *weights)


class Learner(NamedTuple):
    """What an update of the policy changes.

    Attributes:
      params: of the actor-critic.
      opt_state: optax's.
      world: `World`.
      seat: where the policy is in it; neither begins again with an update.
    """

    params: Any
    opt_state: Any
    world: World
    seat: Seat


def update(
    imagination: Imagination,
    net,
    tx: optax.GradientTransformation,
    learner: Learner,
    models: dict,
    starts: Starts,
    key: jax.Array,
    learning: Learning = Learning(),
) -> tuple[Learner, dict]:
    """One rollout in the imagined worlds and one step of the optimiser. To be jitted by the caller.

    Args:
      net: `nets.actor_critic.ActorCritic`.
      models: params of {"denoiser", "rew_end_model"}.
      key: of this update; world i draws from it and from i.

    Returns:
      (Learner, metrics): the loss' parts, "loss", "grad_norm" before clipping, and sums over the
      rollout, "reward", "ends" and "cuts", each divided by the number of worlds.
    """
    batch, shape = learner.seat.obs.shape[0], learner.seat.obs.shape[1:]
    keys = split(key, batch)
    at = lambda k, tag: jax.vmap(lambda key: jax.random.fold_in(key, 2 * k + tag))(keys)
    uniforms = lambda k: jax.vmap(jax.random.uniform)(at(k, 0))

    def env_step(world, act, k):
        return imagination.step(models, starts, world, act, draw(at(k, 1), shape))

    def loss(params):
        trajectory, world, seat = rollout(
            net, params, env_step, learner.world, learner.seat, uniforms, learning.steps
        )
        value, metrics = learning.loss(trajectory)
        return value, (trajectory, world, seat, metrics)

    (value, (trajectory, world, seat, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
        learner.params
    )
    direction, opt_state = tx.update(gradient, learner.opt_state, learner.params)
    params = optax.apply_updates(learner.params, direction)
    per_world = lambda a: jnp.sum(a.astype(jnp.float32)) / batch
    metrics |= {"loss": value, "grad_norm": optax.global_norm(gradient)}
    metrics |= {"reward": per_world(trajectory.rew), "ends": per_world(trajectory.end)}
    metrics["cuts"] = per_world(trajectory.trunc)
    return Learner(params, opt_state, world, seat), metrics
