"""Any file of weights, known by its content: safetensors, PyTorch checkpoints, EDM pickles."""

import mmap
from pathlib import Path

import numpy as np

from diffjax.errors import UserError
from diffjax.weights import edm_pickles, torch_files, trees
from diffjax.weights.opcodes import Buffer
from diffjax.weights.tensors import arrays


def kind_of(path: Path) -> str:
    """Returns what a file is by its first bytes: "zip", "stream", "pickle" or "safetensors".

    Raises:
      UserError: nothing there, or none of these.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if torch_files.is_stream(head):
        return "stream"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[8:9] == b"{":
        return "safetensors"
    raise UserError(
        f"{path}: neither safetensors nor a PyTorch checkpoint nor an EDM pickle, by its content"
    )


def mapped(path: Path) -> Buffer:
    """Returns a file's bytes without reading them: gigabytes of storages are read where used."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_tree(path: Path):
    """Reads a file of weights as it is nested: dicts and lists of arrays and plain values.

    Names and prefixes ("state_dict", "ema", "module.") are as the file has them; an EDM pickle is
    its EMA network's state dict. NumPy arrays in the file's own dtypes, read only, bfloat16
    included.

    Raises:
      UserError: no such file, none of the formats, or one that is broken or would run something.
    """
    kind, where = kind_of(path), str(path)
    if kind == "zip":
        return torch_files.read_zip(path)
    if kind == "stream":
        return arrays(*_stream(path))
    if kind == "pickle":
        return edm_pickles.read(mapped(path), where)[1]
    return trees.load(path)


def _stream(path: Path):
    tree, stored = torch_files.read_stream(mapped(path), str(path))
    return tree, str(path), stored


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads a file of weights as {name: array}: nested names joined with dots, arrays only.

    Raises:
      UserError: as `read_tree` does, or no array in it, or two of one name.
    """
    found: dict[str, np.ndarray] = {}

    def walk(value, name: str) -> None:
        if isinstance(value, np.ndarray):
            if name in found:
                raise UserError(f"{path}: two arrays of the name {name[:200]!r}")
            found[name] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                walk(part, f"{name}.{key}" if name else str(key))
        elif type(value) in (list, tuple):
            for i, part in enumerate(value):
                walk(part, f"{name}.{i}" if name else str(i))

    walk(read_tree(path), "")
    if not found:
        raise UserError(f"{path}: no weights in it")
    return found
