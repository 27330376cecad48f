"""Tensors as checkpoints describe them: a storage, an offset, sizes and strides; and as arrays."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from diffjax.errors import UserError
from diffjax.weights.opcodes import Buffer, Name, Record

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
MAX_RANK = 16
_SPARE = 16 << 20  # bytes that expanded views may take however small the file is


class Storage:
    """A run of numbers in the file, read when first wanted.

    Attributes:
      key: its name in the file.
      dtype: of its numbers, in this machine's byte order.
      count: how many they are.
      fetch: () -> count * itemsize bytes; set by the reader of the file.
      swap: whether they are in the other byte order.
    """

    __slots__ = ("count", "dtype", "fetch", "key", "swap", "_flat")

    def __init__(self, key: str, dtype: np.dtype, count: int):
        self.key, self.dtype, self.count = key, dtype, count
        self.fetch: Callable[[], Buffer] | None = None
        self.swap, self._flat = False, None

    def flat(self) -> np.ndarray:
        """Returns the numbers, [count], read only."""
        if self._flat is None:
            # A byte other than 0 and 1 in a boolean array would be neither true nor false.
            is_bool = self.dtype == np.bool_
            raw = np.frombuffer(self.fetch(), np.uint8 if is_bool else self.dtype)
            if is_bool:
                raw = raw != 0
            elif self.swap:
                raw = raw.view(f"u{raw.itemsize}").byteswap().view(self.dtype)
            raw.flags.writeable = False
            self._flat = raw
        return self._flat


@dataclass(frozen=True)
class Tensor:
    """A view of a storage: element i is at offset + sum(i * strides), all counted in elements."""

    storage: Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as an array of its own."""
        return math.prod(self.sizes) * self.storage.dtype.itemsize

    def array(self) -> np.ndarray:
        """Returns the array, C-contiguous; a view of the storage where that is one already."""
        flat = self.storage.flat()
        if 0 in self.sizes:
            return np.zeros(self.sizes, flat.dtype)
        step = flat.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.sizes, [s * step for s in self.strides], writeable=False
        )
        return np.asarray(view, order="C")


def storage_of(pid) -> Storage:
    """Returns the storage that a persistent id ("storage", type, key, device, count, ...) means.

    Raises:
      ValueError: anything else, and storages that are views of others (PyTorch before 0.4).
    """
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ValueError("refers to data outside itself that is no storage")
    _, kind, key, _, count, *view = pid
    if type(kind) is not Name or kind.name not in STORAGES:
        raise ValueError(f"has a storage of {kind if type(kind) is Name else 'no type'}")
    if type(key) is not str or type(count) is not int or not 0 <= count < 1 << 48:
        raise ValueError("has a storage without a name or with an impossible length")
    if view not in ([], [None]):
        raise ValueError("has a storage that is a part of another")
    return Storage(key, STORAGES[kind.name], count)


def rebuild_tensor(storage, offset, sizes, strides, *_) -> Tensor:
    """Stands for torch._utils._rebuild_tensor_v2; checks the view against the storage's length.

    Raises:
      ValueError: sizes that are no such numbers, or a view that leaves the storage.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if type(sizes) is not tuple or type(strides) is not tuple or len(sizes) != len(strides):
        raise ValueError("sizes and strides that do not match")
    if len(sizes) > MAX_RANK:
        raise ValueError(f"{len(sizes)} dimensions")
    if any(type(n) is not int or not 0 <= n < 1 << 48 for n in (offset, *sizes, *strides)):
        raise ValueError("an offset, a size or a stride that is no whole number of at least 0")
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides)) if 0 not in sizes else -1
    if last >= storage.count:
        raise ValueError(f"element {last} of a storage of {storage.count}")
    return Tensor(storage, offset, sizes, strides)


def rebuild_parameter(data, *_) -> Tensor:
    """Stands for torch._utils._rebuild_parameter: the tensor itself."""
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


class _Dtype(Record):
    """numpy.dtype(code, ...), whose state is (version, byte order, ...)."""

    def __init__(self, code, *_):
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
            raise ValueError("a NumPy type other than a plain number")
        super().__init__("numpy.dtype")
        self.code = code


def numpy_scalar(dtype, data) -> float | int | bool:
    """Stands for numpy's scalar(dtype, bytes): a plain number."""
    if not isinstance(dtype, _Dtype):
        raise ValueError("a NumPy number without a type")
    order = ">" if type(dtype.state) is tuple and dtype.state[1:2] == (">",) else "<"
    kind = np.dtype(order + dtype.code)
    if not isinstance(data, (bytes, memoryview)) or len(data) != kind.itemsize:
        raise ValueError("a NumPy number of another length than its type's")
    return np.frombuffer(data, kind)[0].item()


def latin1(text, encoding) -> bytes:
    """Stands for _codecs.encode(text, "latin1"), which is how protocol 2 writes bytes.

    A short text only: the file could have a long one encoded again and again.
    """
    if type(text) is not str or len(text) > 64 or encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding other than of a short text as latin1")
    return text.encode("latin1")


def empty_dict(*pairs) -> dict:
    """Stands for collections.OrderedDict(), filled afterwards."""
    if pairs not in ((), ([],)):
        raise ValueError("a dict made of its items at once")
    return {}


def collection(*items) -> list | tuple:
    """Stands for set([...]) and torch.Size((...)): what is in it, the very list (a copy a call
    would let a short file fill the memory)."""
    if len(items) > 1 or not all(type(part) in (list, tuple) for part in items):
        raise ValueError("a collection of no list")
    return items[0] if items else []


# What every checkpoint may name, however it is packed: (module, name) -> what stands for it.
NAMES: dict[tuple[str, str], Callable | None] = {
    ("collections", "OrderedDict"): empty_dict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch", "Size"): collection,
    ("torch", "device"): lambda kind, *_: kind if type(kind) is str else "",
    ("builtins", "set"): collection,
    ("__builtin__", "set"): collection,
    ("_codecs", "encode"): latin1,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): numpy_scalar,
    ("numpy._core.multiarray", "scalar"): numpy_scalar,
    **{("torch", name): None for name in STORAGES},
    **{("torch", name): None for name in ("float16", "bfloat16", "float32", "float64", "int64")},
}


def arrays(tree, where: str, stored: int):
    """Returns a tree with an array in the place of every `Tensor`, other values as they are.

    Args:
      tree: what `opcodes.load` returned.
      where: the file's name, for messages.
      stored: bytes of all storages together. Tensors may share storages and repeat elements
        (stride 0), but not to more than four times this.

    Raises:
      UserError: tensors that unfold to more, or a storage that cannot be read.
    """
    budget = 4 * stored + _SPARE

    def one(value):
        nonlocal budget
        if isinstance(value, Tensor):
            budget -= value.nbytes + 64  # something for an empty one, which takes time too
            if budget < 0:
                raise UserError(f"{where}: its tensors unfold to far more than the file holds")
            return value.array()
        if type(value) in (list, tuple):
            return type(value)([one(part) for part in value])
        if isinstance(value, dict):
            return {key: one(part) for key, part in value.items()}
        return value

    return one(tree)
