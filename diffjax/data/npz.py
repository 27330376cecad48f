"""Data sets as NumPy archives."""

import zipfile
from pathlib import Path

import numpy as np

from diffjax.data.base import ArraySource
from diffjax.data.reading import open_zip, reading, size_text
from diffjax.errors import UserError

KEEP = "keep large sets as .zip (python -m diffjax.prepare)"


def read_array(
    archive: zipfile.ZipFile, key: str, kinds: str, limit: int, advice: str = KEEP
) -> np.ndarray:
    """Returns array `key` of an .npz, without pickle.

    Args:
      archive: the .npz.
      key: the array's name.
      kinds: NumPy dtype kinds to accept, such as "iu".
      limit: bytes that it may take.
      advice: what to do about a larger one.

    Raises:
      UserError: another dtype, a size above `limit` or other than its data's, or bad data.
    """
    name = f"{archive.filename}: {key}"
    info = archive.getinfo(f"{key}.npy")
    with reading(name), archive.open(info) as file:
        # Later formats are for structured dtypes, and their headers may be gigabytes long.
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise UserError(
                f"{name} is in .npy format {version}, which no array of these kinds needs"
            )
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or dtype.kind not in kinds:
            raise UserError(
                f"{name} has dtype {dtype}, which is not what is stored under this name"
            )
        size = dtype.itemsize
        for length in shape:
            size *= length
        if min(shape, default=0) < 0 or size != info.file_size - file.tell():
            raise UserError(f"{name} says shape {shape} and does not hold as much data")
        if size > limit:
            found = f"{size_text(size)}, the limit is {size_text(limit)}"
            raise UserError(f"{name} is {found}; {advice}")
    with reading(name), archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_npz(
    path: Path, max_bytes: int, kind: type[ArraySource] = ArraySource, advice: str = KEEP
) -> ArraySource:
    """Reads an .npz: `images` (or `arr_0`) uint8 [n, H, W, C]; optional `labels` integers [n] and
    `class_names` strings.

    Args:
      kind: of source, which says what its array is called and shaped.
      advice: what to do about more than max_bytes.

    Raises:
      UserError: no such arrays, other dtypes or shapes, or more than max_bytes of images.
    """
    archive = open_zip(path)
    keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    key = next((k for k in (kind.what, "arr_0") if k in keys), None)
    if key is None:
        found = ", ".join(keys[:10]) or "nothing"
        raise UserError(f"{path}: has no array {kind.what!r} or 'arr_0' (found: {found})")
    labels, class_names = None, ()
    if "labels" in keys:
        labels = read_array(archive, "labels", "iu", 1 << 28)
    if "class_names" in keys:
        class_names = tuple(map(str, read_array(archive, "class_names", "U", 1 << 26).ravel()))
    images = read_array(archive, key, "u", max_bytes, advice)
    return kind(images, labels, class_names, path.name)
