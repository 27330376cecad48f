"""EDM (Karras et al. 2022, arXiv 2206.00364): an image model, class-conditional where labels are.

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

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.core import denoisers, grids, guidance, objectives, processes, samplers
from diffjax.data import augment, sources
from diffjax.errors import UserError, choose, did_you_mean
from diffjax.metrics import report
from diffjax.run import cli, pictures
from diffjax.run.system import System


def _field(default, help: str):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of the sampler is asked for; the defaults come from the run's config."""

    steps: int = _field(18, "sampler steps; heun evaluates the network 2 steps - 1 times")
    sampler: str = _field("heun", "heun, euler, ddim, ancestral, relay, dpmpp, dpmpp_sde or unipc")
    guidance: float = _field(1.0, "classifier-free guidance scale; 1 is none")
    cond: str = _field("", "class names or numbers, comma-separated; empty: all classes in turn")
    sigma_min: float = _field(0.002, "smallest noise level before 0")
    sigma_max: float = _field(80.0, "noise level of the start")
    rho: float = _field(7.0, "shape of the noise levels, equation 5")
    churn: float = _field(0.0, "S_churn of Algorithm 2 (heun and euler)")
    eta: float = _field(0.0, "0 deterministic .. 1 all noise new (ddim, relay, dpmpp)")


ASIDE = 2**32 - 1  # a stream of randomness above every row and every split

SAMPLERS = ("heun", "euler", "ddim", "ancestral", "relay", "dpmpp", "dpmpp_sde", "unipc")
FIELDS = {
    "data.path": str,
    "data.image_size": int,
    "data.balanced": bool,
    "network.kind": str,
    **dict.fromkeys(
        [f"diffusion.{k}" for k in ("sigma_data", "p_mean", "p_std", "label_dropout")], float
    ),
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
    if not config.data.path:
        raise UserError(
            "config.data.path is empty: give a folder, a .npz, an EDM .zip, tfds:NAME, or emoji"
        )
    if config.data.image_size < 0:
        raise UserError(f"config.data.image_size {config.data.image_size}: pixels, 0: as they are")
    request = _default_request(config)
    assets = {"data": _describe(data("train"))} if assets is None else assets
    about = _checked(assets)
    shape, names = tuple(about["image_shape"]), tuple(about["class_names"])
    null = len(names)
    net = nets.make(config.network, channels=shape[-1], num_classes=len(names), shape=shape)
    process = processes.edm()
    settings = config.diffusion
    objective = objectives.edm(settings.p_mean, settings.p_std, settings.sigma_data)
    coefficients = denoisers.edm_coefficients(settings.sigma_data)
    if not 0 <= settings.label_dropout < 1:
        raise UserError("config.diffusion.label_dropout must be in [0, 1)")
    pipe = _pipe(config)
    if settings.sigma_data <= 0 or settings.p_std <= 0:
        raise UserError("config.diffusion.sigma_data and p_std must be above 0")

    def init(key):
        struct = jax.ShapeDtypeStruct
        inputs = ((1, *shape), jnp.float32), ((1,), jnp.float32), ((1,), jnp.int32)
        return net.lazy_init(key, *(struct(*i) for i in inputs))["params"]

    def estimate(params, x, ratio, label, **training):
        """D(x; sigma): x [B, H, W, C], ratio broadcasting against x, label int32 [B]."""

        def network(x, c_noise, label):
            c_noise = jnp.broadcast_to(c_noise.reshape(-1), x.shape[:1])
            return net.apply({"params": params}, x, c_noise, label, **training)

        return denoisers.preconditioned(network, coefficients)(x, ratio, label)

    def denoiser(params, x, t, label, **training):
        on_edm = lambda x, ratio: estimate(params, x, ratio, label, **training)
        return denoisers.on(process, on_edm)(x, t)

    def loss(params, batch, key):
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        keys = jax.vmap(lambda k: jax.random.split(k, 3))(rows)
        draw = jax.vmap(lambda k: jax.random.normal(k, (1, 1, 1)))(keys[:, 0])
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
        training = {"augment": moved, "train": True, "rngs": {"dropout": dropout}}
        error = objectives.loss(
            objective,
            process,
            lambda x, t: denoiser(params, x, t, label, **training),
            x0,
            objective.time(draw),
            n,
        )
        return jnp.mean(error), {}

    def condition(request: Request, index: np.ndarray) -> np.ndarray:
        _check(request)
        labels = _labels(request.cond, names)
        return labels[index % len(labels)]

    def pixels(params, keys, label, request: Request):
        grid = grids.karras(request.steps, request.sigma_min, request.sigma_max, request.rho)
        denoise = lambda x, t: denoiser(params, x, t, label)
        if null and request.guidance != 1:
            nobody = jnp.full_like(label, null)
            denoise = guidance.cfg(
                denoise, lambda x, t: denoiser(params, x, t, nobody), request.guidance
            )
        normal = samplers.draws(keys, shape, process)
        # Draw 0 is the start, draw k + 1 is the sampler's k-th.
        return solve(request, denoise, process, grid, normal(0) * grid[0], lambda k: normal(k + 1))

    def sample(params, keys, label, request: Request):
        x = pixels(params, keys, label, request)
        image = jnp.clip(127.5 * x + 128, 0, 255).astype(jnp.uint8)
        return {"image": image, "label": label}

    def show(outputs, path):
        labels = outputs["label"] if null else None
        pictures.labelled_grid(outputs["image"], labels, names, path)

    def condition_like(request: Request, source, index: np.ndarray) -> np.ndarray:
        _check(request)
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
        request=request,
        condition=condition,
        condition_like=condition_like,
        sample=sample,
        pixels=pixels,
        data=data,
        show=show,
        write=lambda output, path: pictures.write_array(output["image"], path),
        evaluate=evaluate,
        balanced=config.data.balanced and bool(null),
        sharding=nets.sharding(config.network),
        assets=assets,
        process=process,
        denoiser=denoiser,
    )


