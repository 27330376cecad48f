"""What DIAMOND's training changes, and the updates that change it: pure, several in one call.

The key of a network's i-th update is a function of (seed, network, i), its i-th batch one of
(seed, network, i) and of the episodes there are; so training goes on anywhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.nets.diamond_blocks import no_state
from diffjax.run import mesh as meshes
from diffjax.systems.diamond import imagination, losses, optimizers, rollout
from diffjax.systems.diamond.imagination import Learner, Starts, World
from diffjax.systems.diamond.quantise import to_float
from diffjax.systems.diamond.rollout import Seat
from diffjax.systems.diamond.settings import GROUPS, Parts

TAGS = {name: i for i, name in enumerate(GROUPS)}  # what a network's keys are folded with


class State(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: int32, updates of all networks together.
      counts: {network: int32}, updates of each.
      params, opt_state: {network: tree}.
      world, seat: where the policy is in its imagined worlds, which do not begin again with an
        epoch; None without a policy.
      block: int32, how many sets of `Starts` this epoch used before the present one.
      bad_step: int32, -1, or the first step whose loss or gradient was not finite. From then on
        nothing else changes, so that the host may look late and still find the last good state.
    """

    step: jax.Array
    counts: dict[str, jax.Array]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    world: World | None
    seat: Seat | None
    block: jax.Array
    bad_step: jax.Array


def transforms(parts: Parts) -> dict[str, optax.GradientTransformation]:
    """{network: its optimiser}."""
    return {name: optimizers.make(parts.optimizers[name]) for name in parts.networks}


def create(parts: Parts, worlds: int, key: jax.Array) -> State:
    """The state before the first update. The worlds are blank: see `begin_worlds`.

    Args:
      worlds: how many the policy learns in at once.
    """
    params = parts.init(key)
    opt_state = {name: tx.init(params[name]) for name, tx in transforms(parts).items()}
    zero = lambda: jnp.zeros((), jnp.int32)
    world = seat = None
    if "actor_critic" in parts.networks:
        world = World(
            jnp.zeros((worlds, parts.past, *parts.frame), jnp.float32),
            jnp.zeros((worlds, parts.past), jnp.int32),
            no_state(worlds, parts.reward_end.lstm_dim),
            jnp.zeros(worlds, jnp.int32),
            zero(),
        )
        seat = Seat(
            jnp.zeros((worlds, *parts.frame), jnp.float32),
            no_state(worlds, parts.actor_critic.lstm_dim),
        )
    counts = {name: zero() for name in parts.networks}
    return State(zero(), counts, params, opt_state, world, seat, zero(), zero() - 1)


def shardings_of(state: State, mesh: Mesh) -> State:
    """A sharding for each leaf: worlds are cut over the mesh as batches are, the rest is whole."""
    whole, rows = meshes.replicated(mesh), meshes.rows(mesh)
    place = lambda tree, where: jax.tree.map(lambda _: where, tree)
    of_world = jax.tree.map(lambda leaf: rows if leaf.ndim else whole, state.world)
    return place(state, whole)._replace(world=of_world, seat=place(state.seat, rows))


def begin_worlds(parts: Parts, state: State, starts: Starts) -> State:
    """The state with its worlds and the policy's seat at the first of the starts."""
    batch = state.world.length.shape[0]
    # Copies: a world of all the starts there are would share their buffers, and is donated.
    world = jax.tree.map(jnp.copy, parts.imagination.reset(starts, batch))
    seat = rollout.take_seat(world.obs[:, -1], parts.actor_critic.lstm_dim)
    return state._replace(world=world, seat=seat)


def loss_of(parts: Parts, network: str, config) -> Callable:
    """Returns (params, batch, keys [B]) -> (scalar, {name: metric}) of a world model's network.

    A batch is as `segments.batch_of` makes it. An episode without its final frame has mid-grey
    there.
    """

    def denoiser(params, batch, keys):
        obs = padded(batch["obs"], batch["mask"])
        draws = lambda i: losses.draw(
            jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), parts.frame
        )
        given = {"obs": obs, "act": batch["act"], "mask": batch["mask"]}
        how = config.denoiser.objective, config.imagination.sigma_max
        return losses.denoiser_loss(
            parts.denoiser, params, given, draws, parts.levels, parts.past, *how
        )[0], {}

    def rew_end_model(params, batch, keys):
        given = {
            **{name: batch[name] for name in ("act", "rew", "end", "mask")},
            "obs": padded(batch["obs"], batch["mask"]),
            "final_observation": padded(batch["final"], batch["has_final"]),
        }
        return losses.reward_end_loss(parts.reward_end, params, given)

    return {"denoiser": denoiser, "rew_end_model": rew_end_model}[network]


