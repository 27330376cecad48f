"""What a set of motions is to the rest of the code."""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.data.base import check_labels, fingerprint
from diffjax.data.motion import features
from diffjax.data.motion.rigs import Rig
from diffjax.data.motion.skeletons import Skeleton
from diffjax.data.motion.statistics import Statistics, normalise
from diffjax.errors import UserError

TEST, VALIDATION = 0.10, 0.05  # shares of the takes
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class MotionSource:
    """A data set of motions with random access.

    `source[i]`, 0 <= i < len(source), depends on i alone and may be called from threads. It is
      motion: float32 [max_frames, D], normalised features, 0 behind the clip's end;
      length: int32, frames of the clip, at most max_frames;
      index: int32, i itself: which `captions` are its;
      label: int32 in [0, num_classes), where the set has labels.

    Attributes:
      clips: features [N_i, D] float32 a clip, not normalised; may be read when asked for.
      lengths: int [n], their N_i.
      skeleton: what moves.
      statistics: what the features are normalised by: those of the training split.
      max_frames: the number of frames of every example.
      captions: of each clip what it shows, none or several.
      labels, class_names: as in `diffjax.data.base.Source`.
      names: of each clip, where it comes from.
      rig: how to write BVH as the set's own files are, where it is made of such.
      kind: "features" (`features.extract`, D = skeleton.size) or "rot6d" (`humanact12`).
      name: what to call it in logs and errors.
    """

    clips: Sequence[np.ndarray]
    lengths: np.ndarray
    skeleton: Skeleton
    statistics: Statistics
    max_frames: int
    captions: tuple[tuple[str, ...], ...]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    rig: Rig | None = None
    kind: str = "features"
    name: str = "motions"

    def __post_init__(self):
        if not len(self.clips):
            raise UserError(f"{self.name}: no motions in it")
        labels, names = check_labels(self.name, len(self), self.labels, self.class_names)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", names)
        lengths = np.minimum(np.asarray(self.lengths), self.max_frames).astype(np.int32)
        object.__setattr__(self, "lengths", lengths)

    @property
    def motion_shape(self) -> tuple[int, int]:
        return self.max_frames, len(self.statistics.mean)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of names, lengths, labels, captions and the content of up to 64 clips."""
        some = np.unique(np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int))
        parts = [self.names, self.lengths, self.labels, self.class_names, self.captions]
        parts += [self.statistics.mean, self.statistics.std, self.max_frames, self.skeleton]
        return fingerprint(*parts, *(self.features(i) for i in some))

    def __len__(self) -> int:
        return len(self.clips)

    def features(self, i: int) -> np.ndarray:
        """Returns the features of clip i as they are, float32 [length, D]."""
        return np.asarray(self.clips[i], np.float32)[: self.lengths[i]]

    def joints(self, i: int) -> np.ndarray:
        """Returns the joints of clip i, float32 [length, J, 3], in the skeleton's unit.

        Raises:
          UserError: they are rotations of a body model, whose files are licensed separately.
        """
        if self.kind != "features":
            raise UserError(f"{self.name}: its joints need the SMPL body model, which is not here")
        return features.recover(self.features(i), self.skeleton)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        motion = np.zeros(self.motion_shape, np.float32)
        motion[: self.lengths[i]] = normalise(self.features(i), self.statistics)
        example = {"motion": motion, "length": self.lengths[i], "index": np.int32(i)}
        if self.labels is not None:
            example["label"] = self.labels[i]
        return example

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all examples at once, each field with a leading n: for the device's memory."""
        arrays = {"motion": np.zeros((len(self), *self.motion_shape), np.float32)}
        for i in range(len(self)):
            arrays["motion"][i] = self[i]["motion"]
        arrays |= {"length": self.lengths, "index": np.arange(len(self), dtype=np.int32)}
        return arrays if self.labels is None else arrays | {"label": self.labels}


def caption_table(captions: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns (texts, rows, counts): row i of `rows`, int32 [n, K], holds where the captions of
    clip i are in `texts`, counts[i] int32 of them, which then repeat. A clip without any has "".

    Strings do not go on a device; these indices do.

    Args:
      captions: of each clip.
    """
    table: dict[str, int] = {}
    found = [[table.setdefault(t, len(table)) for t in some or ("",)] for some in captions]
    width = max(map(len, found), default=1)
    rows = np.array([(row * math.ceil(width / len(row)))[:width] for row in found], np.int32)
    return list(table), rows, np.array([len(row) for row in found], np.int32)


def crop(
    motion: jax.Array, length: jax.Array, key: jax.Array, unit: int = 4, shorter: float = 1 / 3
) -> tuple[jax.Array, jax.Array]:
    """Returns (motion, length) of a random part of an example, for use inside the training step.

    As HumanML3D is trained on (Guo et al. 2022): the length is rounded down to a multiple of
    `unit`, with probability `shorter` one unit less, and starts anywhere. What is less than one
    unit long stays as it is.

    Args:
      motion: [max_frames, D], `length` frames and then zeros.
      length: int32 scalar.
      key: of the draws.
    """
    first, second = jax.random.split(key)
    whole = length // unit * unit
    less = jax.random.bernoulli(first, shorter) & (whole > unit)
    kept = jnp.where(whole == 0, length, whole - unit * less)
    start = jax.random.randint(second, (), 0, length - kept + 1)
    moved = jnp.roll(motion, -start, 0)
    inside = jnp.arange(len(motion))[:, None] < kept
    return jnp.where(inside, moved, 0), kept.astype(jnp.int32)


def windows(length: int, size: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the parts that a clip is cut into: itself where it fits in `size`
    frames, else parts of that size that overlap by half or more and cover it."""
    if length <= size:
        return [(0, length)]
    count = math.ceil((length - size) / max(1, size // 2)) + 1
    starts = np.round(np.linspace(0, length - size, count)).astype(int)
    return [(int(s), int(s) + size) for s in starts]


def split_takes(names: Sequence[str], labels: Sequence[str | None]) -> dict[str, str]:
    """Returns {name: "train", "val" or "test"}: of each class the takes in the order of a hash of
    their names, the first tenth to test, the next twentieth to validation.

    Parts of one take never straddle, and the same files are split alike anywhere. With fewer than
    ten takes in each class there is one for test and one for validation in all, if there are three.

    Args:
      names: of the takes, no two alike.
      labels: of the same, or None.
    """

    def order(some):
        return sorted(some, key=lambda name: hashlib.sha256(name.encode()).digest())

    split = dict.fromkeys(names, "train")
    for label in set(labels):
        group = order(n for n, other in zip(names, labels, strict=True) if other == label)
        test, val = int(TEST * len(group) + 0.5), int(VALIDATION * len(group) + 0.5)
        split |= dict.fromkeys(group[:test], "test")
        split |= dict.fromkeys(group[test : test + val], "val")
    for wanted in ("test", "val"):
        left = order(n for n in names if split[n] == "train")
        if wanted not in split.values() and len(left) >= 2 and len(names) >= 3:
            split[left[0]] = wanted
    return split
