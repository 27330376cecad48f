"""DIAMOND's golden arrays, in the layout of our networks, and the rule that makes their weights."""

import functools
import gzip
import json
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffjax.systems.diamond import published

GOLDEN = Path(__file__).parents[1] / "golden" / "diamond"
TINY = {
    "denoiser": ("denoiser_tiny", "denoiser"),
    "rew_end_model": ("rew_end_tiny", "rew_end_model"),
    "actor_critic": ("actor_critic_tiny", "actor_critic"),
    "csgo": ("csgo_denoiser_tiny", "denoiser"),
    "upsampler": ("csgo_upsampler_tiny", "upsampler"),
}


@functools.cache
def load(name):
    """The arrays of tests/golden/diamond/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def manifest(name):
    """{state-dict name: [shape, dtype]} of tests/golden/diamond/manifest_NAME.json(.gz)."""
    file = next(GOLDEN.glob(f"manifest_{name}.json*"))
    data = file.read_bytes()
    return json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)


def rule(name, shape):
    """The golden weights of a tensor of the original; tests/golden/diamond/README.md."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    w = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002
    if name.endswith(("noise_emb.weight", "noise_cond_emb.weight")):
        return w
    if len(shape) > 1:
        return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * w if name.endswith("weight") else np.float32(0.1) * w


def state_of(shapes):
    """A published state dict with the golden weights, of {name: [shape, dtype]}."""
    return {name: rule(name, shape) for name, (shape, _) in shapes.items()}


@functools.cache
def network(name):
    """One of the tiny networks with the golden weights: published.Network."""
    file, kind = TINY[name]
    return published.network_of(state_of(manifest(file)), kind, name)


def near(got, want, tol):
    """The largest difference, over the largest number of the golden array, is at most tol."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    error = np.abs(got - want).max() / np.abs(want).max()
    print(f"error {error:.1e}, allowed {tol:.0e}")
    assert error <= tol, f"error {error:.2e} > {tol:.0e}"


def ours(x):
    """(..., C, H, W) -> [..., H, W, C]."""
    return jnp.asarray(np.moveaxis(np.asarray(x), -3, -1))


def theirs(x):
    """The inverse of `ours`."""
    return np.moveaxis(np.asarray(x), -1, -3)


def floats(levels):
    """Levels 0..255 as float32 in [-1, 1], NHWC."""
    return ours(np.asarray(levels).astype(np.float32) / 255 * 2 - 1)


def stacked(obs):
    """(B, n, C, H, W) -> [B, H, W, n C], oldest first."""
    b, n, c, h, w = np.shape(obs)
    return ours(np.asarray(obs).reshape(b, n * c, h, w))
