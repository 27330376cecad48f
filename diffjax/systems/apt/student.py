"""Stage B: the base, taught to jump to the end of its own guided path (`consistency`).

The path is x0 + noise, straight. A world's sampler need not be on it: DIAMOND's starts from noise
less than it tells the network, without the frame in it. Such a base (`Backbone.unrolled`) has few
steps, and they are imitated whole: E |G(z) - sampler(z)|^2 (Luhman & Luhman 2021).
"""

import dataclasses

import jax
import jax.numpy as jnp

from diffjax.core import guidance
from diffjax.errors import UserError, choose
from diffjax.run import cli, sampling
from diffjax.run.system import System
from diffjax.systems.apt import alternation, bases, consistency, origins, own_path, timesteps

FIELDS = {
    "distillation.steps": int,
    "distillation.shift": float,
    "distillation.guidance": float,
    "distillation.solver": str,
    "distillation.space": str,
    "distillation.huber": bool,
}
OPTIONAL = {"distillation.target": ""}  # the student
OWN = -1.0  # distillation.guidance: the base's own


def check(config) -> None:
    """Raises `UserError` for fields of `config.distillation` that make no sense."""
    config = cli.with_defaults(config, OPTIONAL)
    cli.require(config, FIELDS)
    settings = config.distillation
    if settings.target:
        choose(settings.target, config.ema, "config.distillation.target, of config.ema:")
    if not 1 <= settings.steps <= 100_000:
        raise UserError(f"config.distillation.steps {settings.steps}: at least 1")
    if not 0.01 <= settings.shift <= 1000:
        raise UserError(f"config.distillation.shift {settings.shift}: from 0.01 to 1000")
    if settings.guidance != OWN and not 0 <= settings.guidance <= 1e4:
        raise UserError(
            f"config.distillation.guidance {settings.guidance}: a scale, or {OWN:g} for the base's"
        )
    choose(settings.solver, consistency.SOLVERS, "config.distillation.solver")
    choose(settings.space, dict.fromkeys("vx"), "config.distillation.space")


def scale_of(config, base: System) -> float:
    """The teacher's guidance.

    Raises:
      UserError: one that the base cannot have.
    """
    wanted = config.distillation.guidance
    able = base.backbone.unconditional is not None
    if wanted == OWN:
        return float(getattr(base.request, "guidance", 1.0)) if able else 1.0
    if wanted != 1 and not able:
        raise UserError(
            f"config.distillation.guidance {wanted:g}: {config.base} was not trained without its "
            "condition: only 1"
        )
    return float(wanted)


def add(system: System, base: System, config, one) -> System:
    """Returns the system with what stage B trains by.

    Args:
      system: all of it that is sampled.
      base: the diffusion model.
    """
    check(config)
    config = cli.with_defaults(config, OPTIONAL)
    settings, backbone, process = config.distillation, base.backbone, base.process
    scale = scale_of(config, base)
    if backbone.unrolled is not None and config.optimizer.weight_decay:
        raise UserError(
            f"config.optimizer.weight_decay {config.optimizer.weight_decay:g}: would shrink those "
            f"networks of {config.base} that are kept as they are: 0"
        )
    end = bases.last_time(process, backbone.start[0])
    grid = timesteps.consistency(settings.steps, settings.shift, end)

    def estimate(params, cond, guided: float = 1.0):
        denoise = lambda x, t: base.denoiser(params, x, t, cond)
        mask = backbone.mask(cond)
        if guided != 1:
            nobody = backbone.unconditional(cond)
            free = lambda x, t: base.denoiser(params, x, t, nobody)
            denoise = guidance.cfg(denoise, free, guided)
        return denoise if mask is None else lambda x, t: jnp.where(mask, denoise(x, t), 0)

    def velocity(*of):
        return bases.velocity(process, estimate(*of), told=backbone.lowest)

    def on_its_path(*of):
        denoise = estimate(*of)
        return lambda x, t: denoise(x, jnp.maximum(t, backbone.lowest))

    def imitation(params, batch, key, teacher):
        """The error of one call from z against the base's own few steps from it."""
        of_data, _, of_eps = jax.random.split(key, 3)
        x0, cond = backbone.examples(batch, of_data)
        z = alternation.normal(of_eps, batch["row"], x0.shape[1:])
        wanted = jax.lax.stop_gradient(backbone.unrolled.sampled(teacher, z, cond))
        one = lambda x, t: base.denoiser(params, x, t, cond)
        made = bases.generator(one, *backbone.start)(z)
        return jnp.mean(jnp.square(made - wanted)), {}

    def loss(params, batch, key, teacher, average=None):
        of_data, of_n, of_eps = jax.random.split(key, 3)
        x0, cond = backbone.examples(batch, of_data)
        eps = alternation.normal(of_eps, batch["row"], x0.shape[1:])
        index = consistency.indices(of_n, batch["row"], settings.steps)
        ask, of, given = velocity, consistency.loss, (x0, eps)
        if base.start is not None:
            eps = own_path.coloured(process, eps, of_eps, batch["row"])
            ask, of, given = on_its_path, own_path.loss, (process, x0, eps)
        error = of(
            ask(params, cond),
            ask(teacher, cond, scale),
            *given,
            index,
            grid,
            solver=settings.solver,
            space=settings.space,
            huber=settings.huber,
            average=None if average is None else ask(average, cond),
        )
        return jnp.mean(error), {}

    def beside(mesh):
        return sampling.load_params(base, origins.place(config.base), mesh)

    def begin(mesh):
        params, which = beside(mesh)
        return jax.tree.map(jnp.copy, params), f"{config.base} ({which})"

    whole = backbone.unrolled is not None
    more = {"loss": imitation if whole else loss, "target": "" if whole else settings.target}
    more |= {"beside": beside, "begin": begin}
    return dataclasses.replace(system, optional=OPTIONAL, **more)
