"""Where a run's real frames come from: a game that is played, recorded episodes, or both."""

import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffjax.errors import UserError
from diffjax.systems.diamond import games, held_out
from diffjax.systems.diamond.held_out import Some
from diffjax.systems.diamond.replay import Folder

MAX_ACTIONS = 1 << 16


class Experience(NamedTuple):
    """What a config's `game` and `data.path` are.

    Attributes:
      name: for a person.
      make: returns a game, picklable; None where there is none to play.
      recorded, test: recorded episodes to train on and those that are held out; None where the
        training plays.
      actions: how many there are.
      keys: {"ArrowLeft": 2, ...}, for playing by hand.
      size: of a frame's sides.
      fingerprint: of the recordings, or the game's name.
    """

    name: str
    make: Callable | None
    recorded: Some | None
    test: Some | None
    actions: int
    keys: dict[str, int]
    size: int
    fingerprint: str

    def about(self) -> dict:
        """What the run keeps of it: `assets/data.json`."""
        return {
            "name": self.name,
            "actions": self.actions,
            "keys": self.keys,
            "image_shape": [self.size, self.size, 3],
            "fingerprint": self.fingerprint,
        }


def open_experience(config) -> Experience:
    """Opens the game, once, and the recordings; raises `UserError` where either cannot be used."""
    if not config.game and not config.data.path:
        raise UserError(
            "config.game is empty and so is config.data.path: name a game to play "
            f"({', '.join(games.NAMES[:3])}, ... or module:function) or a folder of episodes"
        )
    size, make, actions, keys = config.frame_size, None, 0, None
    if config.game:
        make = functools.partial(games.make, config.game, size)
        game = make()
        actions, keys = int(game.action_space.n), games.keys_of(game)
        game.close()
    if not config.data.path:
        name = f"{config.game} {size}"
        return Experience(config.game, make, None, None, actions, keys, size, name)
    folder = Folder(config.data.path)
    shape = folder[0].obs.shape[1:]
    if shape != (size, size, 3):
        raise UserError(f"{config.data.path}: frames of {list(shape)}, config.frame_size is {size}")
    if actions and folder.actions > actions:
        raise UserError(
            f"{config.data.path}: action {folder.actions - 1}; {config.game} has 0 to {actions - 1}"
        )
    if keys is None:
        actions = folder.actions
        keys = {"": 0} | {f"Digit{i}": i for i in range(min(10, actions))}
    train, test = held_out.split(folder, config.data.held_out, config.data.path)
    digest = hashlib.sha256()
    for file, length in zip(folder.files, folder.lengths, strict=True):
        digest.update(f"{file.relative_to(folder.path)} {length}\n".encode())
    words = (train, test, actions, keys, size, f"episodes {digest.hexdigest()[:16]}")
    return Experience(config.game or folder.path.name, make, *words)


def described(assets: dict) -> dict:
    """Returns `Experience.about` as a run keeps it; `UserError` where it is not such."""
    about = assets.get("data")
    if not isinstance(about, dict) or not {"actions", "keys", "name"} <= set(about):
        raise UserError("the run directory lacks assets/data.json (name, actions, keys)")
    actions, keys = about["actions"], about["keys"]
    whole = isinstance(actions, int) and not isinstance(actions, bool)
    if not whole or not 0 < actions <= MAX_ACTIONS:
        raise UserError(f"assets/data.json: actions {actions!r}, a number of them is wanted")
    good = isinstance(keys, dict) and all(
        isinstance(action, int) and 0 <= action < actions for action in keys.values()
    )
    if not good:
        raise UserError("assets/data.json: keys are no table of keys and actions")
    return about


def recordings_of(assets: dict, frame: tuple[int, int, int], past: int, actions: int) -> dict:
    """Returns {"obs", "act", "length"} of a run's assets, see `held_out.starts_of`.

    Raises:
      UserError: they are not there, or not of this run's game.
    """
    names = ("obs", "act", "length")
    if not all(f"starts_{name}" in assets for name in names):
        raise UserError("nothing has been recorded yet to begin from: train the run first")
    obs, act, length = (np.asarray(assets[f"starts_{name}"]) for name in names)
    good = obs.dtype == np.uint8 and obs.ndim == 5 and obs.shape[2:] == tuple(frame)
    good = good and act.shape == obs.shape[:2] and length.shape == obs.shape[:1]
    good = good and act.dtype.kind in "iu" and length.dtype.kind in "iu"
    if not good or not len(obs) or obs.shape[1] <= past:
        raise UserError("assets/starts_*.npy are not recordings of this run's game")
    possible = 0 <= act.min() <= act.max() < actions
    if not possible or not past < length.min() <= length.max() <= obs.shape[1]:
        raise UserError("assets/starts_*.npy: actions or lengths that this run's game cannot have")
    return {"obs": obs, "act": act.astype(np.int32), "length": length.astype(np.int32)}
