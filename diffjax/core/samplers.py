"""Samplers: (denoise, process, grid, x, noise) -> x0.

Two families, both of them "estimate x0, then go to the next level":

    ode    follow the probability-flow ODE dx/dt = velocity(x, E[x0 | x]): Euler, Heun, churn.
           EDM's Algorithms 1 and 2 and all of its Table 1.
    ddim   keep part of the estimated noise and replace the rest by new noise: DDIM, DDPM, Euler
           ancestral, multistep consistency sampling.

What all samplers share:

- `denoise(x, t)` estimates x0 at the process' own time t, a scalar.
- `grid` is a decreasing NumPy array of times (`grids`). Everything that depends on it alone is
  computed in float64 on the host and cast once to x's dtype, so that a float32 state loses nothing
  to the schedule. A new grid is a new compilation; inside, all steps are one `lax.scan`.
- x is the start, of any shape; its scale is the caller's: EDM starts from grid[0] times unit noise.
- `noise(k)` is the k-th draw, of x's shape and of unit variance in the process' colour; k is a
  traced integer. Each sampler says which k a step takes. `draws` makes one from keys.
- `trace=True` returns (x0, Trace).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.processes import Level, Process
from diffjax.errors import UserError

Noise = Callable[[jax.Array], jax.Array]


class Trace(NamedTuple):
    """What a sampler saw: [steps, *x.shape] each.

    x: the state after step i; the last is the result.
    x0: the first estimate of step i, made at grid[i].
    """

    x: jax.Array
    x0: jax.Array


def draws(keys: jax.Array, shape: tuple[int, ...], process: Process, dtype=jnp.float32) -> Noise:
    """The noise port made from one key a sample: sample i does not depend on the rest of the batch.

    Args:
      keys: [B] typed keys.
      shape: of one sample.

    Returns:
      noise(k) -> [B, *shape] of unit variance in the process' colour, for k = 0, 1, ...
    """

    def one(key):
        first, second = (jax.random.normal(q, shape, dtype) for q in jax.random.split(key))
        return process.colour(first, second)

    return lambda k: jax.vmap(lambda key: one(jax.random.fold_in(key, k)))(keys)


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
    grid = _decreasing(grid)
    hat = grid[:-1] if hat is None else np.asarray(hat, np.float64)[: len(grid) - 1]
    if hat.shape != grid[:-1].shape or np.any(hat < grid[:-1]):
        raise UserError("ode: hat must hold one time a step, none below the grid's")
    churned = hat > grid[:-1]
    h = grid[1:] - hat
    now, start, end, probe = (process.at(t) for t in (grid[:-1], hat, grid[1:], hat + alpha * h))
    if churned.any():
        _needs_noise(noise)
        _needs_number(process, now, "churn")
        keep, fresh = _up(now, start)
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

    x, seen = jax.lax.scan(step, jnp.asarray(x), _device(jnp.result_type(x), rows))
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
    levels = np.asarray(grid, np.float64)[:-1]
    gamma = min(s_churn / len(levels), np.sqrt(2) - 1)
    return levels * (1 + np.where((levels >= s_min) & (levels <= s_max), gamma, 0.0))


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

    Song, Meng & Ermon 2021, eq. 12, for any A. If x0 and n are right, x' has the right marginal for
    every delta between 0 and sigma', provided std = delta. No noise enters a level with sigma' = 0,
    and there x' = A(0) x0 = x0 itself. N evaluations; with `correct`, 2N - 1.

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
      UserError: a grid that does not decrease, noise missing.
    """
    grid = _decreasing(grid)
    now, end = process.at(grid[:-1]), process.at(grid[1:])
    noisy = end.sigma > 0
    removed = np.where(noisy, delta(now, end), 0.0)
    added = removed if std is None else np.where(noisy, std(now, end), 0.0)
    if added.any():
        _needs_noise(noise)
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

    x, seen = jax.lax.scan(step, jnp.asarray(x), _device(jnp.result_type(x), rows))
    return (x, seen) if trace else x


def posterior(eta: float = 1.0) -> Callable:
    """delta = eta (sigma'/sigma) sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2), at most sigma'.

    eta times the standard deviation of q(x' | x, x0): 0 is DDIM, 1 is DDPM's ancestral sampling
    with the smaller variance (Song, Meng & Ermon 2021, eq. 16); on edm it is Euler ancestral.
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
    return _up(end, now)[1]


def fresh(eta: float) -> Callable:
    """delta = eta sigma': a fixed share of the noise is new at every level.

    Relay diffusion's sampler (Teng et al. 2023); eta = 1 keeps none of the estimated noise:
    multistep consistency sampling (Song et al. 2023, Algorithm 1). Works for any A. 0 <= eta <= 1.
    """
    return lambda now, end: eta * end.sigma


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


def _decreasing(grid) -> np.ndarray:
    grid = np.asarray(grid, np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid) < 0):
        raise UserError("sampler: the grid must be one row of at least two decreasing times")
    return grid


def _needs_noise(noise) -> None:
    if noise is None:
        raise UserError("sampler: these settings draw noise: pass noise=draws(keys, shape, ...)")


def _needs_number(process: Process, level: Level, what: str) -> None:
    if np.ndim(level.alpha) > np.ndim(level.sigma):
        raise UserError(f"sampler: {what} needs a process whose alpha is a number")


def _up(low: Level, high: Level):
    """(c, s) with x_high = c x_low + s z of the right marginal, from less noise to more."""
    c = high.alpha / low.alpha
    return c, np.sqrt(np.maximum(high.sigma**2 - c**2 * low.sigma**2, 0.0))


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


def _device(dtype, rows):
    """A table's host arrays as jax arrays: floats in the state's dtype, cast once."""
    cast = lambda a: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None)
    return jax.tree.map(cast, rows)
