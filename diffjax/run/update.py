"""One training step: draw a batch, loss, gradient, clip, Adam, EMA. Pure and jitted once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffjax.core import ema as ema_rules
from diffjax.errors import UserError, choose
from diffjax.run import cli
from diffjax.run import mesh as meshes
from diffjax.run.system import System


class State(NamedTuple):
    """Everything that a step changes; what a checkpoint holds.

    Attributes:
      step: int32, completed steps.
      params: the network's parameters, float32.
      ema: {name: tree like params}, one for each rule of config.ema.
      opt_state: optax's state.
      bad_step: int32, -1, or the first step whose loss or gradient was not finite. From then on
        nothing else changes, so that the host may look late and still find the last good state.
    """

    step: jax.Array
    params: Any
    ema: dict[str, Any]
    opt_state: Any
    bad_step: jax.Array


# kind: (its fields in config.ema.NAME, (those, the global batch) -> core's rule)
EMA_RULES = {
    "constant": ({"decay": float}, lambda c, batch: ema_rules.constant(c.decay)),
    "warmup": ({"decay": float}, lambda c, batch: ema_rules.warmup(c.decay)),
    "half_life": (
        {"images": float, "ramp": float},
        lambda c, batch: ema_rules.half_life(c.images, batch, c.ramp),
    ),
    "power": (
        {"relative_std": float},
        lambda c, batch: ema_rules.power(float(ema_rules.std_to_exponent(c.relative_std))),
    ),
}


def ema_rule(name: str, fields, batch_size: int) -> Callable:
    """Returns core's rule for config.ema.NAME; `UserError` where its fields make none."""
    where = f"config.ema.{name}"
    cli.require(fields, {"kind": str}, where)
    wanted, make = choose(fields.kind, EMA_RULES, f"{where}.kind")
    cli.require(fields, wanted, where)
    try:
        return make(fields, batch_size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


# What a config may leave out, as those of older runs do, and what that means.
OPTIONAL = {"optimizer.warmup_from_zero": False}


def learning_rate(optimizer, step, progress):
    """Linear warm-up over `warmup_steps`, then cosine in progress to `final` times the peak.

    The warm-up counts this step, so that the first is not lost; with `warmup_from_zero` only those
    before it, as EDM's released loop does, whose first step has the rate 0.

    Args:
      optimizer: a config's `optimizer` (learning_rate, warmup_steps, schedule, final, and
        warmup_from_zero, False where it is absent).
      step: int32, completed steps.
      progress: float32 in [0, 1], the done share of the steps or of the time budget.
    """
    counted = step if optimizer.get("warmup_from_zero", False) else step + 1
    warm = jnp.minimum(1.0, counted / max(optimizer.warmup_steps, 1))
    if optimizer.schedule == "constant":
        return optimizer.learning_rate * warm
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    return optimizer.learning_rate * warm * (optimizer.final + (1 - optimizer.final) * cosine)


def make_optimizer(optimizer) -> optax.GradientTransformation:
    """Returns clipping by global norm (0: off), then Adam's direction, which -lr scales later."""
    choose(optimizer.schedule, {"cosine": 0, "constant": 0}, "config.optimizer.schedule")
    parts = [optax.clip_by_global_norm(optimizer.clip)] if optimizer.clip else []
    parts.append(optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps))
    if optimizer.weight_decay:
        parts.append(optax.add_decayed_weights(optimizer.weight_decay))
    return optax.chain(*parts)


def averaged(system: System, params):
    """What of a state's parameters is averaged and sampled: all, or the network that says so."""
    return params if system.training is None else params[system.training.sampled]


def create(system: System, config, params) -> State:
    """The state of step 0 from parameters, which it takes over."""
    # Copies: the first donation must not find one buffer under two names.
    emas = {name: jax.tree.map(jnp.copy, averaged(system, params)) for name in config.ema}
    if system.training is None:
        opt_state = make_optimizer(config.optimizer).init(params)
    else:
        opt_state = system.training.optimizer(params)
    zero = jnp.zeros((), jnp.int32)
    return State(zero, params, emas, opt_state, zero - 1)


def _create(system: System, config, key) -> State:
    init = system.init if system.training is None else system.training.init
    return create(system, config, init(key))


def state_shapes(system: System, config, mesh: Mesh) -> tuple[State, State]:
    """Returns the state as ShapeDtypeStructs with shardings, and the tree of the shardings."""
    for name, fields in config.ema.items():
        ema_rule(name, fields, config.batch_size)
    shapes = jax.eval_shape(lambda k: _create(system, config, k), jax.random.key(0))
    shardings = meshes.tree_shardings(shapes, system.sharding, mesh)
    place = lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h)
    return jax.tree.map(place, shapes, shardings), shardings


