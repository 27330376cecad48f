"""From a raw network to a denoiser, the estimate of E[x0 | x_t].

Two kinds of function are called a denoiser:

    D(x, ratio, cond)   EDM's: x = x0 + ratio n, whatever the process. `preconditioned` makes one.
    denoise(x, t)       what samplers and losses call: x and t are the process' own. `on` makes one
                        from D; `from_eps`, `from_v`, `from_flow`, `from_x0` from a network that
                        was trained in the process' own x and t.

`convert` turns any of these predictions into any other.

Conditioning is bound before sampling: `functools.partial(denoise, cond=labels)`. Arguments beyond
x and t are handed on to the network as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core import processes
from diffjax.core.processes import Level, Process
from diffjax.errors import choose

Array = jax.Array | np.ndarray


class Coefficients(NamedTuple):
    """EDM's four numbers at a noise level: D(x) = skip x + out F(input x, noise)."""

    skip: Array
    out: Array
    input: Array
    noise: Array


def preconditioned(net: Callable, coefficients: Callable[[Array], Coefficients]) -> Callable:
    """D(x, ratio, cond=None) = c_skip x + c_out F(c_in x, c_noise, cond). EDM eq. 7.

    The coefficients and the sum are float32 (float64 where x is float64) whatever the network
    computes in: c_out loses all digits in bfloat16.

    Args:
      net: F(c_in x, c_noise, cond) -> x's shape. c_noise has ratio's shape: a scalar in a sampler,
        [B, 1, 1, 1] in training.
      coefficients: ratio -> Coefficients, e.g. `edm_coefficients()`.

    Returns:
      D: x of any shape; ratio = sigma/alpha > 0, broadcasting against x.
    """

    def denoiser(x, ratio, cond=None):
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(dtype)
        c = coefficients(jnp.asarray(ratio, dtype))
        return c.skip * x + c.out * net(c.input * x, c.noise, cond)

    return denoiser


def edm_coefficients(sigma_data: float = 0.5) -> Callable[[Array], Coefficients]:
    """EDM's own: input and target of F have unit variance, and c_out is as small as can be.

    Karras et al. 2022, Table 1 ("Ours") and appendix B.6. sigma_data: standard deviation of x0.
    """

    def coefficients(sigma):
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        return Coefficients(
            skip=sigma_data**2 / total**2,
            out=sigma * sigma_data / total,
            input=1 / total,
            noise=jnp.log(sigma) / 4,
        )

    return coefficients


def vp_coefficients(
    beta_d: float = 19.9, beta_min: float = 0.1, steps: int = 1000
) -> Callable[[Array], Coefficients]:
    """DDPM++'s: F estimates the noise and is told (steps - 1) t(sigma). EDM Table 1, "VP"."""
    t_of = processes.vp(beta_d, beta_min).t_of

    def coefficients(sigma):
        return Coefficients(
            skip=jnp.ones_like(sigma),
            out=-sigma,
            input=1 / jnp.sqrt(sigma**2 + 1),
            noise=(steps - 1) * t_of(sigma),
        )

    return coefficients


def ve_coefficients() -> Callable[[Array], Coefficients]:
    """NCSN++'s: F estimates minus the noise, sees x as it is and ln(sigma/2). EDM Table 1, "VE"."""

    def coefficients(sigma):
        one = jnp.ones_like(sigma)
        return Coefficients(skip=one, out=sigma, input=one, noise=jnp.log(sigma / 2))

    return coefficients


def iddpm_levels(steps: int = 1000, c1: float = 0.001, c2: float = 0.008) -> np.ndarray:
    """u [steps + 1] float64: improved DDPM's noise ratios, decreasing from u_0 to u_M = 0.

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar(j-1)/abar(j), C1) - 1),
    abar(j) = sin^2(pi/2 j/(M (1 + C2))). EDM Table 1, "iDDPM + DDIM". Published networks store u as
    a float32 buffer that deviates from this by up to 5e-4 (its abar is float32); take theirs when
    running one.
    """
    abar = np.sin(np.pi / 2 * np.arange(steps + 1) / steps / (1 + c2)) ** 2
    u = np.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], c1) - 1)
    return u


def iddpm_coefficients(u: np.ndarray | None = None) -> Callable[[Array], Coefficients]:
    """Improved DDPM's: F estimates the noise and is told M - 1 - (index of the nearest u).

    EDM Table 1, "iDDPM". Where the network also returns variances, `net` drops them.

    Args:
      u: [M + 1] decreasing ratios with a final 0; default `iddpm_levels()`.
    """
    u = iddpm_levels() if u is None else np.asarray(u)

    def coefficients(sigma):
        index = jnp.argmin(jnp.abs(jnp.asarray(u, sigma.dtype) - sigma[..., None]), axis=-1)
        return Coefficients(
            skip=jnp.ones_like(sigma),
            out=-sigma,
            input=1 / jnp.sqrt(sigma**2 + 1),
            noise=(len(u) - 2 - index).astype(sigma.dtype),
        )

    return coefficients


