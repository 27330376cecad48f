"""EDM's published weights under our names, and the configs that their files imply."""

import gzip
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.systems.edm import published
from diffjax.weights import edm_pickles, trees
from diffjax.weights.edm_pickles import Architecture

FILES = Path(__file__).parents[1] / "golden" / "weights"
MANIFESTS = json.loads(gzip.decompress((FILES / "manifests_published.json.gz").read_bytes()))
FAST = ["cifar10-32x32-cond-vp", "cifar10-32x32-uncond-ve"]


def architecture(name: str) -> Architecture:
    about = MANIFESTS[name]
    arguments = about["init_kwargs"]
    return Architecture(about["precond"], arguments, {"sigma_data": 0.5}, arguments["model_type"])


def small_state(name: str, filter_taps) -> dict[str, np.ndarray]:
    """Its names and ranks, each array of another content, with short sides instead of long ones."""
    wanted = np.outer(filter_taps, filter_taps)[None, None] / np.sum(filter_taps) ** 2
    state = {}
    for key, (shape, _) in MANIFESTS[name]["state"].items():
        short = [n % 5 + 1 + i for i, n in enumerate(shape)]
        values = np.random.default_rng(zlib.crc32(key.encode())).normal(size=short)
        filtered = key.endswith("resample_filter")
        state[key] = (wanted if filtered else values).astype(np.float32)
    return state


@pytest.mark.parametrize("name", MANIFESTS)
def test_names_there_and_back(name):
    filter_taps = published.taps_of(published.config_of(architecture(name), name).network)
    state = small_state(name, filter_taps)
    params, u = published.to_params(state, filter_taps, name)
    assert (u is not None) == ("u" in state)
    assert not any("resample_filter" in path or "." in path for path in params)
    back = published.from_params(params, filter_taps, u)
    assert sorted(back) == sorted(state)  # constants and buffers too: the released code wants them
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, strict=True)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "skip", "adm", "adm_sigma"])
def test_names_of_other_settings(name):
    """Encoder and decoder of type "skip" among them, which no published network has."""
    manifest = json.loads((FILES.with_name("nets") / f"manifest_tiny_{name}.json").read_text())
    filter_taps = (1, 1) if name in ("ddpmpp", "adm", "adm_sigma") else (1, 3, 3, 1)
    made = np.outer(filter_taps, filter_taps)[None, None] / np.sum(filter_taps) ** 2
    state = {
        key: np.asarray(made if key.endswith("resample_filter") else np.ones(shape), np.float32)
        for key, (shape, _) in manifest.items()
    }
    params, u = published.to_params(state, filter_taps, name)
    back = published.from_params(params, filter_taps, u)
    assert {k: a.shape for k, a in back.items()} == {k: a.shape for k, a in state.items()}


def test_layouts():
    state = {
        "model.enc.8x8_conv.weight": np.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7),
        "model.map_layer0.weight": np.arange(6.0).reshape(2, 3),
        "model.enc.8x8_block0.norm0.weight": np.arange(4.0),
        "model.enc.8x8_block0.norm0.bias": np.arange(4.0),
        "model.map_noise.freqs": np.arange(4.0),
    }
    params, u = published.to_params(state, (1, 1), "here")
    assert u is None and {p: a.shape for p, a in params.items()} == {
        "enc/8x8_conv/kernel": (5, 7, 3, 2),
        "map_layer0/kernel": (3, 2),
        "enc/8x8_block0/norm0/scale": (4,),
        "enc/8x8_block0/norm0/bias": (4,),
        "map_noise/freqs": (4,),
    }
    kernel = params["enc/8x8_conv/kernel"]
    assert kernel[4, 6, 1, 0] == state["model.enc.8x8_conv.weight"][0, 1, 4, 6]
    assert kernel.dtype == np.float32 and kernel.flags.c_contiguous


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("enc.8x8_conv.weight", np.zeros((1, 1, 3, 3)), "is no weight of an EDM network"),
        ("model.enc/8x8.weight", np.zeros((1, 1, 3, 3)), "is no weight"),
        ("model.enc.weight", np.zeros((1, 1, 3)), r"of shape \(1, 1, 3\) is no weight"),
        ("model.enc.running_mean", np.zeros(3), r"of shape \(3,\) is no weight"),
        ("model.enc.weight", np.zeros((2, 2), np.int64), "is no weight"),
        ("model.a.resample_filter", np.ones((1, 1, 2, 2)), r"not the filter \[1, 1\]"),
        ("model.a.resample_filter", np.ones((1, 1, 4, 4)) / 16, "not the filter"),
    ],
)
def test_what_is_no_weight(name, array, message):
    with pytest.raises(UserError, match=message) as caught:
        published.to_params({name: array}, (1, 1), "here.pkl")
    assert str(caught.value).startswith("here.pkl: ")


def test_config_of_ddpmpp():
    config = published.config_of(architecture("cifar10-32x32-cond-vp"), "here")
    assert config.network.to_dict() == {
        "kind": "song",
        "dtype": "float32",
        "model_channels": 128,
        "channel_mult": (2, 2, 2),
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "dropout": 0.13,
        "augment_dim": 9,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": (1, 1),
    }
    assert (config.diffusion.precond, config.diffusion.sigma_data) == ("edm", 0.5)
    assert (config.data.image_size, config.sampling.steps) == (32, 18)


