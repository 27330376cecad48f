"""A folder of BVH files as a data set.

FOLDER/walk/001.bvh    classes by first-level subfolder, where there are several
FOLDER/captions.csv    columns file, caption and, for a part of a file, start and end in seconds
FOLDER/train.txt       also val.txt, test.txt: names of files, a line each; else a hash decides
FOLDER/skeleton.json   what cannot be told from names (`rigs.derive`)
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffjax.data.motion import bvh, humanact12, rigs
from diffjax.data.motion.base import SPLITS
from diffjax.data.motion.skeletons import read_json
from diffjax.data.motion.takes import Take, Takes
from diffjax.data.reading import is_unicode, read_file, reading, walk
from diffjax.errors import UserError, did_you_mean

MAX_TABLE_BYTES = 1 << 26
MAX_FILES = 1 << 20
SKELETON_FROM = 16  # files
SKELETON_PLACES = 1 << 18  # joints times frames of each file that the skeleton is told from


def list_takes(folder: Path, fps: float) -> Takes:
    """Lists the BVH files under a folder as takes, with the skeleton that all of them share.

    Args:
      folder: see above.
      fps: frames a second that they are brought to when they are read.

    Raises:
      UserError: no BVH files, tables that do not fit, files with different joints, a skeleton that
        cannot be told.
    """
    names = list_files(folder)
    captions, splits = read_captions(folder, names), read_splits(folder, names)
    labels = _labels(folder, names)
    some = np.unique(np.linspace(0, len(names) - 1, min(len(names), SKELETON_FROM)).astype(int))
    first = [_some_frames(bvh.read(folder / names[i])) for i in some]
    for i, clip in zip(some, first, strict=True):
        if clip.hierarchy.names != first[0].hierarchy.names:
            raise UserError(
                f"{folder / names[i]}: its joints are not those of {names[0]}; one skeleton a set"
            )
    place = folder / "skeleton.json"
    given = read_json(place) if place.is_file() else {}
    skeleton, rig = rigs.derive(first, given, fps=fps, name=str(folder))

    def reader(name: str):
        def read() -> np.ndarray:
            clip = bvh.resample(bvh.read(folder / name), fps)
            try:
                return rigs.joints_of(clip, rig)
            except UserError as error:
                raise UserError(f"{folder / name}: {error}") from None

        return read

    takes = [
        Take(name, reader(name), labels.get(name), captions.get(name, ()), splits.get(name, ""))
        for name in names
        if not splits or name in splits
    ]
    return Takes(takes, skeleton, rig, tuple(sorted(set(labels.values()))))


def _some_frames(clip: bvh.Clip) -> bvh.Clip:
    """Returns a clip of which a few frames in even steps are left, if it is long: the skeleton is
    told from many clips at once."""
    step = -(-len(clip) * len(clip.hierarchy) // SKELETON_PLACES)
    parts = (a[::step].copy() for a in (clip.rotations, clip.positions))
    return bvh.Clip(clip.hierarchy, *parts, clip.frame_time * step)


def list_files(folder: Path) -> list[str]:
    """Returns the .bvh files under a folder, sorted, relative, with "/"; links are followed."""
    names = []
    for path in walk(folder):
        if path.name.lower().endswith(".bvh") and not path.name.startswith("."):
            names.append(path.relative_to(folder).as_posix())
        if len(names) > MAX_FILES:
            raise UserError(f"{folder}: more than {MAX_FILES} files")
    pickle = next((p for p in sorted(folder.glob("*.pkl"))), None)
    if not names and pickle:
        raise humanact12.refusal(pickle)
    if not names:
        raise UserError(f"{folder}: no .bvh files in it")
    odd = next((name for name in names if not is_unicode(name)), None)
    if odd is not None:
        raise UserError(f"{folder}: {ascii(odd)} is no name in UTF-8; rename it")
    return sorted(names)


def _labels(folder: Path, names: Sequence[str]) -> dict[str, str]:
    classes = {name.split("/")[0] for name in names if "/" in name}
    if len(classes) < 2:
        return {}
    stray = next((name for name in names if "/" not in name), None)
    if stray:
        raise UserError(
            f"{folder}: has files beside its subfolders ({stray}), so the subfolders cannot be "
            "classes; move those away, or everything into one folder"
        )
    return {name: name.split("/")[0] for name in names}


def _known(word: str, names: Sequence[str], stems: dict[str, str], where: str) -> str:
    word = word.strip().replace("\\", "/").removeprefix("./")
    found = word if word in stems.values() else stems.get(word.removesuffix(".bvh"))
    if found is None:
        raise UserError(f"{where}: no file {word!r}{did_you_mean(word, names)}")
    return found


def _stems(names: Sequence[str]) -> dict[str, str]:
    return {name[: -len(".bvh")]: name for name in names}


def read_captions(folder: Path, names: Sequence[str]) -> dict[str, tuple]:
    """Returns {file: ((caption, start, end), ...)} of captions.csv, {} where there is none.

    Raises:
      UserError: missing columns, files that are not there, parts that are no parts; with the line.
    """
    path = folder / "captions.csv"
    if not path.is_file():
        return {}
    with reading(path):
        text = read_file(path, MAX_TABLE_BYTES).decode("utf-8-sig")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    with reading(path):
        columns = [str(c).strip().lower() for c in rows.fieldnames or ()]
    rows.fieldnames = columns
    if not {"file", "caption"} <= set(columns):
        found = ", ".join(columns)[:80]
        raise UserError(f"{path}: its first line must name the columns file, caption; has {found}")
    captions: dict[str, list] = {}
    stems = _stems(names)
    with reading(path):
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            file = _known(row["file"] or "", names, stems, where)
            caption = " ".join((row["caption"] or "").split())
            if not caption:
                raise UserError(f"{where}: no caption")
            start, end = (_seconds(row.get(k), where, k) for k in ("start", "end"))
            if (start or end) and not start < end:
                raise UserError(f"{where}: start {start:g} must be before end {end:g}")
            captions.setdefault(file, []).append((caption, start, end))
    return {file: tuple(some) for file, some in captions.items()}


def _seconds(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text.strip()) if text and text.strip() else 0.0
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e6:
        raise UserError(f"{where}: {column} must be seconds, 0 or more, not {str(text)[:40]!r}")
    return value


def read_splits(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns {file: split} of train.txt, val.txt and test.txt; {} where there is none of them.

    Raises:
      UserError: a file that is not there, or is in two of them.
    """
    splits: dict[str, str] = {}
    stems = _stems(names)
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if path.is_file():
            with reading(path):
                lines = read_file(path, MAX_TABLE_BYTES).decode("utf-8-sig").splitlines()
            for number, line in enumerate(lines, 1):
                if line.strip():
                    file = _known(line, names, stems, f"{path}: line {number}")
                    if splits.setdefault(file, split) != split:
                        raise UserError(f"{path}: line {number}: also in {splits[file]}.txt")
    return splits
