"""Episodes as files: an uncompressed .npz each, so that frames are mapped and not read.

The arrays are those of `segments.Episode`: `obs` uint8 [T, H, W, 3], `act` integers [T], `rew`
floats [T], and optionally `end` and `trunc` (bool [T]), and `final` (uint8 [H, W, 3]). What a
replay collects has `where` too, see `Where`. Files of your own may be compressed.
"""

import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax.data.npz import read_array
from diffjax.data.reading import open_zip, reading
from diffjax.errors import UserError
from diffjax.systems.diamond.segments import Episode

SMALL = 1 << 27  # bytes of any array but the frames
FRAMES = 1 << 30  # bytes of frames that are compressed, and so have to be read
LOCAL_HEADER = 30  # of a member of a zip, before its name
MEMORY = 4 << 30  # bytes of frames that a set of episodes keeps in memory
MAPPED = 256  # episodes of a set that are mapped at once: each holds a file open


class Where(NamedTuple):
    """Where an episode comes from, five whole numbers.

    Attributes:
      seat: in which seat it was played.
      first: how many steps that seat had done before it.
      game, played: the number of the game, and how many steps of it were done before.
      over: 1 if the whole game is over at its end, not just the episode.
    """

    seat: int
    first: int
    game: int
    played: int
    over: int


def episode_path(number: int) -> Path:
    """Returns where an episode lies, as in DIAMOND: 12345 is 300/40/5/12345.npz.

    So no folder holds very many files.
    """
    tens = number % 100 // 10 * 10
    return Path(
        f"{number % 1000 // 100 * 100:03d}", f"{tens:02d}", str(number % 10), f"{number}.npz"
    )


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an uncompressed .npz under a temporary name, then renames it: it is whole or absent.

    It is on the disk before it has its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_episode(path: Path, episode: Episode, where: Where | None = None) -> None:
    """Writes an episode; see `write_arrays`."""
    arrays = {k: v for k, v in episode._asdict().items() if v is not None}
    if where is not None:
        arrays["where"] = np.array(where, np.int64)
    write_arrays(path, arrays)


def read_episode(path: Path) -> tuple[Episode, Where | None]:
    """Opens an episode; its frames are mapped from the file where they are not compressed.

    Raises:
      UserError: not such a file, or arrays that do not fit together.
    """
    with open_zip(path) as archive:
        names = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
        missing = {"obs", "act", "rew"} - names
        if missing:
            raise UserError(f"{path}: has no array {sorted(missing)[0]!r}")
        obs = _frames(path, archive)
        act = read_array(archive, "act", "iu", SMALL)
        rew = read_array(archive, "rew", "fiub", SMALL)
        flags = [
            read_array(archive, k, "biu", SMALL) if k in names else np.zeros(len(obs), bool)
            for k in ("end", "trunc")
        ]
        final = read_array(archive, "final", "u", SMALL) if "final" in names else None
        where = read_array(archive, "where", "i", SMALL) if "where" in names else None
    episode = _checked(path, Episode(obs, act, rew, *flags, final))
    if where is not None:
        if where.shape != (5,) or where.min() < 0:
            raise UserError(
                f"{path}: where is {where.tolist()!r:.60}, five whole numbers are wanted"
            )
        where = Where(*where.tolist())
    return episode, where


class Kept:
    """Opened episodes by number: their frames in memory while there is room, then mapped.

    Of those that are mapped the one that was asked for longest ago is closed for another. May be
    asked from threads.

    Args:
      memory: bytes of frames.
    """

    def __init__(self, memory: int = MEMORY):
        self._room, self._held, self._mapped = memory, {}, {}
        self._lock = threading.Lock()

    def get(self, number: int, read: Callable[[], Episode]) -> Episode:
        """Returns an episode; `read` opens it."""
        with self._lock:
            return self._get(number, read)

    def _get(self, number: int, read: Callable[[], Episode]) -> Episode:
        if number in self._held:
            return self._held[number]
        episode = self._mapped.pop(number, None) or read()
        size = episode.obs.nbytes
        if size <= self._room:
            self._room -= size
            self._held[number] = episode._replace(obs=np.array(episode.obs))
            return self._held[number]
        self._mapped[number] = episode
        if len(self._mapped) > MAPPED:
            del self._mapped[next(iter(self._mapped))]
        return episode

    def drop(self, number: int) -> None:
        """Forgets an episode that has changed."""
        with self._lock:
            self._mapped.pop(number, None)
            if number in self._held:
                self._room += self._held.pop(number).obs.nbytes


def _frames(path: Path, archive: zipfile.ZipFile) -> np.ndarray:
    """Maps the member `obs`; reads it where it is compressed."""
    info = archive.getinfo("obs.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        return read_array(archive, "obs", "u", FRAMES)
    with reading(f"{path}: obs"), archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise UserError(f"{path}: obs is in a .npy format that no array of bytes needs")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        header = file.tell()
    if dtype != np.uint8 or fortran or len(shape) != 4 or min(shape) < 1:
        raise UserError(f"{path}: obs is {dtype} {list(shape)}, uint8 [T, H, W, 3] is wanted")
    size = int(np.prod([int(n) for n in shape], dtype=object))
    if size != info.file_size - header:
        raise UserError(f"{path}: obs says shape {list(shape)} and does not hold as much data")
    with reading(f"{path}: obs"), open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(LOCAL_HEADER)
        # The local header's own lengths: they may differ from those of the zip's directory.
        skip = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        offset = info.header_offset + LOCAL_HEADER + skip + header
        if offset + size > os.fstat(file.fileno()).st_size:
            raise UserError(f"{path}: obs does not hold as much data as it says")
        return np.memmap(file, np.uint8, "r", offset, shape)


def _checked(path: Path, episode: Episode) -> Episode:
    """Returns the episode in its dtypes; raises `UserError` where its arrays do not fit."""
    obs, act, rew, end, trunc, final = episode
    if obs.dtype != np.uint8 or obs.ndim != 4 or obs.shape[3] != 3 or not len(obs):
        raise UserError(
            f"{path}: obs is {obs.dtype} {list(obs.shape)}, uint8 [T, H, W, 3] is wanted"
        )
    for name, value in (("act", act), ("rew", rew), ("end", end), ("trunc", trunc)):
        if value.shape != obs.shape[:1]:
            raise UserError(
                f"{path}: {name} has shape {list(value.shape)}, obs has {len(obs)} frames: one "
                "number a frame is wanted"
            )
    if act.min() < 0 or act.max() > 1 << 16:
        raise UserError(f"{path}: act has {act.min()} to {act.max()}, actions are numbered from 0")
    if not np.isfinite(rew).all():
        raise UserError(f"{path}: rew has numbers that are not finite")
    if (end[:-1].astype(bool) | trunc[:-1].astype(bool)).any():
        raise UserError(f"{path}: end or trunc before the last step: write a file an episode")
    if final is not None and (final.dtype != np.uint8 or final.shape != obs.shape[1:]):
        raise UserError(f"{path}: final is {final.dtype} {list(final.shape)}, not as the frames")
    return Episode(
        obs,
        act.astype(np.int32),
        rew.astype(np.float32),
        end.astype(bool),
        trunc.astype(bool),
        final,
    )
