"""EDM (Karras et al. 2022, arXiv 2206.00364): an image model, class-conditional where labels are.

Training is equations 7 and 8 with log-normal noise levels, sampling is Algorithm 2; both live in
`core`. This room adds images, their augmentation, labels, and label dropout for classifier-free
guidance.

Two things differ from the released training loop. The loss is the mean over pixels and not their
sum: Adam does not see the factor if its eps is divided by it too, as `configs/edm_cifar10.py` does.
And the original sets gradients that are not finite to numbers; here such a step ends the run
(`run/update.py`).
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.core import denoisers, objectives, processes, samplers
from diffjax.data import augment, sources
from diffjax.errors import UserError
from diffjax.metrics import report
from diffjax.run import cli, pictures, sampling
from diffjax.run.system import System
from diffjax.systems.edm import preconditioning, training
from diffjax.systems.edm.guiding import Guided, guided, open_guide
from diffjax.systems.edm.request import (
    Request,
    check,
    default_request,
    labels_of,
    noise_levels,
    solve,
)

ASIDE = 2**32 - 1  # a stream of randomness above every row and every split

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

    @functools.cache
    def data(split: str):
        return sources.open_source(config.data.path, split, config.data.image_size or None)

    cli.require(config, FIELDS)
    config = cli.with_defaults(config, OPTIONAL)
    if not config.data.path:
        raise UserError(
            "config.data.path is empty: give a folder, a .npz, an EDM .zip, tfds:NAME, or emoji"
        )
    if config.data.image_size < 0:
        raise UserError(f"config.data.image_size {config.data.image_size}: pixels, 0: as they are")
    default = default_request(config)
    settings = config.diffusion
    if assets is None:
        assets = {"data": _describe(data("train")), **preconditioning.assets(settings.precond)}
    about = _checked(assets)
    shape, names = tuple(about["image_shape"]), tuple(about["class_names"])
    null = len(names)
    levels = assets.get(preconditioning.LEVELS)
    wrapper = preconditioning.make(settings.precond, settings.sigma_data, levels)
    outputs = wrapper.outputs * shape[-1]
    net = nets.make(config.network, channels=outputs, num_classes=len(names), shape=shape)
    process = processes.edm()
    objective, trained_on = training.objective(settings)
    if not 0 <= settings.label_dropout < 1:
        raise UserError("config.diffusion.label_dropout must be in [0, 1)")
    pipe = training.pipe(config)
    if settings.sigma_data <= 0 or settings.p_std <= 0:
        raise UserError("config.diffusion.sigma_data and p_std must be above 0")

    def init(key):
        struct = jax.ShapeDtypeStruct
        inputs = ((1, *shape), jnp.float32), ((1,), jnp.float32), ((1,), jnp.int32)
        return net.lazy_init(key, *(struct(*i) for i in inputs))["params"]

    def estimate(params, x, ratio, label, **told):
        """D(x; sigma): x [B, H, W, C], ratio broadcasting against x, label int32 [B]."""

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
            aside = jax.random.fold_in(jax.random.fold_in(key, ASIDE), ASIDE)
            share = objectives.strata(aside, config.batch_size)[batch["row"]]
            t = objective.quantile(share.reshape(-1, 1, 1, 1))
        else:
            t = objective.time(jax.vmap(lambda k: objective.draw(k, (1, 1, 1)))(keys[:, 0]))
        n = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 1])
        label = batch.get("label", jnp.zeros_like(batch["row"]))
        if null:
            dropped = jax.vmap(jax.random.uniform)(keys[:, 2]) < settings.label_dropout
            label = jnp.where(dropped, null, label)
        x0, moved = to_float(batch["image"]), None
        if pipe:
            x0, moved = augment.augment(
                jax.vmap(lambda k: jax.random.fold_in(k, ASIDE))(rows), x0, pipe
            )
        # One key for all rows, as masks of one draw are cheapest; it differs between the slices of
        # config.accumulate, whose first rows differ.
        dropout = jax.random.fold_in(jax.random.fold_in(key, ASIDE), batch["row"][0])
        told = {"augment": moved, "train": True, "rngs": {"dropout": dropout}}
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
        return open_guide(workdir, about)

    def check_request(request: Request) -> None:
        check(request, wrapper)
        # A config's default, which may be that of another data set, means nothing then.
        if not null and request.guidance not in (1, default.guidance):
            raise UserError(f"--guidance {request.guidance:g}: this model has no classes")
        if request.autoguide:
            guide_of(request.autoguide)

    def condition(request: Request, index: np.ndarray) -> np.ndarray:
        check_request(request)
        labels = labels_of(request.cond, names)
        return labels[index % len(labels)]

    def equip(params, request: Request, mesh):
        if not request.autoguide:
            return params, ""
        workdir, step = Path(request.autoguide), request.autoguide_step
        guide, which = sampling.load_params(guide_of(request.autoguide), workdir, mesh, step=step)
        return Guided(params, guide), f"guided by {workdir}, {which}"

    def sample(params, keys, label, request: Request):
        grid, hat = noise_levels(request, wrapper)
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
        start, noise = normal(0) * grid[0], lambda k: normal(k + 1)
        x = solve(request, denoise, process, grid, hat, start, noise)
        image = jnp.clip(127.5 * x + 128, 0, 255).astype(jnp.uint8)
        return {"image": image, "label": label}

    def show(outputs, path):
        labels = outputs["label"] if null else None
        pictures.labelled_grid(outputs["image"], labels, names, path)

    def condition_like(request: Request, source, index: np.ndarray) -> np.ndarray:
        check_request(request)
        if request.cond:
            raise UserError("--cond: samples that are scored take the reference's classes")
        if not null:
            return np.zeros(len(index), np.int32)
        if tuple(source.class_names) != names:
            raise UserError(f"{source.name} has other classes than the model: {', '.join(names)}")
        order = np.random.default_rng(0).permutation(len(source))
        return np.asarray(source.labels, np.int32)[order[index % len(source)]]

    def evaluate(source, metrics, net, **how):
        return report.scorer(source, metrics, net, **how)

    return System(
        init=init,
        loss=loss,
        request=default,
        condition=condition,
        condition_like=condition_like,
        sample=sample,
        data=data,
        show=show,
        write=lambda output, path: pictures.write_array(output["image"], path),
        evaluate=evaluate,
        balanced=config.data.balanced and bool(null),
        sharding=nets.sharding(config.network),
        assets=assets,
        optional=OPTIONAL,
        equip=equip,
        process=process,
        denoiser=denoiser,
    )


def to_float(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]: x / 127.5 - 1."""
    return image.astype(jnp.float32) / 127.5 - 1


def _describe(source) -> dict:
    return {
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
    }


def _checked(assets: dict) -> dict:
    about = assets.get("data")
    if not isinstance(about, dict) or not {"image_shape", "class_names"} <= set(about):
        raise UserError("the run directory lacks assets/data.json (image_shape, class_names)")
    shape, names = about["image_shape"], about["class_names"]
    whole = lambda n: isinstance(n, int) and 0 < n <= 8192
    if not (isinstance(shape, list) and len(shape) == 3 and all(map(whole, shape))):
        raise UserError(f"assets/data.json: image_shape {shape} is no [height, width, channels]")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError("assets/data.json: class_names is no list of names")
    return about
