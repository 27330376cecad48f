"""Frames as 256 levels: DIAMOND's quantiser, which every estimate of a frame goes through.

x = 2 k/255 - 1 for k = 0..255, in float32. The released code truncates where it quantises, and so
does "floor": continuous values lose half a level on average, and since 2 k/255 - 1 is rounded down
for k = 1..63, these levels lose one each time that they are quantised again. "round" has neither
fault. "clip" only keeps the range, as the released training did with the frames that it fed back
before October 2024. Floats are looked up in a table: a compiler that multiplies by 1/255 gets other
last bits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import choose

LEVELS = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def to_float(levels: jax.Array) -> jax.Array:
    """uint8 levels of any shape -> float32 in [-1, 1]."""
    return jnp.asarray(LEVELS)[levels.astype(jnp.int32)]


def floor_level(x: jax.Array) -> jax.Array:
    """Floats -> uint8 by truncation after clipping to [-1, 1]: the released code's way.

    How it stores frames is this without the clipping, for frames that are in the range already.
    """
    x = jnp.clip(x.astype(jnp.float32), -1, 1)
    return jnp.floor((x + 1) / 2 * 255).astype(jnp.uint8)


def round_level(x: jax.Array) -> jax.Array:
    """Floats -> the nearest level, uint8; those outside [-1, 1] to its ends."""
    x = jnp.clip(x.astype(jnp.float32), -1, 1)
    return jnp.round((x + 1) / 2 * 255).astype(jnp.uint8)


QUANTISERS = {
    "floor": lambda x: to_float(floor_level(x)),
    "round": lambda x: to_float(round_level(x)),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "none": lambda x: x,
}


def quantise(x: jax.Array, how: str = "floor") -> jax.Array:
    """x of any shape, float32 -> what `how`, one of `QUANTISERS`, makes of it.

    Raises:
      UserError: another `how`.
    """
    return choose(how, QUANTISERS, "quantiser")(x)
