"""EDM (Karras et al. 2022, arXiv 2206.00364): an image model, class-conditional where labels are.

With `config.data.frames` its samples are films, [T, H, W, C]: the formulas are the same, and what
differs for data and files is in `systems.films`. With `config.data.latents` the network is trained
on the latents of an autoencoder, and samples are decoded: `systems.latents`.

Training is equations 7 and 8 with log-normal noise levels, sampling is Algorithm 2; both live in
`core`. This room adds images, their augmentation, labels, and label dropout for classifier-free
guidance.

Two things differ from the released training loop. The loss is the mean over pixels and not their
sum: Adam does not see the factor if its eps is divided by it too, as `configs/edm_cifar10.py` does.
And the original sets gradients that are not finite to numbers; here such a step ends the run
(`run/update.py`).
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.core import denoisers, objectives, processes, samplers
from diffjax.errors import UserError
from diffjax.metrics import judging, report
from diffjax.run import cli, pictures, sampling
from diffjax.run.system import Problem, System
from diffjax.systems import films, images, latents, picture_backbone
from diffjax.systems.edm import preconditioning, training
from diffjax.systems.edm.guiding import Guided, guided, open_guide
from diffjax.systems.edm.request import Request, check, default_request, noise_levels, solve

FIELDS = {
    "data.path": str,
    "data.image_size": int,
    "data.balanced": bool,
    "network.kind": str,
    **dict.fromkeys(
        [f"diffusion.{k}" for k in ("sigma_data", "p_mean", "p_std", "label_dropout")], float
    ),
}
# What a config may leave out, as those of older runs do, and what that means.
OPTIONAL = {
    "data.frames": 0,
    "data.latents": "",
    "diffusion.precond": "edm",
    "diffusion.times": "lognormal",
    "diffusion.stratified": False,
    "augment.probability": 0.0,
}


def make(config, assets: dict | None = None) -> System:
    """Returns the EDM system of a config; see `configs/emoji.py` for its fields.

    Raises:
      UserError: where data or fields cannot be used.
    """
    cli.require(config, FIELDS)
    config = cli.with_defaults(config, OPTIONAL)
    of_films = films.fields(config) if config.data.frames else {}
    opened = of_films.get("data") or images.opener(config)
    behind = config.data.latents
    if behind:
        _check_behind(config)
    default = default_request(config)
    settings = config.diffusion
    if assets is None:
        own = preconditioning.assets(settings.precond)
        assets = {"data": images.describe(opened("train")), **own}
        assets |= latents.adopt(behind, assets["data"]) if behind else {}
    shape, names = images.described(assets, config.data.frames)
    pair = latents.behind(assets, shape) if behind else latents.identity(shape)
    data, shape = functools.cache(lambda split: pair.over(opened(split))), pair.shape
    null = len(names)
    one = (1,) * len(shape)  # a number a sample, broadcasting against it
    levels = assets.get(preconditioning.LEVELS)
    wrapper = preconditioning.make(settings.precond, settings.sigma_data, levels)
    outputs = wrapper.outputs * shape[-1]
    net = _network(config, outputs, null, shape)
    process = processes.edm()
    objective, trained_on = training.objective(settings)
    if not 0 <= settings.label_dropout < 1:
        raise UserError("config.diffusion.label_dropout must be in [0, 1)")
    pipe = images.pipe(config)
    if settings.sigma_data <= 0 or settings.p_std <= 0:
        raise UserError("config.diffusion.sigma_data and p_std must be above 0")

    def estimate(params, x, ratio, label, **told):
        """D(x; sigma): x [B, *shape], ratio broadcasting against x, label int32 [B]."""

        def network(x, c_noise, label):
            c_noise = jnp.broadcast_to(c_noise.reshape(-1), x.shape[:1])
            return net.apply({"params": params}, x, c_noise, label, **told)[..., : shape[-1]]

        return denoisers.preconditioned(network, wrapper.coefficients)(x, ratio, label)

    def denoiser(params, x, t, label, process=process, **told):
        on_edm = lambda x, ratio: estimate(params, x, ratio, label, **told)
        return denoisers.on(process, on_edm)(x, t)

    def loss(params, batch, key):
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        keys = jax.vmap(lambda k: jax.random.split(k, 3))(rows)
        if settings.stratified:
            # Of the whole batch, from one key: each slice and device takes its rows' shares.
            aside = jax.random.fold_in(jax.random.fold_in(key, images.ASIDE), images.ASIDE)
            share = objectives.strata(aside, config.batch_size)[batch["row"]]
            t = objective.quantile(share.reshape(-1, *one))
        else:
            t = objective.time(jax.vmap(lambda k: objective.draw(k, one))(keys[:, 0]))
        n = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 1])
        x0, label, told = images.training_inputs(
            batch,
            key,
            rows,
            keys[:, 2],
            null=null,
            dropout=settings.label_dropout,
            pipe=pipe,
            read=pair.read,
        )
        error = objectives.loss(
            objective,
            trained_on,
            lambda x, t: denoiser(params, x, t, label, trained_on, **told),
            x0,
            t,
            n,
        )
        return jnp.mean(error), {}

    @functools.cache
    def guide_of(workdir: str) -> System:
        return open_guide(workdir, assets["data"])

    def check_request(request: Request) -> None:
        check(request, wrapper)
        # A config's default, which may be that of another data set, means nothing then.
        if not null and request.guidance not in (1, default.guidance):
            raise UserError(f"--guidance {request.guidance:g}: this model has no classes")
        if request.autoguide:
            guide_of(request.autoguide)

    def condition(request: Request, index: np.ndarray) -> np.ndarray:
        check_request(request)
        labels = images.labels_of(request.cond, names)
        return labels[index % len(labels)]

    def equip(params, request: Request, mesh):
        if not request.autoguide:
            return params, ""
        workdir, step = Path(request.autoguide), request.autoguide_step
        guide, which = sampling.load_params(guide_of(request.autoguide), workdir, mesh, step=step)
        return Guided(params, guide), f"guided by {workdir}, {which}"

    def problem(params, keys, label, request: Request) -> Problem:
        grid, _ = noise_levels(request, wrapper)
        uncond = guide = None
        if request.autoguide:
            theirs, params = params.guide, params.params
            guide = lambda x, t: guide_of(request.autoguide).denoiser(theirs, x, t, label)
        params = nets.rounded(config.network, params)
        if null and request.guidance != 1:
            nobody = jnp.full_like(label, null)
            uncond = lambda x, t: denoiser(params, x, t, nobody)
        denoise = guided(lambda x, t: denoiser(params, x, t, label), uncond, guide, request)
        normal = samplers.draws(keys, shape, process)
        # Draw 0 is the start, draw k + 1 is the sampler's k-th.
        return Problem(denoise, process, grid, normal(0) * grid[0], lambda k: normal(k + 1))

    def pixels(params, keys, label, request: Request):
        _, hat = noise_levels(request, wrapper)
        return pair.pixels(solve(request, problem(params, keys, label, request), hat))

    def sample(params, keys, label, request: Request):
        image = images.to_uint8(pixels(params, keys, label, request))
        return {"image": image, "label": label}

    def show(outputs, path):
        labels = outputs["label"] if null else None
        draw = films.show if of_films else pictures.labelled_grid
        draw(outputs["image"], labels, names, path)

    def condition_like(request: Request, source, index: np.ndarray) -> np.ndarray:
        check_request(request)
        if request.cond:
            raise UserError("--cond: samples that are scored take the reference's classes")
        return images.labels_like(source, names, index)

    lowest, highest = (
        max(default.sigma_min, wrapper.lowest),
        min(default.sigma_max, wrapper.highest),
    )
    backbone = picture_backbone.make(
        config.network,
        net,
        pair,
        names,
        picture_backbone.feed_wrapped(wrapper.coefficients, lowest, highest),
        std=settings.sigma_data,
        start=(highest, highest),
        nameless=bool(null) and settings.label_dropout > 0,
    )

    system = System(
        init=images.initialiser(net, shape),
        loss=loss,
        request=default,
        condition=condition,
        condition_like=condition_like,
        sample=sample,
        pixels=pixels,
        data=data,
        show=show,
        write=lambda output, path: pictures.write_array(output["image"], path),
        evaluate=report.scorer,
        balanced=config.data.balanced and bool(null),
        sharding=nets.sharding(config.network),
        assets=assets,
        optional=OPTIONAL,
        equip=equip,
        process=process,
        denoiser=denoiser,
        problem=problem,
        judge=judging.of_images,
        backbone=backbone,
    )
    return dataclasses.replace(system, **of_films)


def _check_behind(config) -> None:
    """Raises `UserError` for fields that make no sense in latents."""
    if config.data.frames:
        raise UserError(
            f"config.data.latents {config.data.latents}: of pictures, and config.data.frames is "
            f"{config.data.frames}"
        )
    if config.augment.probability:
        raise UserError(
            f"config.augment.probability {config.augment.probability}: moves pixels; with "
            "config.data.latents only 0"
        )


def _network(config, outputs: int, num_classes: int, shape):
    """The module; a shape that it cannot take is said to be that of latents where it is."""
    try:
        return nets.make(config.network, channels=outputs, num_classes=num_classes, shape=shape)
    except UserError as error:
        if not config.data.latents:
            raise
        reason = str(error).removesuffix(": set config.data.image_size")  # which is no remedy here
        raise UserError(
            f"config.data.latents {config.data.latents}: latents of "
            f"{'x'.join(map(str, shape))} do not fit the network ({reason}); "
            "configs/latents.py has one that is made for latents"
        ) from error
