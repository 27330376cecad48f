"""Turns the packs that our measurements use into data sets that train.py reads.

    python benchmarks/packs.py cifar10 cifar10_jpegscan.npz --out cifar10.npz [--split test]
    python benchmarks/packs.py emoji emoji64.zip --out emoji64.npz [--split test]

The packs lie outside this repository (their licences or sizes do not fit in it). `cifar10` is
CIFAR-10 as JPEG scans under one shared header; `emoji` a zip of WebP pictures with an index.csv,
whose column `group` becomes the class.
"""

import csv
import io
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffjax.errors import UserError, choose, command
from diffjax.run import cli

CIFAR10_CRC = {"train": 0x4D6A671A, "test": 0x1B4F3165}  # of the pixels, as libjpeg decodes them


def cifar10(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns (images uint8 [n, 32, 32, 3], labels int32 [n], class names), sorted by class."""
    with np.load(path, allow_pickle=False) as pack:
        header, scans = pack["header"].tobytes(), pack[f"{split}_scan"].tobytes()
        ends = np.cumsum(pack[f"{split}_length"].astype(np.int64))
        labels, names = pack[f"{split}_label"].astype(np.int32), pack["class_names"].tolist()
    starts = np.concatenate([[0], ends[:-1]])
    images = stack(header + scans[a:b] + b"\xff\xd9" for a, b in zip(starts, ends))
    if zlib.crc32(images.tobytes()) != CIFAR10_CRC[split]:
        print("note: this JPEG decoder rounds otherwise than the pack's check value", flush=True)
    return images, labels, names


def emoji(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns (images uint8 [n, s, s, 3], labels int32 [n], names of the groups)."""
    with zipfile.ZipFile(path) as pack:
        table = list(csv.DictReader(io.StringIO(pack.read("index.csv").decode())))
        rows = [row for row in table if row["split"] == split]
        images = stack(pack.read(row["file"]) for row in rows)
    names = sorted({row["group"] for row in table})  # of both splits: labels mean the same
    labels = np.array([names.index(row["group"]) for row in rows], np.int32)
    return images, labels, names


def stack(files: Iterator[bytes]) -> np.ndarray:
    """Decodes pictures of one size: uint8 [n, H, W, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="packs.py", description=__doc__.splitlines()[0])
    parser.add_argument("kind", help="cifar10 or emoji")
    parser.add_argument("pack", help="the pack's file")
    parser.add_argument("--split", default="train", help="train or test")
    parser.add_argument("--out", required=True, help="FILE.npz")
    args = parser.parse(argv)
    read = choose(args.kind, {"cifar10": cifar10, "emoji": emoji}, "pack")
    choose(args.split, CIFAR10_CRC, "--split")
    if not Path(args.pack).is_file():
        raise UserError(f"{args.pack}: no such file")
    images, labels, names = read(Path(args.pack), args.split)
    np.savez(args.out, images=images, labels=labels, class_names=names)
    print(f"{args.out}: {len(images)} pictures {images.shape[1:]}, {len(names)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
