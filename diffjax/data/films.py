"""Films: examples with a time axis, uint8 [T, H, W, C], all with the same number of frames.

Where a film has another number of frames than is wanted, frame t of T is what is on the screen at
t/T of its time: of n frames of equal length, frame floor(n t/T). Frames are left out or shown
again, and none is mixed of others. Of a film that loops the result does too: frame T would be
frame 0.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from diffjax.data import images
from diffjax.data.base import ArraySource, LazySource, Source, fingerprint, reduced
from diffjax.data.npz import read_npz
from diffjax.data.picture_files import SAMPLE, Pictures, labels_of, list_folder
from diffjax.data.reading import MAX_PIXELS, not_found, reading
from diffjax.errors import UserError

SUFFIXES = (".gif", ".webp")
FORMATS = ("GIF", "WEBP")
MAX_FRAMES = 10_000  # of one file
MAX_FILM = 1 << 28  # pixels of all its frames together
UNTIMED = 100  # milliseconds of a frame that does not say how long it lasts, as browsers take it
GREY_CHANNELS, COLOUR_CHANNELS = 1, 3
ADVICE = "keep so many films as a folder of .gif or .webp files"

DOTS = "dots"
DIRECTIONS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


@dataclass(frozen=True, eq=False)
class FilmSource(ArraySource):
    """A `Source` of films in memory; its examples are {"image": uint8 [T, H, W, C], "label"}.

    Args:
      images: uint8 [n, T, H, W, C], n >= 1.
      labels, class_names, name: as in `ArraySource`.

    Raises:
      UserError: a dtype, shape or range other than these.
    """

    name: str = "films"
    what: ClassVar[str] = "films"
    axes: ClassVar[tuple[str, ...]] = ("n", "T", "H", "W", "C")


def dots(frames: int, size: int = 16, count: int = 64) -> FilmSource:
    """Returns films of a coloured disc on white that crosses the picture once and comes back in on
    the other side: `count` in each of four classes, its direction. No single frame shows the class.

    Args:
      frames: T; the disc moves size/T pixels from one to the next.
      size: pixels a side.
    """
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(DIRECTIONS)), count)
    start = random.uniform(0, size, (len(labels), 2))
    colour = random.integers(0, 160, (len(labels), 1, 1, 1, 3))
    step = np.array(list(DIRECTIONS.values()))[labels] * size / frames
    place = start[:, None] + np.arange(frames)[:, None] * step[:, None]  # [n, T, (row, column)]
    away = np.arange(size) + 0.5 - place[..., None]
    away = np.abs((away + size / 2) % size - size / 2)  # on a torus
    distance = np.hypot(away[:, :, 0, :, None], away[:, :, 1, None, :])
    cover = np.clip(size / 5 + 0.5 - distance, 0, 1)[..., None]
    films = np.round(255 + cover * (colour - 255.0)).astype(np.uint8)
    return FilmSource(films, labels, tuple(DIRECTIONS), DOTS)


def open_films(
    path: str,
    frames: int,
    split: str = "train",
    image_size: int | None = None,
    *,
    max_bytes: int = 2 << 30,
) -> Source:
    """Opens a set of films by what its path leads to.

    - "dots": films made on the spot (`dots`), 16x16 or of image_size.
    - a folder of .gif or .webp files, labelled by its first-level subfolders.
    - an .npz: `films` uint8 [n, T', H, W, C] with C of 1 or 3; optional `labels` integers [n] and
      `class_names` strings.

    Args:
      path: as above.
      frames: T, at least 2; films of another number are sampled in time as the module says.
      split: "train": these have no other.
      image_size: pixels a side. Files are cropped and scaled to it; an .npz must have it already,
        or a whole multiple of it. None takes films as they are.
      max_bytes: read folders with up to this many bytes of pixels into memory.

    Raises:
      UserError: nothing there, another split, files that are not what they should be, films of
        different sizes with no image_size, an .npz above max_bytes.
    """
    path = str(path)
    check_frames(frames)
    if split != "train":
        raise UserError(f"{path}: no split {split!r}, films have 'train' only")
    if path == DOTS:
        return dots(frames, image_size or 16)
    place = Path(path).expanduser()
    if not place.exists():
        raise not_found(place, DOTS)
    if place.is_dir():
        return _open_folder(place, frames, image_size, max_bytes)
    source = read_npz(place, max_bytes, FilmSource, ADVICE)
    if source.image_shape[-1] not in (GREY_CHANNELS, COLOUR_CHANNELS):
        raise UserError(f"{place}: films of {source.image_shape[-1]} channels, 1 or 3 are known")
    source = reduced(source, image_size)
    if source.images.nbytes // source.image_shape[0] * frames > max_bytes:
        raise UserError(f"{place}: too many films of {frames} frames for memory; {ADVICE}")
    return _resampled(source, frames)


def check_frames(frames: int) -> None:
    """Raises `UserError` for a number of frames that no film has."""
    if not 2 <= frames <= MAX_FRAMES:
        raise UserError(f"config.data.frames {frames}: from 2 to {MAX_FRAMES}, or 0 for pictures")


def shown(durations, frames: int) -> np.ndarray:
    """Returns which frame of a film is on the screen at t/T of its time, t = 0 .. T - 1: int [T].

    Args:
      durations: whole numbers [n] above 0, in any unit.
      frames: T.
    """
    ends = np.cumsum(np.asarray(durations, np.int64))
    # In whole numbers: the first frame that ends after ends[-1] t/T.
    return np.searchsorted(ends * frames, ends[-1] * np.arange(frames), side="right")


def read_film(data: bytes, name: object, frames: int, image_size: int | None = None) -> np.ndarray:
    """Returns the film in an encoded file: uint8 [T, H, W, 3], transparency on white.

    Args:
      data: of a .gif or .webp.
      name: what errors begin with.
      frames: T.
      image_size: crop and scale frames to so many pixels a side; None takes them as they are.

    Raises:
      UserError: not such a file, a damaged one, one frame only, or too many pixels or frames, found
        before they are decoded.
    """
    with reading(name):
        try:
            film = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError:
            raise UserError(f"{name}: not a film ({' or '.join(FORMATS)} are known)") from None
        if film.width * film.height > MAX_PIXELS:
            raise UserError(
                f"{name}: {film.width}x{film.height} pixels, the limit is {MAX_PIXELS} in all"
            )
        size, durations = film.size, []
        most = min(MAX_FRAMES, MAX_FILM // (film.width * film.height))
        while _at(film, len(durations)):
            if len(durations) >= most:
                raise UserError(
                    f"{name}: more than {most} frames of {size[0]}x{size[1]}, which is the limit"
                )
            if film.size != size:  # a frame that lies outside the screen makes it larger
                raise UserError(f"{name}: frame {len(durations)} is of another size than the first")
            film.load()
            durations.append(int(film.info.get("duration", 0)))
        if len(durations) < 2:
            raise UserError(f"{name}: a single picture and no film")
        pixels = frames * (image_size * image_size if image_size else size[0] * size[1])
        if pixels > MAX_FILM:
            raise UserError(f"{name}: {pixels} pixels in {frames} frames, the limit is {MAX_FILM}")
        wanted, made = shown([d if d > 0 else UNTIMED for d in durations], frames), {}
        film = Image.open(io.BytesIO(data), formats=FORMATS)
        for i in sorted(set(wanted.tolist())):
            film.seek(i)
            frame = images.flatten(film.copy()).convert("RGB")
            sized = image_size and frame.size != (image_size, image_size)
            made[i] = images.crop_resize(frame, image_size) if sized else np.array(frame)
    return np.stack([made[i] for i in wanted.tolist()])


def _at(film: Image.Image, i: int) -> bool:
    """Goes to frame i; False where the film ends before it."""
    try:
        film.seek(i)
    except EOFError:
        return False
    return True


def _open_folder(place: Path, frames: int, image_size: int | None, max_bytes: int) -> Source:
    files = _films_of(list_folder(place))
    labels, class_names = labels_of(files)
    load_any = lambda i: read_film(
        files.read(files.names[i]), f"{place}/{files.names[i]}", frames, image_size
    )
    first = load_any(0)

    def load(i: int) -> np.ndarray:
        film = load_any(i)
        if film.shape != first.shape:
            sizes = " and ".join(f"{a.shape[2]}x{a.shape[1]}" for a in (first, film))
            raise UserError(
                f"{place}: films of different sizes ({files.names[0]} and {files.names[i]} are "
                f"{sizes}); set config.data.image_size"
            )
        return film

    count = len(files.names)
    if count * first.nbytes <= max_bytes:
        films = np.empty((count, *first.shape), np.uint8)
        for i in range(count):
            films[i] = load(i)
        return FilmSource(films, labels, class_names, place.name)
    some = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int))
    parts = [files.metadata, *(files.read(files.names[i]) for i in some)]
    mark = fingerprint(frames, image_size, labels, class_names, *parts)
    return LazySource(load, count, first.shape, mark, labels, class_names, place.name)


def _films_of(listed: Pictures) -> Pictures:
    """The films among the listed files; pictures beside them are refused and not left out."""
    for name in listed.names:
        if Path(name).suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{listed.path}: {name} is no film, and config.data.frames asks for films "
                f"({' or '.join(SUFFIXES)})"
            )
    return listed


def _resampled(source: FilmSource, frames: int) -> FilmSource:
    have = source.image_shape[0]
    if have == frames:
        return source
    if have < 2:
        raise UserError(f"{source.name}: single pictures and no films")
    films = source.images[:, shown(np.ones(have), frames)]
    return FilmSource(films, source.labels, source.class_names, source.name)
