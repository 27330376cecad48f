"""Relay diffusion's networks: published sizes, outputs, and its loss and sampler with a network."""

import functools
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from relay_original import SETTINGS, make, nchw, nhwc, run

from diffjax import nets
from diffjax.core import objectives
from diffjax.weights import trees

RELAY = Path(__file__).parents[1] / "golden" / "relay"
ADM = {"kind": "adm", "augment_dim": 9, "dropout": 0.0, "dtype": "float32"}
TINY = {**ADM, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1}
TINY["attn_resolutions"] = (8,)
SECOND = {**ADM, "model_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2}
SECOND["attn_resolutions"] = (32, 16, 8)
MINI = {**SECOND, "model_channels": 64, "attn_resolutions": (4, 2, 1)}
FIRST = {**ADM, "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3}
FIRST["attn_resolutions"] = (32, 16, 8)
# manifest -> (config.network, size, classes, numbers without the resampling filters)
NETWORKS = {
    "tiny": (TINY, 16, 4, None),
    "mini256": (MINI, 32, 5, None),
    "first_imagenet64": ({**FIRST, "augment_dim": 0}, 64, 1000, 295_899_267),
    "first_celebahq64": (FIRST, 64, 0, 295_132_995),
    "second_imagenet256": (SECOND, 256, 1000, 553_833_475),
    "second_celebahq256": (SECOND, 256, 0, 552_809_475),
}


def load(name):
    with np.load(RELAY / f"{name}.npz") as arrays:
        return dict(arrays)


def named(name):
    """{state-dict name: shape} of a manifest, without the constant filters."""
    file = next(RELAY.glob(f"manifest_{name}.json*"))
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    wanted = {k: shape for k, (shape, _) in json.loads(text).items()}
    return {k: s for k, s in wanted.items() if not k.endswith("resample_filter")}


def shapes_of(network, size, classes):
    shape = (size, size, 3)
    net = nets.make(ConfigDict(network), channels=3, num_classes=classes, shape=shape)
    struct = jax.ShapeDtypeStruct
    inputs = struct((1, *shape), jnp.float32), struct((1,), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_the_originals(name):
    network, size, classes, count = NETWORKS[name]
    ours = {}
    for path, leaf in trees.flatten(shapes_of(network, size, classes)).items():
        *parents, last = path.split("/")
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        ours[".".join(["model", *parents, last])] = [leaf.shape[i] for i in order]
    assert ours == named(name)
    if count:
        assert sum(np.prod(s, dtype=int) for s in ours.values()) == count


def test_published_imagenet_without_augmentation_labels():
    # Whether the published file has them is not known; both are a setting of the same network.
    network, size, classes, _ = NETWORKS["second_imagenet256"]
    flat = trees.flatten(shapes_of({**network, "augment_dim": 0}, size, classes))
    assert sum(np.prod(leaf.shape, dtype=int) for leaf in flat.values()) == 553_831_171
    assert "map_augment/kernel" not in flat


@pytest.mark.slow
def test_pictures_that_are_not_square():
    network = ConfigDict({**TINY, "attn_resolutions": (16, 8)})
    net = nets.make(network, channels=3, num_classes=0, shape=(16, 24, 3))
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    out, params = jax.jit(net.init_with_output)(jax.random.key(1), x, jnp.zeros(2))
    assert out.shape == x.shape
    # Left and right are not mixed up, nor rows and columns: on a mirrored picture, of a net whose
    # kernels are all mirrored, the output is mirrored.
    mirror = lambda a: a[:, ::-1] if a.ndim == 4 else a
    moved = jax.tree.map(lambda a: a + 0.05, params)  # the last layers start at zero
    flipped = jax.tree.map(mirror, moved)
    run = jax.jit(net.apply)
    got, wanted = run(flipped, x[:, :, ::-1], jnp.zeros(2)), run(moved, x, jnp.zeros(2))
    np.testing.assert_allclose(got[:, :, ::-1], wanted, atol=2e-4)
    assert np.std(wanted) > 0.01


@pytest.fixture(scope="module")
def tiny_relay(build):
    return build(*[NETWORKS["tiny"][i] for i in (0, 2)], 3, 16)


def check_forward(net, g, near):
    x, label = jnp.asarray(nhwc(g["x"])), g["labels"].argmax(1).astype(np.int32)
    near(nchw(net.denoise(x, g["sigma"], label, g["augment_labels"])), g["D"], 1e-5)
    nobody = np.full(2, g["labels"].shape[1], np.int32)
    d = net.denoise(x, g["sigma"], nobody, 0 * g["augment_labels"])
    near(nchw(d), g["D_null_label_no_augment"], 1e-5)


def test_tiny(tiny_relay, near):
    check_forward(tiny_relay, load("tiny_forward"), near)


@pytest.mark.slow
def test_topology_of_256(build, near):
    check_forward(build(MINI, 5, 3, 32), load("mini256"), near)


@pytest.mark.slow
def test_full_size(build, near):
    g = load("full_second_celebahq256")
    net = build(SECOND, 0, 3, 256)
    draw = np.random.RandomState(71).standard_normal((1, 3, 256, 256))  # noqa: NPY002
    x = jnp.asarray(nhwc(draw.astype(np.float32)))
    d = nchw(net.denoise(x, np.float32([0.9]), np.zeros(1, np.int32), np.zeros((1, 9), np.float32)))
    near(d.ravel()[:64], g["D_sigma0.9_first64"], 5e-5)
    near([d.mean(), d.std()], g["D_sigma0.9_mean_std"], 5e-5)
    near(d[0].reshape(3, 8, 32, 8, 32).mean((2, 4)), g["D_sigma0.9_pool"], 5e-5)


def test_loss(tiny_relay, near):
    g = load("forward_loss")
    process, objective = make(block=0.15), objectives.relay(0.93)
    t = objective.time(jnp.asarray(g["u"]))
    n = process.colour(nhwc(g["draw1_iso"]), nhwc(g["draw2_block_white"]))
    label = g["labels"].argmax(1).astype(np.int32)
    denoise = lambda x, t: tiny_relay.denoise(x, t, label, g["augment_labels"])
    x0 = jnp.asarray(nhwc(g["clean"]))
    d = denoise(process.perturb(x0, n, process.at(t)), t)
    near(nchw(d), g["imagenet_net_D"], 3e-5)
    loss = objectives.loss(objective, process, denoise, x0, t, n)
    near(nchw(loss), g["imagenet_net_loss"], 1e-4, scale=g["imagenet_net_loss"].max())
    total = np.float64(loss).sum() / 256
    np.testing.assert_allclose(total, g["imagenet_net_loss_sum_over_256"], rtol=1e-5)


@pytest.mark.parametrize("tag", [t for t, s in SETTINGS.items() if s["denoiser"] == "tiny_net"])
def test_sampler(tag, tiny_relay, near):
    g = load("sampler")

    def denoiser(label):
        label = np.full(2, 4) if label is None else label
        augment = np.zeros((2, 9), np.float32)
        return functools.partial(tell, label=label.astype(np.int32), augment=augment)

    def tell(x, t, label, augment):
        return tiny_relay.denoise(x, jnp.broadcast_to(t, 2), label, augment)

    got = run(tag, g, g["noise"], g["start"], denoiser)
    near(got, g[f"{tag}_out"], 3e-4 if "cfg" in tag else 1e-4)
