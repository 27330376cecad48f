"""Multistep samplers: remember the last estimates of x0 and extrapolate. DPM-Solver++ and UniPC.

On every process whose alpha is a number the probability-flow ODE, written in
lambda = ln(alpha/sigma), has the exact solution

    x' = (sigma'/sigma) x + alpha' e^{-lambda'} int_lambda^lambda' e^l x0(l) dl

(Lu et al. 2022b, DPM-Solver++, arXiv 2211.01095), where x0(l) is the estimate along the path. With
x0 constant over the step it is DDIM; a polynomial through the estimates of former steps gives a
higher order at one evaluation a step. All weights depend on the grid alone: they are float64 NumPy,
one row a step.

lambda is -inf where alpha = 0 (flow at t = 1) and inf where sigma = 0. The first step from the one
is DDIM's, and so is the step to the other, which returns alpha' x0 = x0; neither is remembered as a
distance.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.processes import Process
from diffjax.core.samplers import common
from diffjax.core.samplers.common import Noise, Trace
from diffjax.errors import UserError


def dpmpp(
    denoise: Callable,
    process: Process,
    grid,
    x,
    noise: Noise | None = None,
    *,
    order: int = 2,
    eta: float = 0.0,
    variant: str = "midpoint",
    s_noise: float = 1.0,
    trace: bool = False,
):
    """DPM-Solver++: a straight line through the last two estimates. "2M", with eta "2M SDE".

    With h = lambda' - lambda, q = (1 + eta) h, r = (the h before)/h and D the estimate:

        x' = (sigma'/sigma) e^{-eta h} x + alpha' (1 - e^{-q}) D
             + alpha' c (D - D before) + sigma' sqrt(1 - e^{-2 eta h}) s_noise z
        c  = (1 - e^{-q})/(2 r)          midpoint
             (1 - (1 - e^{-q})/q)/r      heun: the integral of the line itself
             0                           order 1, the first step, and where sigma' = 0

    Lu et al. 2022b: Algorithm 2 is eta = 0 with midpoint, of second order; the stochastic form is
    theirs at eta = 1, and the two variants and eta in between are k-diffusion's. Order 1 is DDIM at
    eta = 0 and DDPM (`ddim` with posterior(1)) at eta = 1; with eta between it is another family
    than DDIM's. A step to sigma = 0 returns the estimate itself. N evaluations.

    Args:
      denoise, process, grid, x, noise: see the package. Step i takes draw i, unless it goes to
        sigma = 0. Not called where eta = 0. The process needs an alpha that is a number.
      order: 1 or 2.
      eta: 0 deterministic .. 1 the reverse SDE of the process; larger puts in more noise.
      variant: "midpoint" or "heun".
      s_noise: the standard deviation of the noise put in.

    Returns:
      x0 of x's shape and dtype; with trace, (x0, Trace).

    Raises:
      UserError: a grid that does not decrease, an unknown order or variant, noise missing, a
        process whose alpha is not a number.
    """
    if order not in (1, 2) or variant not in ("midpoint", "heun") or eta < 0:
        raise UserError(
            f"dpmpp: order {order}, variant {variant!r}, eta {eta}: order is 1 or 2, variant "
            "midpoint or heun, eta at least 0"
        )
    grid = common.decreasing(grid)
    if eta:
        common.needs_noise(noise)
    now, end, h = _steps(process, grid, "dpmpp")
    gain = -np.expm1(-(1 + eta) * h)  # 1 - e^{-q}, which is 1 for an infinite h
    line = np.zeros_like(h)
    if order == 2:
        inner = np.isfinite(h[1:])  # an infinite step before makes r infinite and the line level
        q, ratio = (1 + eta) * h[1:][inner], h[:-1][inner] / h[1:][inner]
        g = gain[1:][inner]
        line[1:][inner] = (g / 2 if variant == "midpoint" else 1 - g / q) / ratio
    rows = {
        "k": np.arange(len(h)),
        "t": now.t,
        "keep": end.sigma / now.sigma * np.exp(-eta * h) if eta else end.sigma / now.sigma,
        "gain": end.alpha * gain,
        "line": end.alpha * line,
        "std": s_noise * end.sigma * np.sqrt(-np.expm1(-2 * eta * h)) if eta else np.zeros_like(h),
        "noisy": (end.sigma > 0) & (eta > 0),
    }

    def step(carry, row):
        x, before = carry
        x0 = denoise(x, row["t"]).astype(x.dtype)
        x = row["keep"] * x + row["gain"] * x0 + row["line"] * (x0 - before)
        if eta:
            add = lambda x: x + row["std"] * noise(row["k"]).astype(x.dtype)
            x = jax.lax.cond(row["noisy"], add, lambda x: x, x)
        return (x, x0), (Trace(x, x0) if trace else None)

    x = jnp.asarray(x)
    rows = common.on_device(x.dtype, rows)
    (x, _), seen = jax.lax.scan(step, (x, jnp.zeros_like(x)), rows)
    return (x, seen) if trace else x


def unipc(
    denoise: Callable,
    process: Process,
    grid,
    x,
    noise: Noise | None = None,
    *,
    order: int = 3,
    variant: str = "bh2",
    lower_order_final: bool = True,
    trace: bool = False,
):
    """UniPC: predict with the last p estimates, evaluate there, correct with that one too.

    With H = -(lambda' - lambda), D the estimate at this level and D_m the one m steps before, at
    r_m = (lambda_m - lambda)/(lambda' - lambda) < 0, and D' the estimate at the predicted point:

        base = (sigma'/sigma) x - alpha' (e^H - 1) D
        x'   = base - alpha' B(h) sum_{m<p} rho_m (D_m - D)/r_m                        predictor
        x'   = base - alpha' B(h) (sum_{m<p} rho_m (D_m - D)/r_m + rho_p (D' - D))     corrector

    where the rho solve a Vandermonde system (`_rho`). The next step takes D' as its D, although the
    corrector has moved x' since: so N steps cost N evaluations. Zhao et al. 2023 (arXiv
    2302.04867), with data prediction.

    A corrected step of order p has an error of h^{p+2}, so the method is of order p + 1: 2, 3, and
    for p = 3 nearly 4, as the first step of the warm-up (p = 1, 2, ...) is of order 2 and counts
    little at high noise. The last step has no D' to correct with; with `lower_order_final` it is
    of order 1, the one before of order 2, ... and the whole of second order in the limit. That
    shows where a grid ends early; at a low level the last steps hardly move x.

    Args:
      denoise, process, grid, x: see the package. The process needs an alpha that is a number. A
        step to sigma = 0 returns the last estimate itself.
      noise: not used; here so that all samplers are called alike.
      order: p, 1 or more; 2 under guidance and 3 without are the authors' advice.
      variant: B(h) is "bh1": H, or "bh2": e^H - 1.
      lower_order_final: whether the order falls to 1 towards the end.

    Returns:
      x0 of x's shape and dtype; with trace, (x0, Trace).

    Raises:
      UserError: a grid that does not decrease, an unknown order or variant, a process whose alpha
        is not a number.
    """
    if order != int(order) or order < 1 or variant not in ("bh1", "bh2"):
        raise UserError(
            f"unipc: order {order}, variant {variant!r}: order is a whole number >= 1, variant bh1 "
            "or bh2"
        )
    grid = common.decreasing(grid)
    now, end, h = _steps(process, grid, "unipc")
    with np.errstate(divide="ignore"):
        lam = np.log(now.alpha / now.sigma)
    n, width = len(h), min(order, len(h))
    predict, correct, fresh = np.zeros((n, width)), np.zeros((n, width)), np.zeros(n)
    for i in range(n):
        # A step from or to infinity has no distances to interpolate over, and from -inf none
        # behind it either: what was seen at alpha = 0 lies infinitely far back.
        known = int(np.isfinite(lam[: i + 1]).sum())
        p = min(order, known, n - i if lower_order_final else n)
        predict[i, 0] = correct[i, 0] = -np.expm1(-h[i])
        if not np.isfinite(h[i]):
            continue
        r = (lam[i - np.arange(1, p)] - lam[i]) / h[i]
        b = -h[i] if variant == "bh1" else np.expm1(-h[i])
        for weights, rho in [
            (predict, _rho(r, -h[i], b)),
            (correct, _rho(np.append(r, 1.0), -h[i], b)),
        ]:
            # -B sum rho_m (D_m - D)/r_m, gathered by estimate.
            weights[i, 1:p] = -b * rho[: p - 1] / r
            weights[i, 0] += b * (rho[: p - 1] / r).sum()
        fresh[i] = -b * rho[-1]
        correct[i, 0] -= fresh[i]
    # Row i corrects the step that has led to x_i and predicts the next: one evaluation in the loop.
    back = lambda a, first: np.concatenate([[first], a[:-1]])
    rows = {
        "t": now.t,
        "fresh": back(end.alpha * fresh, 0.0),
        "keep": end.sigma / now.sigma,
        "predict": end.alpha[:, None] * predict,
        "correct": end.alpha[:, None] * correct,
    }

    def step(carry, row):
        guess, partial, past = carry
        x0 = denoise(guess, row["t"]).astype(guess.dtype)
        x = partial + row["fresh"] * x0
        past = jnp.concatenate([x0[None], past[:-1]])
        ahead = lambda weights: row["keep"] * x + jnp.tensordot(weights, past, 1)
        guess = ahead(row["predict"])
        return (guess, ahead(row["correct"]), past), (Trace(guess, x0) if trace else None)

    x = jnp.asarray(x)
    past = jnp.zeros((width, *x.shape), x.dtype)
    rows = common.on_device(x.dtype, rows)
    (x, _, _), seen = jax.lax.scan(step, (x, x, past), rows)
    return (x, seen) if trace else x


def _rho(r: np.ndarray, h: float, b: float) -> np.ndarray:
    """[p] float64: the weights rho with sum_m r_m^{i-1} rho_m = b_i, i = 1..p.

    b_i = i! phi_{i+1}(H)/B, where phi_1 = e^H - 1 over H and phi_{i+1} = (phi_i - 1/i!)/H. One
    unknown is 1/2 instead of the solution, as Zhao et al. have it: the same order, and independent
    of the step. h is H, b is B(h).
    """
    p = len(r)
    if p < 2:
        return np.full(p, 0.5)
    phi, factorial, right = np.expm1(h) / h - 1, 1.0, []
    for i in range(1, p + 1):
        right.append(phi * factorial / b)
        factorial *= i + 1
        phi = phi / h - 1 / factorial
    return np.linalg.solve(np.vander(r, p, increasing=True).T, right)


def _steps(process: Process, grid: np.ndarray, what: str):
    """(level, next level, h): h [N] = lambda' - lambda, inf where a step leaves alpha = 0 or ends
    in sigma = 0."""
    now, end = process.at(grid[:-1]), process.at(grid[1:])
    common.needs_number(process, now, what)
    with np.errstate(divide="ignore"):
        # One logarithm of the product, not a difference of two: -inf and inf never meet.
        h = np.log(end.alpha * now.sigma) - np.log(now.alpha * end.sigma)
    return now, end, h
