"""What sample.py may ask of an EDM run: the request, its checks, and the sampler that it names."""

import dataclasses

import numpy as np

from diffjax.core import denoisers, grids, processes, samplers
from diffjax.errors import UserError, choose
from diffjax.run import own_grid
from diffjax.run.system import Problem
from diffjax.systems import images
from diffjax.systems.edm.preconditioning import Preconditioning
from diffjax.systems.images import field

EVERYWHERE = 1e9  # above every noise level; JSON has no infinity


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of the sampler is asked for; the defaults come from the run's config."""

    steps: int = field(18, "sampler steps; heun evaluates the network 2 steps - 1 times")
    sampler: str = field("heun", "heun, euler, ddim, ancestral, relay, dpmpp, dpmpp_sde or unipc")
    guidance: float = field(1.0, "classifier-free guidance scale; 1 is none")
    guidance_min: float = field(0.0, "guide only above this noise level")
    guidance_max: float = field(EVERYWHERE, "guide only up to this noise level")
    rescale: float = field(0.0, "0 .. 1: how far guided contrast goes back to the unguided one")
    autoguide: str = field("", "a run directory whose weights guide: a worse model of the same")
    autoguide_scale: float = field(2.0, "how far away from that model; 1 is none")
    autoguide_step: int = field(-1, "that run's checkpoint of this step; -1: its newest")
    cond: str = field("", "class names or numbers, comma-separated; empty: all classes in turn")
    sigma_min: float = field(0.002, "smallest noise level before 0; what the network knows bounds")
    sigma_max: float = field(80.0, "noise level of the start; what the network knows bounds it")
    grid: str = field("edm", f"Table 1: edm (equation 5), vp, ve, iddpm; {own_grid.HELP}")
    rho: float = field(7.0, "shape of the noise levels of grid edm, equation 5")
    churn: float = field(0.0, "S_churn of Algorithm 2 (heun and euler)")
    s_min: float = field(0.0, "S_min of Algorithm 2: churn only at this noise level or above")
    s_max: float = field(EVERYWHERE, "S_max of Algorithm 2: churn only up to this noise level")
    s_noise: float = field(1.0, "S_noise of Algorithm 2: standard deviation of churn's noise")
    eta: float = field(0.0, "0 deterministic .. 1 all noise new (ddim, relay, dpmpp)")


GRIDS = {
    "edm": lambda n, low, high, rho, u: grids.karras(n, low, high, rho),
    "vp": lambda n, low, high, rho, u: grids.vp(n, *processes.vp_betas(low, high)),
    "ve": lambda n, low, high, rho, u: grids.exponential(n, low, high),
    "iddpm": lambda n, low, high, rho, u: grids.of_levels(n, u, low, high),
}
SAMPLERS = ("heun", "euler", "ddim", "ancestral", "relay", "dpmpp", "dpmpp_sde", "unipc")


def default_request(config) -> Request:
    """The Request with the config's `sampling` for defaults."""
    request = images.default_request(Request, config)
    if request.autoguide:
        raise UserError("config.sampling.autoguide: other runs are named by sample.py's flag alone")
    return request


def check(request: Request, wrapper: Preconditioning) -> None:
    """Raises `UserError` for the first flag that cannot be met, whatever the classes."""
    choose(request.sampler, dict.fromkeys(SAMPLERS), "--sampler")
    if request.steps < 1 or request.steps > 10_000:
        raise UserError(f"--steps {request.steps}: must be from 1 to 10000")
    if not 0 < request.sigma_min < request.sigma_max:
        raise UserError(
            f"--sigma_min {request.sigma_min} must be above 0 and below "
            f"--sigma_max {request.sigma_max}"
        )
    ranges = {
        "rho": (0.1, 1e3),
        "churn": (0.0, 1e6),
        "eta": (0.0, 1.0),
        "s_min": (0.0, EVERYWHERE),
        "s_max": (0.0, EVERYWHERE),
        "s_noise": (0.0, 10.0),
        "guidance": (-1e4, 1e4),
        "guidance_min": (0.0, EVERYWHERE),
        "guidance_max": (0.0, EVERYWHERE),
        "rescale": (0.0, 1.0),
        "autoguide_scale": (-1e4, 1e4),
        "sigma_max": (0.0, EVERYWHERE),
    }
    images.in_range(request, ranges)
    for low, high in ("s_min", "s_max"), ("guidance_min", "guidance_max"):
        below, above = getattr(request, low), getattr(request, high)
        if below > above:
            raise UserError(f"--{low} {below:g} is above --{high} {above:g}")
    noise_levels(request, wrapper)


