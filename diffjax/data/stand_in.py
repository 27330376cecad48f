"""Pictures that are only a shape, for costs without data: "shapes:64x64x3:1000" has classes."""

import re

import numpy as np

from diffjax.data.base import MAX_CLASSES, LazySource
from diffjax.errors import UserError

PREFIX = "shapes:"


def open_shapes(path: str, image_size: int | None = None) -> LazySource:
    """Returns black pictures of a shape, one a class, or one without classes.

    Args:
      path: "shapes:HxWxC" or "shapes:HxWxC:CLASSES".
      image_size: what the config wants; None: whatever they are.

    Raises:
      UserError: anything else, or pictures that are not of that size.
    """
    found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})x([0-9]{1,2})(?::([0-9]{1,5}))?", path[7:])
    shape = tuple(int(n) for n in found.groups()[:3]) if found else ()
    classes = int(found[4] or 0) if found else 0
    if not shape or not all(shape) or classes > MAX_CLASSES:
        raise UserError(f"{path}: write shapes:HEIGHTxWIDTHxCHANNELS, and :CLASSES if it has some")
    if image_size and shape[:2] != (image_size, image_size):
        raise UserError(f"{path}: config.data.image_size is {image_size}")
    return LazySource(
        load=lambda i: np.zeros(shape, np.uint8),
        size=max(classes, 1),
        image_shape=shape,
        fingerprint=path,
        labels=np.arange(classes, dtype=np.int32) if classes else None,
        name=path,
    )
