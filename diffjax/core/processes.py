"""Noising processes: x_t = A(t) x0 + sigma(t) n, with n of unit variance.

A process is two functions of time. Everything else about diffusion (what a denoiser estimates, how
a sampler steps, what a loss weighs) is written with the level (alpha, sigma) that they give, so a
new process is one constructor below.

    edm       x = x0 + t n                              Karras et al. 2022, Table 1, last column
    ve        x = x0 + sqrt(t) n                        Song et al. 2021b, "variance exploding"
    vp        x = e^{-B/2} x0 + sqrt(1 - e^{-B}) n      Song et al. 2021b; B is quadratic in t
    flow      x = (1 - t) x0 + t n                      Liu et al. 2023; Lipman et al. 2023
    discrete  x = sqrt(abar_t) x0 + sqrt(1 - abar_t) n  Ho et al. 2020; t = 1..T and 0 = clean
    scaled    x = s(t) (x of another process)           Karras et al. 2022, Table 1: their s(t)
    blurred   x = Blur(x0) + t (white + block noise)    Hoogeboom & Salimans 2023; Teng et al. 2023

`sigma` is the absolute noise level in x_t. What Karras et al. call sigma is the ratio sigma/alpha:
x_t / alpha = x0 + ratio n is the same picture on EDM's scale, and `t_of(ratio)` finds its time.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from diffjax.core import patches
from diffjax.errors import UserError

Array = jax.Array | np.ndarray


class Level(NamedTuple):
    """A point on a process: the time and the two numbers that formulas need.

    t, sigma: scalars, or arrays that broadcast against x ([B, 1, 1, 1] in training).
    alpha: the same, or for a process with its own `apply` the diagonal that `apply` takes.
    """

    t: Array
    alpha: Array
    sigma: Array

    def cast(self, dtype) -> "Level":
        """The same level as jax arrays of `dtype`."""
        return Level(*(jnp.asarray(a, dtype) for a in self))


@dataclass(frozen=True)
class Process:
    """x_t = apply(alpha(t), x0) + sigma(t) n.

    alpha, sigma: functions of t; NumPy in, NumPy out, and JAX in, JAX out. alpha is A's diagonal,
      with t's shape first. sigma(0) = 0 and A(0) = 1.
    t_of: the inverse of sigma/alpha, or None where there is none.
    apply: how A acts on x: multiplication, or e.g. DCT, diagonal, inverse DCT.
    colour: (white, white) -> n, both of x's shape. Most processes take the first as it is; the
      second is for correlated noise.
    name: which of the constructors made it, with what; "" for none. An objective is checked by it.
    """

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    t_of: Callable[[Array], Array] | None = None
    apply: Callable[[Any, Any], Any] = operator.mul
    colour: Callable[[Any, Any], Any] = lambda first, second: first
    name: str = ""

    def at(self, t) -> Level:
        """The level at time t.

        A Python or NumPy t gives float64 NumPy, for host tables: schedules lose digits in float32
        (1 - abar near t = 0). A JAX t, traced or not, gives JAX arrays of its own dtype; whole
        numbers, as DDPM's t often are, become JAX's default float.
        """
        if not isinstance(t, jax.Array):
            t = np.asarray(t, np.float64)
        elif not jnp.issubdtype(t.dtype, jnp.floating):
            t = t.astype(float)
        return Level(t, self.alpha(t), self.sigma(t))

    def perturb(self, x0, n, level: Level) -> jax.Array:
        """A x0 + sigma n, in x0's dtype. x0, n: any shape, the same."""
        level = level.cast(jnp.result_type(x0))
        return self.apply(level.alpha, x0) + level.sigma * n

    def noise(self, x, x0, level: Level) -> jax.Array:
        """The n that takes x0 to x: (x - A x0) / sigma, in x's dtype. Needs sigma > 0."""
        level = level.cast(jnp.result_type(x))
        return (x - self.apply(level.alpha, x0)) / level.sigma

    def velocity(self, x, x0, level: Level) -> jax.Array:
        """dx/dt along the path of `perturb` through x, with x0 and n held fixed: A' x0 + sigma' n.

        With x0 = E[x0 | x_t] this is the right-hand side of the probability-flow ODE (Song et al.
        2021b, eq. 13; Karras et al. 2022, eq. 4) of every process: for edm (x - x0)/t, for flow
        n - x0. The derivative comes from forward-mode differentiation of the schedule: none is
        written by hand, and nothing divides by alpha. Needs sigma > 0.
        """
        level = level.cast(jnp.result_type(x))
        n = self.noise(x, x0, level)
        path = lambda t: self.perturb(x0, n, self.at(t))
        return jax.jvp(path, (level.t,), (jnp.ones_like(level.t),))[1]


def _numpy(t):
    """The module whose functions suit t: host schedules stay NumPy (float64), traced ones JAX."""
    return jnp if isinstance(t, jax.Array) else np


