"""MDM's golden arrays, in the layout of our networks, and the rule that makes their weights."""

import functools
import gzip
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.systems.mdm import published
from diffjax.weights import trees

GOLDEN = Path(__file__).parents[1] / "golden" / "mdm"
TINY = {"width": 32, "ff": 64, "layers": 2, "heads": 4, "dropout": 0.0}


@functools.cache
def load(name):
    """The arrays of tests/golden/mdm/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def manifest(name):
    """{tag: {state-dict name: [shape, dtype]}} of tests/golden/mdm/manifest_NAME.json(.gz)."""
    file = next(GOLDEN.glob(f"manifest_{name}.json*"))
    data = file.read_bytes()
    return json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)


def rule(name, shape):
    """The golden weights of a tensor of the original; tests/golden/mdm/README.md."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    w = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002
    if len(shape) > 1:
        return w / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * w if name.endswith("weight") else np.float32(0.1) * w


def state_of(shapes):
    """A published state dict with the golden weights, of {name: [shape, dtype]}."""
    names = {n: s for n, (s, dtype) in shapes.items() if dtype.startswith("float")}
    drawn = {n: rule(n, s) for n, s in names.items() if not n.endswith("sequence_pos_encoder.pe")}
    # The tables are in the released files; nothing may read them.
    return drawn | {n: np.full(names[n], np.nan, np.float32) for n in names if n not in drawn}


def params_of(shapes):
    """Golden weights under our names, as of a published file. A network refuses wrong shapes, and
    tests/systems/test_mdm_published.py compares the names of all configurations."""
    return trees.unflatten(published.to_params(state_of(shapes), "golden"))


def drawn(net, *args):
    """{path: weights of order 1 / sqrt(fan_in)}: compiling an `init` takes seconds."""
    like = trees.flatten(jax.eval_shape(net.init, jax.random.key(0), *args)["params"])
    random = np.random.default_rng(0)
    draw = lambda shape: random.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)
    return {path: draw(leaf.shape) for path, leaf in like.items()}


def ours(x):
    """(B, J, F, N) -> [B, N, J * F]."""
    x = np.asarray(x)
    return jnp.asarray(x.transpose(0, 3, 1, 2).reshape(x.shape[0], x.shape[3], -1))


def theirs(x, like):
    """The inverse of `ours`, for an array of the shape of `like`."""
    b, j, f, n = np.shape(like)
    return np.asarray(x).reshape(b, n, j, f).transpose(0, 2, 3, 1)
