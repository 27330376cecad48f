"""PyTorch checkpoints (.pt, .pth, .ckpt, .bin) as trees of arrays; PyTorch is not needed.

Two formats. Since PyTorch 1.6 (2020) a zip file: `NAME/data.pkl` is a pickle of the tree in which
a persistent id stands for each storage, and `NAME/data/KEY` holds that storage's numbers. Before,
and inside EDM's pickles, a stream: five pickles one after another (a magic number, a version, facts
about the machine, the tree, the storages' keys), then each storage's length and numbers.
"""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from diffjax.errors import UserError
from diffjax.weights import opcodes
from diffjax.weights.opcodes import Buffer
from diffjax.weights.tensors import NAMES, Storage, arrays, storage_of

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a stream
MAX_TREE = 64 << 20  # bytes of a zip file's data.pkl
MAX_RATIO = 20  # unpacked over packed size; PyTorch stores weights as they are
MAX_MEMBERS = 200_000


def read_zip(path: Path, names: dict = NAMES, finish: Callable = arrays):
    """Reads a checkpoint in the zip format into a tree of dicts, lists, plain values and arrays.

    Args:
      path: the file.
      names: what it may name, and what stands for that (`opcodes.load`).
      finish: (tree with `Tensor`s, the file's name, bytes of its storages) -> what is returned,
        called while the file is open.

    Raises:
      UserError: no such file, or one that lies, is damaged, or holds more than data.
    """
    where = str(path)
    with _opened(path) as archive:
        members = _members(archive, where)
        tree_name = _tree_name(members, where)
        root = tree_name.removesuffix("data.pkl")
        if any(name.startswith(root + "code/") for name in members):
            raise UserError(f"{where}: a TorchScript program; save its state_dict() instead")
        swap = _order(archive, members.get(root + "byteorder"), where) != sys.byteorder
        storages: dict[tuple, Storage] = {}

        def persistent(pid) -> Storage:
            new = storage_of(pid)
            storage = storages.setdefault((new.key, new.dtype), new)
            info = members.get(f"{root}data/{new.key}")
            if info is None:
                raise ValueError(f"has no data for storage {new.key!r}")
            if new.count != storage.count or info.file_size != new.count * new.dtype.itemsize:
                raise ValueError(
                    f"says that storage {new.key!r} has {new.count} numbers, "
                    f"and it has {info.file_size} bytes"
                )
            storage.swap = swap
            storage.fetch = lambda: _read(archive, info, info.file_size, where)
            return storage

        data = _read(archive, members[tree_name], MAX_TREE, where)
        tree, end = opcodes.load(data, where, names, persistent=persistent)
        if end != len(data):
            raise UserError(f"{where}: {len(data) - end} bytes follow the pickle in it")
        stored = sum(info.file_size for info in members.values())
        return finish(tree, where, stored)


def tree_of_zip(path: Path) -> bytes:
    """Returns the pickle that a checkpoint in the zip format describes its tree with, unread.

    Raises:
      UserError: as `read_zip`, for the file around it.
    """
    with _opened(path) as archive:
        members = _members(archive, str(path))
        info = members[_tree_name(members, str(path))]
        return _read(archive, info, MAX_TREE, str(path))


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    # zipfile lets through what struct, its decoders and the file system raise
    except Exception as error:
        raise UserError(f"{path}: not a zip file, or only a part of one ({error})") from error


