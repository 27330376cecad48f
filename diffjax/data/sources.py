"""Data sets by name: the one inside the package, and whatever a path leads to."""

import importlib.resources
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffjax.data.base import ArraySource, LazySource, Source, reduced
from diffjax.data.npz import read_npz
from diffjax.data.picture_files import list_folder, list_zip, open_pictures
from diffjax.data.reading import not_found, open_zip
from diffjax.data.stand_in import PREFIX, open_shapes
from diffjax.data.tfds import folder_of, open_tfds
from diffjax.errors import UserError, did_you_mean

__all__ = ["ArraySource", "LazySource", "Source", "embedded", "open_source"]

SPLITS = {"train", "test", "val", "valid", "validation"}


def embedded() -> ArraySource:
    """Returns the data set inside the package: 622 emoji, uint8 [622, 24, 24, 3], 8 classes.

    A demonstration and a smoke test, not a benchmark: the smaller classes are soon known by heart.
    From Noto Color Emoji (SIL Open Font License 1.1); see embedded/README.md.
    """
    folder = importlib.resources.files("diffjax.data") / "embedded"
    table = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    sheet = np.asarray(Image.open(io.BytesIO((folder / "emoji.png").read_bytes())))
    size, columns = table["size"], table["columns"]
    tiles = sheet.reshape(-1, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    kinds = table["kinds"]
    labels = np.array([kinds.index(kind) for kind, _, _ in table["images"]], np.int32)
    return ArraySource(tiles[: len(labels)].copy(), labels, tuple(kinds), "emoji")


def open_source(
    path: str, split: str = "train", image_size: int | None = None, *, max_bytes: int = 2 << 30
) -> Source:
    """Opens a data set by what its path leads to.

    - "emoji": the set inside the package (`embedded`).
    - "shapes:HxWxC[:CLASSES]": no pictures, only their shape (`stand_in.open_shapes`).
    - "tfds:NAME[:CONFIG]", or a folder with dataset_info.json: TFDS (`tfds.open_tfds`).
    - a folder of pictures, labelled by its first-level subfolders (`picture_files.labels_of`), or
      of nothing but subfolders train, test, val: then these are its splits.
    - an .npz (`npz.read_npz`), or a zip of pictures, in the EDM repository's format or plain.

    Args:
      path: as above.
      split: "train", unless the set has others.
      image_size: crop and scale pictures to this many pixels a side; None takes them as they are.
        Sets of arrays ("emoji", .npz) must have this size already, or a whole multiple of it: then
        each pixel is the mean of a block of theirs.
      max_bytes: read sets with up to this many bytes of pixels into memory (an `ArraySource`).

    Raises:
      UserError: nothing there, unknown split, files that are not what they should be, pictures of
        different sizes with no image_size.
    """
    path = str(path)
    if path == "emoji":
        _only_train(path, split)
        return reduced(embedded(), image_size)
    if path.startswith(PREFIX):
        return open_shapes(path, image_size)
    if path.startswith("tfds:"):
        return open_tfds(folder_of(path.removeprefix("tfds:")), split, image_size)
    place = Path(path).expanduser()
    if not place.exists():
        raise not_found(place)
    if not place.is_dir():
        _only_train(path, split)
        if _is_npz(place):
            return reduced(read_npz(place, max_bytes), image_size)
        return open_pictures(list_zip(place), image_size, max_bytes)
    if (place / "dataset_info.json").is_file():
        return open_tfds(place, split, image_size)
    folder = list_folder(_split_folder(place, split))
    return open_pictures(folder, image_size, max_bytes)


def _only_train(path: str, split: str) -> None:
    if split != "train":
        raise UserError(f"{path}: no split {split!r}, it has 'train' only")


def _is_npz(place: Path) -> bool:
    with open_zip(place) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def split_folders(folder: Path) -> list[str]:
    """Returns the splits of a folder: its subfolders, if their names are all splits' names."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return names if names and set(names) <= SPLITS else []


def _split_folder(folder: Path, split: str) -> Path:
    splits = split_folders(folder)
    if not splits:
        _only_train(str(folder), split)
        return folder
    if split not in splits:
        raise UserError(f"{folder}: no split {split!r}{did_you_mean(split, splits)}")
    return folder / split
