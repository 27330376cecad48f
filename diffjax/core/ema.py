"""Exponential moving averages of parameters: e <- e + (1 - beta)(p - e).

One update, and rules that say what 1 - beta is at each step. 1 - beta carries the information (of
1 - 0.99993 float32 keeps three digits), so rules return it directly, without a float32 subtraction
from one.

A rule is a function of n, the number of updates completed before this one (0 at the first): an
integer or a traced integer array. It returns a float scalar in [0, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError

Rule = Callable[[jax.Array], jax.Array]


def update(ema, params, one_minus_beta):
    """e + (1 - beta)(p - e), leaf by leaf, in the dtype of the average.

    Written so that an average equal to the parameters stays equal. ema, params: trees of one
    structure; apply it after the optimiser's step.
    """
    step = lambda e, p: (e + one_minus_beta * (p - e)).astype(e.dtype)
    return jax.tree.map(step, ema, params)


def _fraction(decay: float) -> None:
    if not 0 <= decay <= 1:
        raise UserError(f"ema: decay {decay} must be in [0, 1]")


def constant(decay: float) -> Rule:
    """1 - beta = 1 - decay, always. 0 <= decay <= 1."""
    _fraction(decay)
    return lambda n: jnp.asarray(1 - decay, float)


def warmup(max_decay: float) -> Rule:
    """beta = min(max_decay, (1 + n)/(10 + n)): short memory first.

    The "num_updates" rule of TensorFlow's ExponentialMovingAverage. 1 - beta = max(1 - max_decay,
    9/(10 + n)). 0 <= max_decay <= 1.
    """
    _fraction(max_decay)
    return lambda n: jnp.maximum(1 - max_decay, 9 / (10 + jnp.asarray(n, float)))


def inverse_power(
    max_decay: float = 1.0, min_decay: float = 0.0, inv_gamma: float = 1.0, power: float = 2 / 3
) -> Rule:
    """beta = 1 - (1 + n/inv_gamma)^-power, clipped: k-diffusion's EMAWarmup.

    power 2/3 suits runs of a million steps, 3/4 shorter ones (its docstring).
    """

    def rule(n):
        return jnp.clip(
            (1 + jnp.asarray(n, float) / inv_gamma) ** -power, 1 - max_decay, 1 - min_decay
        )

    return rule


def half_life(images: float, batch: int, ramp: float | None = 0.05) -> Rule:
    """beta = 0.5^(batch/h), h = min(images, ramp * images seen so far): EDM's training loop.

    Karras et al. 2022, released training loop. Images seen are n * batch; EDM2's counts them after
    the step (with ramp 0.09), which is this rule at n + 1. At n = 0 beta is 0: the average starts
    as the parameters.

    Args:
      images: half-life in images (EDM's default 500,000).
      batch: images a step.
      ramp: half-life as a fraction of the images seen, at most; None for a constant half-life.
    """

    def rule(n):
        seen = jnp.asarray(n, float) * batch
        h = images if ramp is None else jnp.minimum(images, ramp * seen)
        return -jnp.expm1(-np.log(2) * batch / jnp.maximum(h, 1e-8))

    return rule


def power(exponent: float) -> Rule:
    """beta = (1 - 1/(n + 1))^(exponent + 1): the average weighs the past as (step)^exponent.

    EDM2's power function EMA (Karras et al. 2024b, section 3.1; `std_to_exponent` gives the
    exponent of a relative width). Its profile stretches with training, so there is no half-life to
    choose. At n = 0 beta is 0.
    """

    def rule(n):
        step = jnp.asarray(n, float) + 1
        return -jnp.expm1((exponent + 1) * jnp.log1p(-1 / step))

    return rule


def exponent_to_std(exponent) -> np.ndarray:
    """s = sqrt((g + 1)/((g + 2)^2 (g + 3))): relative width of a power profile, EDM2.

    float64; s as a fraction of training, 0 < s < 0.2887 for exponents g > 0.
    """
    g = np.asarray(exponent, np.float64)
    return np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def std_to_exponent(std) -> np.ndarray:
    """The inverse of `exponent_to_std`: largest real root of a cubic. float64, std's shape.

    Raises UserError unless 1e-4 <= std < 1/sqrt(12) = 0.2887, the width of the flat profile; far
    below 1e-4 the cubic's coefficients overflow.
    """
    if not np.all((np.asarray(std) >= 1e-4) & (np.asarray(std) < 12**-0.5)):
        raise UserError(f"ema: relative std {std}: must be at least 0.0001 and below 0.2887")

    def largest_root(s):
        return np.roots([1, 7, 16 - s**-2.0, 12 - s**-2.0]).real.max()

    return np.vectorize(largest_root, otypes=[np.float64])(std)


def posthoc(seen, std, wanted_seen, wanted_std) -> np.ndarray:
    """Weights over stored averages that best give an average of another width, after training.

    The least-squares fit of the wanted power profile by the stored ones, from the inner products of
    profiles, with weights that sum to 1. Karras et al. 2024b, section 3.2 and appendix C. The
    system is ill-conditioned and the weights alternate in sign: float64 throughout, and the sum
    over snapshots too.

    Args:
      seen, std: [m] images seen at each stored average (all <= wanted_seen), and its width.
      wanted_seen: scalar, one of `seen`.
      wanted_std: [k] widths.

    Returns:
      [m, k] float64.

    Raises:
      UserError: a width out of range, or two stored averages that are one.
    """
    a, b, _ = _products(seen, std, wanted_seen, wanted_std)
    try:
        weights = np.linalg.solve(a, b)
    except np.linalg.LinAlgError as error:
        raise UserError("ema: two of the stored averages are the same one") from error
    return weights / weights.sum(axis=0)


def posthoc_error(weights, seen, std, wanted_seen, wanted_std) -> np.ndarray:
    """[k] float64: how far the profile that the weights make is from the wanted one.

    The norm of their difference over that of the wanted one, as functions of the images seen: 0 is
    the average itself. Arguments as `posthoc`, weights its result.
    """
    a, b, c = _products(seen, std, wanted_seen, wanted_std)
    squares = np.einsum("ik,ij,jk->k", weights, a, weights) - 2 * np.sum(weights * b, axis=0) + c
    return np.sqrt(np.maximum(squares, 0) / c)


def _products(seen, std, wanted_seen, wanted_std):
    """Inner products of profiles: stored with stored, stored with wanted, wanted with themselves.

    [m, m], [m, k] and [k]. EDM2, appendix C.
    """
    t, g = np.asarray(seen, np.float64), std_to_exponent(std)
    to, go = np.float64(wanted_seen), std_to_exponent(np.atleast_1d(wanted_std))

    def inner(ta, ga, tb, gb):
        ratio = (ta / tb) ** np.where(ta < tb, gb, -ga)
        return (ga + 1) * (gb + 1) * ratio / ((ga + gb + 1) * np.maximum(ta, tb))

    stored, column = (t, g), (t[:, None], g[:, None])
    return inner(*column, *stored), inner(*column, to, go), inner(to, go, to, go)
