"""The small UNet: its size, its shapes, what it does with types and labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.errors import UserError
from diffjax.nets.unet_small import UNetSmall, depth_to_space, space_to_depth

LABELS = np.array([0, 1, 2], np.int32)


def inputs(size=8, channels=3):
    random = np.random.default_rng(0)
    x = random.normal(size=(3, size, size, channels)).astype(np.float32)
    return x, np.array([-1.2, 0.0, 0.9], np.float32)


@pytest.fixture(scope="module")
def net():
    return UNetSmall(widths=(8, 16), num_classes=2, embedding=16)


@pytest.fixture(scope="module")
def params(net):
    # Every leaf is random, so that no zero-initialised branch hides what is behind it.
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(), LABELS)["params"]
    random = np.random.default_rng(1)
    draw = lambda a: random.normal(size=a.shape) / np.sqrt(max(1, np.prod(a.shape[:-1])))
    return jax.tree.map(lambda a: jnp.asarray(draw(a), a.dtype), shapes)


@pytest.fixture(scope="module")
def run(net, params):
    """run(x, c_noise, label) -> the network's output."""
    apply = jax.jit(net.apply)
    return lambda *args: np.asarray(apply({"params": params}, *args))


def conv(i, o):
    return 9 * i * o + o


def dense(i, o):
    return i * o + o


def block(i, o, embedding):
    skip = dense(i, o) if i != o else 0
    return 2 * i + dense(embedding, 2 * o) + conv(i, o) + 2 * o + conv(o, o) + skip


def test_default_has_the_parameters_that_its_parts_add_up_to():
    # 24x24x3 and 8 classes: space-to-depth by 2 gives 12 channels.
    e, a, b, c = 128, 32, 64, 64
    wanted = dense(32, e) + 9 * e + dense(e, e)  # noise, classes and "no class", both
    wanted += conv(12, a) + block(a, a, e)
    wanted += conv(a, b) + block(b, b, e) + conv(b, c) + block(c, c, e)
    wanted += block(c, c, e)
    wanted += block(c + c, c, e) + block(c + c, c, e) + dense(c, b)
    wanted += block(b + b, b, e) + block(b + b, b, e) + dense(b, a)
    wanted += block(a + a, a, e) + block(a + a, a, e)
    wanted += 2 * a + conv(a, 12)
    shapes = jax.eval_shape(
        UNetSmall(num_classes=8).init,
        jax.random.key(0),
        *(jnp.zeros(s) for s in ((1, 24, 24, 3), (1,))),
        jnp.zeros(1, int),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == wanted == 1_009_292
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("patch, channels, classes", [(1, 1, 0), (2, 3, 2), (4, 3, 2)])
def test_output_has_the_shape_of_the_input(patch, channels, classes):
    net = UNetSmall(
        channels=channels, widths=(8, 16), num_classes=classes, patch=patch, embedding=16
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(16, channels), LABELS)
    out = jax.eval_shape(net.apply, shapes, *inputs(16, channels), LABELS)
    assert out.shape == (3, 16, 16, channels) and out.dtype == jnp.float32
    assert ("classes" in shapes["params"]) == bool(classes)


def test_bfloat16_stays_close(net, params, run):
    full = run(*inputs(), LABELS)
    half = jax.jit(net.clone(dtype=jnp.bfloat16).apply)({"params": params}, *inputs(), LABELS)
    assert half.dtype == jnp.float32
    error = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 1e-4 < error < 2e-2  # below 1e-4 it would have computed in float32


def test_rows_do_not_mix(run):
    x, c_noise = inputs()
    together = run(x, c_noise, LABELS)
    for i in range(3):
        others = np.roll(x, 1, axis=0), np.roll(c_noise, 1), np.roll(LABELS, 1)
        for mine, other in zip((x, c_noise, LABELS), others, strict=True):
            other[i] = mine[i]
        np.testing.assert_allclose(run(*others)[i], together[i], rtol=1e-5, atol=1e-6)


def test_it_listens_to_everything(run):
    x, c_noise = inputs()
    base = run(x, c_noise, LABELS)
    scale = np.abs(base).mean()
    null = run(x, c_noise, np.full(3, 2, np.int32))
    changed = np.abs(null - base).mean(axis=(1, 2, 3)) / scale
    assert (changed[:2] > 0.05).all() and changed[2] < 1e-5  # LABELS[2] is "no class" itself
    assert (np.abs(run(x, c_noise + 0.1, LABELS) - base).mean(axis=(1, 2, 3)) > 0.01 * scale).all()
    # One pixel reaches every corner: two levels and a middle see all of 8x8.
    moved = x.copy()
    moved[:, 0, 0] += 1
    assert (np.abs(run(moved, c_noise, LABELS) - base)[:, -1, -1] > 0).any(-1).all()


def test_space_to_depth_by_a_loop():
    p, x = 2, np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    got = np.asarray(space_to_depth(x, p))
    assert got.shape == (2, 2, 3, 12)
    for b, i, j, c in np.ndindex(x.shape):
        # Within a pixel of the small picture: rows of the patch, columns, colours.
        assert got[b, i // p, j // p, (i % p) * p * 3 + (j % p) * 3 + c] == x[b, i, j, c]
    np.testing.assert_array_equal(depth_to_space(got, p), x)
    back = np.random.default_rng(0).normal(size=(1, 2, 2, 18)).astype(np.float32)
    np.testing.assert_array_equal(space_to_depth(depth_to_space(back, 3), 3), back)


@pytest.mark.parametrize(
    "fields, fragment",
    [
        ({"kind": "unet_smal"}, "did you mean 'unet_small'"),
        ({"dtype": "float16"}, "config.network.dtype"),
        ({"widths": ()}, "config.network.widths"),
        ({"widths": (8, 12)}, "config.network.widths"),
        ({"widths": (8, "a")}, "config.network.widths"),
        ({"widths": (8, 16, 16, 16)}, "24x24 do not divide by 16"),
        ({"patch": 5}, "24x24 do not divide by 5"),
        ({"patch": 0}, "config.network.patch"),
        ({"patch": -2}, "config.network.patch"),
        ({"embedding": 0}, "config.network.embedding"),
    ],
    ids=str,
)
def test_networks_that_cannot_be(fields, fragment):
    good = {"kind": "unet_small", "widths": (8,), "patch": 2, "embedding": 8, "dtype": "float32"}
    make = lambda config: nets.make(config, channels=3, num_classes=0, shape=(24, 24, 3))
    assert make(ConfigDict(good)).widths == (8,)
    assert make(ConfigDict({**good, "widths": [8, 16]})).widths == (8, 16)  # as JSON has them
    with pytest.raises(UserError, match=fragment):
        make(ConfigDict({**good, **fields}))
