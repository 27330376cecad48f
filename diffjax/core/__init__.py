"""What a diffusion is: the whole of it, as pure functions of arrays.

    x_t = A(t) x0 + sigma(t) n         a process adds noise to data
    E[x0 | x_t]                        a denoiser is the best guess at what was there
    min w(t) |denoise(x_t, t) - x0|^2  so a network learns it, by regression
    dx/dt = A'(t) x0 + sigma'(t) n     with the guess for x0, the way back from noise to data
    x' = A' x0 + sigma' n              or, step by step: guess, then go to a little less noise

That is all. Each word is a file, and each file can be read alone:

    processes   A(t), sigma(t): edm, vp, ve, flow, discrete, scaled, blurred. `Process.at(t)` is a
                `Level` (t, alpha, sigma), and the other files are written with levels: none of them
                asks which process it is on.
    denoisers   a network's output becomes an estimate of x0: it may predict the noise, v, the
                velocity, x0, or EDM's preconditioned mixture.
    objectives  at which t a network is trained, and how much each t counts.
    ema         the average of the parameters over training, which is what one samples with.
    grids       the decreasing times that a sampler visits.
    samplers    from noise to data: `ode` (Euler, Heun, churn), `ddim` (DDIM, DDPM, ancestral,
                consistency models), and with a memory `dpmpp` and `unipc`.
    patches     what a process that blurs is made of: the DCT of patches, block noise.
    guidance    a denoiser changed on the way: guidance of several kinds, clipping, in-painting.

The same in ten lines, with no network: the best guess for a finite set of points is their mean,
weighted by how well each explains x.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax.core import grids, processes, samplers
    >>> points = jnp.array([[-1.0, 0.0], [1.0, 0.5]])
    >>> def denoise(x, sigma):
    ...     squares = ((x[:, None] - points) ** 2).sum(-1)
    ...     return jax.nn.softmax(-squares / (2 * sigma**2)) @ points
    >>> grid = grids.karras(18)
    >>> start = grid[0] * jax.random.normal(jax.random.key(0), (1000, 2))
    >>> x = samplers.ode(denoise, processes.edm(), grid, start)
    >>> bool(jnp.abs(x[:, None] - points).sum(-1).min(1).max() < 1e-3)  # every sample is a point
    True

Conventions. Time t is the process' own, and 0 is clean. `sigma` is the noise's standard deviation
in x_t; EDM's sigma is sigma/alpha, called the ratio. There is no batch axis in the formulas: t is a
scalar, or an array that broadcasts against x (one time a picture is [B, 1, 1, 1]). What depends on
the schedule alone is float64 NumPy; states are jax arrays, usually float32. Every random number
comes from a key, or through a `noise(k)` port, that the caller passes in. What a caller can get
wrong raises `diffjax.errors.UserError`.

Imports: jax, numpy, scipy and `diffjax.errors`. The core knows no network, no data and no file.
"""

from diffjax.core import (
    denoisers,
    ema,
    grids,
    guidance,
    objectives,
    patches,
    processes,
    samplers,
)

__all__ = [
    "denoisers",
    "ema",
    "grids",
    "guidance",
    "objectives",
    "patches",
    "processes",
    "samplers",
]
