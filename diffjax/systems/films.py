"""What a system of pictures does otherwise for films, samples [T, H, W, C]: data, files, scores."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffjax.data import films
from diffjax.errors import UserError
from diffjax.metrics import film_scores
from diffjax.run import clips, pictures

FPS = 8.0  # of what is written; the data have no rate of their own


def opener(config) -> Callable:
    """Returns split -> the films of config.data, each opened once and when it is asked for.

    Raises:
      UserError: no path, or a size or a number of frames that there is not.
    """
    settings = config.data
    films.check_frames(settings.frames)
    if not settings.path:
        raise UserError(
            "config.data.path is empty: give a folder of .gif or .webp films, a .npz, or dots"
        )
    if settings.image_size < 0:
        raise UserError(f"config.data.image_size {settings.image_size}: pixels, 0: as they are")
    return functools.cache(lambda split: _open(settings, settings.path, split))


def _open(settings, path: str, split: str):
    return films.open_films(path, settings.frames, split, settings.image_size or None)


def show(made, labels, names, path: Path) -> None:
    """Writes films beside each other, all running at once: a .gif, or .mp4 where ffmpeg is there.

    With .png: the frames from left to right, a film a row.

    Args:
      made: uint8 [n, T, H, W, C].
      labels: int [n], or None.
      names: of the classes.
    """
    made = np.asarray(made)
    if Path(path).suffix == ".png":
        n, frames, height, width, channels = made.shape
        rows = made.swapaxes(1, 2).reshape(n * height, frames * width, channels)
        pictures.write_array(rows, path)
        return
    sheet = lambda t: np.asarray(pictures.labelled_sheet(made[:, t], labels, names))
    clips.save_clip(np.stack([sheet(t) for t in range(made.shape[1])]), path, FPS, scale=1)


def write(output: dict, path: Path) -> None:
    """Writes one film, uint8 [T, H, W, C], as a .gif of its own size."""
    film = np.asarray(output["image"])
    clips.save_clip(film.repeat(3, -1) if film.shape[-1] == 1 else film, path, FPS, scale=1)


def fields(config) -> dict:
    """What differs in a `System` where config.data.frames is above 0."""
    return {
        "data": opener(config),
        "open": functools.partial(_open, config.data),
        "write": write,
        "suffix": ".gif",
        "suffixes": (".mp4", ".png"),
        "evaluate": film_scores.scorer,
        "scores": (",".join(film_scores.METRICS), "pixels"),
        "judge": None,
    }
