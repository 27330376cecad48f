"""Trees of arrays to and from safetensors: names are paths, nothing in the file is executed."""

import os
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from diffjax.errors import UserError, did_you_mean


def flatten(tree) -> dict[str, jax.Array]:
    """Returns {"a/b/kernel": leaf} of a tree of dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in leaves}


def unflatten(flat: dict) -> dict:
    """Returns the tree of dicts whose `flatten` is `flat`."""
    tree: dict = {}
    for name, leaf in flat.items():
        node = tree
        *parents, last = name.split("/")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def save(tree, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a tree's leaves as safetensors: to a temporary name, then renamed."""
    # safetensors writes memory as it lies: C order. (ascontiguousarray makes scalars [1].)
    arrays = {k: np.asarray(jax.device_get(v), order="C") for k, v in flatten(tree).items()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(serialize(arrays, metadata=metadata))
    os.replace(temporary, path)


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file into {name: array}; `UserError` where it is not one."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # AttributeError: of a type that NumPy does not have, such as float8.
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error


def metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a file that `load` takes; {} where it has none."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def check(flat: dict, like, where: str) -> None:
    """Raises `UserError` unless names and shapes are those of the tree `like`.

    It names the first array that is missing, left over, or of another shape.

    Args:
      flat: {name: anything with a shape}.
      like: a tree of arrays or ShapeDtypeStructs.
      where: the file, for the message.
    """
    wanted = flatten(like)
    for name, leaf in wanted.items():
        if name not in flat:
            raise UserError(f"{where}: no weights named {name!r}{did_you_mean(name, flat)}")
        if tuple(flat[name].shape) != tuple(leaf.shape):
            raise UserError(
                f"{where}: {name!r} has shape {tuple(flat[name].shape)}, "
                f"the network wants {tuple(leaf.shape)}"
            )
    left = sorted(set(flat) - set(wanted))
    if left:
        raise UserError(f"{where}: {len(left)} weights that the network lacks, first {left[0]!r}")


def fit(flat: dict[str, np.ndarray], like, where: str):
    """Returns the named arrays as a tree like `like`, in its dtypes; raises what `check` does."""
    check(flat, like, where)
    wanted = flatten(like)
    return unflatten({name: flat[name].astype(leaf.dtype) for name, leaf in wanted.items()})
