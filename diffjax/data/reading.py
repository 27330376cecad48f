"""Reading files that somebody else made: every size is checked before anything is decoded."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from diffjax.errors import UserError, did_you_mean

MAX_FILE_BYTES = 1 << 28  # of one picture or one table, unpacked
MAX_PIXELS = 1 << 26  # of one picture: 8192 x 8192


@contextlib.contextmanager
def reading(name: object) -> Iterator[None]:
    """Turns what a decoder raises inside the block into a one-line `UserError` naming `name`."""
    try:
        yield
    except UserError:
        raise
    # Pillow, zlib, zipfile and NumPy share no base class for "this file is bad".
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name}: cannot be read ({reason})") from error


def not_found(place: Path, built_in: str = "emoji") -> UserError:
    """Returns the error for a data set that is not there, with the nearest name beside it.

    built_in: the name of the set that is no file.
    """
    names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = did_you_mean(place.name, [*names, built_in])
    return UserError(f"{place}: no such file or folder{near if near.startswith(' (did') else ''}")


def is_unicode(text: str) -> bool:
    """Whether a text is one that UTF-8 can hold: file names and NumPy's texts need not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def size_text(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 1 << 30 else f"{n / 2**20:.1f} MiB"


def walk(folder: Path) -> Iterator[Path]:
    """Yields the files under a folder, links followed, each folder once: a link to a folder above
    it does not make this go on for ever."""
    seen = set()
    for here, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield from (Path(here, file) for file in files)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip file and checks the names in it.

    Raises:
      UserError: not a zip file, truncated, encrypted, or a name that leads out of it.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a zip file, or only a part of one")
    with reading(path):
        archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
            raise UserError(f"{path}: unsafe name {info.filename!r} in it")
        if info.flag_bits & 1:
            raise UserError(f"{path}: {info.filename} is encrypted")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Returns the content of a member, never unpacking more than its stated size.

    Raises:
      UserError: a stated size above `limit`, or bad data.
    """
    info = archive.getinfo(name)
    if info.file_size > limit:
        found = f"{size_text(info.file_size)} unpacked, the limit is {size_text(limit)}"
        raise UserError(f"{archive.filename}: {name} is {found}")
    # read() without a number unpacks first and looks at the stated size afterwards.
    with reading(f"{archive.filename}: {name}"), archive.open(info) as file:
        return file.read(info.file_size)


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Returns the content of a file; raises `UserError` for one above `limit` or unreadable."""
    with reading(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} is {size_text(size)}, the limit is {size_text(limit)}")
        return file.read(size)
