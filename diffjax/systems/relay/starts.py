"""The small pictures that a stage starts from: a person's own, or training pictures made small."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from diffjax.data import images
from diffjax.data.picture_files import list_folder, list_zip
from diffjax.data.reading import read_file
from diffjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Own:
    """A person's pictures, each read when it is asked for: float32 [h, w, C] in [-1, 1].

    A picture of another size is cropped to the middle of the stage's shape and scaled: by means of
    blocks where it is a whole number of times larger, else with Lanczos' filter.

    Args:
      place: a folder or zip of pictures, or one picture.
      shape: (h, w, C) of what the stage starts from.

    Raises:
      UserError: nothing there, or not a picture.
    """

    place: Path
    shape: tuple[int, int, int]

    def __post_init__(self):
        self[0]  # a first one that cannot be read is said before anything is sampled

    @functools.cached_property
    def listed(self):
        """The pictures of a folder or a zip; None where `place` is one picture."""
        place = self.place
        if not place.exists():
            raise UserError(f"--start {place}: no such file or folder")
        if place.is_dir():
            return list_folder(place)
        return list_zip(place) if place.suffix.lower() == ".zip" else None

    def __len__(self) -> int:
        return 1 if self.listed is None else len(self.listed.names)

    def __getitem__(self, i: int) -> np.ndarray:
        if self.listed is None:
            picture = images.decode(read_file(self.place), self.place)
        else:
            name = self.listed.names[i]
            picture = images.decode(self.listed.read(name), f"{self.place}/{name}")
        return fitted(picture.convert("L" if self.shape[2] == 1 else "RGB"), self.shape)


def fitted(picture: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """The middle of a picture at a size: float32 `shape` in [-1, 1]."""
    height, width, _ = shape
    scale = min(picture.width / width, picture.height / height)
    side = round(width * scale), round(height * scale)
    left, top = (picture.width - side[0]) // 2, (picture.height - side[1]) // 2
    picture = picture.crop((left, top, left + side[0], top + side[1]))
    if picture.size != (width, height):
        whole = side[0] % width == 0 and side[1] % height == 0
        # Means of blocks are what the stage was trained to start from.
        how = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
        picture = picture.resize((width, height), how)
    return images.to_array(picture).astype(np.float32) / 127.5 - 1


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training pictures made small by the means of patches, in a fixed shuffled order.

    What a stage's progress is shown on: its parent need not be trained yet.
    """

    source: object
    patch: tuple[int, int]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Which training picture is the i-th."""
        return np.random.default_rng(0).permutation(len(self.source))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> np.ndarray:
        image = self.source[int(self.order[i])]["image"].astype(np.float32) / 127.5 - 1
        (py, px), (height, width, channels) = self.patch, image.shape
        return image.reshape(height // py, py, width // px, px, channels).mean((1, 3))
