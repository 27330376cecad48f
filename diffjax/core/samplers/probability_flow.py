"""The probability-flow ODE: Euler, Heun, churn. EDM's Algorithms 1 and 2 and all of its Table 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.processes import Process
from diffjax.core.samplers import common
from diffjax.core.samplers.common import Noise, Trace
from diffjax.errors import UserError


def ode(
    denoise: Callable,
    process: Process,
    grid,
    x,
    noise: Noise | None = None,
    *,
    hat=None,
    s_noise: float = 1.0,
    order: int = 2,
    alpha: float = 1.0,
    tell_hat: bool = True,
    trace: bool = False,
):
    """Euler's or Heun's method on dx/dt = process.velocity(x, denoise(x, t)), in the process' time.

    A step from t to t' (Karras et al. 2022, Algorithm 2; with alpha, Algorithm 3):

        t^ = hat[i];  x^ = x with noise added up to t^                     churn, only where t^ > t
        d  = velocity(x^, denoise(x^, t^));  h = t' - t^
        x' = x^ + h d                                                      order 1, or sigma(t') = 0
        d' = velocity(x^ + alpha h d, denoise(.., t^ + alpha h))
        x' = x^ + h ((1 - 1/(2 alpha)) d + 1/(2 alpha) d')                 order 2

    N steps down to 0 cost N evaluations at order 1 and 2N - 1 at order 2. Where the path of the
    last step is straight (edm, flow), Euler's step to sigma = 0 lands on the estimate of x0, and
    that is returned as it is.

    Args:
      denoise, process, grid, x, noise: see the module. Step i takes draw i, if it is churned.
      hat: [N] times t^ >= t that the steps begin from (`churn`), or None for none.
      s_noise: the standard deviation of the churned noise.
      order: 1 is Euler; 2 is Heun and its relatives.
      alpha: where the second evaluation is made: 1 Heun, 1/2 midpoint, 2/3 Ralston.
      tell_hat: whether the denoiser is told t^. DIAMOND's released sampler tells it t, while still
        stepping from t^ (Alonso et al. 2024).

    Returns:
      x0 of x's shape and dtype; with trace, (x0, Trace).

    Raises:
      UserError: a grid that does not decrease, an unknown order, churn without noise or on a
        process whose alpha is not a number.
    """
    if order not in (1, 2) or not 0 < alpha <= 1:
        raise UserError(f"ode: order {order} and alpha {alpha}: order is 1 or 2, 0 < alpha <= 1")
    grid = common.decreasing(grid)
    hat = grid[:-1] if hat is None else np.asarray(hat, np.float64)[: len(grid) - 1]
    if hat.shape != grid[:-1].shape or np.any(hat < grid[:-1]):
        raise UserError("ode: hat must hold one time a step, none below the grid's")
    churned = hat > grid[:-1]
    h = grid[1:] - hat
    now, start, end, probe = (process.at(t) for t in (grid[:-1], hat, grid[1:], hat + alpha * h))
    if churned.any():
        common.needs_noise(noise)
        common.needs_number(process, now, "churn")
        keep, fresh = common.up(now, start)
    else:
        keep, fresh = np.ones_like(h), np.zeros_like(h)
    rows = {
        "k": np.arange(len(h)),
        "told": hat if tell_hat else grid[:-1],
        "churned": churned,
        "keep": keep,
        "fresh": s_noise * fresh,
        "start": start,
        "h": h,
        "probe": probe,
        "second": end.sigma > 0,
        "lands": _straight_to_zero(process, hat, grid),
    }

    def step(x, row):
        if churned.any():
            # Skipped, not multiplied by one: a step without churn keeps x to the last bit.
            add = lambda x: row["keep"] * x + row["fresh"] * noise(row["k"]).astype(x.dtype)
            x = jax.lax.cond(row["churned"], add, lambda x: x, x)
        x0 = denoise(x, row["told"]).astype(x.dtype)
        d = process.velocity(x, x0, row["start"])

        def euler():
            return jnp.where(row["lands"], x0, x + row["h"] * d)

        def heun():
            x1 = x + alpha * row["h"] * d
            d1 = process.velocity(x1, denoise(x1, row["probe"].t).astype(x.dtype), row["probe"])
            return x + row["h"] * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d1)

        # A cond, so that the last step does not pay for an evaluation that it cannot use.
        x = euler() if order == 1 else jax.lax.cond(row["second"], heun, euler)
        return x, (Trace(x, x0) if trace else None)

    x, seen = jax.lax.scan(step, jnp.asarray(x), common.on_device(jnp.result_type(x), rows))
    return (x, seen) if trace else x


def churn(grid, s_churn: float, s_min: float = 0.0, s_max: float = np.inf) -> np.ndarray:
    """EDM's hatted times: t^ = t (1 + gamma), gamma = min(s_churn/N, sqrt(2) - 1).

    Only where s_min <= t <= s_max, else t^ = t. Karras et al. 2022, Algorithm 2, lines 4-6. These
    are noise levels, so on a process other than edm: hat = process.t_of(churn(levels, ...)), where
    levels are the grid's sigma/alpha.

    Args:
      grid: [N + 1] decreasing levels, the last 0.

    Returns:
      [N] float64: the level that each step starts from, `hat` of `ode`.
    """
    if not s_churn >= 0:
        raise UserError(f"churn: s_churn {s_churn} must be 0 or more")
    levels = np.asarray(grid, np.float64)[:-1]
    gamma = min(s_churn / len(levels), np.sqrt(2) - 1)
    return levels * (1 + np.where((levels >= s_min) & (levels <= s_max), gamma, 0.0))


def _straight_to_zero(process: Process, hat, grid) -> np.ndarray:
    """[N] bool: the last entry says whether the last step goes straight to sigma = 0 and A = 1.

    Straight: the level midway in time is the mean of the two ends.
    """
    # vp with a narrow range of levels has no real sigma between its last time and 0: not straight.
    with np.errstate(invalid="ignore"):
        a, m, b = (process.at(t) for t in (hat[-1], (hat[-1] + grid[-1]) / 2, grid[-1]))
    middle = lambda f: np.allclose(f(m), (f(a) + f(b)) / 2, rtol=1e-9, atol=0)
    straight = middle(lambda v: v.alpha) and middle(lambda v: v.sigma)
    lands = b.sigma == 0 and np.all(b.alpha == 1) and straight
    return np.append(np.zeros(len(hat) - 1, bool), lands)
