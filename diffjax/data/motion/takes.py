"""Recordings of motion as they are found, before they are cut into examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffjax.data.motion.rigs import Rig
from diffjax.data.motion.skeletons import Skeleton


@dataclass(frozen=True)
class Take:
    """A recording before it is made an example.

    Attributes:
      name: no two alike; what splits are made by.
      read: () -> joints [N, J, 3] at the set's frame rate.
      label: name of its class, or None.
      captions: (text, start, end) in seconds; 0, 0 is the whole of it.
      split: where it belongs, or "" where its name decides.
    """

    name: str
    read: Callable[[], np.ndarray]
    label: str | None = None
    captions: tuple[tuple[str, float, float], ...] = ()
    split: str = ""


@dataclass(frozen=True)
class Takes:
    """All recordings of a set, what moves in them, and the classes in their order."""

    takes: Sequence[Take]
    skeleton: Skeleton
    rig: Rig | None = None
    class_names: tuple[str, ...] = ()
