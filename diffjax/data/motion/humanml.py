"""HumanML3D and KIT as they are published: Guo et al. 2022.

FOLDER/new_joint_vecs/NAME.npy   float32 [N, 263] (KIT: 251), features
FOLDER/texts/NAME.txt            caption#word/POS ...#start#end, a line each; seconds
FOLDER/train.txt, val.txt, test.txt
FOLDER/Mean.npy, Std.npy
"""

import math
from pathlib import Path

import numpy as np

from diffjax.data.motion.base import MotionSource
from diffjax.data.motion.skeletons import HUMANML3D, KIT, Skeleton
from diffjax.data.motion.statistics import Statistics, check_statistics
from diffjax.data.reading import read_file, reading
from diffjax.errors import UserError

SKELETONS = {263: HUMANML3D, 251: KIT}
LEAST = {263: 40, 251: 24}  # frames; and fewer than MOST
MOST = 200
CUT_FPS = 20  # of the times in the texts; the published loader uses it for KIT too
MAX_TEXT_BYTES = 1 << 20
MAX_LIST_BYTES = 1 << 24
MAX_ROWS = 1 << 20


def is_folder(folder: Path) -> bool:
    return (folder / "new_joint_vecs").is_dir()


def open_folder(folder: Path, split: str = "train", max_frames: int = 196) -> MotionSource:
    """Opens such a folder; clips are read when they are asked for.

    As the published loader: clips of 40 (KIT: 24) to 199 frames; a caption with times makes a clip
    of its own, which must be as long; a clip has all its captions. A clip longer than max_frames is
    cut there. The random cut to a multiple of four frames is `base.crop`, in the training step.

    Raises:
      UserError: files that are missing or not what they should be.
    """
    skeleton, statistics = read_statistics(folder)
    least = LEAST[skeleton.size]
    refs, names, captions = [], [], []
    for name in _names(folder, split):
        path = folder / "new_joint_vecs" / f"{name}.npy"
        length = _length(path, skeleton.size)
        if not least <= length < MOST:
            continue
        whole = []
        for text, start, end in read_texts(folder / "texts" / f"{name}.txt"):
            first, last = int(start * CUT_FPS), min(int(end * CUT_FPS), length)
            if not start and not end:
                whole.append(text)
            elif least <= last - first < MOST:
                refs.append((path, first, last))
                names.append(f"{name} {start:g}-{end:g} s")
                captions.append((text,))
        if whole:
            refs.append((path, 0, length))
            names.append(name)
            captions.append(tuple(whole))
    if not refs:
        raise UserError(f"{folder}: no clips of {least} to {MOST - 1} frames in {split}.txt")
    return MotionSource(
        clips=_Files(refs, skeleton.size),
        lengths=np.array([last - first for _, first, last in refs]),
        skeleton=skeleton,
        statistics=statistics,
        max_frames=max_frames,
        captions=tuple(captions),
        names=tuple(names),
        name=folder.name,
    )


class _Files:
    """A sequence of parts of .npy files that reads on demand."""

    def __init__(self, refs: list[tuple[Path, int, int]], size: int):
        self.refs, self.size = refs, size

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, i: int) -> np.ndarray:
        path, first, last = self.refs[i]
        rows = _load(path, self.size)[first:last]
        if len(rows) != last - first or not np.isfinite(rows).all():
            raise UserError(f"{path}: has numbers that are not finite; take it off the lists")
        return rows


def _load(path: Path, size: int) -> np.ndarray:
    _length(path, size)  # shape, type and size before anything is read
    with reading(path):
        return np.load(path, allow_pickle=False)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path), open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise UserError(f"{path}: an .npy format that no array of numbers needs")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        there = path.stat().st_size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != there:
        raise UserError(f"{path}: says {dtype} {shape} and does not hold as much")
    return shape, dtype


def _length(path: Path, size: int) -> int:
    shape, dtype = _header(path)
    if dtype.kind != "f" or len(shape) != 2 or shape[1] != size or not 0 <= shape[0] < MAX_ROWS:
        raise UserError(f"{path}: is {dtype} {shape}, expected float [frames, {size}]")
    return shape[0]


def read_statistics(folder: Path) -> tuple[Skeleton, Statistics]:
    arrays = []
    for name in ("Mean.npy", "Std.npy"):
        path = folder / name
        shape, dtype = _header(path)
        if len(shape) != 1 or shape[0] not in SKELETONS or dtype.kind != "f":
            raise UserError(f"{path}: is {dtype} {shape}, expected float (263,) or (251,)")
        with reading(path):
            arrays.append(np.load(path, allow_pickle=False))
    skeleton = SKELETONS[len(arrays[0])]
    return skeleton, check_statistics(*arrays, skeleton.size, str(folder))


def _names(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such file, so there is no split {split!r}")
    with reading(path):
        names = read_file(path, MAX_LIST_BYTES).decode("utf-8").split()
    bad = next((n for n in names if "/" in n or "\\" in n or n.startswith(".")), None)
    if bad is not None:
        raise UserError(f"{path}: {bad[:40]!r} is no name of a clip")
    return names


def read_texts(path: Path) -> list[tuple[str, float, float]]:
    """Returns (caption, start, end) of each line of a text file, in seconds; 0, 0 for the whole.

    Raises:
      UserError: no such file, or a line without the four parts.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path):
        lines = read_file(path, MAX_TEXT_BYTES).decode("utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = line.strip().split("#")
            try:
                start, end = (np.nan_to_num(float(p), nan=0.0) for p in parts[2:4])
            except ValueError:
                raise UserError(
                    f"{path}: line {number}: expected caption#words#start#end"
                ) from None
            if not (0 <= start < 1e6 and 0 <= end < 1e6):
                raise UserError(f"{path}: line {number}: start and end must be seconds")
            found.append((parts[0].strip(), float(start), float(end)))
    return found