def noise_levels(request: Request, wrapper: Preconditioning) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([N + 1] levels that end with 0, [N] levels that the steps begin from), float64.

    Algorithm 2, lines 3 to 6, in the released form: the range is cut to what the network was
    trained for, and levels are moved to the nearest that it knows, before churn and after it. Of
    levels that fall together one is kept: a step between equal levels changes nothing (but for the
    noise of churn, which is then put in once).

    Raises:
      UserError: a range in which the network knows nothing, or levels that do not decrease.
    """
    grid = own_grid.read(request.grid)
    if grid is None:
        grid = _scheduled(request, wrapper)
    elif not wrapper.lowest <= grid[-2] < grid[0] * (1 + 1e-9) <= wrapper.highest * (1 + 2e-9):
        raise UserError(
            f"--grid: levels from {grid[0]:.4g} to {grid[-2]:.4g}; the network knows those from "
            f"{wrapper.lowest:.4g} to {wrapper.highest:.4g}"
        )
    known = lambda a: a if wrapper.levels is None else grids.nearest(a, wrapper.levels)
    grid = known(grid)
    hat = known(samplers.churn(grid, request.churn, request.s_min, request.s_max))
    if wrapper.levels is not None:
        apart = np.diff(grid) < 0
        grid, hat = grid[np.append(apart, True)], hat[apart]
    return grid, hat


def _scheduled(request: Request, wrapper: Preconditioning) -> np.ndarray:
    """[N + 1] levels of the schedule that the request names."""
    low = max(request.sigma_min, wrapper.lowest)
    high = min(request.sigma_max, wrapper.highest)
    if low >= high:
        raise UserError(
            f"--sigma_min {request.sigma_min} and --sigma_max {request.sigma_max}: the network "
            f"knows noise levels from {wrapper.lowest:.4g} to {wrapper.highest:.4g}"
        )
    make = choose(request.grid, GRIDS, "--grid")
    table = denoisers.iddpm_levels() if wrapper.levels is None else wrapper.levels
    with np.errstate(invalid="ignore"):  # vp's, of a range that it cannot have
        grid = make(request.steps, low, high, request.rho, table)
    if not np.all(np.diff(grid) < 0):
        raise UserError(f"--grid {request.grid}: no levels that decrease from {high:g} to {low:g}")
    return grid


def solve(request: Request, problem: Problem, hat):
    """Runs the sampler that the request names from x at the grid's first level to x0.

    hat: of `noise_levels`.
    """
    if request.sampler == "ddim":
        return samplers.ddim(*problem.arguments, delta=samplers.posterior(request.eta))
    if request.sampler == "ancestral":
        return samplers.ddim(*problem.arguments, delta=samplers.posterior(1.0))
    if request.sampler == "relay":  # heun with a share of new noise at every level
        return samplers.relay(*problem.arguments, eta=request.eta)
    if request.sampler in ("dpmpp", "dpmpp_sde"):
        eta = 1.0 if request.sampler == "dpmpp_sde" else request.eta
        return samplers.dpmpp(*problem.arguments, eta=eta)
    if request.sampler == "unipc":
        return samplers.unipc(*problem.arguments)
    order = 2 if request.sampler == "heun" else 1
    return samplers.ode(*problem.arguments, hat=hat, s_noise=request.s_noise, order=order)
