"""What a data set is to the rest of the code, and the two shapes it comes in.

A `Source` maps an index to an example. `ArraySource` holds the images in memory; `LazySource`
reads them one by one from wherever they are.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from diffjax.errors import UserError

# Names are made up for labels that come without; a stray 2^31 in a file must not make 2^31 of them.
MAX_CLASSES = 1 << 16


class Source(Protocol):
    """A data set with random access.

    `source[i]`, 0 <= i < len(source), is {"image": uint8 [H, W, C], "label": int32 scalar}; the
    label is missing where the set has none. It depends on i alone and may be called from threads.

    Attributes:
      name: what to call it in logs.
      image_shape: (H, W, C) of every image.
      labels: int32 [n] in [0, num_classes), or None. May read the whole set when first asked for;
        `num_classes` never does.
      class_names: one a class; () where there are no labels, "0", "1", ... where they lack names.
      fingerprint: a short hash of the data; the same data elsewhere has the same fingerprint.
      num_classes: len(class_names), 0 where there are no labels.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, np.ndarray]: ...


def fingerprint(*parts: object) -> str:
    """Returns 16 hex digits that depend on every part: arrays by shape, dtype and content, bytes by
    content, anything else by its text."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            data = part if isinstance(part, bytes) else repr(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def check_labels(
    name: str, n: int, labels: np.ndarray | None, class_names: tuple[str, ...]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the labels as int32 [n] (or None) and a name for each class.

    Raises:
      UserError: labels that are not integers [n], negative, or beyond the class names.
    """
    class_names = tuple(str(c) for c in class_names)
    if labels is None:
        if class_names:
            raise UserError(f"{name}: class_names without labels")
        return None, ()
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        found = f"{labels.dtype} {labels.shape}"
        raise UserError(f"{name}: labels must be integers of shape ({n},), not {found}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise UserError(f"{name}: labels must be 0 or more, found {low}")
    if class_names and high >= len(class_names):
        raise UserError(f"{name}: label {high} has no name, class_names has {len(class_names)}")
    if max(high + 1, len(class_names)) > MAX_CLASSES:
        raise UserError(f"{name}: label {high} is too large, the limit is {MAX_CLASSES} classes")
    return labels.astype(np.int32), class_names or tuple(map(str, range(high + 1)))


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A `Source` in memory.

    Args:
      images: uint8 [n, H, W, C], n >= 1.
      labels: integers [n] in [0, num_classes), or None.
      class_names: one a class; made up from the labels where it is empty.
      name: what to call it in logs and errors.

    Attributes:
      what, axes: what its examples are called and how they are shaped; `films.FilmSource` has
        others.

    Raises:
      UserError: a dtype, shape or range other than these.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    name: str = "array"
    what: ClassVar[str] = "images"
    axes: ClassVar[tuple[str, ...]] = ("n", "H", "W", "C")

    def __post_init__(self):
        images = np.asarray(self.images)
        if images.dtype != np.uint8 or images.ndim != len(self.axes):
            found, wanted = f"{images.dtype} {images.shape}", ", ".join(self.axes)
            raise UserError(f"{self.name}: {self.what} must be uint8 [{wanted}], not {found}")
        if 0 in images.shape:
            raise UserError(f"{self.name}: no {self.what} in it, its shape is {images.shape}")
        labels, names = check_labels(self.name, len(images), self.labels, self.class_names)
        for field, value in (("images", images), ("labels", labels), ("class_names", names)):
            object.__setattr__(self, field, value)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.images, self.labels, self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        example = {"image": self.images[i]}
        if self.labels is not None:
            example["label"] = self.labels[i]
        return example


def reduced(source: ArraySource, image_size: int | None) -> ArraySource:
    """Returns the source with so many pixels a side: means of whole blocks, rounded to 8 bits.

    Args:
      source: of pictures or films.
      image_size: None or 0: as it is.

    Raises:
      UserError: its sides are no multiple of image_size, or not equal.
    """
    *_, height, width, channels = source.image_shape
    if not image_size or (height, width) == (image_size, image_size):
        return source
    times = height // image_size
    if height != width or times * image_size != height:
        raise UserError(
            f"{source.name}: its {source.what} are {width}x{height} and image_size is {image_size};"
            " leave image_size out, or make them again at that size"
        )
    lead = source.images.shape[:-3]
    small = np.empty((*lead, image_size, image_size, channels), np.uint8)
    for i, example in enumerate(source.images):
        blocks = example.reshape(*lead[1:], image_size, times, image_size, times, channels)
        small[i] = np.round(blocks.mean((-4, -2)))
    return type(source)(small, source.labels, source.class_names, source.name)


@dataclass(frozen=True, eq=False)
class LazySource:
    """A `Source` that reads an image when it is asked for.

    Args:
      load: i -> uint8 [H, W, C].
      size: the number of images, n >= 1.
      image_shape: (H, W, C); `source[i]` raises `UserError` where an image has another.
      fingerprint: of the data.
      labels, class_names, name: as in `ArraySource`.
    """

    load: Callable[[int], np.ndarray]
    size: int
    image_shape: tuple[int, int, int]
    fingerprint: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    name: str = "files"

    def __post_init__(self):
        labels, names = check_labels(self.name, self.size, self.labels, self.class_names)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", names)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < self.size:
            raise IndexError(i)
        image = self.load(int(i))
        if image.shape != self.image_shape:
            raise UserError(
                f"{self.name}: image {i} is {image.shape}, the others are {self.image_shape}; make"
                " them one size with python -m diffjax.prepare"
            )
        example = {"image": image}
        if self.labels is not None:
            example["label"] = self.labels[i]
        return example

    def in_memory(self) -> ArraySource:
        """Reads every image now."""
        images = np.empty((self.size, *self.image_shape), np.uint8)
        for i in range(self.size):
            images[i] = self[i]["image"]
        return ArraySource(images, self.labels, self.class_names, self.name)
