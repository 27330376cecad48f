"""Golden arrays of the networks, and the rule that makes their weights."""

import gzip
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.core import denoisers
from diffjax.weights import trees

GOLDEN = Path(__file__).parents[1] / "golden" / "nets"


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> the arrays of tests/golden/nets/name.npz; see the README there."""
    opened = {}

    def load(name):
        if name not in opened:
            with np.load(GOLDEN / f"{name}.npz") as arrays:
                opened[name] = dict(arrays)
        return opened[name]

    return load


@pytest.fixture(scope="session")
def manifest():
    """manifest(file) -> the JSON of tests/golden/nets/file."""

    def load(file):
        data = (GOLDEN / file).read_bytes()
        return json.loads(gzip.decompress(data) if file.endswith(".gz") else data)

    return load


@pytest.fixture(scope="session")
def near():
    """near(got, want, tol): max abs difference <= tol (times `scale`)."""

    def check(got, want, tol, scale=1.0):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape
        error = np.abs(got - want).max() / scale
        print(f"error {error:.1e}, allowed {tol:.0e}")
        assert error <= tol, f"error {error:.2e} > {tol:.0e}"

    return check


def original_name(path: str) -> str:
    """ "enc/16x16_conv/kernel" -> "enc.16x16_conv.weight"."""
    *parents, last = path.split("/")
    weight = last in ("kernel", "scale", "embedding")
    return ".".join([*parents, "weight" if weight else last])


def rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden weights of a tensor of the original, in its layout."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    w = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002
    last = name.split(".")[-1]
    if last == "freqs":
        return 16 * w
    if len(shape) > 1:
        return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * w if last == "weight" else np.float32(0.1) * w


def to_original(name: str, array: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW, [in, out] -> [out, in]."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return array.transpose(order) if order and name.endswith("kernel") else array


def from_original(name: str, array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, [out, in] -> [in, out]."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return array.transpose(order) if order and name.endswith("kernel") else array


def params_by_rule(shapes, prefix: str = "model."):
    """Golden weights for a tree of shapes of ours."""
    flat = {}
    for path, leaf in trees.flatten(shapes).items():
        like = to_original(path, np.broadcast_to(np.float32(0), leaf.shape))
        flat[path] = from_original(path, rule(prefix + original_name(path), like.shape))
    return trees.unflatten(flat)


@pytest.fixture(scope="session")
def weights_by_rule():
    """weights_by_rule(shapes, prefix of the original's names) -> golden weights."""
    return params_by_rule


COMMON = {"num_blocks": 2, "attn_resolutions": (8,), "dropout": 0.1, "dtype": "float32"}
SONG = {"kind": "song", "channel_mult_emb": 4, "model_channels": 16, **COMMON}
SKIP = {
    "channel_mult": (1, 2, 2),
    "num_blocks": 1,
    "augment_dim": 0,
    "embedding_type": "positional",
}
SKIP |= {"encoder_type": "skip", "decoder_type": "skip", "channel_mult_noise": 1}
DDPMPP = {
    "kind": "ddpmpp",
    "model_channels": 16,
    "channel_mult": (1, 2),
    "augment_dim": 9,
    **COMMON,
}
ADM = {"kind": "adm", "model_channels": 32, **COMMON, "num_blocks": 1}
# name of the golden -> (config.network, classes, output channels)
TINY = {
    "ddpmpp": (DDPMPP, 10, 3),
    "ncsnpp": ({**DDPMPP, "kind": "ncsnpp"}, 10, 3),
    "skip": ({**SONG, **SKIP, "resample_filter": (1, 3, 3, 1)}, 0, 3),
    "adm": (
        {**ADM, "channel_mult": (1, 2, 4), "attn_resolutions": (8, 4), "augment_dim": 9},
        10,
        3,
    ),
    "adm_sigma": ({**ADM, "channel_mult": (1, 2), "augment_dim": 0}, 10, 6),
}


def make(network, classes, channels, size=16):
    """A net made by `nets.make`, with the golden weights."""
    network = ConfigDict(network)
    net = nets.make(network, channels=channels, num_classes=classes, shape=(size, size, 3))
    struct = jax.ShapeDtypeStruct
    inputs = struct((1, size, size, 3), jnp.float32), struct((1,), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    params = params_by_rule(shapes)

    def f(params, x, c_noise, label, augment):
        out, state = net.apply(
            {"params": params}, x, c_noise, label, augment, capture_intermediates=True
        )
        return out, state["intermediates"]

    run = jax.jit(f)

    def denoise(x, sigma, label, augment, coefficients=None, params=params, run=run):
        """D of the wrapper: NHWC, sigma a scalar or [B]. EDM's coefficients by default."""
        coefficients = coefficients or denoisers.edm_coefficients()

        def inner(x, c_noise, cond):
            c_noise = jnp.broadcast_to(c_noise.reshape(-1), x.shape[:1])
            return run(params, x, c_noise, *cond)[0][..., :3]

        sigma = jnp.reshape(sigma, (-1, 1, 1, 1))
        return denoisers.preconditioned(inner, coefficients)(x, sigma, (label, augment))

    return SimpleNamespace(net=net, params=params, run=run, denoise=denoise, config=network)


@pytest.fixture(scope="session")
def build():
    """build(config.network, classes, output channels, size) -> a net with the golden weights."""
    return make


@pytest.fixture(scope="session")
def tiny():
    """tiny(name) -> one of the golden's tiny nets with its weights, compiled once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = make(*TINY[name])
        return made[name]

    return get
