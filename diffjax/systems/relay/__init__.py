"""Relay diffusion (Teng et al. 2023, arXiv 2309.03350): a stage from small pictures to large ones.

A stage goes on where the one before it has ended. Its process blurs every p x p patch towards its
mean while noise, a little of it correlated over p pixels, is added; so a small picture with each
pixel repeated p x p times, under noise of a middle level, is a state that the process passes, and
sampling starts there and not from pure noise. The network is not told the small picture.

The stage before is another run, `config.parent`: of any system that gives `pixels`. Blur, noise,
levels and the sampler are in `core` (`processes.blurred`, `objectives.relay`, `samplers.relay`);
this room adds pictures, labels and where sampling starts. As in the EDM room the loss is a mean
over pixels and not a sum, and a gradient that is not finite ends the run. Unlike the released
training, labels can be dropped, without which classifier-free guidance has nothing to compare with.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.core import denoisers, guidance, objectives, patches, processes, samplers
from diffjax.errors import UserError
from diffjax.metrics import judging, report
from diffjax.run import cli, pictures
from diffjax.run.system import Problem, Start, System
from diffjax.systems import images
from diffjax.systems.relay import backbone, postprocess, starts
from diffjax.systems.relay.request import Request, adopt, check, noise_levels

# A stream of randomness for a stage, by its height: all stages of a chain are handed the same key
# for a sample.
STAGE = 2**31

FIELDS = {
    "parent": str,
    "data.path": str,
    "data.image_size": int,
    "data.balanced": bool,
    "network.kind": str,
    "diffusion.patch": object,  # a whole number, or (height, width)
    "diffusion.block_size": object,
    "diffusion.normalize": bool,
    **dict.fromkeys(
        [f"diffusion.{k}" for k in ("sigma_data", "p_mean", "p_std", "label_dropout")], float
    ),
    **dict.fromkeys([f"diffusion.{k}" for k in ("blur_max", "quantile", "block", "floor")], float),
}
OPTIONAL = {"augment.probability": 0.0}  # as EDM's: what a config may leave out


def make(config, assets: dict | None = None) -> System:
    """Returns the relay stage of a config; see `configs/relay_emoji256.py` for its fields.

    Raises:
      UserError: where data, fields or the parent, if it is there already, cannot be used.
    """
    cli.require(config, FIELDS)
    config = cli.with_defaults(config, OPTIONAL)
    if config.data.get("latents"):
        raise UserError(f"config.data.latents {config.data.latents}: relay trains in pixels")
    data = images.opener(config)
    settings = config.diffusion
    _check_settings(settings)
    request = images.default_request(Request, config)
    training = assets is None
    assets = {"data": images.describe(data("train"))} if training else assets
    shape, names = images.described(assets)
    null = len(names)
    patch = _sides("patch", settings.patch)
    low = _small(shape, patch)
    if training:
        _check_parent_on_disk(config.parent, low, names)
    net = nets.make(config.network, channels=shape[-1], num_classes=null, shape=shape)
    process = _process(settings, settings.quantile)
    objective = objectives.relay(
        settings.quantile, settings.p_mean, settings.p_std, settings.sigma_data
    )
    coefficients = denoisers.edm_coefficients(settings.sigma_data)
    pipe = images.pipe(config)

    def denoiser(params, x, t, label, **told):
        """D(x; t): x [B, H, W, C], t broadcasting against x, label int32 [B]. Told of no blur."""

        def network(x, c_noise, label):
            c_noise = jnp.broadcast_to(c_noise.reshape(-1), x.shape[:1])
            return net.apply({"params": params}, x, c_noise, label, **told)

        return denoisers.preconditioned(network, coefficients)(x, t, label)

    def loss(params, batch, key):
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(rows)
        u = jax.vmap(lambda k: jax.random.uniform(k, (1, 1, 1)))(keys[:, 0])
        white, other = (jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, i]) for i in (1, 2))
        x0, label, told = images.training_inputs(
            batch, key, rows, keys[:, 3], null=null, dropout=settings.label_dropout, pipe=pipe
        )
        denoise = lambda x, t: denoiser(params, x, t, label, **told)
        t, n = objective.time(u), process.colour(white, other)
        return jnp.mean(objectives.loss(objective, process, denoise, x0, t, n)), {}

    def condition(request: Request, index: np.ndarray) -> np.ndarray:
        check(request)
        if null and request.start and not request.cond:
            if not settings.label_dropout:
                raise UserError("--start: this network was trained with classes only: give --cond")
            return np.full(len(index), null, np.int32)
        if null and training and not request.cond:  # of the pictures that it starts from
            order = starts.Examples(data("train"), patch).order
            return np.asarray(data("train").labels, np.int32)[order[index % len(order)]]
        labels = images.labels_of(request.cond, names)
        return labels[index % len(labels)]

    def condition_like(request: Request, source, index: np.ndarray) -> np.ndarray:
        check(request)
        if request.cond or (null and request.start):
            flag = "--cond" if request.cond else "--start"
            raise UserError(f"{flag}: samples that are scored take the reference's classes")
        return images.labels_like(source, names, index)

    def begin(request: Request):
        if request.start:
            return starts.Own(Path(request.start).expanduser(), low)
        return starts.Examples(data("train"), patch) if training else None

    def asked(parent: System, request: Request):
        if parent.pixels is None or "data" not in parent.assets:
            raise UserError(f"config.parent {config.parent}: its samples are no pictures")
        their_shape, their_names = images.described(parent.assets)
        _check_fit(config.parent, their_shape, their_names, low, names)
        wanted = adopt(request, parent.request, bool(their_names))
        try:
            parent.condition(wanted, np.zeros(1, int))
        except UserError as error:
            raise UserError(f"config.parent {config.parent}: {error}") from error
        return wanted

    def problem(params, keys, given, request: Request) -> Problem:
        label, small = given
        params = nets.rounded(config.network, params)
        grid = noise_levels(request)
        at = _process(settings, request.quantile or settings.quantile)
        denoise = lambda x, t: denoiser(params, x, t, label)
        if null and request.guidance != 1:
            nobody = jnp.full_like(label, null)
            denoise = guidance.cfg(
                denoise, lambda x, t: denoiser(params, x, t, nobody), request.guidance
            )
        keys = jax.vmap(lambda k: jax.random.fold_in(k, STAGE + shape[0]))(keys)
        normal = samplers.draws(keys, shape, at)
        # Draw 0 is the start, draw k + 1 is the sampler's k-th.
        x = patches.upsample(small, patch) + grid[0].astype(np.float32) * normal(0)
        return Problem(denoise, at, grid, x, lambda k: normal(k + 1))

    def pixels(params, keys, given, request: Request):
        how = {"eta": request.eta, "second_order": request.second_order}
        return samplers.relay(*problem(params, keys, given, request).arguments, **how)

    def sample(params, keys, given, request: Request):
        image = images.to_uint8(pixels(params, keys, given, request))
        if request.post:
            image = postprocess.apply(image, request.post)
        return {"image": image, "label": given[0]}

    def show(outputs, path):
        labels = outputs["label"] if null else None
        pictures.labelled_grid(outputs["image"], labels, (*names, "no class"), path)

    return System(
        init=images.initialiser(net, shape),
        loss=loss,
        request=request,
        condition=condition,
        condition_like=condition_like,
        sample=sample,
        pixels=pixels,
        start=Start(pictures=begin, adopt=asked),
        data=data,
        show=show,
        write=lambda output, path: pictures.write_array(output["image"], path),
        evaluate=report.scorer,
        balanced=config.data.balanced and bool(null),
        sharding=nets.sharding(config.network),
        assets=assets,
        optional=OPTIONAL,
        process=process,
        denoiser=denoiser,
        problem=problem,
        judge=judging.of_images,
        backbone=backbone.make(config, net, shape, names, coefficients, request),
    )


def _process(settings, quantile: float) -> processes.Process:
    """The stage's process; training and sampling may end the blur at different noise levels."""
    return processes.blurred(
        processes.relay_blur(settings.blur_max, quantile, settings.p_mean, settings.p_std),
        _sides("patch", settings.patch),
        floor=settings.floor,
        block=settings.block,
        block_size=_sides("block_size", settings.block_size or settings.patch),
        normalize=settings.normalize,
    )


