"""A game of our own: a ball, three walls and a paddle. NumPy only, thousands of steps a second."""

from dataclasses import dataclass

import numpy as np

from diffjax.errors import UserError

STAY, LEFT, RIGHT = range(3)
KEYS = {"": STAY, "ArrowLeft": LEFT, "ArrowRight": RIGHT}
BACKGROUND, BALL, PADDLE, LIFE = (24, 28, 64), (255, 255, 255), (240, 140, 40), (90, 200, 110)
RADIUS, HALF_PADDLE, THICKNESS = 0.05, 0.14, 0.05  # of a field that is 1 wide and 1 high
PADDLE_SPEED, BALL_SPEED, FASTER, FASTEST = 0.07, 0.05, 1.05, 0.09
FLOOR = 1 - THICKNESS - RADIUS  # where the ball's centre meets the paddle's top


@dataclass(frozen=True)
class Discrete:
    """The actions 0 to n - 1: of gymnasium's space of this name, what a collector asks for."""

    n: int


class Ball:
    """Keep the ball above the floor.

    The API is gymnasium's. An observation is uint8 [size, size, 3]; the actions are 0 stay, 1 left,
    2 right. The reward is 1 when the paddle returns the ball and -1 when the floor is hit, which
    costs a life (`info["life_loss"]`, `info["lives"]`). Without lives the game ends; after
    `max_steps` it is truncated. The ball's direction and the place of its start come from the seed.

    Args:
      size: of the observations' sides, at least 8.
      lives: of one game.
      max_steps: of one game.
    """

    action_space = Discrete(3)
    meanings = ("NOOP", "LEFT", "RIGHT")

    def __init__(self, size: int = 64, lives: int = 3, max_steps: int = 1000):
        if size < 8 or lives < 1 or max_steps < 1:
            raise UserError(f"ball: size {size} (at least 8), lives {lives}, max_steps {max_steps}")
        self.size, self._all_lives, self._max_steps = size, lives, max_steps
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Starts a game; returns (observation, info)."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._lives, self._steps, self._paddle = self._all_lives, 0, 0.5
        self._serve()
        return self._draw(), self._info(False)

    def step(self, action: int):
        """Moves paddle and ball; returns (observation, reward, terminated, truncated, info)."""
        if action not in (STAY, LEFT, RIGHT):
            raise UserError(f"ball: action {action!r}, there are 0, 1 and 2")
        move = (0.0, -PADDLE_SPEED, PADDLE_SPEED)[action]
        self._paddle = float(np.clip(self._paddle + move, HALF_PADDLE, 1 - HALF_PADDLE))
        self._steps += 1
        reward, life_loss = self._fly(), False
        if reward < 0:
            self._lives -= 1
            life_loss = True
            if self._lives:
                self._serve()
        terminated = self._lives == 0
        truncated = not terminated and self._steps >= self._max_steps
        return self._draw(), reward, terminated, truncated, self._info(life_loss)

    def close(self) -> None:
        """Nothing to close."""

    def _serve(self) -> None:
        self._place = np.array([self._random.uniform(0.2, 0.8), 0.25])
        angle = self._random.uniform(-0.7, 0.7)
        self._speed = BALL_SPEED * np.array([np.sin(angle), np.cos(angle)])

    def _fly(self) -> float:
        """Moves the ball by one step; returns the reward."""
        place = self._place + self._speed
        for axis, high in ((0, 1 - RADIUS), (1, np.inf)):
            low = RADIUS
            if not low <= place[axis] <= high:
                wall = low if place[axis] < low else high
                place[axis] = 2 * wall - place[axis]
                self._speed[axis] *= -1
        self._place = place
        if place[1] < FLOOR:
            return 0.0
        offset = (place[0] - self._paddle) / (HALF_PADDLE + RADIUS)
        if abs(offset) > 1:
            return -1.0
        pace = min(FASTEST, FASTER * float(np.hypot(*self._speed)))
        angle = 1.0 * offset  # the further from the middle, the flatter
        self._speed = pace * np.array([np.sin(angle), -np.cos(angle)])
        self._place[1] = 2 * FLOOR - place[1]
        return 1.0

    def _draw(self) -> np.ndarray:
        """The field as uint8 [size, size, 3]; pixels at an edge get the share that is covered."""
        image = np.empty((self.size, self.size, 3), np.float32)
        image[:] = BACKGROUND
        (x, y), paddle = self._place, self._paddle
        boxes = [
            (x - RADIUS, x + RADIUS, y - RADIUS, y + RADIUS, BALL),
            (paddle - HALF_PADDLE, paddle + HALF_PADDLE, 1 - THICKNESS, 1.0, PADDLE),
        ]
        boxes += [(0.02 + 0.08 * i, 0.07 + 0.08 * i, 0.02, 0.07, LIFE) for i in range(self._lives)]
        for left, right, top, bottom, colour in boxes:
            cover = np.outer(self._cover(top, bottom), self._cover(left, right))[..., None]
            image += cover * (np.array(colour, np.float32) - image)
        return np.rint(image).astype(np.uint8)

    def _cover(self, low: float, high: float) -> np.ndarray:
        cell = np.arange(self.size, dtype=np.float32)
        return np.clip(
            np.minimum(high * self.size, cell + 1) - np.maximum(low * self.size, cell), 0, 1
        )

    def _info(self, life_loss: bool) -> dict:
        return {"lives": self._lives, "life_loss": life_loss}
