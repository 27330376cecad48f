"""Pictures that training reads as latents: all encoded once, when they are put on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffjax.data.base import Source
from diffjax.errors import UserError

BATCH = 256
MAX_BYTES = 8 << 30  # of the latents, which live on the device


@dataclass(frozen=True, eq=False)
class LatentSource:
    """A `Source` of pictures, as it is to whoever asks for examples; to the loop one in memory.

    `source[i]`, labels and fingerprint are the pictures', which scores compare with. What the loop
    puts on the device (`arrays`) and draws batches from (`gather`) are their latents, float32, in
    the place of the pictures. A set that is streamed from the disk is read once.

    Args:
      pictures: the source.
      encode: uint8 [B, H, W, C] -> float32 [B, h, w, c], a row by itself.
    """

    pictures: Source
    encode: Callable[[np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        return self.pictures.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.pictures.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.pictures.class_names

    @property
    def num_classes(self) -> int:
        return self.pictures.num_classes

    @property
    def labels(self) -> np.ndarray | None:
        return self.pictures.labels

    @property
    def fingerprint(self) -> str:
        return self.pictures.fingerprint

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.pictures[i]

    @functools.cached_property
    def latents(self) -> np.ndarray:
        """All of them, float32 [n, h, w, c].

        Raises:
          UserError: they do not fit in memory, found after the first batch.
        """
        return encoded(self.pictures, np.arange(len(self)), self.encode)

    def arrays(self) -> dict[str, np.ndarray]:
        """{"image": the latents; "label": int32 [n], if there are labels}, for the device."""
        arrays = {"image": self.latents}
        if self.labels is not None:
            arrays["label"] = self.labels
        return arrays

    @staticmethod
    def gather(arrays: dict, index, keys) -> dict:
        """A batch of the arrays, by number; the keys are not needed. Pure."""
        return {name: arrays[name][index] for name in ("image", "label") if name in arrays}


def encoded(source: Source, index: np.ndarray, encode: Callable) -> np.ndarray:
    """Returns the latents of a source's examples, float32 [len(index), h, w, c].

    Args:
      index: int [n], which examples.
      encode: as in `LatentSource`; called with `BATCH` pictures each time, so it compiles once.

    Raises:
      UserError: more than `MAX_BYTES`.
    """
    made = None
    for first in range(0, len(index), BATCH):
        some = index[np.minimum(np.arange(first, first + BATCH), len(index) - 1)]
        part = np.asarray(encode(np.stack([source[int(i)]["image"] for i in some])), np.float32)
        if made is None:
            if len(index) * part[0].nbytes > MAX_BYTES:
                raise UserError(
                    f"{source.name}: {len(index)} latents of {part[0].nbytes} bytes, the limit is "
                    f"{MAX_BYTES >> 30} GiB in all: a smaller set, or an autoencoder that makes "
                    "less of a picture"
                )
            made = np.empty((len(index), *part.shape[1:]), np.float32)
        made[first : first + BATCH] = part[: len(index) - first]
    return made
