"""Samplers: (denoise, process, grid, x, noise) -> x0.

Two families, both of them "estimate x0, then go to the next level", and a third that remembers:

    ode    follow the probability-flow ODE dx/dt = velocity(x, E[x0 | x]): Euler, Heun, churn.
           EDM's Algorithms 1 and 2 and all of its Table 1.                     `probability_flow`
    ddim   keep part of the estimated noise and replace the rest by new noise: DDIM, DDPM, Euler
           ancestral, multistep consistency sampling; `relay` with a corrector.          `renoise`
    dpmpp  DPM-Solver++ (1, 2M and 2M-SDE): a straight line through the last two estimates.
    unipc  UniPC: a polynomial through the last ones, corrected by the next.           `multistep`

What all samplers share:

- `denoise(x, t)` estimates x0 at the process' own time t, a scalar.
- `grid` is a decreasing NumPy array of times (`grids`). Everything that depends on it alone is
  computed in float64 on the host and cast once to x's dtype, so that a float32 state loses nothing
  to the schedule. A new grid is a new compilation; inside, all steps are one `lax.scan`.
- x is the start, of any shape; its scale is the caller's: EDM starts from grid[0] times unit noise.
- `noise(k)` is the k-th draw, of x's shape and of unit variance in the process' colour; k is a
  traced integer. Each sampler says which k a step takes. `draws` makes one from keys.
- `trace=True` returns (x0, Trace).

One step is any of them on a grid of two times: `grids.karras(1)` is [sigma_max, 0], and the result
is the first estimate itself.
"""

from diffjax.core.samplers.common import Noise, Trace, draws
from diffjax.core.samplers.multistep import dpmpp, unipc
from diffjax.core.samplers.probability_flow import churn, ode
from diffjax.core.samplers.renoise import (
    ddim,
    fresh,
    mean_estimate,
    mean_slope,
    posterior,
    relay,
    transition,
)

__all__ = [
    "Noise",
    "Trace",
    "churn",
    "ddim",
    "dpmpp",
    "draws",
    "fresh",
    "mean_estimate",
    "mean_slope",
    "ode",
    "posterior",
    "relay",
    "transition",
    "unipc",
]
