"""What processes agree on, and what a person tells them by a signal."""

import signal

import jax
import numpy as np


def agreed(value: float) -> float:
    """Returns the largest of all processes' values: clocks differ, the learning rate may not."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


class Signals:
    """Inside its `with`, SIGINT and SIGTERM are only noted in `got` (2, 15); else 0.

    A second signal raises KeyboardInterrupt at once.
    """

    def __enter__(self):
        self.got = 0
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        if self.got:
            raise KeyboardInterrupt
        self.got = number

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
