"""Rotary positions in three axes: frame, row, column; text tokens lie before the frames.

A position turns each pair of a query's or key's channels by an angle, so that their product depends
on differences of positions only (Su et al. 2024). Two variants, as in a group's published video
transformers (Yang et al. 2025; Wang et al. 2025):

    mm3d       angles p 10000^(-2i/d_a), d_a = 2 floor(D/6) channels an axis; text token j sits at
               (j, j, j) and the frames go on after the last of them
    stretch3d  the extent of an axis is stretched to [-1, 1], angles pi p f with f from 1 to 128;
               text is not rotated

Positions and frequencies depend on shapes alone, so angles are float64 NumPy, and cosines enter the
network as constants.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError

THETA = 10_000.0
HIGHEST = 128.0  # frequency of stretch3d: turns of pi over half of an axis


def frequencies(channels: int) -> np.ndarray:
    """[floor(D/6)] float64: mm3d's 10000^(-2i/d_a) of one axis, for heads of D channels."""
    count = channels // 6
    return THETA ** (-np.arange(count) / count)


def stretch_frequencies(channels: int) -> np.ndarray:
    """[floor(D/12)] float64: stretch3d's pi linspace(1, 128) of one axis, for heads of D channels.

    The three axes together turn half of a head's channels.
    """
    return np.pi * np.linspace(1.0, HIGHEST, channels // 12)


def text_positions(length: int) -> np.ndarray:
    """[L, 3] int: (j, j, j)."""
    return np.repeat(np.arange(length)[:, None], 3, axis=1)


def grid_positions(grid: tuple[int, int, int], first: int = 0) -> np.ndarray:
    """[T H W, 3] int: (first + frame, row, column), column fastest.

    Args:
      grid: (T, H, W), in tokens.
      first: of the frames: how many text tokens lie before them.
    """
    position = np.indices(grid).reshape(3, -1).T
    return position + np.array([first, 0, 0])


def mm3d(positions: np.ndarray, channels: int) -> np.ndarray:
    """Angles [N, 3 floor(D/6)] float64 of positions [N, 3]: frame's, row's, column's.

    What is left of D channels (2 of 128) is not turned. Yang et al. 2025.
    """
    _check(channels, 6)
    angles = np.asarray(positions, np.float64)[..., None] * frequencies(channels)
    return angles.reshape(len(positions), -1)


def stretch3d(grid: tuple[int, int, int], channels: int) -> np.ndarray:
    """Angles [T H W, 3 floor(D/12)] float64; an axis of one token sits at -1.

    Released code of Wang et al. 2025, which applies it to each window of its attention.
    """
    _check(channels, 12)
    axes = np.meshgrid(*(np.linspace(-1.0, 1.0, n) for n in grid), indexing="ij")
    position = np.stack(axes, -1).reshape(-1, 3, 1)
    return (position * stretch_frequencies(channels)).reshape(len(position), -1)


def angles(kind: str, length: int, grid: tuple[int, int, int], channels: int):
    """(text's angles [L, m], visual angles [T H W, m]) float64, or (None, visual); m as above.

    Args:
      kind: "mm3d", or "stretch3d", which leaves text alone.
      length: L, text tokens.
      grid: (T, H, W), in tokens.
      channels: D, of a head.

    Raises:
      UserError: another kind, or a head too narrow to hold one pair an axis.
    """
    if kind == "mm3d":
        return mm3d(text_positions(length), channels), mm3d(grid_positions(grid, length), channels)
    if kind == "stretch3d":
        return None, stretch3d(grid, channels)
    raise UserError(f"rotary positions {kind!r}: mm3d or stretch3d")


def turns(angles: np.ndarray | None) -> tuple[jax.Array, jax.Array] | None:
    """(cos, sin) of angles, float32 and of their shape, made in float64; None for None."""
    if angles is None:
        return None
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Turns the pairs of channels (2i, 2i + 1): (a cos_i - b sin_i, b cos_i + a sin_i).

    Args:
      x: [..., D]; D >= 2 m. Channels from 2 m on pass through.
      turn: (cos, sin) [..., m], broadcasting against x's other axes; None: x as it is.

    Returns:
      x's shape and dtype. Products are float32 at least: in bfloat16 an angle of 100 has no digit
      behind the point.
    """
    if turn is None:
        return x
    cos, sin = turn
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    turned, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    a, b = turned[..., ::2].astype(dtype), turned[..., 1::2].astype(dtype)
    pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
    return jnp.concatenate([pairs.astype(x.dtype), rest], -1)


def _check(channels: int, least: int) -> None:
    if channels < least:
        raise UserError(f"rotary positions: heads of {channels} channels, fewer than {least}")