def _pipe(config) -> augment.Pipe | None:
    """The augmentation that config.augment asks for; None where its probability is 0."""
    if "augment" not in config:  # runs from before the field
        return None
    cli.require(config, {"augment.probability": float})
    pipe = augment.Pipe(config.augment.probability)
    if not 0 <= pipe.probability <= 1:
        raise UserError(f"config.augment.probability {pipe.probability}: must be in [0, 1]")
    # A network that cannot be told of the transformation learns to draw transformed pictures.
    told = config.network.get("augment_dim", pipe.label_dim)
    if pipe.probability and told != pipe.label_dim:
        raise UserError(
            f"config.network.augment_dim {told}: must be {pipe.label_dim} where "
            "config.augment.probability is above 0"
        )
    return pipe if pipe.probability else None


def _default_request(config) -> Request:
    """The Request with the config's `sampling` for defaults."""
    known = {f.name: type(f.default) for f in dataclasses.fields(Request)}
    given = config.get("sampling", {})
    for name in given:
        choose(name, known, "field of config.sampling:")
    cli.require(given, {name: known[name] for name in given}, "config.sampling")
    return Request(**{name: known[name](given[name]) for name in given})


def solve(request: Request, denoise, process, grid, x, noise):
    """Runs the sampler that the request names from x at the grid's first level to x0."""
    if request.sampler == "ddim":
        return samplers.ddim(
            denoise, process, grid, x, noise, delta=samplers.posterior(request.eta)
        )
    if request.sampler == "ancestral":
        return samplers.ddim(denoise, process, grid, x, noise, delta=samplers.posterior(1.0))
    if request.sampler == "relay":  # heun with a share of new noise at every level
        return samplers.relay(denoise, process, grid, x, noise, eta=request.eta)
    if request.sampler in ("dpmpp", "dpmpp_sde"):
        eta = 1.0 if request.sampler == "dpmpp_sde" else request.eta
        return samplers.dpmpp(denoise, process, grid, x, noise, eta=eta)
    if request.sampler == "unipc":
        return samplers.unipc(denoise, process, grid, x)
    hat = samplers.churn(grid, request.churn) if request.churn else None
    order = 2 if request.sampler == "heun" else 1
    return samplers.ode(denoise, process, grid, x, noise, hat=hat, order=order)


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


def _check(request: Request) -> None:
    choose(request.sampler, dict.fromkeys(SAMPLERS), "--sampler")
    if request.steps < 1 or request.steps > 10_000:
        raise UserError(f"--steps {request.steps}: must be from 1 to 10000")
    if not 0 < request.sigma_min < request.sigma_max:
        raise UserError(
            f"--sigma_min {request.sigma_min} must be above 0 and below "
            f"--sigma_max {request.sigma_max}"
        )
    for name, low, high in (
        ("rho", 0.1, 1e3),
        ("churn", 0.0, 1e6),
        ("eta", 0.0, 1.0),
        ("guidance", -1e4, 1e4),
        ("sigma_max", 0.0, 1e9),
    ):
        value = getattr(request, name)
        if not low <= value <= high:  # NaN fails too
            raise UserError(f"--{name} {value}: must be from {low:g} to {high:g}")


def _labels(cond: str, names: tuple[str, ...]) -> np.ndarray:
    """The labels that `--cond` asks for, by name or number; all of them where it is empty."""
    if not names:
        if cond:
            raise UserError(f"--cond {cond}: this model has no classes")
        return np.zeros(1, np.int32)
    if not cond:
        return np.arange(len(names), dtype=np.int32)
    labels = []
    for word in cond.split(","):
        word = word.strip()
        if word in names:
            labels.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            labels.append(int(word))
        else:
            raise UserError(f"--cond: no class {word!r}{did_you_mean(word, names)}")
    return np.asarray(labels, np.int32)
