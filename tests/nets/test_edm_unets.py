"""EDM's UNets beyond the goldens: initialisation, dtypes, dropout, labels, resampling, config."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.errors import UserError
from diffjax.nets import edm_blocks
from diffjax.run import mesh as meshes
from diffjax.weights import trees


@pytest.fixture
def fresh(tiny, monkeypatch):
    """fresh(name) -> {path: array} of a new network, in which U(-b, b) is b itself."""
    monkeypatch.setattr(
        edm_blocks,
        "uniform",
        lambda b: lambda key, shape, dtype=np.float32: np.full(shape, b, dtype),
    )

    def get(name):
        struct = jax.ShapeDtypeStruct
        inputs = struct((1, 16, 16, 3), jnp.float32), struct((1,), jnp.float32)
        return trees.flatten(tiny(name).net.lazy_init(jax.random.key(0), *inputs)["params"])

    return get


def fans(kernel):
    area = np.prod(kernel.shape[:-2], initial=1)
    return area * kernel.shape[-2], area * kernel.shape[-1]


def check_normal(leaf, std):
    """Standard deviation, within five of its estimate's own."""
    assert abs(np.std(leaf) / std - 1) < 5 / (2 * leaf.size) ** 0.5


def test_uniform_is_uniform():
    draw = np.asarray(edm_blocks.uniform(0.3)(jax.random.key(0), (50, 100)))
    assert draw.dtype == np.float32 and np.abs(draw).max() <= 0.3
    assert abs(np.std(draw) / (0.3 / 3**0.5) - 1) < 0.03 and abs(draw.mean()) < 0.01


def test_song_initialisation(fresh):
    """Xavier uniform, biases 0; 1e-5 of it before a sum; queries, keys, values sqrt(0.2) of it."""
    seen = dict.fromkeys(("last", "qkv", "other"), 0)
    for path, leaf in fresh("ncsnpp").items():
        *_, layer, last = path.split("/")
        if last in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(last == "scale"), err_msg=path)
        elif last == "freqs":
            check_normal(leaf, 16)
        else:
            end = layer in ("conv1", "proj") or layer.endswith("aux_conv")
            kind = "last" if end else "qkv" if layer == "qkv" else "other"
            scale = {"last": 1e-5, "qkv": 0.2**0.5, "other": 1.0}[kind]
            bound = scale * (6 / sum(fans(leaf))) ** 0.5
            np.testing.assert_allclose(leaf, bound, rtol=1e-6, err_msg=path)
            seen[kind] += 1
    assert seen["last"] > 10 and seen["qkv"] >= 2 and seen["other"] > 20


def test_adm_initialisation(fresh):
    """Kernel and bias uniform in +-1/sqrt(fan_in); zero before a sum; classes N(0, 1)."""
    flat = fresh("adm_sigma")
    for path, leaf in flat.items():
        *parents, layer, last = path.split("/")
        if layer.startswith("norm") or layer == "out_norm":
            np.testing.assert_array_equal(leaf, float(last == "scale"), err_msg=path)
        elif layer in ("conv1", "proj", "out_conv"):
            assert not np.any(leaf), path
        elif layer == "map_label":
            assert last == "kernel"
            check_normal(leaf, 1)
        else:
            kernel = flat["/".join([*parents, layer, "kernel"])]
            np.testing.assert_allclose(leaf, fans(kernel)[0] ** -0.5, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["ddpmpp", pytest.param("adm_sigma", marks=pytest.mark.slow)])
def test_bfloat16_denoiser_stays_within_a_hundredth(name, tiny, golden):
    case, g = tiny(name), golden(f"net_{name}")
    x = jnp.asarray(g["x_noisy"].transpose(0, 2, 3, 1))
    label, moved = g["labels"].argmax(1).astype(np.int32), g["augment_labels"]
    net = case.net.clone(dtype=jnp.bfloat16)
    half = jax.jit(lambda *a: net.apply({"params": case.params}, *a))
    full = case.denoise(x, g["sigma"], label, moved)
    d = case.denoise(x, g["sigma"], label, moved, run=lambda _, *a: (half(*a), None))
    assert d.dtype == jnp.float32
    error = np.linalg.norm(d - full) / np.linalg.norm(full)
    print(f"relative L2 error of D in bfloat16: {error:.1e}")
    assert 1e-4 < error < 1e-2  # below 1e-4 it would have computed in float32


