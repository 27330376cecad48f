"""Games by name: `make(name)` is one game with gymnasium's API.

`ball` is our own, the names of the Atari 100k benchmark are Atari games, and "module:function" is
any function of yours that returns an object with `reset` and `step`: docs/my-own-game.md.
"""

import importlib
import re

from diffjax.errors import UserError, did_you_mean
from diffjax.systems.diamond.games import atari, ball
from diffjax.systems.diamond.games.checked import Checked

NAMES = ("ball", *atari.ACTIONS)
OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def make(name: str, size: int = 64, *, own: bool = True):
    """Returns a game whose observations are uint8 [size, size, 3].

    Args:
      name: "ball", an Atari game as "Breakout", or "module:function". The function takes nothing
        and returns an object with gymnasium's API; its observations are reduced to `size`.
      own: whether "module:function" may be called. Say False where the name comes from a file that
        somebody else wrote, as the config of a run directory: importing a module executes it.

    Raises:
      UserError: an unknown name, a module or function that is not there, an object that is no game,
        or a library that is not installed.
    """
    if not isinstance(name, str):
        raise UserError(
            f"game {name!r}: a name is wanted, as 'ball', 'Breakout', 'module:function'"
        )
    if not isinstance(size, int) or isinstance(size, bool) or not 8 <= size <= 1024:
        raise UserError(f"game {name}: size {size!r}, a whole number from 8 to 1024 is wanted")
    if ":" in name:
        return Checked(_own(name, own), name, size)
    if name == "ball":
        return ball.Ball(size)
    if name in atari.ACTIONS:
        return atari.Atari(name, size)
    raise UserError(f"unknown game {name!r}{did_you_mean(name, NAMES)}, or 'module:function'")


def _own(name: str, allowed: bool):
    if not OWN.fullmatch(name):
        raise UserError(f"game {name!r}: write it as module:function")
    if not allowed:
        raise UserError(
            f"game {name!r} would execute code that a file names: name the game yourself"
        )
    module, _, function = name.partition(":")
    try:
        place = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"game {name!r}: {error}") from error
    found = getattr(place, function, None)
    if not callable(found):
        names = [n for n in vars(place) if callable(getattr(place, n)) and not n.startswith("_")]
        raise UserError(
            f"game {name!r}: {module} has no function {function!r}{did_you_mean(function, names)}"
        )
    return found()


def keys_of(game) -> dict[str, int]:
    """Returns the keys that play a game: {"": 0, "ArrowLeft": 2, "ArrowLeft+Space": 5, ...}.

    They come from `game.keys`, a dictionary such as this one, or from `game.meanings`, the actions'
    names in Atari's manner ("NOOP", "FIRE", "UPLEFT", "UPLEFTFIRE"); without either they are the
    digits. The names of keys are those of browsers (KeyboardEvent.code).
    """
    if getattr(game, "keys", None):
        return dict(game.keys)
    table = {"UP": "ArrowUp", "DOWN": "ArrowDown", "LEFT": "ArrowLeft", "RIGHT": "ArrowRight"}
    table |= {"FIRE": "Space", "NOOP": ""}
    meanings = getattr(game, "meanings", None)
    if meanings is None:
        return {"": 0} | {f"Digit{i}": i for i in range(min(10, game.action_space.n))}
    parts = [re.findall("|".join(table), meaning) for meaning in meanings]
    return {"+".join(filter(None, (table[p] for p in words))): i for i, words in enumerate(parts)}


def playable(game):
    """Returns (start, step, keys) for `diffjax.run.play.serve`: the real game, played by hand.

    A game that is over begins again. The state is the game itself, so one person plays at a time.
    """

    def start():
        return game, game.reset()[0]

    def step(game, action: int):
        obs, _, terminated, truncated, _ = game.step(action)
        return game, game.reset()[0] if terminated or truncated else obs

    return start, step, keys_of(game)