def consistency_coefficients(
    sigma_data: float = 0.5, sigma_min: float = 0.002
) -> Callable[[Array], Coefficients]:
    """A consistency model's: EDM's, moved so that f(x, sigma_min) = x. F is told 250 ln sigma.

    c_skip = sd^2/((sigma - sigma_min)^2 + sd^2),
    c_out = (sigma - sigma_min) sd/sqrt(sigma^2 + sd^2). Song et al. 2023, appendix C;
    the 250 is their released code's 1000/4.
    """

    def coefficients(sigma):
        total, above = jnp.sqrt(sigma**2 + sigma_data**2), sigma - sigma_min
        return Coefficients(
            skip=sigma_data**2 / (above**2 + sigma_data**2),
            out=above * sigma_data / total,
            input=1 / total,
            noise=250 * jnp.log(sigma),
        )

    return coefficients


def on(process: Process, denoiser: Callable) -> Callable:
    """denoise(x, t) = D(x/alpha, sigma/alpha): EDM's denoiser used on any process with alpha > 0.

    Both see x0 plus noise at the same ratio; only the scale of x differs.

    Args:
      process: one whose alpha is a number.
      denoiser: D(x, ratio, ...) -> x0.
    """

    def denoise(x, t, *cond, **named):
        level = process.at(t).cast(x.dtype)
        return denoiser(x / level.alpha, level.sigma / level.alpha, *cond, **named)

    return denoise


# What a network may predict, as (a, b) of a x0 + b n. With x = alpha x0 + sigma n that is a second
# equation for the pair (x0, n), and so every prediction converts into every other.
PREDICTIONS = {
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "eps": lambda alpha, sigma: (0.0, 1.0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
}


def convert(value, x, level: Level, source, target):
    """A prediction of one kind as one of another, at the same x.

    x0 is the data, eps the noise n, v = alpha n - sigma x0 (Salimans & Ho 2022), flow = n - x0. As
    a x0 + b n = value and alpha x0 + sigma n = x, the other a' x0 + b' n is

        ((a' b - a b') x + (alpha b' - sigma a') value)/(alpha b - sigma a)

    The source must tell something that x does not: x0 where sigma > 0, eps where alpha > 0, v and
    flow everywhere.

    Args:
      value, x: prediction and x_t, of one shape.
      level: `process.at(t)`; its alpha is a number.
      source, target: a name in `PREDICTIONS`, or what `preconditioned` takes, e.g.
        `edm_coefficients()`, for the raw output F of a preconditioned network.
    """
    if source == target:
        return value
    alpha, sigma = level.alpha, level.sigma
    a, b = _combination(source, alpha, sigma)
    to_a, to_b = _combination(target, alpha, sigma)
    numerator = (to_a * b - a * to_b) * x + (alpha * to_b - sigma * to_a) * value
    return numerator / (alpha * b - sigma * a)


def _combination(kind, alpha, sigma):
    if callable(kind):
        # D = skip x/alpha + out F is x0, and x/alpha is x0 + ratio n.
        ratio = sigma / alpha
        c = kind(ratio)
        return (1 - c.skip) / c.out, -c.skip * ratio / c.out
    choose(kind, PREDICTIONS, "prediction:")
    return PREDICTIONS[kind](alpha, sigma)


def predicting(process: Process, denoise: Callable, target) -> Callable:
    """(x, t) -> the `target` that belongs to denoise(x, t); the way back from `from_eps` and so on.

    For code that wants a model's noise or velocity. Arguments as `convert`.
    """

    def predict(x, t, *cond, **named):
        level = process.at(t).cast(x.dtype)
        return convert(denoise(x, t, *cond, **named), x, level, "x0", target)

    return predict


def _from(kind: str, process: Process, net: Callable, told: Callable) -> Callable:
    def denoise(x, t, *cond, **named):
        level = process.at(t).cast(x.dtype)
        value = net(x, told(level.t), *cond, **named).astype(x.dtype)
        return convert(value, x, level, kind, "x0")

    return denoise


def from_eps(process: Process, net: Callable, told: Callable = lambda t: t) -> Callable:
    """denoise(x, t) of a network that predicts the noise: x0 = (x - sigma eps)/alpha.

    Ho et al. 2020, eq. 15; any process whose alpha is a number > 0.

    Args:
      net: (x, told(t), ...) -> eps of x's shape, for x and t of `process`.
      told: what the network is told of t. On `discrete`, a network trained with indices 0..T-1
        takes `lambda t: t - 1`.
    """
    return _from("eps", process, net, told)


def from_v(process: Process, net: Callable, told: Callable = lambda t: t) -> Callable:
    """denoise(x, t) of a network that predicts v = alpha n - sigma x0 (arguments as `from_eps`).

    x0 = (alpha x - sigma v)/(alpha^2 + sigma^2); the denominator is 1 on vp and discrete. Salimans
    & Ho 2022, appendix D. Not to be confused with the velocity of `from_flow`.
    """
    return _from("v", process, net, told)


def from_flow(process: Process, net: Callable, told: Callable = lambda t: t) -> Callable:
    """denoise(x, t) of a network that predicts the velocity n - x0 (arguments as `from_eps`).

    x0 = (x - sigma v)/(alpha + sigma); the denominator is 1 on `flow`, and alpha may be 0. Liu et
    al. 2023, eq. 1.
    """
    return _from("flow", process, net, told)


def from_x0(process: Process, net: Callable, told: Callable = lambda t: t) -> Callable:
    """denoise(x, t) of a network that predicts x0 itself (arguments as `from_eps`)."""
    return _from("x0", process, net, told)