def test_config_of_adm():
    about = architecture("baseline-imagenet-64x64-cond-adm")
    config = published.config_of(about, "here")
    assert (config.network.kind, config.network.num_blocks) == ("dhariwal", 3)
    assert config.network.attn_resolutions == (32, 16, 8)
    assert "encoder_type" not in config.network
    assert (config.diffusion.precond, config.sampling.steps) == ("iddpm", 40)
    assert published.image_shape(about, "here") == (64, 64, 3)
    assert published.num_classes(about, "here") == 1000


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_blocks": 10**9}, "says num_blocks 1000000000"),
        ({"num_blocks": True}, "says num_blocks True"),
        ({"num_blocks": "4"}, "says num_blocks '4'"),
        ({"model_channels": -1}, "says model_channels -1"),
        ({"channel_mult": [1] * 99}, "says channel_mult"),
        ({"channel_mult": 2}, "says channel_mult 2"),
        ({"channel_mult": [[1]]}, "says channel_mult"),
        ({"dropout": float("nan")}, "says dropout nan"),
        ({"encoder_type": "__import__('os')"}, "says encoder_type"),
        ({"img_resolution": 1 << 20}, "says img_resolution"),
        ({"img_resolution": None}, "says img_resolution None"),
        ({"img_channels": 7}, "with 7 channels"),
    ],
)
def test_architectures_that_cannot_be(change, message):
    about = architecture("cifar10-32x32-cond-vp")
    about = Architecture(about.wrapper, {**about.arguments, **change}, {}, about.inner)
    with pytest.raises(UserError, match=message):
        published.config_of(about, "here.pkl")


def test_another_network():
    about = Architecture("EDMPrecond", {}, {}, "SongUnet")
    with pytest.raises(UserError, match="here.pkl: 'SongUnet' .did you mean 'SongUNet'"):
        published.config_of(about, "here.pkl")


def test_shape_and_classes_from_weights_alone():
    raw = gzip.decompress((FILES / "persistence_tiny.pkl.gz").read_bytes())
    about, state = edm_pickles.read(raw, "here")
    params, _ = published.to_params(state, (1, 3, 3, 1), "here")
    assert published.named_shape(params, "here") == ((8, 8, 3), 4)
    assert published.image_shape(about, "here") == (8, 8, 3)
    del params["map_label/kernel"]
    assert published.named_shape(params, "here") == ((8, 8, 3), 0)
    with pytest.raises(UserError, match="not an EDM network"):
        published.named_shape({"a/kernel": np.zeros(3)}, "here")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MANIFESTS]
)
def test_the_config_makes_the_network_that_the_weights_are_of(name):
    pytest.importorskip("diffjax.nets.song_unet")
    from diffjax import nets

    about = architecture(name)
    config = published.config_of(about, name)
    shape = published.image_shape(about, name)
    outputs = shape[-1] * (2 if config.diffusion.precond == "iddpm" else 1)
    classes = published.num_classes(about, name)
    net = nets.make(config.network, channels=outputs, num_classes=classes, shape=shape)
    inputs = jax.numpy.zeros((1, *shape)), jax.numpy.zeros(1), jax.numpy.zeros(1, int)
    made = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    made = {path: leaf.shape for path, leaf in trees.flatten(made).items()}
    wanted = {}
    for key, (dims, _) in MANIFESTS[name]["state"].items():
        if key == "u" or key.endswith("resample_filter"):
            continue
        *parents, last = key.split(".")
        rank = len(dims)
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[rank]
        last = last if last != "weight" else "scale" if rank == 1 else "kernel"
        wanted["/".join([*parents[1:], last])] = tuple(dims[i] for i in order)
    assert made == wanted


def test_translated_weights_give_the_originals_output():
    """NCSN++ with weights by rule, against what the released code computed with them."""
    pytest.importorskip("diffjax.nets.song_unet")
    from diffjax import nets

    folder = FILES.with_name("nets")
    manifest = json.loads((folder / "manifest_tiny_ncsnpp.json").read_text())
    arguments = {
        "img_resolution": 16,
        "img_channels": 3,
        "label_dim": 10,
        "augment_dim": 9,
        "model_channels": 16,
        "channel_mult": [1, 2],
        "num_blocks": 2,
        "attn_resolutions": [8],
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    }
    config = published.config_of(Architecture("EDMPrecond", arguments, {}, "SongUNet"), "here")
    state = {name: by_rule(name, shape) for name, (shape, _) in manifest.items()}
    params, _ = published.to_params(state, published.taps_of(config.network), "here")
    net = nets.make(config.network, channels=3, num_classes=10, shape=(16, 16, 3))
    with np.load(folder / "net_ncsnpp.npz") as golden:
        x, wanted = (golden[name].transpose(0, 2, 3, 1) for name in ("x", "F"))
        more = golden["c_noise"], golden["labels"], golden["augment_labels"]
    with jax.default_matmul_precision("highest"):
        got = jax.jit(net.apply)({"params": trees.unflatten(params)}, x, *more)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def by_rule(name: str, shape) -> np.ndarray:
    """The golden files' rule, see tests/golden/weights/README.md."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)  # noqa: NPY002
    w, last = random.standard_normal(shape).astype(np.float32), name.split(".")[-1]
    if last == "resample_filter":
        return (np.outer([1, 3, 3, 1], [1, 3, 3, 1])[None, None] / 64).astype(np.float32)
    if last == "freqs":
        return 16 * w
    if len(shape) >= 2:
        return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return np.float32(last == "weight") + np.float32(0.1) * w