def _tree_name(members: dict, where: str) -> str:
    trees = [n for n in members if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(trees) != 1:
        raise UserError(f"{where}: a zip file, but no PyTorch checkpoint: no NAME/data.pkl")
    return trees[0]


def _members(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip by name, after a look at what it says of them."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise UserError(f"{where}: {len(infos)} files in one zip, the limit is {MAX_MEMBERS}")
    members, packed, unpacked = {}, 0, 0
    for info in infos:
        name = info.filename
        if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\\" in name:
            raise UserError(f"{where}: unsafe name {name[:200]!r} in it")
        if name in members:
            raise UserError(f"{where}: two files of the name {name[:200]!r} in it")
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise UserError(
                f"{where}: {name[:200]!r} in it is encrypted or packed in an unusual way"
            )
        members[name] = info
        packed, unpacked = packed + info.compress_size, unpacked + info.file_size
    # Several entries may be made to share one place, to unpack to more than their sizes allow.
    if packed > Path(archive.filename).stat().st_size:
        raise UserError(f"{where}: the files in it are larger than it is")
    if unpacked > MAX_RATIO * packed + (1 << 20):
        raise UserError(f"{where}: {packed} bytes in it say that they unpack to {unpacked}")
    return members


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, where: str) -> bytes:
    """A member's content, its checksum compared. Never unpacks more than the stated size."""
    if info.file_size > limit:
        raise UserError(f"{where}: {info.filename!r} in it has {info.file_size} bytes")
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size)
    except Exception as error:  # zipfile, zlib and struct share no base class
        raise UserError(f"{where}: {info.filename!r} in it is damaged ({error})") from error
    if len(data) != info.file_size:
        raise UserError(f"{where}: {info.filename!r} in it is shorter than it says")
    return data


def _order(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, where: str) -> str:
    order = "little" if info is None else _read(archive, info, 16, where).decode("latin1")
    if order not in ("little", "big"):
        raise UserError(f"{where}: its byte order is {order!r}, not little or big")
    return order


def is_stream(data: Buffer) -> bool:
    """Whether the bytes begin as a checkpoint in the stream format does: with its magic number."""
    head = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
    return bytes(data[:1]) == b"\x80" and bytes(data[2 : 2 + len(head)]) == head


def read_stream(data: Buffer, where: str):
    """Reads a checkpoint in the stream format: returns (tree with `Tensor`s and `Storage`s, bytes).

    The second is how many bytes its storages take. The storages stay views of `data`.

    Raises:
      UserError: anything else, or storages other than the tree says.
    """
    data = memoryview(data)
    magic, at = opcodes.load(data, where, {})
    version, at = opcodes.load(data, where, {}, start=at)
    if (magic, version) != (MAGIC, 1001):
        raise UserError(f"{where}: not a PyTorch checkpoint of a known version")
    about, at = opcodes.load(data, where, {}, start=at)
    if type(about) is not dict or type(about.get("little_endian")) is not bool:
        raise UserError(f"{where}: does not say in which byte order it is")
    order = "little" if about["little_endian"] else "big"
    storages: dict[str, Storage] = {}

    def persistent(pid) -> Storage:
        new = storage_of(pid)
        storage = storages.setdefault(new.key, new)
        if (new.dtype, new.count) != (storage.dtype, storage.count):
            raise ValueError(f"says two things of storage {new.key!r}")
        return storage

    tree, at = opcodes.load(data, where, NAMES, start=at, persistent=persistent)
    keys, at = opcodes.load(data, where, {}, start=at)
    if type(keys) is not list or set(map(type, keys)) - {str} or set(keys) != set(storages):
        raise UserError(f"{where}: its list of storages is not that of its tensors")
    if len(keys) != len(storages):
        raise UserError(f"{where}: it lists a storage twice")
    stored = 0
    for key in keys:
        storage = storages[key]
        size = storage.count * storage.dtype.itemsize
        # Both are little-endian or both are not: the length is written as the numbers are.
        count = int.from_bytes(data[at : at + 8], order, signed=True)
        at += 8
        if count != storage.count:
            what = f"storage {key[:80]!r} has {count} numbers, not {storage.count}"
            raise UserError(f"{where}: {what}")
        if size > len(data) - at:
            raise UserError(f"{where}: cut short in storage {key[:80]!r}")
        storage.fetch = lambda part=data[at : at + size]: part
        storage.swap = order != sys.byteorder
        at, stored = at + size, stored + size
    if at != len(data):
        raise UserError(f"{where}: {len(data) - at} bytes follow the last storage")
    return tree, stored
