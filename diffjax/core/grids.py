"""Grids: the decreasing times at which a sampler evaluates the denoiser.

A grid of n steps is a float64 NumPy array of n + 1 entries; the last is 0, where the data are. On
`edm` times are noise levels; on another process a grid of levels becomes one of times with
`process.t_of(grid)`.
"""

import numpy as np

from diffjax.errors import UserError


def _checked(name: str, n: int, low: float | None = None, high: float | None = None) -> None:
    """Raises UserError unless n >= 1 and 0 < low < high."""
    if n != int(n) or n < 1:
        raise UserError(f"grids.{name}: {n} steps: the number of steps must be a whole number >= 1")
    if low is not None and not 0 < low < high:
        raise UserError(
            f"grids.{name}: sigma_min {low} and sigma_max {high}: must be 0 < sigma_min < sigma_max"
        )


def _ramp(n: int) -> np.ndarray:
    """i/(n-1), i = 0..n-1; [0] for n = 1, so that one step starts at the high end."""
    return np.arange(n) / max(n - 1, 1)


def karras(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
    """sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, then 0.

    Karras et al. 2022, eq. 5. A large rho spends steps at low noise.

    Args:
      n: steps; 1 gives [sigma_max, 0].
      sigma_min, sigma_max: the lowest level before 0, and the first.

    Returns:
      [n + 1] float64, decreasing.

    Raises:
      UserError: n < 1, or not 0 < sigma_min < sigma_max.
    """
    _checked("karras", n, sigma_min, sigma_max)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.append((high + _ramp(n) * (low - high)) ** rho, 0.0)


def linear(n: int, start: float = 1.0, end: float = 0.0) -> np.ndarray:
    """[n + 1] float64, evenly spaced from start to end: the grid of rectified flow."""
    _checked("linear", n)
    if not start > end >= 0:
        raise UserError(f"grids.linear: from {start} to {end}: must decrease, to 0 or above")
    return np.linspace(start, end, n + 1)


def exponential(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 1.0
) -> np.ndarray:
    """[n + 1] float64: evenly spaced in ln sigma, then 0; `karras` for its rho -> infinity.

    Also EDM Table 1's steps for "VE" (Song et al. 2021b). With rho, ln sigma goes by the ramp from
    1 to 0 to that power: k-diffusion's "polyexponential". Raises UserError as `karras`.
    """
    _checked("exponential", n, sigma_min, sigma_max)
    ramp = 1 - (1 - _ramp(n)) ** rho
    return np.append(sigma_max * (sigma_min / sigma_max) ** ramp, 0.0)


def vp(n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3) -> np.ndarray:
    """[n + 1] float64: the levels of vp at times evenly spaced from 1 to eps_s, then 0.

    sigma = sqrt(exp(beta_d t^2/2 + beta_min t) - 1). EDM Table 1, "VP"; `processes.vp_betas` gives
    the betas that reach a wanted range. Raises UserError where n < 1.
    """
    _checked("vp", n)
    t = 1 + _ramp(n) * (eps_s - 1)
    return np.append(np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t)), 0.0)


def of_levels(n: int, levels, sigma_min: float = 0.0, sigma_max: float = np.inf) -> np.ndarray:
    """[n + 1] float64: n of a network's training levels, evenly spaced by index, then 0.

    The index is rounded half to even. EDM Table 1, "iDDPM + DDIM", with
    levels = `denoisers.iddpm_levels()` and the range [0.002, 81].

    Args:
      levels: decreasing noise levels; those outside [sigma_min, sigma_max] are left out.
    """
    _checked("of_levels", n)
    levels = np.asarray(levels, np.float64)
    kept = levels[(levels >= sigma_min) & (levels <= sigma_max) & (levels > 0)]
    if len(kept) < n:
        raise UserError(f"grids.of_levels: {n} steps, but only {len(kept)} levels are in range")
    return np.append(kept[np.round((len(kept) - 1) * _ramp(n)).astype(int)], 0.0)


def nearest(grid, levels) -> np.ndarray:
    """Every entry of a grid moved to the nearest of `levels`, float64; ties take the first.

    EDM's `round_sigma`, for networks that know only their training levels.
    """
    grid, levels = np.asarray(grid, np.float64), np.asarray(levels, np.float64)
    return levels[np.argmin(np.abs(grid[:, None] - levels), axis=1)]


def below(grid, sigma: float) -> np.ndarray:
    """The entries of a grid that are less than sigma: a sampler that starts on the way.

    Relay diffusion starts from a picture at a middle noise level, on the rest of a grid that was
    laid from far above (Teng et al. 2023; their 200 steps from 80 are 100 from 0.87).

    Raises:
      UserError: nothing but the final 0 is below sigma.
    """
    grid = np.asarray(grid, np.float64)
    kept = grid[grid < sigma]
    if len(kept) < 2:
        raise UserError(f"grids.below: no step is left below {sigma}: the lowest is {grid[-2]:.6g}")
    return kept


def shifted(grid, shift: float) -> np.ndarray:
    """t -> s t/(1 + (s - 1) t) for a grid in [0, 1]: on `flow`, every ratio times s.

    Esser et al. 2024, eq. 23; s = sqrt(m/n) for m tokens where n were the reference. s = 1 is none.
    """
    if not 0 < shift < np.inf:
        raise UserError(f"grids.shifted: shift {shift} must be positive; 1 means none")
    grid = np.asarray(grid, np.float64)
    return shift * grid / (1 + (shift - 1) * grid)


def spaced(steps: int, spec: str | list[int]) -> list[int]:
    """Which of the indices 0..steps-1 to keep, sorted. Nichol & Dhariwal 2021, released code.

    Two spellings:
      "ddimN"       0, k, 2k, ... with the smallest stride k that gives exactly N indices (DDIM,
                    Song et al. 2021a). The last index is usually not among them.
      "10,15,20"    (or the list) that many from each of as many equal sections, both ends of a
                    section included; the first sections are one longer where it does not divide.
                    "50" is 50 over everything. Python's rounding, half to even, of a stride that
                    is accumulated in floating point.

    Raises:
      UserError: no such stride; more than a section holds; not a number.
    """
    if isinstance(spec, str) and spec.startswith("ddim"):
        wanted = _whole(spec[4:], spec)
        for stride in range(1, steps):
            if len(range(0, steps, stride)) == wanted:
                return list(range(0, steps, stride))
        raise UserError(f"steps {spec!r}: no whole stride over {steps} steps gives {wanted}")
    counts = spec.split(",") if isinstance(spec, str) else spec
    counts = [_whole(c, spec) for c in counts]
    kept, start = set(), 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise UserError(f"steps {spec!r}: section {i} has {size} of {steps} steps, not {count}")
        stride = 1 if count <= 1 else (size - 1) / (count - 1)
        at = 0.0
        for _ in range(count):
            kept.add(start + round(at))
            at += stride
        start += size
    return sorted(kept)


def _whole(text, spec) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"steps {spec!r}: write 'ddim50', '50' or numbers of at least 1 ('10,15')")
    return number


def respaced(steps: int, spec: str | list[int]) -> np.ndarray:
    """The grid on `processes.discrete` that visits the indices of `spaced`, then 0.

    Index u is time u + 1: [n + 1] float64, decreasing. Taking a sub-grid is all that respacing is:
    a step's beta follows from the abar at its two ends. Raises UserError as `spaced`.
    """
    return np.append(np.array(spaced(steps, spec)[::-1], np.float64) + 1, 0.0)
