"""Times of APT's three stages: shifts, grids, the discriminator's ensemble. t in [0, 1], 0 is data.

All on the straight path x_t = (1 - t) x0 + t n. Lin et al. 2025a; Lin et al. 2025b;
Esser et al. 2024, eq. 23.
"""

import jax
import numpy as np

from diffjax.core import grids, processes
from diffjax.errors import UserError


def shift(t, s: float):
    """s t/(1 + (s - 1) t): t in [0, 1] moved towards noise, by -2 ln s of the log SNR.

    It is the sigma of `processes.flow(s)`. shift(., 1/s) is its inverse, shift(., a) after
    shift(., b) is shift(., a b), and s = 1 changes nothing. With times up to T: T shift(t/T, s).

    Args:
      t: NumPy or JAX, any shape.
      s: the shift, above 0; the discriminator's is 1 for images and 12 for video.

    Returns:
      t's shape; NumPy in, NumPy out, and JAX in, JAX out.
    """
    return processes.flow(s).sigma(t)


def mean(s: float) -> float:
    """The mean of shift(t, s) for t uniform in [0, 1]: s/(s - 1) (1 - ln s/(s - 1))."""
    return 0.5 if s == 1 else float(s / (s - 1) * (1 - np.log(s) / (s - 1)))


def of_ratio(ratio):
    """r/(1 + r): the time on the straight path of EDM's sigma, or of any process' sigma/alpha."""
    return processes.flow().t_of(ratio)


def trailing(steps: int, s: float = 1.0) -> np.ndarray:
    """[steps + 1] float64: shift((N - i)/N, s), i = 0..N: from 1 to 0, a sampler's grid.

    What few steps of a one-step generator take: its second step starts from shift(1/2, s).
    """
    return grids.shifted(grids.linear(steps), s)


def consistency(steps: int = 32, s: float = 1.0, end: float = 1.0) -> np.ndarray:
    """[steps + 1] float64: t_n = end shift(n/N, s), increasing from 0: what is distilled on.

    Args:
      steps: N; Lin et al. 2025b take 32.
      s: the base's shift in training.
      end: the base's largest time: 1 on flow, `of_ratio(80)` for EDM.

    Raises:
      UserError: fewer than one step, or an end outside (0, 1].
    """
    if steps < 1 or not 0 < end <= 1:
        raise UserError(f"consistency grid: {steps} steps up to {end}: at least 1, up to 1")
    return end * grids.shifted(np.arange(steps + 1) / steps, s)


# (pixels, shift) at the two ends of a line; pixels of a film are counted over its frames.
IMAGES = (256**2, 1.0), (1024**2, 3.2)
FILMS = (256**2 * 37, 1.0), (1280 * 720 * 145, 5.0)


def for_resolution(pixels: int, frames: int = 1) -> float:
    """The sampler's shift at a resolution: linear in the number of pixels. Wang et al. 2025, code.

    Args:
      pixels: of a frame.
      frames: 1 is an image, which has a line of its own.
    """
    (low, at_low), (high, at_high) = IMAGES if frames == 1 else FILMS
    return at_low + (pixels * frames - low) / (high - low) * (at_high - at_low)


def ensemble(key: jax.Array, rows: jax.Array, s: float) -> jax.Array:
    """[B] float32: the discriminator's time for each row, shift(u, s) with u uniform in [0, 1).

    D(x, c) is the mean over t of D(x, t, c), of which a step takes one draw: t is a condition only,
    no noise is added to x. Lin et al. 2025a.

    Args:
      rows: int32 [B], numbers in the global batch: row r draws from fold_in(key, r), so that draws
        do not depend on devices or slices.
    """
    u = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(rows)
    return shift(u, s)
