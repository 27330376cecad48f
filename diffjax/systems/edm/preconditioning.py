"""The four ways in which EDM's networks are wrapped (Karras et al. 2022, Table 1): one row each.

A wrapper turns the raw network F into D(x; sigma) on x = x0 + sigma n, so the samplers of EDM serve
all four. What differs beside the coefficients is which noise levels the network was trained for:
below and above them nothing is known of it, and iDDPM's knows only the levels of a table.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffjax.core import denoisers, processes
from diffjax.errors import UserError, choose

LEVELS = "noise_levels"  # the asset that keeps iDDPM's table


class Preconditioning(NamedTuple):
    """One wrapper.

    Attributes:
      coefficients: sigma -> `denoisers.Coefficients`.
      lowest, highest: the noise levels that the network was trained between.
      levels: float [M + 1], decreasing to 0: the only levels that it knows; None for all of them.
      outputs: output channels for one of the picture; 2 where the network gives variances too, of
        which only the first half is F.
    """

    coefficients: Callable
    lowest: float = 0.0
    highest: float = np.inf
    levels: np.ndarray | None = None
    outputs: int = 1


def _edm(sigma_data: float, levels) -> Preconditioning:
    return Preconditioning(denoisers.edm_coefficients(sigma_data))


def _vp(sigma_data: float, levels) -> Preconditioning:
    ends = processes.vp().at(np.array([1e-5, 1.0]))  # the times that VP trains between
    lowest, highest = ends.sigma / ends.alpha
    return Preconditioning(denoisers.vp_coefficients(), float(lowest), float(highest))


def _ve(sigma_data: float, levels) -> Preconditioning:
    return Preconditioning(denoisers.ve_coefficients(), 0.02, 100.0)


def _iddpm(sigma_data: float, levels) -> Preconditioning:
    levels = _checked(levels)
    coefficients = denoisers.iddpm_coefficients(levels)
    lowest, highest = float(levels[-2]), float(levels[0])
    return Preconditioning(coefficients, lowest, highest, levels, outputs=2)


PRECONDITIONINGS = {"edm": _edm, "vp": _vp, "ve": _ve, "iddpm": _iddpm}


def make(name: str, sigma_data: float, levels=None) -> Preconditioning:
    """Returns the wrapper that config.diffusion.precond names.

    Args:
      sigma_data: standard deviation of the data; of "edm" alone.
      levels: the table of noise levels; of "iddpm" alone.

    Raises:
      UserError: an unknown name, or no such table.
    """
    return choose(name, PRECONDITIONINGS, "config.diffusion.precond")(sigma_data, levels)


def assets(name: str) -> dict[str, np.ndarray]:
    """What a new run of this wrapper keeps beside its weights: {asset's name: array}."""
    return {LEVELS: denoisers.iddpm_levels().astype(np.float32)} if name == "iddpm" else {}


def _checked(levels) -> np.ndarray:
    if levels is None:
        raise UserError(f"the run directory lacks assets/{LEVELS}.npy, which iddpm needs")
    levels = np.asarray(levels)
    if (
        levels.ndim != 1
        or not 3 <= len(levels) <= 100_000
        or levels.dtype.kind != "f"
        or not np.all(np.isfinite(levels))
        or not np.all(np.diff(levels) < 0)
        or levels[-1] != 0
    ):
        raise UserError(f"assets/{LEVELS}.npy: no row of noise levels that decreases to 0")
    return levels.astype(np.float32)
