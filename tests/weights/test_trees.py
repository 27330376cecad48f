"""Files of weights: there and back, and every way in which one may be broken."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from diffjax.errors import UserError
from diffjax.weights import trees


@pytest.fixture
def tree():
    random = np.random.default_rng(0)
    return {
        "down": {
            "conv": {"kernel": random.normal(size=(3, 3, 2, 4)).astype(np.float32)},
            "norm": {"scale": random.normal(size=4).astype(np.float32)},
        },
        "count": np.int32(7),
        "half": jnp.asarray(random.normal(size=(2, 3)), jnp.bfloat16),
        "turned": np.asfortranarray(random.normal(size=(4, 5)).astype(np.float32)),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def test_there_and_back(tree, path):
    trees.save(tree, path, {"step": "3"})
    flat = trees.load(path)
    assert set(flat) == {"down/conv/kernel", "down/norm/scale", "count", "half", "turned"}
    back = trees.fit(flat, tree, "here")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"step": "3"}
    assert list(path.parent.iterdir()) == [path]  # no temporary left


def test_names_are_paths(tree):
    flat = trees.flatten(tree)
    assert flat["down/norm/scale"] is tree["down"]["norm"]["scale"]
    assert trees.flatten(trees.unflatten(flat)).keys() == flat.keys()


def test_fit_takes_shapes_and_casts(path):
    save_file({"a/b": np.ones((2, 2), np.float16)}, path)
    like = {"a": {"b": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}
    got = trees.fit(trees.load(path), like, "here")["a"]["b"]
    assert got.dtype == np.float32 and (got == 1).all()


def test_a_failed_save_leaves_the_old_file(tree, path, monkeypatch):
    trees.save(tree, path)
    before = path.read_bytes()

    def half(name, data):
        with name.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError):
        trees.save(tree, path)
    assert path.read_bytes() == before


def header(about: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "empty": b"",
    "short length": b"\x10\x00\x00",
    "truncated header": header({"a": FLOATS})[:20],
    "huge header length": header({"a": FLOATS}, bytes(8), length=2**63),
    "header length beyond the file": header({"a": FLOATS}, bytes(8), length=10_000),
    "header is no JSON": header(b"not json"),
    "header is not UTF-8": header(b'{"\xff\xfe": 1}'),
    "header is a list": header(b"[1, 2]"),
    "header nested deeply": header(b"[" * 200_000),
    "truncated data": header({"a": FLOATS}, bytes(5)),
    "data left over": header({"a": FLOATS}, bytes(12)),
    "offsets beyond the data": header({"a": {**FLOATS, "data_offsets": [8, 16]}}, bytes(8)),
    "offsets of another size": header({"a": {**FLOATS, "shape": [3]}}, bytes(8)),
    "negative offset": header({"a": {**FLOATS, "data_offsets": [-8, 0]}}, bytes(8)),
    "sizes that overflow": header({"a": {**FLOATS, "shape": [2**62, 4]}}, bytes(8)),
    "unknown dtype": header({"a": {**FLOATS, "dtype": "PICKLE"}}, bytes(8)),
    "two arrays in one place": header({"a": FLOATS, "b": FLOATS}, bytes(8)),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_files(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a safetensors file") as caught:
        trees.load(path)
    assert str(path) in str(caught.value)


def test_a_good_file_of_the_same_make(path):
    # What the broken ones are broken from.
    path.write_bytes(header({"a": FLOATS}, np.array([1, 2], "<f4").tobytes()))
    np.testing.assert_array_equal(trees.load(path)["a"], [1, 2])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.bool_, np.int64])
def test_other_types_load_or_are_refused(path, dtype):
    values = np.array([0, 1]).astype(dtype)
    name = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "bool": "BOOL", "int64": "I64"}
    about = {"dtype": name[values.dtype.name], "shape": [2], "data_offsets": [0, values.nbytes]}
    path.write_bytes(header({"a": about}, values.tobytes()))
    try:
        got = trees.load(path)["a"]
    except UserError:
        return
    np.testing.assert_array_equal(got.astype(np.float32), [0, 1])


def test_no_file(path):
    with pytest.raises(UserError, match="no such weights file"):
        trees.load(path)
    path.mkdir()
    with pytest.raises(UserError, match="no such weights file"):
        trees.load(path)


@pytest.mark.parametrize(
    "change, fragment",
    [
        (lambda flat: flat.pop("down/norm/scale"), r"no weights named 'down/norm/scale'"),
        (lambda flat: flat.update(extra=flat["count"]), r"1 weights .* lacks, first 'extra'"),
        (
            lambda flat: flat.update({"down/norm/scale": np.zeros((4, 1))}),
            r"'down/norm/scale' has shape \(4, 1\), the network wants \(4,\)",
        ),
        (
            lambda flat: flat.update({"down/norm/scael": flat.pop("down/norm/scale")}),
            r"'down/norm/scale' \(did you mean 'down/norm/scael'\?\)",
        ),
    ],
    ids=["missing", "left over", "shape", "misspelt"],
)
def test_weights_of_another_network(tree, change, fragment):
    flat = trees.flatten(tree)
    change(flat)
    with pytest.raises(UserError, match=fragment) as caught:
        trees.fit(flat, tree, "here.safetensors")
    assert str(caught.value).startswith("here.safetensors: ")