def padded(obs: jax.Array, mask: jax.Array) -> jax.Array:
    """uint8 frames -> float32 in [-1, 1], mid-grey where mask is False."""
    return jnp.where(mask[..., None, None, None], to_float(obs), 0.0)


def _commit(state: State, network: str, params, opt_state, loss, norm, more=None) -> State:
    """The state after an update of one network; the state itself once anything was not finite."""
    new = state._replace(
        step=state.step + 1,
        counts={**state.counts, network: state.counts[network] + 1},
        params={**state.params, network: params},
        opt_state={**state.opt_state, network: opt_state},
        **(more or {}),
    )
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.bad_step < 0)
    kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
    first_bad = jnp.where(state.bad_step < 0, state.step, state.bad_step)
    return kept._replace(bad_step=jnp.where(good, -1, first_bad))


def base_key(seed: int, network: str) -> jax.Array:
    """What the keys of a network's updates are folded from."""
    return jax.random.fold_in(jax.random.key(seed), 1 + TAGS[network])


def train_call(parts: Parts, network: str, config, mesh: Mesh) -> Callable:
    """Returns (state, batches) -> (state, {name: [K]}): K updates of a world model's network.

    Args:
      network: "denoiser" or "rew_end_model".

    The batches are those of `segments.batch_of`, stacked: [K, B, ...].
    """
    tx, loss = transforms(parts)[network], loss_of(parts, network, config)

    def update(state: State, batch):
        count = state.counts[network]
        key = jax.random.fold_in(base_key(config.seed, network), count)
        keys = imagination.split(key, batch["act"].shape[0])
        batch = jax.lax.with_sharding_constraint(batch, meshes.rows(mesh))
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params[network], batch, keys
        )
        norm = optax.global_norm(gradient)
        old = state.params[network]
        direction, opt_state = tx.update(gradient, state.opt_state[network], old)
        params = optax.apply_updates(old, direction)
        state = _commit(state, network, params, opt_state, value, norm)
        return state, {**metrics, "loss": value, "grad_norm": norm}

    return lambda state, batches: _repeat(update, state, batches)


def policy_call(parts: Parts, config, updates: int) -> Callable:
    """Returns (state, starts) -> (state, {name: [K]}): K = `updates` updates of the policy, each a
    rollout in imagined worlds that go on where the one before left them."""
    network = "actor_critic"
    tx = transforms(parts)[network]

    def update(state: State, _, starts):
        key = jax.random.fold_in(base_key(config.seed, network), state.counts[network])
        learner = Learner(state.params[network], state.opt_state[network], state.world, state.seat)
        denoiser, models = parts.for_sampling(state.params)
        learner, metrics = imagination.update(
            dataclasses.replace(parts.imagination, denoiser=denoiser),
            parts.actor_critic,
            tx,
            learner,
            {name: models[name] for name in ("denoiser", "rew_end_model")},
            starts,
            key,
            parts.learning,
        )
        more = {"world": learner.world, "seat": learner.seat}
        after = learner.params, learner.opt_state, metrics["loss"], metrics["grad_norm"]
        return _commit(state, network, *after, more), metrics

    def call(state: State, starts: Starts):
        body = lambda state, step: update(state, step, starts)
        return _repeat(body, state, jnp.zeros(updates))

    return call


def _repeat(update: Callable, state: State, inputs):
    """`lax.scan`, but for a single update, which is compiled without a loop around it."""
    if len(jax.tree.leaves(inputs)[0]) > 1:
        return jax.lax.scan(update, state, inputs)
    state, metrics = update(state, jax.tree.map(lambda a: a[0], inputs))
    return state, jax.tree.map(lambda a: a[None], metrics)


def stacked_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of batches [K, B, ...]: the second dimension over the mesh."""
    return NamedSharding(mesh, PartitionSpec(None, *meshes.BATCH))
