"""A one-step generator in two steps or more, without training for it.

Lin et al. 2025a, find that two steps are better than one and more are worse, and do not
say how they take them. Here, on the process flow:

    consistency  x = G(z_0);  then x_t = (1 - t_k) x + t_k z_k and x = f(x_t, t_k)   (Song et al.
                 2023, Algorithm 1): `samplers.ddim` with all of the noise new
    ode          Euler's method on the velocity: no new noise
"""

from collections.abc import Callable

from diffjax.core import processes, samplers
from diffjax.errors import choose

MODES = {
    "consistency": lambda *args, **named: samplers.ddim(*args, delta=samplers.fresh(1.0), **named),
    "ode": lambda *args, **named: samplers.ode(*args[:4], order=1, **named),
}


def sample(denoise: Callable, grid, z, noise=None, mode: str = "consistency", trace: bool = False):
    """x0 of z's shape and dtype, in len(grid) - 1 calls of the network.

    Args:
      denoise: f(x, t) = x - t v(x, t), the estimate of x0 on the process flow, condition bound.
      grid: decreasing from 1 (or the base's last time) to 0: `timesteps.trailing`.
      z: the start, float [B, ...].
      noise: k -> the k-th draw; step k >= 1 begins from draw k - 1. Not needed for one step.
      mode: "consistency" or "ode".
      trace: also return the core's `Trace`, whose x0 are the estimates of all steps.

    Raises:
      UserError: another mode, a grid that does not decrease, noise missing.
    """
    run = choose(mode, MODES, "sampling in a few steps:")
    return run(denoise, processes.flow(), grid, z, noise, trace=trace)
