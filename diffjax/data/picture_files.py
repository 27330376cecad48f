"""Folders of pictures, and data sets in the EDM repository's format (a zip or a folder).

EDM's format (Karras et al. 2022, dataset_tool.py): picture files in the order of their sorted
names, and `dataset.json` = {"labels": [[name, label], ...]} or {"labels": null}, a label being an
integer or a one-hot list. `diffjax.prepare` adds a "class_names" list, which EDM does not look at.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffjax.data import images
from diffjax.data.base import LazySource, Source, fingerprint
from diffjax.data.reading import MAX_FILE_BYTES, open_zip, read_file, read_member, reading, walk
from diffjax.errors import UserError

PREPARE = "python -m diffjax.prepare"
# A folder may hold photographs, which take far longer to decode than their pixels here take room.
FOLDER_BYTES = 1 << 27
SAMPLE = 64


@dataclass(frozen=True, eq=False)
class Pictures:
    """Picture files in a folder or a zip.

    Attributes:
      path: of the folder or zip.
      names: sorted, relative, with "/".
      read: name -> content; raises `UserError`.
      metadata: a tuple a file that tells it from another file of that name, without reading it.
      table: what dataset.json holds, or None.
      total_bytes: of all the files.
    """

    path: Path
    names: list[str]
    read: Callable[[str], bytes]
    metadata: list[tuple]
    table: dict | None
    total_bytes: int

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()


def is_picture(name: str) -> bool:
    parts = Path(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return Path(name).suffix.lower() in images.SUFFIXES and not hidden


def list_zip(path: Path) -> Pictures:
    """Lists the pictures in a zip; raises `UserError` for a bad one or one without pictures."""
    archive = open_zip(path)
    infos = {info.filename: info for info in archive.infolist()}
    names = sorted(filter(is_picture, infos))
    metadata = [(name, infos[name].file_size, infos[name].CRC) for name in names]
    table = None
    if "dataset.json" in infos:
        table = _parse(
            read_member(archive, "dataset.json", _table_limit(names)), f"{path}: dataset.json"
        )
    return _listed(path, names, lambda name: read_member(archive, name), metadata, table)


def list_folder(path: Path) -> Pictures:
    """Lists the pictures under a folder, links followed; raises `UserError` if there are none."""
    sizes = {}
    for full in walk(path):
        name = full.relative_to(path).as_posix()
        if is_picture(name) and full.is_file():
            sizes[name] = full.stat().st_size
    names = sorted(sizes)
    table, file = None, path / "dataset.json"
    if file.is_file():
        table = _parse(read_file(file, _table_limit(names)), file)
    metadata = [(name, sizes[name]) for name in names]
    return _listed(path, names, lambda name: read_file(path / name), metadata, table)


def _table_limit(names: list[str]) -> int:
    """Bytes of JSON to parse, which may take twenty times as much room: 8 KiB a picture is enough
    for a one-hot label of a thousand classes."""
    return min(MAX_FILE_BYTES, (1 << 20) + (len(names) << 13))


def _parse(text: bytes, name: object) -> dict:
    with reading(name):
        table = json.loads(text)
    if not isinstance(table, dict):
        raise UserError(f"{name}: expected an object with the key 'labels'")
    return table


def _listed(path, names, read, metadata, table) -> Pictures:
    if not names:
        known = " ".join(sorted(images.SUFFIXES))
        raise UserError(f"{path}: no pictures in it (looked for {known})")
    return Pictures(path, names, read, metadata, table, sum(m[1] for m in metadata))


def labels_of(pictures: Pictures) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns (labels, class names) of the pictures in their order; (None, ()) if they have none.

    They come from dataset.json where there is one, else from the folder's first-level subfolders,
    if there is more than one of them.

    Raises:
      UserError: a dataset.json that does not fit, or pictures both beside and in subfolders.
    """
    if pictures.table is not None:
        return _labels_from_table(pictures)
    if not pictures.is_folder:
        return None, ()
    folders = [name.split("/")[0] if "/" in name else None for name in pictures.names]
    classes = sorted({folder for folder in folders if folder is not None})
    if classes and None in folders:
        stray = pictures.names[folders.index(None)]
        raise UserError(
            f"{pictures.path}: has pictures beside its subfolders ({stray}), so the subfolders"
            " cannot be classes; move those away, or everything into one folder"
        )
    if len(classes) < 2:
        return None, ()
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[folder] for folder in folders], np.int64), tuple(classes)


