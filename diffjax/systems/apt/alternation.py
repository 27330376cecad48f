"""One adversarial step: the discriminator, then the generator, in one pure function.

    D step   x^ = G(z, c') without a gradient;  r = D(x, t, c),  f = D(x^, t', c')
             L_D + lambda (R1 [+ R2]);  RMSProp on all of D
    G step   new z, c', t';  L_G of D(G(z, c'), t', c');  RMSProp on G;  then its average

Lin et al. 2025a: D and G alternate one step each, D first, as the generator's gradient
is 0 until D has moved. The penalty is taken in every step, and D sees the raw G, not its average.

Gradients are taken where they are needed: D's step differentiates D's parameters only, G's step
goes through D to its input and on into G. With `parts` the batch goes through in slices, and the
optimiser sees the mean over the whole batch: RMSProp on slices would be another algorithm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.core import ema as ema_rules
from diffjax.systems.apt import losses, timesteps
from diffjax.systems.apt.optimizer import rmsprop


class State(NamedTuple):
    """Everything that a step changes; one pytree, which shards by the networks' tables.

    Attributes:
      step: int32, completed alternations.
      params: {"g": ..., "d": ...}, float32.
      ema: the generator's average, a tree like params["g"]: what is sampled.
      opt_state: {"g": ..., "d": ...}.
      bad_step: int32, -1, or the first step with a loss or a gradient that was not finite; from
        then on nothing else changes.
    """

    step: jax.Array
    params: dict[str, Any]
    ema: Any
    opt_state: dict[str, Any]
    bad_step: jax.Array


class ForD(NamedTuple):
    """What the discriminator's step takes; every leaf [B, ...].

    Attributes:
      x, cond: real samples and their conditions (any pytree).
      z, cond_fake: noise for the generator, and what it is asked for.
      t_real, t_fake: float [B], conditions of D; the same array in the relativistic family, as
        cond_fake is cond there.
      eps_real, eps_fake: standard normal, of x's shape: the penalties' directions. eps_fake may be
        None where there is no R2.
    """

    x: jax.Array
    cond: Any
    z: jax.Array
    cond_fake: Any
    t_real: jax.Array
    t_fake: jax.Array
    eps_real: jax.Array
    eps_fake: jax.Array | None = None


class ForG(NamedTuple):
    """What the generator's step takes; every leaf [B, ...]. x: real samples, or None.

    The relativistic family needs x, with conditions cond.
    """

    z: jax.Array
    cond: Any
    t: jax.Array
    x: jax.Array | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the adversarial stage; the defaults are the paper's for images.

    Attributes:
      family: of losses, one of `losses.FAMILIES`.
      weight: lambda, of each penalty; 0 for none.
      sigma: the penalties' standard deviation, for data of unit variance. 0.1 for video.
      mode: how they are taken, one of `losses.MODES`.
      r2: whether made samples are penalised too, as with the relativistic family.
      decay, eps: RMSProp's.
      ema: the decay of the generator's average.
      parts: into how many slices a batch is cut.
    """

    family: str = "non_saturating"
    weight: float = 100.0
    sigma: float = 0.01
    mode: str = "jvp"
    r2: bool = False
    decay: float = 0.9
    eps: float = 1e-8
    ema: float = 0.995
    parts: int = 1


def create(g, d, settings: Settings) -> State:
    """The state of step 0 from parameters: G's distilled, D's of the diffusion model.

    The average begins as G; copies, so that the first donation finds no buffer under two names.
    """
    tx, zero = rmsprop(settings.decay, settings.eps), jnp.zeros((), jnp.int32)
    opt_state = {"g": tx.init(g), "d": tx.init(d)}
    return State(zero, {"g": g, "d": d}, jax.tree.map(jnp.copy, g), opt_state, zero - 1)


def d_loss(discriminate: Callable, settings: Settings, d, made, given: ForD):
    """(L_D with penalties, metrics): means over the batch, float32.

    Args:
      discriminate: (d, x, t, cond) -> logits [B] or [B, frames].
      d: D's parameters.
      made: the generator's samples for given.z, a constant.
    """
    real = lambda x: discriminate(d, x, given.t_real, given.cond)
    fake = lambda x: discriminate(d, x, given.t_fake, given.cond_fake)
    how = settings.sigma, settings.mode
    penalties = []
    if settings.weight:
        r, penalty = losses.penalised(real, given.x, given.eps_real, *how)
        penalties.append(penalty)
    else:
        r = real(given.x)
    if settings.weight and settings.r2:
        f, penalty = losses.penalised(fake, made, given.eps_fake, *how)
        penalties.append(penalty)
    else:
        f = fake(made)
    adversarial = jnp.mean(losses.family(settings.family).d(r, f))
    names = ("r1", "r2")
    metrics = {name: settings.weight * jnp.mean(p) for name, p in zip(names, penalties)}
    total = adversarial + sum(metrics.values())
    metrics |= {"d_adversarial": adversarial, "logit_real": jnp.mean(r), "logit_fake": jnp.mean(f)}
    return total, metrics


def g_loss(generate: Callable, discriminate: Callable, settings: Settings, g, d, given: ForG):
    """L_G: the mean over the batch, float32. No gradient goes to D's parameters or to real logits.

    Args:
      generate: (g, z, cond) -> x.
    """
    kind = losses.family(settings.family)
    real = discriminate(d, given.x, given.t, given.cond) if kind.paired else None
    fake = discriminate(d, generate(g, given.z, given.cond), given.t, given.cond)
    return jnp.mean(kind.g(real, fake))


