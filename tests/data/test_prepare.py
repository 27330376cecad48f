import json
import zipfile

import numpy as np
import pytest

from diffjax import prepare
from diffjax.data import images
from diffjax.data.sources import open_source


@pytest.fixture
def folder(make):
    files = {f"{c}/{i}.png": make.image(9 + i, 12 - 2 * i, 3) for c in "ba" for i in range(3)}
    return make.folder(files, "pictures")


def run(folder, out, *flags: str) -> int:
    return prepare.main([str(folder), "--size", "6", "--out", str(out), *flags])


@pytest.mark.parametrize("suffix", [".zip", ".npz"])
def test_round_trip(folder, make, capsys, suffix):
    out = make.root / "made" / f"out{suffix}"
    assert run(folder, out) == 0
    assert capsys.readouterr().out == f"{out}: 6 pictures of 6x6, 2 classes, skipped 0\n"
    source = open_source(out)
    assert source.class_names == ("a", "b") and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names = [f"{c}/{i}.png" for c in "ab" for i in range(3)]
    expected = [images.crop_resize(images.decode((folder / n).read_bytes(), n), 6) for n in names]
    np.testing.assert_array_equal(source.images, expected)
    same = open_source(folder, image_size=6)
    assert same.fingerprint == source.fingerprint
    assert [p.name for p in out.parent.iterdir()] == [out.name], "nothing else is left behind"


def test_zip_is_edms_format(folder, make):
    out = make.root / "out.zip"
    run(folder, out)
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
        table = json.loads(archive.read("dataset.json"))
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert names[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
    assert table["labels"][3:5] == [["00000/img00000003.png", 1], ["00000/img00000004.png", 1]]
    first = out.read_bytes()
    assert run(folder, out, "--overwrite") == 0 and out.read_bytes() == first, "deterministic"


@pytest.mark.parametrize("suffix", [".zip", ".npz"])
def test_unreadable_pictures(folder, make, capsys, suffix):
    (folder / "a" / "1.png").write_bytes(b"text")
    out = make.root / f"out{suffix}"
    assert run(folder, out) == 0
    said = capsys.readouterr()
    assert "skipped 1\n" in said.out and "a/1.png: not a picture" in said.err
    source = open_source(out)
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert run(folder, out, "--on-error", "stop", "--overwrite") == 2
    assert open_source(out).fingerprint == source.fingerprint, "a failed run leaves the old file"
    assert {p.name for p in make.root.iterdir()} == {"pictures", out.name}


def test_limit_is_spread_over_the_classes(folder, make, capsys):
    out = make.root / "out.npz"
    assert run(folder, out, "--limit", "2") == 0
    assert open_source(out).labels.tolist() == [0, 1]


def test_source_may_be_a_zip_and_unlabelled(make, capsys):
    source = make.zip({"a.png": make.image(), "b.png": make.image(20, 7)})
    assert run(source, make.root / "out.zip") == 0
    made = open_source(make.root / "out.zip")
    assert made.labels is None and made.image_shape == (6, 6, 3)
    assert "no classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--siz", "6"], "unknown flag --siz (did you mean '--size'?)"),
        (["--size", "0"], "--size"),
        (["--size", "100000"], "--size 100000: the limit is"),
        (["--out", "x.tar"], "--out x.tar: end it with .zip or .npz"),
        (["--on-error", "panic"], "--on-error"),
    ],
)
def test_flags(folder, make, capsys, flags, message):
    assert run(folder, make.root / "out.zip", *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


def test_places(folder, make, capsys):
    (make.root / "out.zip").write_bytes(b"precious")
    splits = make.folder({"train/a.png": make.image(), "test/a.png": make.image()}, "splits")
    bad = make.folder({"a.png": b"text"}, "bad")
    cases = [
        (folder, "out.zip", "exists; add --overwrite"),
        (make.root / "picture", "new.zip", "did you mean 'pictures'"),
        (splits, "new.zip", "holds the splits test, train: prepare each by itself"),
        (bad, "new.zip", "none of its 1 pictures can be read"),
        (folder, "out.zip/new.zip", "out.zip"),
    ]
    for source, out, message in cases:
        assert run(source, make.root / out) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ") and message in last
    assert (make.root / "out.zip").read_bytes() == b"precious"
    assert {p.name for p in make.root.iterdir()} == {"pictures", "out.zip", "splits", "bad"}
