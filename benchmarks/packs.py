"""Turns the packs that our measurements use into data sets that train.py reads.

    python benchmarks/packs.py cifar10 cifar10_jpegscan.npz --out cifar10.npz [--split test]
    python benchmarks/packs.py emoji emoji64.zip --out emoji64.npz [--split test]
    python benchmarks/packs.py emoji_anim emoji_anim64.zip --out films.npz [--split test]
    python benchmarks/packs.py bandai FOLDER --out bandai.npz [--split judge]

The packs lie outside this repository (their licences or sizes do not fit in it). `cifar10` is
CIFAR-10 as JPEG scans under one shared header; `emoji` a zip of WebP pictures with an index.csv,
whose column `group` becomes the class; `emoji_anim` the same of films, each a strip of its frames
from left to right, for `--config.data.frames=16`. `bandai` is data set 2 of the Bandai Namco
Research Motiondataset (CC BY-NC 4.0) as joints: classes and captions are "content, style", and its
file has all splits, with the training takes that a generator may see (`train`, the first two thirds
of each class) or those that are kept for a judge (`judge`).
"""

import csv
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffjax.data.motion import bvh, npz, rigs
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


def emoji_anim(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns (films uint8 [n, T, s, s, 3], labels int32 [n], names of the groups)."""
    strips, labels, names = emoji(path, split)  # [n, s, T s, 3]
    n, side, width, channels = strips.shape
    if width == side or width % side:
        raise UserError(f"{path}: pictures of {width}x{side} are no strips of square frames")
    films = strips.reshape(n, side, width // side, side, channels).swapaxes(1, 2)
    return films, labels, names


def bandai(folder: Path, split: str, out: Path) -> str:
    """Writes the motion set and returns a line about it."""
    low, high = np.frombuffer(
        lzma.decompress((folder / "joints20.xz").read_bytes()), np.uint8
    ).reshape(2, 63, -1)
    u = low + 256 * high.astype(np.int32)
    steps = ((u >> 1) ^ -(u & 1)).T.reshape(-1, 21, 3)  # of 0.25 mm
    with (folder / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "2"]
    kind = lambda row: f"{row['content'].replace('-', ' ')}, {row['style']}"
    names = sorted({kind(row) for row in rows})
    seen: dict[str, list[dict]] = {name: [] for name in names}
    for row in sorted(rows, key=lambda row: int(row["take"])):
        if row["split"] == "train":
            seen[kind(row)].append(row)
    for group in seen.values():
        for row in group[2 * len(group) // 3 :]:  # whole blocks: neighbours in time are alike
            row["split"] = "judge"
    left_out = {"train": "judge", "judge": "train"}[split]
    rows = [row for row in rows if row["split"] != left_out]
    first = lambda row: int(row["start20"])
    clips = [steps[first(r) : first(r) + int(r["frames20"])].cumsum(0) * 0.00025 for r in rows]
    files = sorted((folder / "bvh").glob("dataset-2*.bvh"))
    skeleton, rig = rigs.derive([bvh.read(path) for path in files], fps=20.0, name="bandai")
    npz.write_npz(
        out,
        clips,
        skeleton,
        labels=[names.index(kind(row)) for row in rows],
        class_names=names,
        captions=[[kind(row)] for row in rows],
        names=[row["name"] for row in rows],
        splits=["train" if row["split"] == "judge" else row["split"] for row in rows],
        rig=rig,
    )
    return f"{len(clips)} motions, {len(names)} classes"


def stack(files: Iterator[bytes]) -> np.ndarray:
    """Decodes pictures of one size: uint8 [n, H, W, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="packs.py", description=__doc__.splitlines()[0])
    parser.add_argument("kind", help="cifar10, emoji, emoji_anim or bandai")
    parser.add_argument("pack", help="the pack's file, or its folder")
    parser.add_argument("--split", default="train", help="train or test; bandai: train or judge")
    parser.add_argument("--out", required=True, help="FILE.npz")
    args = parser.parse(argv)
    kinds = {"cifar10": cifar10, "emoji": emoji, "emoji_anim": emoji_anim, "bandai": bandai}
    read = choose(args.kind, kinds, "pack")
    choose(args.split, {"train": 0, "judge" if read is bandai else "test": 0}, "--split")
    if read is bandai:
        print(f"{args.out}: {bandai(Path(args.pack), args.split, Path(args.out))}")
        return 0
    if not Path(args.pack).is_file():
        raise UserError(f"{args.pack}: no such file")
    images, labels, names = read(Path(args.pack), args.split)
    what, key = ("films", "films") if read is emoji_anim else ("pictures", "images")
    np.savez(args.out, **{key: images}, labels=labels, class_names=names)
    print(f"{args.out}: {len(images)} {what} {images.shape[1:]}, {len(names)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
