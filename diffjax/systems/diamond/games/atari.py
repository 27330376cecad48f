"""Atari 2600 games as DIAMOND plays them (Alonso et al. 2024; the emulator: Bellemare et al. 2013).

Needs `pip install 'diffjax[atari]'`: gymnasium and ale-py, whose wheel brings the games.
"""

from collections.abc import Sequence

import numpy as np

from diffjax.errors import UserError
from diffjax.systems.diamond.games.resize import resize_area

SKIP = 4  # raw frames a step
NOOPS = 30  # at most so many raw frames pass before the player may act
SCREEN = (210, 160, 3)

# The Atari 100k benchmark, with the number of actions that each game knows.
ACTIONS = {
    "Alien": 18,
    "Amidar": 10,
    "Assault": 7,
    "Asterix": 9,
    "BankHeist": 18,
    "BattleZone": 18,
    "Boxing": 18,
    "Breakout": 4,
    "ChopperCommand": 18,
    "CrazyClimber": 9,
    "DemonAttack": 6,
    "Freeway": 3,
    "Frostbite": 18,
    "Gopher": 8,
    "Hero": 18,
    "Jamesbond": 18,
    "Kangaroo": 18,
    "Krull": 18,
    "KungFuMaster": 14,
    "MsPacman": 9,
    "Pong": 6,
    "PrivateEye": 18,
    "Qbert": 6,
    "RoadRunner": 18,
    "Seaquest": 18,
    "UpNDown": 6,
}


class Atari:
    """One Atari game: no-op starts, four frames a step, the last two pooled, area-reduced.

    The API is gymnasium's. An observation is uint8 [size, size, 3]; `info` has `lives`, and
    `life_loss`: whether a life was lost during the step. Rewards are the game's own, not clipped.
    An episode ends where the game does, never at a lost life. Actions do not stick.

    Args:
      name: one of `ACTIONS`.
      size: of the observations' sides.

    Raises:
      UserError: gymnasium or ale-py is not installed.
    """

    def __init__(self, name: str, size: int = 64):
        self.size = size
        # The observation that gymnasium would fetch every raw frame is not the one wanted here,
        # and the RAM is the cheapest; the screen is read where it is needed.
        self._raw = _gymnasium().make(
            f"{name}NoFrameskip-v4",
            full_action_space=False,
            frameskip=1,
            obs_type="ram",
            disable_env_checker=True,
        )
        self._ale = self._raw.unwrapped.ale
        self._newest = np.zeros(SCREEN, np.uint8)
        self._before = np.zeros(SCREEN, np.uint8)
        self._lives = 0
        self.action_space = self._raw.action_space

    @property
    def meanings(self) -> Sequence[str]:
        """What each action is: "NOOP", "FIRE", "UPLEFT", ..."""
        return self._raw.unwrapped.get_action_meanings()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Starts a game and lets 1 to 30 raw frames pass; returns (observation, info)."""
        self._raw.reset(seed=seed)
        for _ in range(self._raw.unwrapped.np_random.integers(1, NOOPS + 1)):
            _, _, terminated, truncated, _ = self._raw.step(0)
            if terminated or truncated:
                self._raw.reset()
        self._lives = self._ale.lives()
        self._ale.getScreenRGB(self._newest)
        self._before[:] = 0
        return self._observation(), self._info(False)

    def step(self, action: int):
        """Plays four raw frames; returns (observation, reward, terminated, truncated, info).

        Where the game ends earlier the observation is that of the step before: the frames that
        would be pooled were not shown.
        """
        total, life_loss = 0.0, False
        for frame in range(SKIP):
            _, reward, terminated, truncated, _ = self._raw.step(action)
            total += float(reward)
            lives = self._ale.lives()
            life_loss |= lives < self._lives
            self._lives = lives
            if terminated or truncated:
                break
            if frame == SKIP - 2:
                self._ale.getScreenRGB(self._before)
            elif frame == SKIP - 1:
                self._ale.getScreenRGB(self._newest)
        return self._observation(), total, terminated, truncated, self._info(life_loss)

    def pooled(self) -> np.ndarray:
        """Returns what the last observation was reduced from, uint8 [210, 160, 3]."""
        return self._newest.copy()

    def close(self) -> None:
        self._raw.close()

    def _observation(self) -> np.ndarray:
        # In place: after a game that ended early the original pools an already pooled frame.
        np.maximum(self._newest, self._before, out=self._newest)
        return resize_area(self._newest, self.size, self.size)

    def _info(self, life_loss: bool) -> dict:
        return {"lives": self._lives, "life_loss": bool(life_loss)}


def _gymnasium():
    try:
        import ale_py
        import gymnasium
    except ImportError as error:
        raise UserError(
            f"Atari games need {error.name}, which is not installed: pip install 'diffjax[atari]'"
        ) from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it greets on every start
    gymnasium.register_envs(ale_py)
    return gymnasium
