"""How networks of pictures are trained further: their `Backbone`, for any system that has one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax import nets
from diffjax.nets import tapping
from diffjax.run.system import Backbone
from diffjax.systems import images, latents


def make(
    network,
    net,
    pair: latents.Pair,
    names: tuple[str, ...],
    feed: Callable,
    *,
    std: float,
    start: tuple[float, float],
    nameless: bool,
) -> Backbone:
    """Returns the backbone of a network that takes (x, c_noise, label).

    Args:
      network: its config group.
      net: the module.
      pair: the way from pictures to what it is trained on, and back.
      names: of the classes.
      feed: as `Backbone.feed`.
      std: of the data.
      start: as `Backbone.start`.
      nameless: whether the network was trained without labels too.
    """
    struct, shape = jax.ShapeDtypeStruct, pair.shape
    inputs = (
        struct((1, *shape), jnp.float32),
        struct((1,), jnp.float32),
        struct((1,), jnp.int32),
    )
    unit = nets.unit(network)

    def tapped(taps: tuple[int, ...]):
        features, select = tapping.tapped(net, unit, taps, inputs)
        return lambda params, x, told, label: (features(params, x, told, label), None), select

    def examples(batch, key):
        label = batch.get("label", jnp.zeros_like(batch["row"]))
        return pair.read(batch["image"]), label

    return Backbone(
        shape=lambda label: shape,
        mask=lambda label: None,
        std=std,
        start=start,
        lowest=0.0,
        blocks=lambda: len(tapping.blocks(net, unit, inputs)),
        tapped=tapped,
        feed=feed,
        examples=examples,
        unconditional=(lambda label: jnp.full_like(label, len(names))) if nameless else None,
        finish=lambda x0, label: {"image": images.to_uint8(pair.pixels(x0)), "label": label},
        asks=("cond",),
        pixels=pair.pixels,
    )


def feed_wrapped(coefficients: Callable, lowest: float, highest: float) -> Callable:
    """Clean x in the scale of no noise, and what a wrapped network is told at a noise level.

    c_in makes the sum of picture and noise have unit variance. There is no noise here, so x is
    scaled as at sigma = 0, whatever the network is told: c_noise of sigma = t/(1 - t), kept in the
    range that it was trained in.

    Args:
      coefficients: sigma -> `denoisers.Coefficients`.
      lowest, highest: noise levels.
    """

    def feed(x, t):
        sigma = jnp.clip(t / jnp.maximum(1 - t, 1e-6), lowest, highest)
        return coefficients(jnp.zeros((), x.dtype)).input * x, coefficients(sigma).noise

    return feed
