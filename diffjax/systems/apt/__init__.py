"""APT: adversarial post-training, a one-step generator of a diffusion model (Lin et al. 2025a).

Three stages, each a run: (A) a diffusion model, of any system here that has a `Backbone`; (B)
`stage="distil"`, consistency distillation of it, guided; (C) `stage="adversarial"`, the distilled
network as generator against a discriminator made of the diffusion model. `stages` says which runs
one command trains, and B and C are sampled in one call of the network.

This room knows no other system: the base is a run directory, which `systems.make` opens, and what
is asked of it is its `System`. A run keeps its base's config and assets, so that it is sampled
without the base.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffjax.core import processes, samplers
from diffjax.errors import choose
from diffjax.run.system import Problem, Start, System
from diffjax.systems import images
from diffjax.systems.apt import (
    adversary,
    bases,
    multistep,
    origins,
    own_path,
    student,
    timesteps,
    worlds,
)
from diffjax.systems.apt import request as requests
from diffjax.systems.apt.stages import STAGES, stages

__all__ = ["make", "stages"]


def make(config, assets: dict | None = None) -> System:
    """Returns stage B or C of a config; see `configs/apt.py` for its fields.

    Raises:
      UserError: where fields, the base or the distilled run cannot be used.
    """
    choose(config.get("stage", ""), dict.fromkeys(STAGES), "config.stage")
    training = assets is None
    if assets is None:
        assets = origins.read(config)
    base = origins.opened(config, assets, training=training)
    if base.backbone.unrolled is not None:
        return worlds.make(base, config, assets)
    backbone, process = base.backbone, base.process
    kind = requests.kind(base)
    default = images.default_request(kind, config)
    end = bases.last_time(process, backbone.start[0])

    def theirs(request):
        """What the base is asked for."""
        asked = {name: getattr(request, name) for name in backbone.asks}
        return dataclasses.replace(base.request, **asked)

    def condition(request, index: np.ndarray):
        requests.check(request)
        return base.condition(theirs(request), index)

    def condition_like(request, source, index: np.ndarray):
        requests.check(request)
        return base.condition_like(theirs(request), source, index)

    def on_its_path(params, keys, given, request) -> Problem:
        # The start and the noise are the base's own. The process is training's, whatever its own
        # sampling makes of the blur; the denoiser is told no guidance.
        its = base.problem(params, keys, given, theirs(request))
        denoise = lambda x, t: base.denoiser(params, x, jnp.maximum(t, backbone.lowest), given[0])
        grid = own_path.grid(request.steps, request.shift, end)
        return Problem(denoise, process, grid, its.x, its.noise)

    def generated_on_it(params, keys, given, request):
        denoise, _, grid, x, noise = on_its_path(params, keys, given, request).arguments
        if request.steps == 1:
            return denoise(x, jnp.float32(grid[0]))
        return own_path.sample(denoise, process, grid, x, noise, request.mode)

    def problem(params, keys, cond, request) -> Problem:
        whole = lambda x, t: base.denoiser(params, x, t, cond)
        denoise = bases.estimate(process, whole, backbone.lowest)
        grid = end * timesteps.trailing(request.steps, request.shift)
        normal = samplers.draws(keys, backbone.shape(cond), process)
        t, scale = backbone.start
        # The base's start scale z at its time t, on the straight path.
        begin = scale * (1 - end) / float(process.at(t).alpha) if end < 1 else 1.0
        start = np.float32(begin) * normal(0)
        # Draw 0 is the start, draw k + 1 is the sampler's k-th.
        noise = lambda k: normal(k + 1)
        return Problem(denoise, processes.flow(), grid, start, noise, backbone.mask(cond))

    def generated(params, keys, cond, request):
        if request.steps == 1:  # as it was trained, to the bit
            z = samplers.draws(keys, backbone.shape(cond), process)(0)
            one = lambda x, t: base.denoiser(params, x, t, cond)
            return bases.generator(one, *backbone.start)(z)
        denoise, _, grid, x, noise = problem(params, keys, cond, request).arguments
        return multistep.sample(denoise, grid, x, noise, request.mode)

    start = None
    if base.start is not None:
        problem, generated = on_its_path, generated_on_it
        start = Start(
            pictures=lambda request: base.start.pictures(theirs(request)),
            adopt=lambda parent, request: base.start.adopt(parent, theirs(request)),
        )

    def pixels(params, keys, given, request):
        made = generated(params, keys, given, request)
        return made if backbone.pixels is None else backbone.pixels(made)

    def sample(params, keys, given, request):
        cond = given if start is None else given[0]
        return backbone.finish(generated(params, keys, given, request), cond)

    system = dataclasses.replace(
        base,
        request=default,
        condition=condition,
        condition_like=condition_like,
        sample=sample,
        pixels=pixels if base.pixels is not None else None,
        start=start,
        problem=problem,
        assets=assets,
        optional={},
        equip=None,
        compare=origins.samples_of(base, config, theirs(default)),
        backbone=None,
    )
    add = {"distil": student.add, "adversarial": adversary.add}[config.stage]
    return add(system, base, config, lambda: base.condition(theirs(default), np.arange(1)))
