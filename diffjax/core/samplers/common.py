"""What every sampler shares: the trace, the noise port, checks, and tables for the device."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.processes import Level, Process
from diffjax.errors import UserError

Noise = Callable[[jax.Array], jax.Array]


class Trace(NamedTuple):
    """What a sampler saw: [steps, *x.shape] each.

    x: the state after step i; the last is the result.
    x0: the first estimate of step i, made at grid[i].
    """

    x: jax.Array
    x0: jax.Array


def draws(keys: jax.Array, shape: tuple[int, ...], process: Process, dtype=jnp.float32) -> Noise:
    """The noise port made from one key a sample: sample i does not depend on the rest of the batch.

    Args:
      keys: [B] typed keys.
      shape: of one sample.

    Returns:
      noise(k) -> [B, *shape] of unit variance in the process' colour, for k = 0, 1, ...
    """

    def one(key):
        first, second = (jax.random.normal(q, shape, dtype) for q in jax.random.split(key))
        return process.colour(first, second)

    return lambda k: jax.vmap(lambda key: one(jax.random.fold_in(key, k)))(keys)


def decreasing(grid, or_increasing: bool = False) -> np.ndarray:
    """The grid as float64. Raises UserError unless it is a row of decreasing times."""
    grid = np.asarray(grid, np.float64)
    down = grid.ndim == 1 and len(grid) >= 2 and np.diff(grid) < 0
    up = or_increasing and grid.ndim == 1 and len(grid) >= 2 and np.diff(grid) > 0
    if not (np.all(down) or np.all(up)):
        raise UserError("sampler: the grid must be one row of at least two decreasing times")
    return grid


def needs_noise(noise) -> None:
    if noise is None:
        raise UserError("sampler: these settings draw noise: pass noise=draws(keys, shape, ...)")


def needs_number(process: Process, level: Level, what: str) -> None:
    if np.ndim(level.alpha) > np.ndim(level.sigma):
        raise UserError(f"sampler: {what} needs a process whose alpha is a number")


def up(low: Level, high: Level):
    """(c, s) with x_high = c x_low + s z of the right marginal, from less noise to more."""
    c = high.alpha / low.alpha
    return c, np.sqrt(np.maximum(high.sigma**2 - c**2 * low.sigma**2, 0.0))


def on_device(dtype, rows):
    """A table's host arrays as jax arrays: floats in the state's dtype, cast once."""
    cast = lambda a: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None)
    return jax.tree.map(cast, rows)
