"""A small KL autoencoder (Kingma & Welling 2014; Rombach et al. 2022): to latents and back.

It is what another run may train behind (`config.data.latents`, `systems.latents`), and makes no new
pictures itself: its samples are reconstructions, shown beside what they are of. No adversary and no
perceptual network takes part, so at a high compression they are smooth.

When a run is finished it measures mean and standard deviation of its latents, one a channel, over
the training pictures (`assets/latents.json`): whoever trains behind it sees unit variance.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.data import sources
from diffjax.errors import UserError, choose
from diffjax.metrics import report
from diffjax.run import cli, pictures
from diffjax.run.system import System
from diffjax.systems import images, latents
from diffjax.systems.autoencoder import losses
from diffjax.systems.autoencoder.request import Request

FIELDS = {
    "data.path": str,
    "data.image_size": int,
    "network.kind": str,
    "loss.reconstruction": str,
    "loss.kl_weight": float,
}
OPTIONAL = {"data.balanced": False}
KEPT = 64  # training pictures that a run keeps to show
PICTURES = "pictures"  # the asset that they are in
PANELS = (
    ("reconstruction error", ("reconstruction",), None),
    ("PSNR, dB", ("psnr",), None),
    ("KL, nats a latent number", ("kl",), None),
)


def make(config, assets: dict | None = None) -> System:
    """Returns the autoencoder of a config; see `configs/autoencoder.py` for its fields.

    Raises:
      UserError: where data or fields cannot be used.
    """
    cli.require(config, FIELDS)
    config = cli.with_defaults(config, OPTIONAL)
    data = images.opener(config)
    default = images.default_request(Request, config)
    if default.pictures:
        raise UserError("config.sampling.pictures: named by sample.py's flag alone")
    error_of = choose(config.loss.reconstruction, losses.ERRORS, "config.loss.reconstruction")
    if config.loss.kl_weight < 0:
        raise UserError(f"config.loss.kl_weight {config.loss.kl_weight}: at least 0")
    if assets is None:
        source = data("train")
        assets = {"data": images.describe(source), PICTURES: _some(source)}
    shape, names = images.described(assets)
    net = nets.make_autoencoder(config.network, shape=shape)
    latent = net.latent_shape(shape)

    def init(key):
        struct = jax.ShapeDtypeStruct
        inputs = (struct((1, *s), jnp.float32) for s in (shape, latent))
        return net.lazy_init(key, *inputs)["params"]

    def run(params, image, keys, noise: bool):
        """(x, x^, mean, logvar) of uint8 [B, H, W, C]; keys [B] of the posterior's noise."""
        x, n = images.to_float(image), jnp.zeros((len(image), *latent))
        if noise:
            n = jax.vmap(lambda k: jax.random.normal(k, latent))(keys)
        return x, *net.apply({"params": params}, x, n)

    def loss(params, batch, key):
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        x, made, mean, logvar = run(params, batch["image"], keys, True)
        error, divergence = jnp.mean(error_of(made - x)), jnp.mean(losses.kl(mean, logvar))
        # The mean of a latent number's divergence, as a share of a pixel value's error.
        total = error + config.loss.kl_weight * divergence * (mean.size / x.size)
        metrics = {"reconstruction": error, "psnr": losses.psnr(made, x), "kl": divergence}
        return total, metrics

    @functools.cache
    def opened(path: str):
        source = sources.open_source(path, image_size=shape[0] if shape[0] == shape[1] else None)
        _check_shape(source, shape, f"--pictures {path}")
        return source

    def condition(request: Request, index: np.ndarray) -> dict:
        if request.pictures:
            source = opened(request.pictures)
            some = [source[int(i)]["image"] for i in index % len(source)]
            return {"image": np.stack(some)}
        kept = _kept(assets, shape)
        return {"image": kept[index % len(kept)]}

    def condition_like(request: Request, source, index: np.ndarray) -> dict:
        if request.pictures:
            raise UserError("--pictures: what is scored are the reference's pictures")
        _check_shape(source, shape, source.name)
        order = np.random.default_rng(0).permutation(len(source))
        some = [source[int(i)] for i in order[index % len(source)]]
        return {name: np.stack([one[name] for one in some]) for name in some[0]}

    def sample(params, keys, given: dict, request: Request) -> dict:
        _, made, _, _ = run(params, given["image"], keys, request.posterior)
        return {**given, "image": images.to_uint8(made), "original": given["image"]}

    def count(request: Request) -> int:
        if not request.pictures:
            return len(_kept(assets, shape))
        return min(len(opened(request.pictures)), KEPT)

    def show(outputs, path):
        pairs = np.concatenate([outputs["original"], outputs["image"]], 2)
        # A pair is twice as wide as the grid thinks that a picture is.
        times = max(1, 72 // max(shape[:2]))
        pictures.labelled_grid(pairs.repeat(times, 1).repeat(times, 2), None, (), path)

    def evaluate(source, metrics, net, **how):
        scored = report.scorer(source, metrics, net, **how)
        return lambda outputs, seed: {**scored(outputs, seed), **_distances(outputs)}

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
        count=count,
        balanced=config.data.balanced and bool(names),
        sharding=nets.sharding(config.network),
        assets=assets,
        optional=OPTIONAL,
        finish=lambda params: {
            latents.ABOUT: latents.measured(net, params, config.network, data("train"))
        },
        panels=PANELS,
    )


def _some(source) -> np.ndarray:
    """uint8 [n, H, W, C] of a source, from all over it."""
    order = np.random.default_rng(0).permutation(len(source))[:KEPT]
    return np.stack([source[int(i)]["image"] for i in order])


def _kept(assets: dict, shape) -> np.ndarray:
    kept = assets.get(PICTURES)
    if (
        not isinstance(kept, np.ndarray)
        or kept.dtype != np.uint8
        or not len(kept)
        or kept.shape[1:] != shape
    ):
        raise UserError(f"the run directory lacks assets/{PICTURES}.npy, pictures of its data")
    return kept


def _check_shape(source, shape, where: str) -> None:
    if tuple(source.image_shape) != tuple(shape):
        raise UserError(
            f"{where}: pictures of {images.by_sides(source.image_shape)}, the run's are "
            f"{images.by_sides(shape)}"
        )


def _distances(outputs: dict) -> dict:
    """How far reconstructions are from what they are of, both uint8."""
    made, real = (images.to_float(jnp.asarray(outputs[k])) for k in ("image", "original"))
    return {"l1": float(jnp.mean(jnp.abs(made - real))), "psnr": float(losses.psnr(made, real))}