def _labels_from_table(pictures: Pictures) -> tuple[np.ndarray | None, tuple[str, ...]]:
    where = f"{pictures.path}: dataset.json"
    rows, class_names = pictures.table.get("labels"), pictures.table.get("class_names") or ()
    if not rows:
        return None, ()
    if not isinstance(class_names, list | tuple):
        raise UserError(f"{where}: 'class_names' must be a list")
    with reading(where):
        by_name = {str(name).replace("\\", "/"): label for name, label in rows}
    missing = next((name for name in pictures.names if name not in by_name), None)
    if missing:
        raise UserError(f"{where}: no label for {missing}")
    with reading(f"{where}: labels"):
        labels = np.array([by_name[name] for name in pictures.names])
    if labels.ndim == 2 and labels.dtype.kind in "iuf":
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        if not one_hot:
            raise UserError(f"{where}: labels of several numbers must be one-hot, and are not")
        class_names = class_names or [str(i) for i in range(labels.shape[1])]
        labels = labels.argmax(1)
    return labels, tuple(class_names)


def open_pictures(pictures: Pictures, image_size: int | None, max_bytes: int) -> Source:
    """Returns the `Source` of the listed pictures.

    Pictures in a folder are RGB; in a zip they have the channels of the first one (1 or 3).

    Args:
      pictures: from `list_zip` or `list_folder`.
      image_size: crop and scale what is not image_size x image_size (`images.crop_resize`); None
        leaves all as they are, and they must be of one size.
      max_bytes: up to this many bytes of pixels are read into memory now; for folders only if the
        files come to no more than FOLDER_BYTES.

    Raises:
      UserError: labels that do not fit, bad pictures, or (image_size None) pictures of different
        sizes. Beyond what is in memory, a sample of SAMPLE pictures is checked now, the others
        when they are read.
    """
    labels, class_names = labels_of(pictures)

    def picture(i: int):
        name = pictures.names[i]
        separator = "/" if pictures.is_folder else ": "
        return images.decode(pictures.read(name), f"{pictures.path}{separator}{name}")

    first = picture(0)
    mode = "L" if first.mode == "L" and not pictures.is_folder else "RGB"
    channels = len(mode)
    size = (image_size, image_size) if image_size else first.size

    def load(i: int) -> np.ndarray:
        image = picture(i)
        if mode == "RGB":
            image = image.convert("RGB")
        if image_size and image.size != size:
            return images.crop_resize(image, image_size)[..., :channels]
        if image.size != size:
            raise UserError(
                f"{pictures.path}: pictures of different sizes ({pictures.names[0]} is"
                f" {size[0]}x{size[1]}, {pictures.names[i]} is {image.width}x{image.height});"
                f" make a data set of one size first: {PREPARE} {pictures.path} --size N --out FILE"
            )
        return images.to_array(image)

    n = len(pictures.names)
    shape = (size[1], size[0], channels)
    fits = n * size[0] * size[1] * channels <= max_bytes
    if pictures.is_folder and pictures.total_bytes > FOLDER_BYTES:
        fits = False
    sample = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int))
    # Names and sizes of all files and the content of some stand for what is too much to read.
    parts = [] if fits else [pictures.metadata, *(pictures.read(pictures.names[i]) for i in sample)]
    mark = fingerprint(image_size, labels, class_names, *parts)
    source = LazySource(load, n, shape, mark, labels, class_names, pictures.path.name)
    if fits:
        return source.in_memory()
    for i in sample:
        source[i]
    return source