def edm() -> Process:
    """x_t = x0 + t n: time is the noise level, t >= 0. Karras et al. 2022, Table 1, "Ours"."""
    return Process(
        alpha=lambda t: _numpy(t).ones_like(t), sigma=lambda t: t, t_of=lambda r: r, name="edm"
    )


def ve() -> Process:
    """x_t = x0 + sqrt(t) n: time is the variance. Song et al. 2021b; EDM Table 1, "VE"."""
    return Process(
        alpha=lambda t: _numpy(t).ones_like(t),
        sigma=lambda t: _numpy(t).sqrt(t),
        t_of=lambda r: r**2,
        name="ve",
    )


def vp(beta_d: float = 19.9, beta_min: float = 0.1) -> Process:
    """alpha^2 + sigma^2 = 1 with -2 ln alpha = B(t) = beta_d t^2/2 + beta_min t, t in [0, 1].

    The ratio sigma/alpha is sqrt(e^B - 1). Song et al. 2021b ("variance preserving", appendix C);
    EDM Table 1, "VP". The defaults are theirs: ratio(1) = 152.17.
    """
    integral = lambda t: beta_d * t**2 / 2 + beta_min * t

    def t_of(ratio):
        # The positive root of B(t) = ln(1 + ratio^2), in the form that does not cancel at small
        # ratios: both terms of the denominator are positive.
        xp = _numpy(ratio)
        b = xp.log1p(xp.square(ratio))
        return 2 * b / (xp.sqrt(beta_min**2 + 2 * beta_d * b) + beta_min)

    return Process(
        alpha=lambda t: _numpy(t).exp(-integral(t) / 2),
        sigma=lambda t: _numpy(t).sqrt(-_numpy(t).expm1(-integral(t))),
        t_of=t_of,
        name=f"vp({beta_d}, {beta_min})",
    )


def vp_betas(sigma_min: float, sigma_max: float, eps_s: float = 1e-3) -> tuple[float, float]:
    """(beta_d, beta_min) for which vp's ratio is sigma_min at t = eps_s and sigma_max at t = 1.

    Karras et al. 2022, released code: two linear equations in ln(1 + sigma^2).
    """
    low, high = np.log1p(np.square([sigma_min, sigma_max]))
    beta_d = 2 * (low / eps_s - high) / (eps_s - 1)
    return float(beta_d), float(high - beta_d / 2)


def flow(shift: float = 1.0) -> Process:
    """x_t = (1 - t) x0 + t n, t in [0, 1]: straight paths, whose velocity is n - x0.

    Rectified flow (Liu et al. 2023), flow matching (Lipman et al. 2023). With `shift` s, t is first
    mapped to s t/(1 + (s-1) t), which multiplies the ratio sigma/alpha by s (Esser et al. 2024,
    eq. 23): time is then spent at higher noise. Paths are straight in the shifted time, so to
    sample with straight steps shift the grid (`grids.shifted`) instead of the process.
    """
    if not 0 < shift < np.inf:
        raise UserError(f"flow(shift={shift}): the shift must be positive; 1 means none")
    shifted = lambda t: shift * t / (1 + (shift - 1) * t)
    return Process(
        alpha=lambda t: 1 - shifted(t),
        sigma=shifted,
        t_of=lambda r: r / (r + shift),
        name="flow" if shift == 1 else f"flow(shift={shift})",
    )