def test_labels_as_numbers_as_rows_and_absent():
    rows = np.float32([[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(edm_blocks.one_hot(np.array([2, 3, 0]), 3, 3), rows)
    np.testing.assert_array_equal(edm_blocks.one_hot(rows.astype(int), 3, 3), rows)
    np.testing.assert_array_equal(edm_blocks.one_hot(None, 3, 2), np.zeros((2, 3)))
    np.testing.assert_array_equal(edm_blocks.or_zeros(None, 9, 2), np.zeros((2, 9)))
    np.testing.assert_array_equal(edm_blocks.or_zeros(rows, 3, 3), rows)


def test_rows_do_not_mix(tiny, golden):
    case, g = tiny("ddpmpp"), golden("net_ddpmpp")
    x, c = jnp.asarray(g["x"].transpose(0, 2, 3, 1)), g["c_noise"]
    label = g["labels"].argmax(1).astype(np.int32)
    f = lambda *a: np.asarray(case.run(case.params, *a)[0])
    base = f(x, c, label, g["augment_labels"])
    other = f(x.at[1].set(0.3), c * [1, 2], np.array([label[0], 0]), g["augment_labels"])
    np.testing.assert_allclose(other[0], base[0], atol=1e-5)
    assert np.abs(other[1] - base[1]).max() > 0.01


def test_dropout():
    """Inverted dropout on the input of conv1: only in training, mean kept, mask from the rng."""
    style = edm_blocks.Style(
        1e-6, 1.0, False, True, 0, (1, 1), 0.25, *[edm_blocks.xavier()] * 3, jnp.float32
    )
    block = edm_blocks.UNetBlock(16, style)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    e = jax.random.normal(jax.random.key(1), (2, 4))
    params = block.init(jax.random.key(2), x, e, False)

    def into_conv1(train, key=0):
        seen = []

        def intercept(call, args, kwargs, context):
            if context.module.name == "conv1":
                seen.append(np.asarray(args[0]))
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            block.apply(params, x, e, train, rngs={"dropout": jax.random.key(key)})
        return seen[0]

    plain, dropped = into_conv1(False), into_conv1(True)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], plain[kept] / 0.75, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 5 * (0.25 * 0.75 / kept.size) ** 0.5
    assert (kept[0] != kept[1]).any()
    np.testing.assert_array_equal(into_conv1(True), dropped)
    assert (into_conv1(True, 1) != dropped).any()


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1)])
def test_resampling_by_a_convolution(taps):
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 1)).astype(np.float32)
    f = np.array(taps) / sum(taps)
    kernel = jnp.asarray(np.outer(f, f)[:, :, None, None], jnp.float32)
    pad = (len(f) - 1) // 2
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    down = jax.lax.conv_general_dilated(x, kernel, (2, 2), [(pad, pad)] * 2, **numbers)
    np.testing.assert_allclose(edm_blocks.downsample(x, taps), down, atol=1e-6)
    assert down.shape == (1, 3, 4, 1)
    around = len(f) - 1 - pad
    up = jax.lax.conv_general_dilated(
        x, 4 * kernel, (1, 1), [(around, around)] * 2, lhs_dilation=(2, 2), **numbers
    )
    np.testing.assert_allclose(edm_blocks.upsample(x, taps), up, atol=1e-6)
    assert up.shape == (1, 12, 16, 1)


def test_fourier_frequencies_are_never_trained():
    """Their gradient is zero, so Adam's direction is, exactly, and an EMA of them is they."""
    module = edm_blocks.FourierEmbedding(8)
    c = jnp.array([0.3, -0.7])
    params = module.init(jax.random.key(0), c)["params"]
    gradient = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, c) ** 3))(params)
    tx = optax.adam(1.0)
    direction, _ = tx.update(gradient, tx.init(params), params)
    assert not np.any(direction["freqs"])


def test_sharding_rules_reach_every_kernel(tiny):
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    for name in ("ncsnpp", "adm"):
        case = tiny(name)
        placed = meshes.tree_shardings(case.params, nets.sharding(case.config), mesh)
        leaves = trees.flatten(case.params)
        for path, sharding in trees.flatten(placed).items():
            axes = [None] * leaves[path].ndim
            if path.endswith("kernel"):
                even = [size % 2 == 0 for size in leaves[path].shape[-2:]]
                axes[-2:] = [axis if e else None for axis, e in zip(("fsdp", "tensor"), even)]
            assert (*sharding.spec, *[None] * leaves[path].ndim)[: len(axes)] == tuple(axes), path


UNET = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "dropout": 0.0,
    "augment_dim": 0,
    "dtype": "float32",
}
SONG = {
    **UNET,
    "kind": "song",
    "channel_mult_emb": 4,
    "channel_mult_noise": 1,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
DIT = {"kind": "dit", "size": "S", "patch": 2, "time_scale": 1.0, "scan": True, "remat": False}
DIT["dtype"] = "float32"


@pytest.mark.parametrize(
    ("good", "fields", "fragment"),
    [
        ({**UNET, "kind": "ddpmpp"}, {"kind": "ddpmp"}, "did you mean 'ddpmpp'"),
        ({**UNET, "kind": "ddpmpp"}, {"dropout": 1.0}, r"config.network.dropout 1.0: .*\[0, 1\)"),
        ({**UNET, "kind": "ddpmpp"}, {"channel_mult": ()}, "config.network.channel_mult"),
        ({**UNET, "kind": "ddpmpp"}, {"channel_mult": (1, 2, 2, 2)}, "12x12 do not divide by 8"),
        ({**UNET, "kind": "ncsnpp"}, {"model_channels": 48}, "144 channels,.* multiple of 32"),
        ({**UNET, "kind": "adm"}, {"num_blocks": True}, "config.network.num_blocks"),
        ({**UNET, "kind": "adm"}, {"augment_dim": -1}, "config.network.augment_dim"),
        ({**UNET, "kind": "adm"}, {"attn_resolutions": (8.5,)}, "config.network.attn_resolutions"),
        (SONG, {"encoder_type": "residul"}, "did you mean 'residual'"),
        (SONG, {"resample_filter": (1, 2, 1)}, "of even length"),
        (DIT, {"size": "M"}, "unknown config.network.size 'M'"),
        (DIT, {"patch": 8}, "12x12 do not divide by 8"),
        (DIT, {"scan": 1}, "config.network.scan 1"),
        (DIT, {"time_scale": 0.0}, "config.network.time_scale"),
    ],
    ids=str,
)
def test_networks_that_cannot_be(good, fields, fragment):
    make = lambda config, size: nets.make(
        ConfigDict(config), channels=3, num_classes=0, shape=(size, size, 3)
    )
    assert make(good, 16).channels == 3
    with pytest.raises(UserError, match=fragment):
        make({**good, **fields}, 12)
    name = next(iter(good))
    with pytest.raises(UserError, match=f"lacks the field '{name}'"):
        make({k: v for k, v in good.items() if k != name}, 16)
