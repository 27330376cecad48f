"""Every bad input is one line that names the file, and nothing large is unpacked to find out."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from diffjax.data.sources import open_source
from diffjax.errors import UserError


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header says width x height, with next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def long_header() -> dict[str, bytes]:
    length = 200 << 20
    return {"images.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", length) + b" " * length}


def zip_of(path, files: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def lying_bomb(path):
    """A zip whose picture says 1000 bytes and unpacks to 200 MB."""
    zip_of(path, {"a.png": bytes(200 << 20)})
    data = path.read_bytes()
    true = struct.pack("<I", 200 << 20)
    return write(path, data.replace(true, struct.pack("<I", 1000)))


def write(path, data: bytes):
    path.write_bytes(data)
    return path


def with_table(make, table, files=("a.png", "b.png")):
    return make.zip({name: make.image() for name in files}, table)


def encrypted(make):
    path = make.zip({"a.png": make.image()})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return write(path, bytes(data))


def damaged(make):
    path = make.zip({"a.png": make.image()})
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    return write(path, bytes(data))


IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
SHAPE = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}"
DEEP = b'{"labels": ' + b"[" * 100000 + b"]" * 100000 + b"}"

CASES = {
    # nothing, or nothing of use
    "missing": (lambda m: m.root / "nothing.zip", "no such file or folder"),
    "near": (lambda m: write(m.root / "cats.zip", b"").with_name("cat.zip"), "mean 'cats.zip'"),
    "near emoji": (lambda m: m.root / "emojis", "did you mean 'emoji'"),
    "empty folder": (lambda m: m.folder({"a.txt": b"x"}), "no pictures in it"),
    "empty file": (lambda m: write(m.root / "a.zip", b""), "not a zip file"),
    "text": (lambda m: write(m.root / "a.npz", b"hello"), "not a zip file"),
    "loop of links": (lambda m: loop(m), "no pictures in it"),
    # zip
    "truncated zip": (
        lambda m: write(
            m.root / "t.zip", m.zip({"a.png": m.image(90, 90, 3)}).read_bytes()[:-300]
        ),
        "not a zip file, or only a part",
    ),
    "empty zip": (lambda m: m.zip({}), "no pictures in it"),
    "name with ..": (lambda m: m.zip({"../a.png": m.image()}), "unsafe name '../a.png'"),
    "absolute name": (lambda m: m.zip({"/etc/a.png": m.image()}), "unsafe name"),
    "backslashes": (lambda m: m.zip({"..\\a.png": m.image()}), "unsafe name"),
    "encrypted": (encrypted, "a.png is encrypted"),
    "damaged member": (damaged, "a.png: cannot be read .Bad CRC-32"),
    "bomb": (lambda m: zip_of(m.root / "b.zip", {"a.png": bytes(300 << 20)}), "300.0 MiB unpacked"),
    "lying bomb": (lambda m: lying_bomb(m.root / "b.zip"), "a.png: cannot be read .Bad CRC-32"),
    # pictures
    "not a picture": (lambda m: m.folder({"a.png": b"text"}), "a.png: not a picture"),
    "EPS": (lambda m: m.folder({"a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"}), "not a picture"),
    "truncated picture": (
        lambda m: m.folder({"a.png": m.png(m.image(90, 90, 3))[:-2000]}),
        "a.png: cannot be read",
    ),
    "pixel bomb": (lambda m: m.folder({"a.png": huge_png(40000, 2000)}), "40000x2000 pixels"),
    "larger bomb": (lambda m: m.folder({"a.png": huge_png(60000, 60000)}), "a.png: cannot be read"),
    "sizes": (
        lambda m: m.folder({"a.png": m.image(), "b.png": m.image(6, 7, 3)}),
        "different sizes .a.png is 6x6, b.png is 7x6.*python -m diffjax.prepare",
    ),
    "stray": (lambda m: m.folder({"a.png": m.image(), "x/b.png": m.image()}), "beside its subf"),
    # labels
    "table not JSON": (lambda m: with_table(m, b"{"), "dataset.json: cannot be read"),
    "table a list": (lambda m: with_table(m, []), "expected an object"),
    "table too deep": (lambda m: with_table(m, DEEP), "dataset.json: cannot be read"),
    "table large": (lambda m: with_table(m, b"[" + b"[]," * 400000 + b"0]"), "the limit is 1.0"),
    "table odd": (lambda m: with_table(m, {"labels": 5}), "dataset.json: cannot be read"),
    "label missing": (lambda m: with_table(m, {"labels": [["a.png", 0]]}), "no label for b.png"),
    "labels ragged": (
        lambda m: with_table(m, {"labels": [["a.png", 0], ["b.png", [1]]]}),
        "labels: cannot be read",
    ),
    "labels text": (
        lambda m: with_table(m, {"labels": [["a.png", "x"], ["b.png", "y"]]}),
        "labels must be integers",
    ),
    "labels not one-hot": (
        lambda m: with_table(m, {"labels": [["a.png", [0.5, 0.5]], ["b.png", [0, 1]]]}),
        "one-hot",
    ),
    "label negative": (
        lambda m: with_table(m, {"labels": [["a.png", -1], ["b.png", 0]]}),
        "labels must be 0 or more",
    ),
    "label nameless": (
        lambda m: with_table(m, {"labels": [["a.png", 0], ["b.png", 3]], "class_names": ["x"]}),
        "label 3 has no name",
    ),
    "label huge": (
        lambda m: with_table(m, {"labels": [["a.png", 0], ["b.png", 2**31 - 1]]}),
        "too large",
    ),
    # npz
    "npz other keys": (lambda m: m.npz(x=IMAGES), "no array 'images' or 'arr_0' .found: x"),
    "npz objects": (lambda m: m.npz(images=np.array([{}, []], object)), "images has dtype object"),
    "npz floats": (lambda m: m.npz(images=IMAGES.astype(np.float32)), "images has dtype float32"),
    "npz uint16": (lambda m: m.npz(images=IMAGES.astype(np.uint16)), "must be uint8"),
    "npz rank": (lambda m: m.npz(images=IMAGES[0]), r"must be uint8 \[n, H, W, C\]"),
    "npz none": (lambda m: m.npz(images=IMAGES[:0]), "no images in it"),
    "npz labels length": (lambda m: m.npz(images=IMAGES, labels=np.arange(3)), r"shape \(2,\)"),
    "npz labels negative": (lambda m: m.npz(images=IMAGES, labels=np.array([0, -1])), "0 or more"),
    "npz labels float": (lambda m: m.npz(images=IMAGES, labels=np.ones(2)), "labels has dtype"),
    "npz names alone": (lambda m: m.npz(images=IMAGES, class_names=np.array(["a"])), "without lab"),
    "npz huge shape": (
        lambda m: zip_of(m.root / "a.npz", {"images.npy": npy(SHAPE % "(1<<40, 4, 4, 3)")}),
        "cannot be read",
    ),
    "npz claims more": (
        lambda m: zip_of(m.root / "a.npz", {"images.npy": npy(SHAPE % "(99999999, 64, 64, 3)")}),
        "does not hold as much data",
    ),
    "npz negative shape": (
        lambda m: zip_of(m.root / "a.npz", {"images.npy": npy(SHAPE % "(-1, -4, 3)", bytes(12))}),
        "does not hold as much data",
    ),
    "npz header is code": (
        lambda m: zip_of(m.root / "a.npz", {"images.npy": npy("__import__('os').getcwd()")}),
        "cannot be read",
    ),
    "npz no magic": (lambda m: zip_of(m.root / "a.npz", {"images.npy": b"x"}), "cannot be read"),
    "npz long header": (lambda m: zip_of(m.root / "a.npz", long_header()), "npy format .2, 0."),
    "npz format": (
        lambda m: zip_of(m.root / "a.npz", {"images.npy": npy("{}", version=b"\x09\x00")}),
        "cannot be read|format",
    ),
}  # fmt: skip


def loop(make):
    folder = make.folder({"x/a.txt": b""})
    os.symlink(folder, folder / "x" / "again")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_little_memory(make, case):
    build, message = CASES[case]
    path = build(make)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            open_source(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text and path.name in text
    assert peak < 60 << 20, "unpacked something large"


def test_npz_over_the_limit(make):
    with pytest.raises(UserError, match="the limit is 0.0 MiB; keep large sets as .zip"):
        open_source(make.npz(images=IMAGES), max_bytes=95)
    assert len(open_source(make.npz(images=IMAGES), max_bytes=96)) == 2


def test_a_bad_picture_found_late_names_itself(make):
    files = {f"{i:03d}.png": make.image() for i in range(200)}
    files["001.png"] = make.image(3, 3, 3)
    source = open_source(make.folder(files), max_bytes=1)
    with pytest.raises(UserError, match="000.png is 6x6, 001.png is 3x3"):
        for i in range(200):
            source[i]


def test_unknown_split(make):
    folder = make.folder({"train/a.png": make.image(), "test/a.png": make.image()})
    with pytest.raises(UserError, match="no split 'tests' .did you mean 'test'"):
        open_source(folder, "tests")
    with pytest.raises(UserError, match="it has 'train' only"):
        open_source(folder / "train", "test")


def test_gif_takes_the_first_frame(make):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    source = open_source(make.folder({"a.gif": data.getvalue()}))
    assert source.images[0, 0, 0].tolist() == [255, 0, 0]
