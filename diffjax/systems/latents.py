"""What a network of pictures is trained on: their pixels, or latents behind an autoencoder.

A `Pair` is the way there and back, and there are two: the identity, and that of a finished run of
the system autoencoder (`config.data.latents`), kept with the assets of every run that uses it:

    assets/latents.json              its network's config; mean and standard deviation of its
                                     latents, one a channel; a fingerprint of all of it
    assets/autoencoder.safetensors   its weights

Latents are the posterior's mean, not a sample of it, with the measured mean taken off and divided
by the measured deviation. They are made once, and one sample of each would be noise that the
network learns by heart; with a small KL weight the posterior is narrow beside how far means lie
apart, and the decoder, which was trained with its noise, needs none.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.data.base import Source, fingerprint
from diffjax.data.latents import LatentSource, encoded
from diffjax.errors import UserError
from diffjax.run import cli, sampling
from diffjax.run.system import load_assets
from diffjax.systems import images
from diffjax.weights import trees

ABOUT, WEIGHTS = "latents", "autoencoder"  # the assets
MEASURED = 50_000  # pictures at most


class Pair(NamedTuple):
    """The way from pictures to what a network is trained on, and back.

    Attributes:
      shape: of one x0.
      read: a batch's "image" -> x0 float32 [B, *shape].
      pixels: x0 -> pictures float32 [B, H, W, C], about [-1, 1], not clipped.
      over: a source of pictures -> the source that training reads.
    """

    shape: tuple[int, ...]
    read: Callable
    pixels: Callable
    over: Callable


def identity(shape: tuple[int, ...]) -> Pair:
    """The pair of training in pixels; also of films."""
    return Pair(shape, images.to_float, lambda x0: x0, lambda source: source)


def adopt(name: str, about: dict) -> dict:
    """Returns the assets of a new run behind the autoencoder that the run `name` holds.

    Args:
      name: config.data.latents.
      about: `images.describe` of the data; the result has it with the autoencoder's mark, which
        ties the run to it.

    Raises:
      UserError: no such run, one that is no autoencoder or not finished, or of other pictures.
    """
    where = f"config.data.latents {name}"
    workdir = Path(name)
    try:
        system = cli.read_config(workdir).get("system")
    except UserError as error:
        raise UserError(f"config.data.latents: {error}") from error
    if system != "autoencoder":
        raise UserError(f"{where}: a run of {system}, not of autoencoder")
    theirs = load_assets(workdir)
    if ABOUT not in theirs or not (workdir / sampling.WEIGHTS).is_file():
        raise UserError(f"{where}: is not finished: train it to its end")
    shape, _ = images.described(theirs)
    if list(shape) != list(about["image_shape"]):
        raise UserError(
            f"{where}: its pictures are {images.by_sides(shape)} (height, width, channels), "
            f"those of the data {images.by_sides(about['image_shape'])}"
        )
    assets = {ABOUT: theirs[ABOUT], WEIGHTS: trees.load(workdir / sampling.WEIGHTS)}
    mark = _checked(assets, where)
    about = {**about, "latents": mark, "fingerprint": fingerprint(about["fingerprint"], mark)}
    return {"data": about, **assets}


def behind(assets: dict, shape: tuple[int, int, int]) -> Pair:
    """Returns the pair that a run's assets keep.

    Args:
      shape: of a picture.

    Raises:
      UserError: assets that lack it, or are not what they were.
    """
    _checked(assets, "the run directory")
    about = assets[ABOUT]
    net = nets.make_autoencoder(ConfigDict(about["network"]), shape=shape)
    latent = net.latent_shape(shape)
    like = jax.eval_shape(net.init, jax.random.key(0), *_inputs(shape, latent))["params"]
    params = trees.fit(assets[WEIGHTS], like, f"assets/{WEIGHTS}.safetensors")
    mean, std = (np.asarray(about[name], np.float32) for name in ("mean", "std"))
    if mean.shape != latent[-1:]:
        raise UserError(f"assets/{ABOUT}.json: {len(mean)} means for {latent[-1]} channels")
    encode = encoder(net, params)

    def pixels(x0):
        # The weights are constants of whatever is compiled: they are few, and every function that
        # makes pictures stays one of the arguments that it has without an autoencoder.
        return net.apply({"params": params}, x0 * std + mean, method="decode")

    over = lambda source: LatentSource(source, lambda image: (encode(image) - mean) / std)
    return Pair(latent, lambda latents: latents, pixels, over)


def encoder(net, params) -> Callable:
    """Returns uint8 [B, H, W, C] -> the posterior's means, NumPy float32 [B, h, w, c]."""

    @jax.jit
    def run(params, image):
        return net.apply({"params": params}, images.to_float(image), method="encode")[0]

    placed = functools.cache(lambda: jax.device_put(params))
    return lambda image: np.asarray(run(placed(), image))


def measured(net, params, network, source: Source) -> dict:
    """Returns what `assets/latents.json` says of a trained autoencoder.

    Args:
      net: the module.
      params: its weights, NumPy.
      network: its config group.
      source: pictures, thinned evenly to `MEASURED`.
    """
    some = np.unique(np.linspace(0, len(source) - 1, min(MEASURED, len(source))).astype(int))
    means = encoded(source, some, encoder(net, params)).astype(np.float64)
    about = {
        "network": json.loads(cli.config_json(network)),
        "mean": means.mean((0, 1, 2)).tolist(),
        "std": means.std((0, 1, 2)).tolist(),
    }
    return {**about, "fingerprint": _mark(about, trees.flatten(params))}


def _inputs(shape, latent):
    return jnp.zeros((1, *shape)), jnp.zeros((1, *latent))


def _mark(about: dict, weights: dict) -> str:
    """A fingerprint of an autoencoder: its network, what was measured of it, its weights."""
    parts = [json.dumps([about[name] for name in ("network", "mean", "std")], sort_keys=True)]
    for name in sorted(weights):
        parts += [name, np.asarray(weights[name])]
    return fingerprint(*parts)


def _numbers(value) -> bool:
    """Whether it is a list of numbers of JSON, finite in float32."""
    if not isinstance(value, list) or not all(isinstance(n, int | float) for n in value):
        return False
    return len(value) > 0 and all(abs(n) < np.finfo(np.float32).max for n in value)


def _checked(assets: dict, where: str) -> str:
    """Returns the fingerprint of the assets; `UserError` where they are not what they should be."""
    about, weights = assets.get(ABOUT), assets.get(WEIGHTS)
    if not isinstance(about, dict) or not isinstance(weights, dict):
        raise UserError(
            f"{where}: lacks assets/{ABOUT}.json or assets/{WEIGHTS}.safetensors, the autoencoder "
            "that its latents are of"
        )
    network = about.get("network")
    if (
        not isinstance(network, dict)
        or not isinstance(network.get("kind"), str)
        or any("." in name for name in network)
        or not all(_numbers(about.get(name)) for name in ("mean", "std"))
        or len(about["mean"]) != len(about["std"])
    ):
        raise UserError(f"{where}: assets/{ABOUT}.json does not say network, mean and std")
    if about.get("fingerprint") != _mark(about, weights):
        raise UserError(f"{where}: the autoencoder's weights are not those that were measured")
    if min(about["std"]) < 1e-6:
        raise UserError(
            f"{where}: channel {int(np.argmin(about['std']))} of the latents is the same for every "
            "picture: train the autoencoder for longer, or with a smaller config.loss.kl_weight"
        )
    return about["fingerprint"]
