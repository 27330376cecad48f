"""Estimate x0, then noise it to the next level: DDIM, DDPM, Euler ancestral, consistency models."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.processes import Level, Process
from diffjax.core.samplers import common
from diffjax.core.samplers.common import Noise, Trace
from diffjax.errors import UserError


def ddim(
    denoise: Callable,
    process: Process,
    grid,
    x,
    noise: Noise | None = None,
    *,
    delta: Callable,
    std: Callable | None = None,
    correct: Callable | None = None,
    trace: bool = False,
):
    """Estimate x0 and its noise, then perturb x0 to the next level with part of that noise.

        x0 = denoise(x, t);   n = (x - A x0)/sigma
        x' = A' x0 + sqrt(sigma'^2 - delta^2) n + std z

    Song et al. 2021a, eq. 12, for any A. If x0 and n are right, x' has the right marginal for
    every delta between 0 and sigma', provided std = delta. No noise enters a level with sigma' = 0,
    and there x' = A(0) x0 = x0 itself. N evaluations; with `correct`, 2N - 1.

    With delta = 0 an increasing grid runs it backwards: a picture is encoded as the noise that
    `ddim` would decode to it, up to the error of the steps (their section 4.3). Such a grid
    starts above sigma = 0, and takes the picture for an x of that level.

    Args:
      denoise, process, grid, x, noise: see the module. Step i takes draw i; with `correct`, draw 2i
        for the first try and 2i + 1 for the corrected step. Not called where std is 0 everywhere.
      delta: (Level, next Level) -> how much noise is replaced, float64 NumPy: `posterior(eta)` is
        DDIM(eta), DDPM and Euler ancestral; `fresh(eta)` a fixed share of what is there.
      std: the same for the noise put in; default delta. `transition` with posterior(1) is DDPM with
        its larger variance.
      correct: (x, x0, x1, x0 at x1, Level, next Level) -> a better x0, made after a first try of
        the step has reached x1; the step is then taken again from x. `mean_estimate` or
        `mean_slope`. Not on the last step, if it goes to sigma = 0.

    Returns:
      x0 of x's shape and dtype; with trace, (x0, Trace).

    Raises:
      UserError: a grid that does not decrease (or increase, with delta = 0), noise missing.
    """
    grid = common.decreasing(grid, or_increasing=True)
    now, end = process.at(grid[:-1]), process.at(grid[1:])
    noisy = end.sigma > 0
    removed = np.where(noisy, delta(now, end), 0.0)
    added = removed if std is None else np.where(noisy, std(now, end), 0.0)
    if grid[0] < grid[-1] and (removed.any() or added.any() or now.sigma[0] == 0):
        raise UserError("ddim: an increasing grid encodes: it needs delta = 0 and a start above 0")
    if added.any():
        common.needs_noise(noise)
    kept = end._replace(sigma=np.sqrt(np.maximum(end.sigma**2 - removed**2, 0.0)))
    k = np.arange(len(removed)) * (1 if correct is None else 2)
    rows = {"k": k, "now": now, "end": end, "kept": kept, "std": added, "noisy": noisy}

    def step(x, row):
        def move(x0, k):
            x1 = process.perturb(x0, process.noise(x, x0, row["now"]), row["kept"])
            return x1 + row["std"] * noise(k).astype(x.dtype) if added.any() else x1

        x0 = denoise(x, row["now"].t).astype(x.dtype)
        x1 = move(x0, row["k"])

        def corrected():
            again = denoise(x1, row["end"].t).astype(x.dtype)
            better = correct(x, x0, x1, again, row["now"], row["end"])
            return move(better, row["k"] + 1)

        if correct is not None:
            x1 = jax.lax.cond(row["noisy"], corrected, lambda: x1)
        return x1, (Trace(x1, x0) if trace else None)

    x, seen = jax.lax.scan(step, jnp.asarray(x), common.on_device(jnp.result_type(x), rows))
    return (x, seen) if trace else x


def posterior(eta: float = 1.0) -> Callable:
    """delta = eta (sigma'/sigma) sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2), at most sigma'.

    eta times the standard deviation of q(x' | x, x0): 0 is DDIM, 1 is DDPM's ancestral sampling
    with the smaller variance (Song et al. 2021a, eq. 16); on edm it is Euler ancestral.
    """

    def delta(now: Level, end: Level):
        return np.minimum(eta * end.sigma / now.sigma * transition(now, end), end.sigma)

    return delta


def transition(now: Level, end: Level) -> np.ndarray:
    """sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2): the standard deviation of q(x | x').

    On `discrete`, sqrt(beta): DDPM's larger variance ("fixed large", Ho et al. 2020, section 3.2).
    """
    if np.ndim(now.alpha) > np.ndim(now.sigma):
        raise UserError("posterior, transition: need a process whose alpha is a number; use fresh")
    return common.up(end, now)[1]


def fresh(eta: float, floor: float = 0.0) -> Callable:
    """delta = eta sqrt(sigma'^2 - floor^2): a fixed share of the noise is new at every level.

    Relay diffusion's sampler (Teng et al. 2023). Works for any A. 0 <= eta <= 1.

    eta = 1 keeps none of the estimated noise: multistep consistency sampling (Song et al. 2023,
    Algorithm 1). Their model returns data at its smallest level, not at 0, so less noise goes in:

        grid = grids.karras(40)[[0, 22, 39]]      # of 40 levels down to 0.002, three; two steps
        ddim(..., grid, x, noise, delta=fresh(1.0), std=fresh(1.0, floor=0.002))
    """
    return lambda now, end: eta * np.sqrt(np.maximum(end.sigma**2 - floor**2, 0.0))


def relay(
    denoise: Callable,
    process: Process,
    grid,
    x,
    noise: Noise | None = None,
    *,
    eta: float = 0.2,
    second_order: bool = False,
    trace: bool = False,
):
    """Relay diffusion's sampler: `ddim` with `fresh(eta)` noise, each step taken a second time.

    Teng et al. 2023, Algorithm 1 and the released code. With g = sqrt(1 - eta^2) sigma'/sigma, a
    step is

        x0 = D(x, t)
        x1 = g x + (A' - g A) x0 + eta sigma' z                     a first try
        x0~ from x0 and x0' = D(x1, t'): `mean_slope`, or with second_order `mean_estimate`
        x' = g x + (A' - g A) x0~ + eta sigma' z'                   from x again, with new noise

    and the last, to sigma = 0, returns D(x, t) itself: 2N - 1 evaluations for N steps.

    Order, for eta = 0: 2 where A does not change (edm; there it is Heun's method). Where it does,
    as under blur, 1 as released and 2 with second_order. Measured with the exact flow of a
    Gaussian, coefficient (1, 1) of a 4x4 patch, from sigma 0.9 to 0.05: in 64 and 512 steps the
    relative error is 1.5e-2 and 1.9e-3 as released, 1.9e-3 and 3.0e-5 with second_order.

    Not to be confused with EDM's churn, which adds noise before a step, or with Euler ancestral
    (`posterior`), whose share of new noise depends on the step.

    Args:
      denoise, process, grid, x, noise: see the module. x is the start at the grid's first level:
        the upsampled picture + grid[0] times noise. Step i takes draws 2i and 2i + 1.
      eta: share of the noise that is new at each level, 0 <= eta <= 1.
      second_order: average the estimates and not the slopes.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"relay: eta {eta} must be from 0 to 1")
    correct = mean_estimate if second_order else mean_slope
    return ddim(denoise, process, grid, x, noise, delta=fresh(eta), correct=correct, trace=trace)


def mean_estimate(x, x0, x1, x0_again, now: Level, end: Level):
    """(x0 + x0')/2: a corrector of second order on every process."""
    return (x0 + x0_again) / 2


def mean_slope(x, x0, x1, x0_again, now: Level, end: Level):
    """The x0 that belongs to the mean of the slopes (x - x0)/sigma and (x1 - x0')/sigma'.

    On edm with delta = 0 this is Heun's method. Where A changes from step to step (vp, blur) it is
    only first order: the slopes then hold A's change as well as the noise. Relay diffusion's
    released sampler (Teng et al. 2023).
    """
    return x - now.sigma * ((x - x0) / now.sigma + (x1 - x0_again) / end.sigma) / 2