def init_state(system: System, config, shardings: State, params=None) -> State:
    """Returns the state of step 0, born in its shardings; of placed `params` where these are given.

    On one device the parameters are made leaf by leaf, because compiling one large init is slow
    on an accelerator; on several they are jitted so that no device ever holds the whole.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), INIT)
    make = lambda given: create(system, config, given)
    if params is None:
        make, params = lambda k: _create(system, config, k), key
    if shardings.step.mesh.size == 1:
        return jax.device_put(make(params), shardings)
    return jax.jit(make, out_shardings=shardings)(params)


# Streams of randomness under one seed: step i takes fold_in(key, i), so the others start above
# any step that a run will reach.
INIT, DATA = 2**32 - 1, 2**32 - 2


def step_function(system: System, config, feed, mesh: Mesh) -> Callable:
    """Returns step(state, fed, progress, *beside) -> (state, metrics), jitted with state donated.

    beside: the weights of `system.beside`, where it has them.

    Args:
      feed: `take(fed, key, step) -> batch` turns what the host feeds into a batch, inside jit.
      mesh: the batch is cut over its `data` and `fsdp` axes.

    The key of step i is fold_in(key(seed), i): nothing random is stored. With config.accumulate
    = a, the batch goes through in a slices whose gradients are averaged.
    """
    tx = make_optimizer(config.optimizer) if system.training is None else None
    rules = {name: ema_rule(name, c, config.batch_size) for name, c in config.ema.items()}
    parts = config.accumulate

    def loss_and_gradient(params, batch, key, beside):
        loss = lambda params, batch, key: system.loss(params, batch, key, *beside)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if parts == 1:
            return value_and_grad(params, batch, key)
        # Slice j takes every parts-th row, so that each device keeps the rows it has.
        slices = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(total, piece):
            return jax.tree.map(jnp.add, total, value_and_grad(params, piece, key)), None

        shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda a: a[0], slices), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, slices)
        return jax.tree.map(lambda a: a / parts, total)

    def moved(state: State, batch, key, rate, beside):
        """(params, opt_state, metrics with loss and grad_norm) after this step."""
        if system.training is not None:
            return system.training.step(state.params, state.opt_state, batch, key, rate)
        if system.target:
            beside = (*beside, state.ema[system.target])
        (loss, metrics), gradient = loss_and_gradient(state.params, batch, key, beside)
        norm = optax.global_norm(gradient)
        direction, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        return params, opt_state, dict(metrics, loss=loss, grad_norm=norm)

    def step(state: State, fed, progress, *beside):
        base = jax.random.key(config.seed)
        batch = feed.take(fed, jax.random.fold_in(base, DATA), state.step)
        batch = dict(batch, row=jnp.arange(config.batch_size, dtype=jnp.int32))
        batch = jax.lax.with_sharding_constraint(batch, meshes.rows(mesh))
        rate = learning_rate(config.optimizer, state.step, progress)
        key = jax.random.fold_in(base, state.step)
        params, opt_state, metrics = moved(state, batch, key, rate, beside)
        ema = {
            name: ema_rules.update(state.ema[name], averaged(system, params), rule(state.step))
            for name, rule in rules.items()
        }
        new = State(state.step + 1, params, ema, opt_state, state.bad_step)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        good = finite & (state.bad_step < 0)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        first_bad = jnp.where(state.bad_step < 0, state.step, state.bad_step)
        kept = kept._replace(bad_step=jnp.where(good, -1, first_bad))
        return kept, dict(metrics, learning_rate=rate)

    return step


def jitted_step(system: System, config, feed, mesh: Mesh, shardings: State) -> Callable:
    """Returns `step_function` as every run compiles it: the state donated, and left where it was.

    shardings: of the state, from `state_shapes`.
    """
    return jax.jit(
        step_function(system, config, feed, mesh),
        donate_argnums=0,
        out_shardings=(shardings, meshes.replicated(mesh)),
    )


def check_batch(config, mesh: Mesh) -> None:
    """Raises `UserError` where the global batch does not divide over devices and slices."""
    if config.batch_size < 1 or config.accumulate < 1:
        raise UserError("config.batch_size and config.accumulate must be at least 1")
    shards = meshes.batch_shards(mesh)
    if config.batch_size % (shards * config.accumulate):
        raise UserError(
            f"config.batch_size {config.batch_size} does not divide over {shards} device(s) "
            f"x config.accumulate {config.accumulate}: use a multiple of "
            f"{shards * config.accumulate}"
        )
