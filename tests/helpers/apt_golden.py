"""APT's golden arrays, and the rule that makes their weights; see tests/golden/apt/README.md."""

import functools
import gzip
import json
import zlib
from pathlib import Path

import numpy as np

from diffjax.weights import trees

GOLDEN = Path(__file__).parents[1] / "golden" / "apt"


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/apt/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """{name: shape} of tests/golden/apt/manifest_NAME.json, perhaps compressed."""
    path = GOLDEN / f"manifest_{name}.json"
    text = (
        path.read_bytes()
        if path.is_file()
        else gzip.decompress(path.with_suffix(".json.gz").read_bytes())
    )
    return {k: tuple(shape) for k, (shape, _) in json.loads(text).items()}


def near(got, want, tol: float) -> float:
    """Checks that the largest error is at most tol times the largest number; returns it."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-300)
    print(f"error {error:.1e}, allowed {tol:.0e}")
    assert error <= tol, f"error {error:.2e} > {tol:.0e}"
    return error


def rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden weights of a tensor, in the layout of the manifest ([out, in])."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    w = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002
    if len(shape) > 1:
        return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    one = name.endswith(("weight", "_scale"))
    return np.float32(one) + np.float32(0.1) * w


def theirs(path: str) -> str:
    """Our path -> the manifest's name: "blocks/0/vid/qkv/kernel" -> "blocks.0.vid.qkv.weight"."""
    *parents, last = path.split("/")
    return ".".join([*parents, "weight" if last in ("kernel", "scale") else last])


def params_by_rule(shapes, prefix: str = ""):
    """(golden weights for a tree of shapes of ours, {the manifest's name: shape} of all)."""
    flat, names = {}, {}
    for path, leaf in trees.flatten(shapes).items():
        name = prefix + theirs(path)
        kernel = path.endswith("kernel")
        names[name] = leaf.shape[::-1] if kernel else leaf.shape
        array = rule(name, names[name])
        flat[path] = array.T if kernel else array
    return trees.unflatten(flat), names
