"""PyTorch checkpoints against what PyTorch wrote into them."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.weights.reading import kind_of, read_tree, read_weights

KINDS = {"torch_zip.pt": "zip", "torch_stream.pt": "stream"}
DTYPES = ["float16", "bfloat16", "float32", "float64"]
DTYPES += ["int64", "int32", "int16", "int8", "uint8", "bool"]


def counted(*shape):
    return (np.arange(np.prod(shape)).reshape(shape) / 8).astype(np.float32)


@pytest.fixture(params=KINDS)
def path(request, files):
    return files / request.param


def test_the_format_is_known_by_content(path, tmp_path):
    assert kind_of(path) == KINDS[path.name]
    other = tmp_path / "weights.bin"
    other.write_bytes(path.read_bytes())
    assert set(read_weights(other)) == set(read_weights(path))


def test_plain_values(path):
    tree = read_tree(path)
    plain = {k: v for k, v in tree.items() if not isinstance(v, (dict, np.ndarray))}
    assert plain == {
        "epoch": 3,
        "lr": 1e-3,
        "best": None,
        "name": "tiny ü",
        "flags": [True, False],
        "big": 2**40,
        "shape": (2, 3),
    }


def test_views(path):
    views, base = read_tree(path)["views"], counted(4, 6)
    wanted = {
        "base": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "same": base,
        "spread": np.broadcast_to(base[:1], (5, 6)),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "permuted": counted(2, 3, 4).transpose(2, 0, 1),
    }
    assert list(views) == list(wanted)
    for name, array in wanted.items():
        assert views[name].flags.c_contiguous, name
        np.testing.assert_array_equal(views[name], array, strict=True)


def test_dtypes(path):
    types = read_tree(path)["types"]
    assert list(types) == DTYPES
    for name, array in types.items():
        wanted = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        assert array.dtype == wanted
        np.testing.assert_array_equal(array, np.array([0, 1, 3]).astype(wanted))


def test_a_state_dict(path):
    flat = read_weights(path)
    names = [n.removeprefix("state_dict.") for n in flat if n.startswith("state_dict.")]
    assert names == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"),
        *("1.num_batches_tracked", "2.weight"),
    ]
    kernel = np.arange(54).reshape(3, 2, 3, 3) / 16
    np.testing.assert_array_equal(flat["state_dict.0.weight"], kernel.astype(np.float32))
    assert flat["state_dict.1.num_batches_tracked"].shape == ()
    np.testing.assert_array_equal(flat["parameter"], counted(3))
    assert "epoch" not in flat  # arrays only


def test_both_formats_hold_the_same(files):
    a, b = (read_weights(files / name) for name in KINDS)
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


def rewritten(source, path, change, method=zipfile.ZIP_STORED):
    """A copy of a zip with change(name, data) -> data for each member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", method) as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return path


def test_a_deflated_zip_is_the_same(files, tmp_path):
    path = rewritten(
        files / "torch_zip.pt", tmp_path / "a.pt", lambda n, d: d, zipfile.ZIP_DEFLATED
    )
    np.testing.assert_array_equal(read_tree(path)["views"]["base"], counted(4, 6))


def test_the_other_byte_order(files, tmp_path):
    """Only float32 storages of six or more numbers are turned round, and only those compared."""

    def change(name, data):
        if name.endswith("byteorder"):
            return b"big"
        if "/data/" in name and len(data) % 4 == 0:
            return np.frombuffer(data, "<f4").astype(">f4").tobytes()
        return data

    path = rewritten(files / "torch_zip.pt", tmp_path / "a.pt", change)
    got = read_tree(path)
    np.testing.assert_array_equal(got["views"]["turned"], counted(4, 6).T)
    np.testing.assert_array_equal(got["types"]["uint8"], [0, 1, 3])


def test_booleans_are_true_or_false(files, tmp_path):
    key = b"\x00\x01\x01"
    assert read_tree(files / "torch_zip.pt")["types"]["bool"].tobytes() == key
    path = rewritten(
        files / "torch_zip.pt", tmp_path / "a.pt", lambda n, d: b"\x00\x07\xff" if d == key else d
    )
    assert read_tree(path)["types"]["bool"].view(np.uint8).tolist() == [0, 1, 1]


def test_a_program_is_refused(files, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes((files / "torch_zip.pt").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/code/__torch__.py", "import os")
    with pytest.raises(UserError, match="TorchScript program"):
        read_tree(path)
