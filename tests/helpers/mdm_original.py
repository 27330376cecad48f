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


def params_of(net, shapes, *inputs, **given):
    """Golden weights for a net of ours, imported as a published file's: names and shapes fit."""
    like = jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs, **given))["params"]
    return trees.fit(published.to_params(state_of(shapes), "golden"), like, "golden")


def ours(x):
    """(B, J, F, N) -> [B, N, J * F]."""
    x = np.asarray(x)
    return jnp.asarray(x.transpose(0, 3, 1, 2).reshape(x.shape[0], x.shape[3], -1))


def theirs(x, like):
    """The inverse of `ours`, for an array of the shape of `like`."""
    b, j, f, n = np.shape(like)
    return np.asarray(x).reshape(b, n, j, f).transpose(0, 2, 3, 1)
