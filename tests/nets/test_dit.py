"""DiT against the released module, and its three ways to run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.nets import dit
from diffjax.nets.dit import DiT
from diffjax.weights import trees

NETWORK = {"kind": "dit", "size": "S", "patch": 2, "time_scale": 1.0, "dtype": "float32"}


def make(size="S", **fields):
    network = ConfigDict({**NETWORK, "size": size, "scan": False, "remat": False, **fields})
    return nets.make(network, channels=8, num_classes=1000, shape=(32, 32, 4))


def shapes_of(net, side=32, channels=4):
    inputs = jnp.zeros((1, side, side, channels)), jnp.zeros(1)
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def original(path):
    last = {"kernel": "weight", "embedding": "weight"}
    *parents, name = path.split("/")
    return ".".join([*parents, last.get(name, name)])


@pytest.mark.parametrize("size", ["s2", pytest.param("xl2", marks=pytest.mark.slow)], ids=str.upper)
def test_golden(size, golden, manifest, weights_by_rule, near):
    net, g = make(size[:-1].upper()), golden("dit_forward")
    params = weights_by_rule(shapes_of(net), "")
    flat = trees.flatten(params)
    wanted = {k: s for k, (s, _) in manifest(f"manifest_dit_{size}.json.gz").items()}
    del wanted["pos_embed"]  # computed, as it is fixed
    order = lambda a: {4: (3, 2, 0, 1), 2: (1, 0)}.get(a.ndim, (0,))
    shape = lambda p, a: a.shape if "embedding" in p.split("/")[-1] else a.transpose(order(a)).shape
    assert {original(p): list(shape(p, a)) for p, a in flat.items()} == wanted

    x = draw("dit.x", (1, 4, 32, 32)).transpose(0, 2, 3, 1)
    t, label = np.array([g["t"]], np.float32), np.array([g["y"]], np.int32)
    run = jax.jit(lambda p, *a: net.apply({"params": p}, *a, capture_intermediates=True))
    out, state = run(params, x, t, label)
    out = np.asarray(out).transpose(0, 3, 1, 2)
    std = float(g[f"{size}_std"])
    near(out.ravel()[:64], g[f"{size}_first64"], 5e-4, std)
    near([out.mean(), out.std()], [g[f"{size}_mean"], std], 1e-4, std)
    if f"{size}_out" in g:
        near(out, g[f"{size}_out"], 5e-4, std)
    seen = state["intermediates"]
    c = seen["t_embedder"]["__call__"][0] + seen["y_embedder"]["__call__"][0]
    near(c[0, :64], g[f"{size}_cond"], 1e-4)
    for tap, want, spread in zip(*(g[f"{size}_{k}"] for k in ("taps", "tap_first64", "tap_std"))):
        block = np.asarray(seen["blocks"][str(tap - 1)]["__call__"][0])
        near(block.ravel()[:64], want, 5e-4, spread)
        near(block.std(), spread, 1e-4, spread)


def draw(name, shape):
    import zlib

    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002


@pytest.mark.parametrize(
    ("size", "count"),
    [("S", 32_865_056), ("B", 130_315_808), ("L", 457_840_672), ("XL", 674_834_720)],
)
def test_published_sizes(size, count):
    shapes = shapes_of(make(size, scan=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.fixture(scope="module")
def small(weights_by_rule):
    """A DiT of two narrow layers, its parameters, and inputs."""
    net = DiT(channels=4, num_classes=5, width=24, depth=2, heads=2, scan=False)
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 8, 4, 2)).astype(np.float32)
    inputs = x, np.array([3.0, 500.0, 999.0], np.float32), np.array([0, 4, 5], np.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return net, weights_by_rule(shapes, "small."), inputs


@pytest.mark.slow
def test_scanned_and_rematerialised_are_the_same(small):
    net, params, inputs = small

    def loss_and_gradient(net, params):
        loss = lambda p: jnp.sum(net.apply({"params": p}, *inputs) ** 2)
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, gradient = loss_and_gradient(net, params)
    gradient = dit.stack(gradient)
    other, another = loss_and_gradient(net.clone(scan=True, remat=True), dit.stack(params))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    jax.tree.map(same, another, gradient)
    back = dit.unstack(dit.stack(params))
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))
    assert jax.tree.structure(dit.stack(params)) == jax.tree.structure(
        jax.eval_shape(net.clone(scan=True).init, jax.random.key(0), *inputs)["params"]
    )


def test_what_it_listens_to(small):
    net, params, (x, t, label) = small
    run = jax.jit(lambda *a: net.apply({"params": params}, *a))
    base = run(x, t, label)
    assert base.shape == (3, 8, 4, 4) and base.dtype == jnp.float32
    for i in range(3):
        alone = run(*(np.roll(a, -i, 0) for a in (x, t, label)))[0]
        np.testing.assert_allclose(alone, base[i], rtol=1e-4, atol=1e-5)
    assert np.abs(run(x, t, np.full(3, 5, np.int32)) - base)[:2].max() > 1e-3
    assert np.abs(run(x, t + 7, label) - base).max() > 1e-3
    # The other half of the picture is seen, and position matters.
    assert np.abs(run(x[:, ::-1], t, label)[:, ::-1] - base).max() > 1e-2


def test_bfloat16_stays_close(small):
    net, params, inputs = small
    run = lambda net: jax.jit(net.apply)({"params": params}, *inputs)
    full, half = run(net), run(net.clone(dtype=jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(half - full) / np.linalg.norm(full) < 2e-2


def test_a_new_network_is_silent_and_its_layers_have_xavier_spread():
    net = DiT(channels=4, num_classes=5, width=64, depth=2, heads=2)
    inputs = jnp.ones((2, 8, 8, 4)), jnp.ones(2), jnp.zeros(2, jnp.int32)
    params = jax.jit(net.init)(jax.random.key(0), *inputs)["params"]
    assert not np.any(jax.jit(net.apply)({"params": params}, *inputs))
    block = params["blocks"]["stack"]
    for name, kernel, total in (
        ("qkv", block["attn"]["qkv"]["kernel"], 64 + 192),
        ("fc1", block["mlp"]["fc1"]["kernel"], 64 + 256),
        ("patch", params["x_embedder"]["proj"]["kernel"], 16 + 64),
    ):
        wanted = (2 / total) ** 0.5
        assert abs(np.std(kernel) / wanted - 1) < 5 / np.sqrt(2 * kernel.size), name
    # Two layers drawn with one key would be one layer twice.
    assert not np.allclose(block["attn"]["qkv"]["kernel"][0], block["attn"]["qkv"]["kernel"][1])
    for node, last in (
        ("t_embedder", ("mlp", "0", "kernel")),
        ("y_embedder", ("embedding_table", "embedding")),
    ):
        leaf = params[node]
        for key in last:
            leaf = leaf[key]
        assert abs(np.std(leaf) / 0.02 - 1) < 5 / np.sqrt(2 * leaf.size), node
