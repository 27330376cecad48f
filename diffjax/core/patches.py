"""Patches of a picture: their DCT and its damping, block noise, and the way up and down by them.

What a process that blurs is made of (`processes.blurred`). Pictures are [..., H, W, C]; a patch is
a number of pixels a side, or (height, width), and patches tile the picture without overlap.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffjax.errors import UserError

Array = jax.Array | np.ndarray
Patch = int | tuple[int, int]


def sides(patch: Patch) -> tuple[int, int]:
    """(height, width) of a patch; raises `UserError` unless both are whole numbers above 0."""
    pair = patch if isinstance(patch, tuple) else (patch, patch)
    if len(pair) != 2 or any(int(p) != p or p < 1 for p in pair):
        raise UserError(f"patch {patch}: a whole number of pixels, or (height, width)")
    return int(pair[0]), int(pair[1])


def dct_matrix(size: int) -> np.ndarray:
    """[size, size] float64: the orthonormal DCT-II, C[k, n] = c_k cos(pi (2n + 1) k/(2 size)).

    c_0 = sqrt(1/size), the other c_k = sqrt(2/size). C x are the coefficients of x, and
    x = C^T (C x).
    """
    k, n = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    matrix[0] = np.sqrt(1 / size)
    return matrix


def dct(x, patch: Patch) -> jax.Array:
    """The orthonormal DCT-II of each patch, in the place of its pixels.

    Coefficient (k, l) of patch (a, b) is at row a p + k, column b p + l. A patch as large as the
    picture gives the picture's own DCT.

    Args:
      x: [..., H, W, C], H and W multiples of the patch.

    Returns:
      x's shape and dtype.

    Raises:
      UserError: patches that do not tile the picture.
    """
    return _transform(x, *(dct_matrix(p) for p in sides(patch)))


def idct(u, patch: Patch) -> jax.Array:
    """The inverse of `dct`."""
    return _transform(u, *(dct_matrix(p).T for p in sides(patch)))


def _transform(x, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """rows @ X @ columns^T for each patch X of each channel."""
    x = jnp.asarray(x)
    *lead, height, width, channels = _tiled(x, (len(rows), len(columns)))
    apart = (*lead, height // len(rows), len(rows), width // len(columns), len(columns), channels)
    rows, columns = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    # Highest: a matrix unit would round to bfloat16, and x would not come back from its transform.
    out = jnp.einsum(
        "...aybxc,ky,lx->...akblc", x.reshape(apart), rows, columns, precision=lax.Precision.HIGHEST
    )
    return out.reshape(x.shape)


def _tiled(x, patch: Patch) -> tuple[int, ...]:
    height, width = sides(patch)
    if x.ndim < 3 or x.shape[-3] % height or x.shape[-2] % width:
        raise UserError(
            f"a picture of {'x'.join(map(str, x.shape[-3:-1]))} is not tiled by patches of "
            f"{height}x{width}"
        )
    return x.shape


def damping(sigma_b: Array, patch: Patch, floor: float = 0.001) -> Array:
    """(1 - m) exp(-(f_k^2 + f_l^2) sigma_b^2/2) + m, f_k = pi k/p: what a blur leaves of a patch.

    Heat flow with reflecting edges in each patch by itself, for a time sigma_b^2/2 (Hoogeboom &
    Salimans 2023, for patches as large as the picture; Teng et al. 2023). The patch's mean is kept,
    and the floor m keeps the blur invertible.

    Args:
      sigma_b: standard deviation of the blur in pixels, [...]; NumPy in, NumPy out.

    Returns:
      [..., height, width] of a patch, in [m, 1].
    """
    xp = jnp if isinstance(sigma_b, jax.Array) else np
    height, width = sides(patch)
    f = lambda size: np.pi * np.arange(size) / size
    square = f(height)[:, None] ** 2 + f(width) ** 2
    square = xp.asarray(square, xp.asarray(sigma_b).dtype if xp is jnp else np.float64)
    time = xp.asarray(sigma_b)[..., None, None] ** 2 / 2
    return (1 - floor) * xp.exp(-square * time) + floor


def damp(gain: Array, x) -> jax.Array:
    """Each patch's DCT multiplied by `gain` and transformed back: an `apply` of a process.

    Args:
      gain: [..., p, p] as `damping` gives it: leading axes none, or those of a level that
        broadcasts against x, [B, 1, 1, 1].
      x: [..., H, W, C].
    """
    *lead, height, width = gain.shape
    patch = height, width
    if lead and tuple(lead[-3:]) != (1, 1, 1)[-len(lead) :]:
        raise UserError(f"damp: gain {gain.shape} does not broadcast: one a picture is [B,1,1,1]")
    u = dct(x, patch)
    apart = (*x.shape[:-3], x.shape[-3] // height, height, x.shape[-2] // width, width, x.shape[-1])
    u = u.reshape(apart) * gain.reshape(*lead[:-3], 1, height, 1, width, 1)
    return idct(u.reshape(x.shape), patch)


def block_noise(white, size: Patch) -> jax.Array:
    """(1/s) sum of the s x s values above and to the left, around the edges: [..., H, W, C].

    Noise that is correlated over s pixels and still of unit variance: its spectrum is that of white
    noise at 1/s of the resolution, each value repeated s x s times (Teng et al. 2023; some accounts
    print 1/s^2). For H, W >= 2s - 1 the covariance at a distance (dy, dx) is
    max(0, s - |dy|) max(0, s - |dx|)/s^2.

    Args:
      white: white noise of unit variance, [..., H, W, C].
      size: s, which need not divide H or W; (height, width) for a box that is not square. 1 returns
        `white` itself.
    """
    white = jnp.asarray(white)
    out = white
    for axis, s in zip((white.ndim - 3, white.ndim - 2), sides(size)):
        if s == 1:
            continue
        before = [(s - 1 if a == axis else 0, 0) for a in range(out.ndim)]
        length = out.shape[axis]
        padded = jnp.pad(out, before, mode="wrap")
        cut = lambda i: lax.slice_in_dim(padded, i, i + length, axis=axis)  # noqa: B023
        out = sum(cut(i) for i in range(s)) / np.sqrt(s).astype(out.dtype)
    return out


def upsample(x, patch: Patch) -> jax.Array:
    """Every value repeated over a patch (nearest neighbour): [..., h, w, C] -> [..., h p, w p, C].

    What a picture looks like whose patches are blurred to their means.
    """
    height, width = sides(patch)
    x = jnp.asarray(x)
    return jnp.repeat(jnp.repeat(x, height, axis=x.ndim - 3), width, axis=x.ndim - 2)


def means(x, patch: Patch) -> jax.Array:
    """The mean of each patch: [..., H, W, C] -> [..., H/p, W/p, C], `upsample` undone."""
    x = jnp.asarray(x)
    *lead, h, w, c = _tiled(x, patch)
    height, width = sides(patch)
    return x.reshape(*lead, h // height, height, w // width, width, c).mean((-4, -2))
