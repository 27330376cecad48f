"""A game that somebody else wrote, checked at every step, so that mistakes are one line."""

import math

import numpy as np

from diffjax.errors import UserError
from diffjax.systems.diamond.games.resize import resize_area

MAX_SIDE = 4096
MAX_ACTIONS = 1 << 16


class Checked:
    """Gymnasium's API around an object of that API, with observations of one size.

    Args:
      game: has `reset(seed=...) -> (observation, info)`, `step(action) -> (observation, reward,
        terminated, truncated, info)`, and `action_space.n`, `num_actions` or both. An observation
        is uint8 [H, W, 3]; `info` is a dictionary, where `life_loss`, if there, says that a life
        was lost in this step. `close`, `keys` and `meanings` are optional.
      name: for messages.
      size: observations are reduced to [size, size, 3] by averaging areas.

    Raises:
      UserError: here and at every step, for whatever is not so.
    """

    def __init__(self, game, name: str, size: int = 64):
        for method in ("reset", "step"):
            if not callable(getattr(game, method, None)):
                raise UserError(
                    f"game {name}: it returned a {type(game).__name__}, which has no {method}()"
                )
        self._game, self._name, self._size = game, name, size
        space = getattr(game, "action_space", None)
        if space is None and hasattr(game, "num_actions"):
            space = _Actions(game.num_actions)
        n = getattr(space, "n", None)
        if not isinstance(n, int | np.integer) or isinstance(n, bool) or not 0 < n <= MAX_ACTIONS:
            raise UserError(
                f"game {name}: action_space.n is {n!r}; actions are numbered from 0, so a "
                "Discrete space is wanted"
            )
        if getattr(space, "start", 0):
            raise UserError(f"game {name}: its actions start at {space.start}, not at 0")
        self.action_space = space
        for optional in ("keys", "meanings"):
            if hasattr(game, optional):
                setattr(self, optional, getattr(game, optional))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        found = self._game.reset(seed=seed)
        if not isinstance(found, tuple) or len(found) != 2:
            raise self._error("reset", f"returned {_kind(found)}, (observation, info) is wanted")
        return self._image(found[0], "reset"), self._info(found[1], "reset")

    def step(self, action: int):
        found = self._game.step(action)
        if not isinstance(found, tuple) or len(found) != 5:
            wanted = "(observation, reward, terminated, truncated, info)"
            raise self._error("step", f"returned {_kind(found)}, {wanted} is wanted")
        image, reward, terminated, truncated, info = found
        try:
            reward = float(reward)
        except (TypeError, ValueError):
            raise self._error("step", f"reward is {_kind(reward)}, a number is wanted") from None
        if not math.isfinite(reward):
            raise self._error("step", f"reward is {reward}")
        for word, value in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(value, bool | np.bool_):
                raise self._error("step", f"{word} is {value!r}, True or False is wanted")
        image = self._image(image, "step")
        return image, reward, bool(terminated), bool(truncated), self._info(info, "step")

    def close(self) -> None:
        close = getattr(self._game, "close", None)
        if callable(close):
            close()

    def _image(self, image, where: str) -> np.ndarray:
        found = np.asarray(image)
        good = found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        if not good or not 0 < min(found.shape[:2]) <= max(found.shape[:2]) <= MAX_SIDE:
            raise self._error(where, f"observation is {_kind(image)}, uint8 [H, W, 3] is wanted")
        # A copy: many games draw every frame into the same array.
        return np.array(resize_area(found, self._size, self._size))

    def _info(self, info, where: str) -> dict:
        if not isinstance(info, dict):
            raise self._error(where, f"info is {_kind(info)}, a dictionary is wanted")
        return info

    def _error(self, where: str, what: str) -> UserError:
        return UserError(f"game {self._name}: {where}: {what}")


class _Actions:
    def __init__(self, n):
        self.n = n


def _kind(value) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"{type(value).__name__} {value!r}"[:60]
