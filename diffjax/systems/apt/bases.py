"""Any diffusion model of this codebase as generator, as teacher and as discriminator.

A base is what a `System` says of itself: `process` and `denoiser(params, x, t, cond)`, with cond
bound here.

    generator  G(z) = denoise(scale z, T): one call, at the noisiest time, whatever the network
               predicts. The conversions are the core's (`denoisers.from_flow`, `from_v`,
               `preconditioned`, ...), and the scale is what the base's own sampler starts from.
    velocity   the base as a velocity of the straight path, which distillation is written with.
    feed       what the discriminator's network is fed: clean x in the scale that it was trained
               with, and the time as a condition.

A network that predicts the noise cannot be used as it is: near the noisiest time x0 is its error
times sigma/alpha (157 for DDPM's linear schedule, 20291 for the cosine one). Make a network of the
same shape that predicts v or x0, and let distillation teach it; never differentiate that division.
`amplification` tells.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core.processes import Process


def generator(denoise: Callable, t: float, scale: float = 1.0, mean=None) -> Callable:
    """G(z, ...) = denoise(mean + scale z, t, ...): noise to a sample in one call.

    Args:
      denoise: (x, t, ...) -> x0.
      t: the base's noisiest time: 1 on flow, T on discrete, sigma_max on EDM.
      scale: the standard deviation of the base's start: 1 on flow and where alpha^2 + sigma^2 = 1,
        sigma_max on EDM, but 1 for DIAMOND, whose sampler starts from unit variance. Train with
        the one that is sampled with.
      mean: of the base's start where it is not 0, of z's shape: a picture under the noise.

    Returns:
      z [B, ...], float -> samples of z's shape, not clipped: that would end gradients.
    """
    begin = (lambda z: scale * z) if mean is None else (lambda z: mean + scale * z)
    return lambda z, *cond: denoise(begin(z), jnp.asarray(t, z.dtype), *cond)


def amplification(process: Process, t: float) -> float:
    """sigma/alpha at t: by how much x0 is further off than the noise that a network predicts."""
    level = process.at(t)
    return float(level.sigma / level.alpha)


def last_time(process: Process, t: float) -> float:
    """The base's time t on the straight path: sigma/(alpha + sigma), 1 where alpha is 0.

    Of a blur alpha is the coefficient of the mean, which it keeps (`own_path`).
    """
    level = process.at(t)
    alpha = np.ravel(level.alpha)[0]
    return float(level.sigma / (alpha + level.sigma))


def estimate(process: Process, denoise: Callable, lowest: float = 0.0) -> Callable:
    """f(x, t) of a base on the straight path x = (1 - t) x0 + t n: its estimate of x0.

    The base sees the same x0 at the same ratio r = t/(1 - t), in its own scale and time: on EDM
    x/(1 - t) at sigma = r.

    Args:
      process: with `t_of`, and a number for alpha.
      denoise: (x, t) -> x0 on that process.
      lowest: the base's least time; below, it is told this.

    Returns:
      a function (x, t) -> x's shape; t broadcasts against x and is above 0. At t = 1 the ratio is
      infinite: the process flow is asked as it is, any other a little below.
    """

    def f(x, t):
        t = jnp.asarray(t, x.dtype)
        if process.name == "flow":
            return denoise(x, t)
        t = jnp.minimum(t, 1 - 1e-6)
        level = process.at(process.t_of(t / (1 - t))).cast(x.dtype)
        # x = (1 - t)(x0 + r n), and the base's is alpha (x0 + r n).
        return denoise(level.alpha / (1 - t) * x, jnp.maximum(level.t, lowest))

    return f


def velocity(
    process: Process, denoise: Callable, lowest: float = 1e-4, told: float = 0.0
) -> Callable:
    """v(x, t) = (x - x0)/t of a base, on the straight path; x0 is `estimate`'s, so x - t v is too.

    Args:
      process, denoise: as `estimate`.
      lowest: times below are taken for this one, as nobody is trained at 0.
      told: the base's least time, as `estimate`'s lowest.
    """
    f = estimate(process, denoise, told)

    def v(x, t):
        t = jnp.maximum(jnp.asarray(t, x.dtype), lowest)
        return (x - f(x, t)) / t

    return v


# ---- what D's network is fed: (x, t in [0, 1]) -> (its input, what it is told) -------------------


def feed_flow(x, t):
    """x and t as they are: networks of the process flow, and of others with unit variance."""
    return x, t


def feed_edm(sigma_data: float, sigma_min: float, sigma_max: float) -> Callable:
    """x/sigma_data and ln(sigma)/4, sigma = t/(1 - t) kept in the range: EDM's c_noise.

    EDM's c_in makes the sum of picture and noise have unit variance. There is no noise here, so x
    is scaled as at sigma = 0, whatever the network is told.
    """

    def feed(x, t):
        sigma = jnp.clip(t / jnp.maximum(1 - t, 1e-6), sigma_min, sigma_max)
        return x / sigma_data, jnp.log(sigma) / 4

    return feed


def feed_index(steps: int) -> Callable:
    """x as it is and the whole index floor(t (T - 1) + 1/2): networks told 0 .. T - 1, as MDM's."""
    return lambda x, t: (x, jnp.floor(t * (steps - 1) + 0.5))


def discriminator(features: Callable, read_out: Callable, feed: Callable = feed_flow) -> Callable:
    """D(params, x, t, cond) -> logits: a base's features, read.

    Args:
      features: (params, input, told, cond) -> [tokens [B, N_k, d_k], ...], of a network with
        `taps` or of `nets.discriminator.captured`; told is float [B].
      read_out: (params, features) -> logits, as `nets.discriminator.ReadOut` applied.
      feed: (x, t) -> (input, told).

    Returns:
      a function of params {"backbone", "readout"}, x [B, ...] clean, t [B] in [0, 1].
    """

    def logits(params, x, t, cond) -> jax.Array:
        x, told = feed(x, t)
        return read_out(params["readout"], features(params["backbone"], x, told, cond))

    return logits