def alternation(generate: Callable, discriminate: Callable, settings: Settings) -> Callable:
    """Returns step(state, for_d, for_g, rate) -> (state, metrics), to be jitted, state donated.

    Args:
      generate: (g, z, cond) -> x, one call of the network (`bases.generator`).
      discriminate: (d, x, t, cond) -> logits (`bases.discriminator`).

    The metrics are means over the batch: "loss_d" with its parts "d_adversarial", "r1", "r2" (with
    their weight), "loss_g", "logit_real" and "logit_fake". rate: the learning rate of both.

    Raises:
      UserError: a family or a mode that there is not.
    """
    move = moves(generate, discriminate, settings)

    def step(state: State, for_d: ForD, for_g: ForG, rate):
        params, opt_state, metrics, gradients = move(
            state.params, state.opt_state, for_d, for_g, rate
        )
        average = ema_rules.update(state.ema, params["g"], 1 - settings.ema)
        new = State(state.step + 1, params, average, opt_state, state.bad_step)
        return kept(state, new, (gradients, metrics)), metrics

    return step


def moves(generate: Callable, discriminate: Callable, settings: Settings) -> Callable:
    """`alternation` without average and guard, which `run.update` has for every run.

    Returns:
      move(params, opt_state, for_d, for_g, rate) -> (params, opt_state, metrics, gradients), the
      first two {"g": ..., "d": ...}, gradients (of d, of g).

    Raises:
      UserError: a family or a mode that there is not.
    """
    tx = rmsprop(settings.decay, settings.eps)
    losses.family(settings.family)

    def update(name: str, params: dict, opt_state: dict, gradient, rate):
        direction, opt = tx.update(gradient, opt_state[name])
        moved = jax.tree.map(lambda p, u: p - rate * u, params[name], direction)
        return {**params, name: moved}, {**opt_state, name: opt}

    def of_d(d, g, given: ForD):
        made = jax.lax.stop_gradient(generate(g, given.z, given.cond_fake))
        of = lambda d: d_loss(discriminate, settings, d, made, given)
        (loss, metrics), gradient = jax.value_and_grad(of, has_aux=True)(d)
        return gradient, {**metrics, "loss_d": loss}

    def of_g(g, d, given: ForG):
        of = lambda g: g_loss(generate, discriminate, settings, g, d, given)
        loss, gradient = jax.value_and_grad(of)(g)
        return gradient, {"loss_g": loss}

    def move(params: dict, opt_state: dict, for_d: ForD, for_g: ForG, rate):
        g, d = params["g"], params["d"]
        of_d_slice = lambda part: of_d(d, g, part)
        d_gradient, metrics = accumulated(of_d_slice, for_d, settings.parts)
        params, opt_state = update("d", params, opt_state, d_gradient, rate)
        d = params["d"]
        of_g_slice = lambda part: of_g(g, d, part)
        g_gradient, more = accumulated(of_g_slice, for_g, settings.parts)
        params, opt_state = update("g", params, opt_state, g_gradient, rate)
        return params, opt_state, {**metrics, **more}, (d_gradient, g_gradient)

    return move


def accumulated(function: Callable, batch, parts: int):
    """The mean of function(slice) over `parts` slices of a batch, one after the other.

    Slice j takes every parts-th row, so that each device keeps the rows that it has.
    """
    if parts == 1:
        return function(batch)
    cut = lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)
    slices = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], slices))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
    total, _ = jax.lax.scan(add, zeros, slices)
    return jax.tree.map(lambda a: a / parts, total)


def kept(state: State, new: State, looked_at) -> State:
    """`new`, or `state` with its bad_step, where a number of a tree is not finite or was not."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(looked_at)]
    good = jnp.all(jnp.stack(finite)) & (state.bad_step < 0)
    chosen = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
    first = jnp.where(state.bad_step < 0, state.step, state.bad_step)
    return chosen._replace(bad_step=jnp.where(good, -1, first))


# ---- draws: row r of a batch draws from fold_in(key, r), so slices and devices change nothing ----


def normal(key: jax.Array, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape] float32; row r draws from fold_in(key, r)."""
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape))(rows)


def draw_d(key, rows, x, cond, settings: Settings, shift: float = 1.0, cond_fake=None) -> ForD:
    """What D's step takes, for a batch of data.

    Args:
      key: of this alternation; `draw_g` takes the same and draws other numbers.
      rows: int32 [B], numbers in the global batch.
      x, cond: data [B, ...] and their conditions.
      shift: of D's times.
      cond_fake: conditions of made samples; None: those of the data, as the relativistic family
        always has it, with one time for both of a pair.
    """
    z, eps, eps_fake, of_real, of_fake = jax.random.split(jax.random.fold_in(key, 0), 5)
    paired = losses.family(settings.family).paired
    t = timesteps.ensemble(of_real, rows, shift)
    return ForD(
        x=x,
        cond=cond,
        z=normal(z, rows, x.shape[1:]),
        cond_fake=cond if paired or cond_fake is None else cond_fake,
        t_real=t,
        t_fake=t if paired else timesteps.ensemble(of_fake, rows, shift),
        eps_real=normal(eps, rows, x.shape[1:]),
        eps_fake=normal(eps_fake, rows, x.shape[1:]) if settings.r2 else None,
    )


def draw_g(key, rows, x, cond, settings: Settings, shift: float = 1.0) -> ForG:
    """What G's step takes: new noise and times, and x where the family looks at it."""
    z, time = jax.random.split(jax.random.fold_in(key, 1))
    paired = losses.family(settings.family).paired
    t = timesteps.ensemble(time, rows, shift)
    return ForG(normal(z, rows, x.shape[1:]), cond, t, x if paired else None)