def _check_settings(settings) -> None:
    if max(_sides("patch", settings.patch)) < 2:
        raise UserError(
            f"config.diffusion.patch {settings.patch}: how many times larger, 2 or more"
        )
    for name, low, high in (
        ("blur_max", 0, 1e4),
        ("quantile", 1e-6, 1),
        ("block", 0, 1e4),
        ("floor", 0, 1),
        ("p_std", 1e-6, 1e4),
        ("sigma_data", 1e-6, 1e4),
        ("label_dropout", 0, 1 - 1e-6),
    ):
        if not low <= settings[name] <= high:
            raise UserError(
                f"config.diffusion.{name} {settings[name]}: must be from {low:g} to {high:g}"
            )


def _sides(name: str, value) -> tuple[int, int]:
    """(height, width) of a field that is a whole number, or two of them."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or any(type(p) is not int or p < 1 for p in pair):
        raise UserError(f"config.diffusion.{name} {value}: a whole number, or (height, width)")
    return pair


def _small(shape: tuple[int, int, int], patch: tuple[int, int]) -> tuple[int, int, int]:
    """The shape that a stage starts from."""
    height, width, channels = shape
    if height % patch[0] or width % patch[1]:
        raise UserError(
            f"images of {height}x{width} do not divide by config.diffusion.patch "
            f"{patch[0]}x{patch[1]}"
        )
    return height // patch[0], width // patch[1], channels


def _check_parent_on_disk(parent: str, low, names) -> None:
    """Training needs no parent; but one that is there and does not fit is better said now."""
    about = Path(parent) / "assets" / "data.json"
    if parent and about.is_file():
        try:
            found = json.loads(about.read_text())
        except ValueError as error:
            raise UserError(f"{about}: cannot be read ({error})") from error
        _check_fit(parent, *images.described({"data": found}), low, names)


def _check_fit(parent: str, shape, classes, low, names) -> None:
    if tuple(shape) != tuple(low):
        raise UserError(
            f"config.parent {parent} makes {images.by_sides(shape)}, this stage starts from "
            f"{images.by_sides(low)}"
        )
    if classes and tuple(classes) != tuple(names):
        raise UserError(f"config.parent {parent} has other classes than this stage")
