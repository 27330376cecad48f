"""The autoencoder's network: shapes, what a picture's latents depend on, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.errors import UserError
from diffjax.nets import autoencoder

FIELDS = {"kind": "kl", "widths": (8, 16), "blocks": 1, "patch": 2, "latent_channels": 3}
FIELDS |= {"dtype": "float32"}


def made(shape=(8, 16, 3), **more):
    return nets.make_autoencoder(ConfigDict({**FIELDS, **more}), shape=shape)


@pytest.fixture(scope="module")
def trained_like():
    """(net, params, x, noise) with weights in every layer, those that begin at 0 included."""
    net, random = made(), np.random.default_rng(0)
    x = jnp.asarray(random.uniform(-1, 1, (3, 8, 16, 3)), jnp.float32)
    noise = jnp.asarray(random.standard_normal((3, 2, 4, 3)), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, noise)["params"]
    draw = lambda s: jnp.asarray(0.2 * random.standard_normal(s.shape), s.dtype)
    return net, jax.tree.map(draw, shapes), x, noise


@pytest.mark.parametrize(
    "more, shape, latent",
    [
        ({}, (8, 16, 3), (2, 4, 3)),
        ({"widths": (8, 8, 8), "patch": 1}, (8, 16, 1), (2, 4, 3)),
        ({"widths": (8, 8, 8), "latent_channels": 5}, (16, 8, 3), (2, 1, 5)),
    ],
)
def test_shapes_there_and_back(more, shape, latent):
    net = made(shape, **more)
    assert net.latent_shape(shape) == latent
    inputs = jnp.zeros((2, *shape)), jnp.zeros((2, *latent))
    again, params = jax.eval_shape(net.init_with_output, jax.random.key(0), *inputs)
    assert [a.shape for a in again] == [(2, *shape), (2, *latent), (2, *latent)]
    assert {a.dtype for a in jax.tree.leaves((again, params))} == {jnp.dtype("float32")}


def test_bfloat16_keeps_float32_outside():
    net = made(dtype="bfloat16")
    inputs = jnp.zeros((1, 8, 16, 3)), jnp.zeros((1, 2, 4, 3))
    out = jax.eval_shape(net.init_with_output, jax.random.key(0), *inputs)
    assert {a.dtype for a in jax.tree.leaves(out)} == {jnp.dtype("float32")}


def test_the_call_is_encode_then_decode(trained_like):
    net, params, x, noise = trained_like
    run = lambda *a, **k: net.apply({"params": params}, *a, **k)
    again, mean, logvar = run(x, noise)
    found = run(x, method="encode")
    np.testing.assert_array_equal(found[0], mean)
    np.testing.assert_array_equal(found[1], logvar)
    z = np.asarray(mean) + np.sqrt(np.exp(np.asarray(logvar))) * np.asarray(noise)
    np.testing.assert_allclose(run(jnp.asarray(z), method="decode"), again, rtol=1e-4, atol=1e-5)
    assert np.std(again) > 0.01 and np.ptp(logvar) > 0.01


def test_a_picture_s_latents_are_its_own(trained_like):
    net, params, x, _ = trained_like
    run = lambda x: net.apply({"params": params}, x, method="encode")[0]
    np.testing.assert_allclose(run(x[1:2]), run(x)[1:2], rtol=1e-5, atol=1e-6)
    other = x.at[0].set(-x[0])
    np.testing.assert_allclose(run(other)[1:], run(x)[1:], rtol=1e-5, atol=1e-6)


def test_the_posterior_begins_narrow():
    net = made()
    inputs = jnp.ones((1, 8, 16, 3)), jnp.zeros((1, 2, 4, 3))
    (_, mean, logvar), _ = jax.jit(net.init_with_output)(jax.random.key(0), *inputs)
    assert np.std(mean) > 0.01
    np.testing.assert_array_equal(logvar, autoencoder.FIRST_LOGVAR)


@pytest.mark.parametrize(
    "fragment, shape, more",
    [
        ("images of 8x18 do not divide by 4", (8, 18, 3), {}),
        (r"widths \(8, 12\): multiples of 8", (8, 16, 3), {"widths": (8, 12)}),
        ("latent_channels 0: a whole number above 0", (8, 16, 3), {"latent_channels": 0}),
        ("network.kind", (8, 16, 3), {"kind": "unet_small"}),
    ],
)
def test_refused(fragment, shape, more):
    with pytest.raises(UserError, match=fragment):
        made(shape, **more)