def discrete(betas) -> Process:
    """alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t) for t = 0..T.

    abar_t = prod_{s <= t} (1 - beta_s); Ho et al. 2020, eq. 4. t = 0 is clean data (abar = 1) and
    t = T the noisiest, so a network that was trained with indices 0..T-1 is told t - 1. Between
    whole numbers ln abar is linear: that is the continuous vp process whose beta is constant within
    each step, so that `velocity` exists; at a whole t it is the slope of the step that ends there,
    the one that a sampler is about to go back.

    Args:
      betas: [T] float64 in (0, 1), e.g. `linear_betas(1000)`.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not betas.size or not np.all((betas > 0) & (betas < 1)):
        raise UserError("discrete(betas): betas must be one row of numbers between 0 and 1")
    log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])

    def at(t):
        xp = _numpy(t)
        table = xp.asarray(log_abar, t.dtype)
        i = xp.clip(xp.ceil(t).astype(int) - 1, 0, len(betas) - 1)
        return table[i] + (t - i) * (table[i + 1] - table[i])

    return Process(
        alpha=lambda t: _numpy(t).exp(at(t) / 2),
        sigma=lambda t: _numpy(t).sqrt(-_numpy(t).expm1(at(t))),
        t_of=lambda r: _numpy(r).interp(
            _numpy(r).log1p(r**2), -log_abar, np.arange(len(log_abar), dtype=np.float64)
        ),
        name=f"discrete({len(betas)} steps)",
    )


def linear_betas(steps: int) -> np.ndarray:
    """[T] float64: beta from 1e-4 k to 0.02 k, k = 1000/T. Ho et al. 2020 at T = 1000."""
    k = 1000 / steps
    return np.linspace(1e-4 * k, 0.02 * k, steps)


def cosine_betas(steps: int) -> np.ndarray:
    """[T] float64: abar_t = g(t/T)/g(0), g(u) = cos^2((u + 0.008)/1.008 pi/2), beta <= 0.999.

    Nichol & Dhariwal 2021, eq. 17. The cap keeps the last step from being singular.
    """
    g = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - g[1:] / g[:-1], 0.999)


def scaled(process: Process, scale: Callable[[Array], Array]) -> Process:
    """s(t) times the x of another process: (alpha, sigma) become (s alpha, s sigma).

    The ratio sigma/alpha, hence `t_of`, stays. Karras et al. 2022, Table 1, choose
    sigma(t) and s(t) apart; `scaled` is the s(t). vp() is itself the scaled form of the process
    with alpha = 1 and sigma = sqrt(e^B - 1).

    Args:
      process: one whose `apply` is linear.
      scale: t -> s(t) > 0, s(0) = 1; NumPy in, NumPy out and JAX in, JAX out.
    """
    return Process(
        alpha=lambda t: scale(t) * process.alpha(t),
        sigma=lambda t: scale(t) * process.sigma(t),
        t_of=process.t_of,
        apply=process.apply,
        colour=process.colour,
        name=process.name,
    )


def blurred(
    blur: Callable[[Array], Array],
    patch: patches.Patch,
    *,
    floor: float = 0.001,
    block: float = 0.0,
    block_size: patches.Patch | None = None,
    normalize: bool = False,
) -> Process:
    """x_t = Blur(x0, blur(t)) + t n on pictures [..., H, W, C]: time is the noise level, as on edm.

    Every patch is blurred by itself towards its mean (`patches.damping`); alpha is the damping of a
    patch's DCT, [..., p, p], and n is white noise plus `block` times `patches.block_noise`.

    A patch as large as the picture is blurring diffusion (Hoogeboom & Salimans 2023); small patches
    and block noise are relay diffusion (Teng et al. 2023), whose schedule is `relay_blur`.

    Args:
      blur: t -> standard deviation of the blur in pixels, 0 at t = 0; NumPy in, NumPy out, and JAX
        in, JAX out.
      patch: pixels a side, or (height, width).
      floor: what is left at least of every coefficient.
      block: weight of the block noise. 0: none, and its draws are not made.
      block_size: side of its kernel; default the patch.
      normalize: whether n is divided by sqrt(1 + block^2), so that its variance is 1: the paper's.
        Without, as relay diffusion was released, the variance is 1 + block^2.

    Raises:
      UserError: a patch that is no size, a negative weight, a floor outside [0, 1].
    """
    patches.sides(patch)
    size = patches.sides(patch if block_size is None else block_size)
    if not 0 <= floor <= 1 or not 0 <= block < np.inf:
        raise UserError(f"blurred: floor {floor} must be in [0, 1] and block {block} at least 0")
    scale = 1 / np.sqrt(1 + block**2) if normalize else 1.0

    def mixed(white, other):
        return (white + block * patches.block_noise(other, size)) * np.asarray(scale, white.dtype)

    return Process(
        alpha=lambda t: patches.damping(blur(t), patch, floor),
        sigma=lambda t: t,
        apply=patches.damp,
        **({"colour": mixed} if block else {}),
    )


def relay_blur(
    blur_max: float, quantile: float, p_mean: float = -1.2, p_std: float = 1.2
) -> Callable[[Array], Array]:
    """t -> blur_max sin^2(pi u/2), u = Phi((ln t - p_mean)/p_std)/quantile: the blur of `blurred`.

    u is uniform on [0, 1] if t is drawn as EDM draws it but only from below its `quantile`: see
    `objectives.relay`. Teng et al. 2023. Above that noise level u passes 1 and the blur turns back,
    as in the released code.

    Args:
      blur_max: in pixels; 3/4 of the patch leaves 6 % of its lowest frequency.
      quantile: the paper's L. The released samplers may take another than training did.
    """
    if not blur_max >= 0 or not quantile > 0 or not p_std > 0:
        raise UserError(
            f"relay_blur: blur_max {blur_max} must be at least 0, quantile {quantile} and p_std "
            f"{p_std} above 0"
        )

    def blur(t):
        xp = _numpy(t)
        cdf = scipy.special.ndtr if xp is np else jax.scipy.special.ndtr
        with np.errstate(divide="ignore"):  # ln 0: no noise, no blur
            u = cdf((xp.log(t) - p_mean) / p_std) / quantile
        return blur_max * xp.sin(np.pi * u / 2) ** 2

    return blur
