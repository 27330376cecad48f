"""What DIAMOND's CSGO model has beside the Atari one: frames that are blown up, then upsampled.

Alonso et al. 2024, released code, branch csgo: a denoiser makes the next frame of 30x56, and a
second one, conditioned on it after `blow_up` and on the last large frame, that of 150x280.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel at distances x."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=16)
def weights(size: int, scale: int, a: float = -0.75) -> np.ndarray:
    """[size scale, size] float32: bicubic interpolation along one axis.

    Pixels have their centres at halves, and beyond the border is the border.
    """
    at = (np.arange(size * scale) + 0.5) / scale - 0.5
    matrix = np.zeros((size * scale, size))
    for tap in range(-1, 3):
        source = np.floor(at).astype(int) + tap
        rows = np.arange(len(at))
        np.add.at(matrix, (rows, np.clip(source, 0, size - 1)), cubic(at - source, a))
    return matrix.astype(np.float32)


def blow_up(frames: jax.Array, scale: int = 5) -> jax.Array:
    """Frames [..., H, W, C] -> [..., scale H, scale W, C], bicubic, float32, not clipped.

    The kernel is that of the original, a = -0.75; `jax.image.resize` has -0.5.
    """
    rows, columns = (weights(size, scale) for size in frames.shape[-3:-1])
    high = jax.lax.Precision.HIGHEST
    return jnp.einsum("yh,xw,...hwc->...yxc", rows, columns, frames, precision=high)
