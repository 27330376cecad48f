"""How far an imagined game strays, in numbers: of frames, of features, of how the net decides.

Frames are float32 in [-1, 1]. A measure of several roll-outs is a function of which of them are
kept (`metrics.intervals.Statistic`), so that intervals can be taken.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.metrics import frechet
from diffjax.systems.diamond import imagination, sampling
from diffjax.systems.diamond.denoiser import Denoiser, stack
from diffjax.systems.diamond.sampling import Sampler

COMPONENTS = 64  # of features, for Frechet distances
FIRST = 5  # the offset from which on the slope is fitted: before, a roll-out leaves its start
AT_ONCE = 4096  # frames that a judge sees
FULL = 0.98  # of a number: above, a pixel is saturated

# ---- of frames, on the device --------------------------------------------------------------------


class Curves(NamedTuple):
    """Of roll-outs [B, T] at each offset, float32.

    Attributes:
      error: mean square error of the frame.
      bias: mean of imagined less real.
      full: share of saturated numbers.
    """

    error: jax.Array
    bias: jax.Array
    full: jax.Array


def curves(made: jax.Array, real: jax.Array) -> Curves:
    """made, real: [B, T, H, W, C]."""
    axes = (2, 3, 4)
    full = jnp.mean(jnp.abs(made) > FULL, axes)
    return Curves(jnp.mean((made - real) ** 2, axes), jnp.mean(made - real, axes), full)


class Seen(NamedTuple):
    """What a judge makes of transitions: features float32 [B, T, d], and the reward's class, 0 for
    -1, 1 for none, 2 for 1, int32 [B, T]."""

    features: jax.Array
    reward: jax.Array


def see(reward_end, params, frames: jax.Array, act: jax.Array) -> Seen:
    """The encoder's numbers and the likeliest rewards of a reward and end model.

    Args:
      reward_end: the network, or None: `coarse` means of the frames, and no rewards.
      params: its parameters.
      frames: [B, T + 1, H, W, C]; act: int [B, T].
    """
    if reward_end is None:
        return Seen(coarse(frames[:, 1:]), jnp.ones(act.shape, jnp.int32))

    def of_one(row):
        frames, act = (part[None] for part in row)
        (reward, *_), seen = reward_end.apply(
            {"params": params},
            *(frames[:, :-1], act, frames[:, 1:]),
            capture_intermediates=lambda module, _: module.name == "encoder",
            mutable="intermediates",
        )
        (found,) = seen["intermediates"]["encoder"]["__call__"]
        return found.astype(jnp.float32).reshape(act.shape[1], -1), jnp.argmax(reward[0], -1)

    # A few at a time: all frames of long roll-outs at once are more than a device holds.
    together = max(1, AT_ONCE // act.shape[1])
    found, reward = jax.lax.map(of_one, (frames, act), batch_size=min(together, len(act)))
    return Seen(found, reward.astype(jnp.int32))


def coarse(frames: jax.Array, side: int = 8) -> jax.Array:
    """Means over squares, float32 [B, T, side^2 C]: features where there is no trained encoder."""
    b, t, h, w, c = frames.shape
    small = jax.image.resize(frames, (b, t, side, side, c), "linear", antialias=True)
    return small.reshape(b, t, -1)


# ---- of features, on the host --------------------------------------------------------------------


class Projection(NamedTuple):
    """The first principal components of real features."""

    mean: np.ndarray
    axes: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) @ self.axes


def principal(real: np.ndarray, count: int = COMPONENTS) -> Projection:
    """real: [n, d] -> a `Projection` on at most `count` components."""
    mean = real.mean(0)
    cov = np.cov((real - mean).T)
    _, vectors = np.linalg.eigh(np.atleast_2d(cov))
    return Projection(mean, vectors[:, ::-1][:, : min(count, len(real) - 1)])


def frechet_curve(made: np.ndarray, real: np.ndarray, keep=slice(None)) -> np.ndarray:
    """f(k): the Frechet distance between imagined and real features at each offset, float64 [T].

    Args:
      made, real: [B, T, d]; keep: which of the B.
    """
    pairs = zip(made[keep].swapaxes(0, 1), real[keep].swapaxes(0, 1), strict=True)
    return np.array([frechet.frechet_distance(*map(frechet.moments, pair)) for pair in pairs])


def slope(curve: np.ndarray, first: int = FIRST) -> float:
    """The least-squares slope of a curve [T] over the offsets first .. T (the first is 1)."""
    k = np.arange(first, len(curve) + 1)
    return float(np.polyfit(k, curve[first - 1 :], 1)[0])


def doubled(curve: np.ndarray) -> int:
    """The first offset at which a curve is more than twice its beginning; T + 1 where none is."""
    above = np.flatnonzero(curve > 2 * curve[0])
    return int(above[0]) + 1 if len(above) else len(curve) + 1


# ---- how the net decides -------------------------------------------------------------------------


class Decisions(NamedTuple):
    """Of one frame after contexts x noises.

    Attributes:
      frames: float32 [contexts, noises, H, W, C], the frames.
      x: [steps, contexts, noises, H, W, C], what the net is shown at each step.
      estimates: the same of D, unquantised.
    """

    frames: jax.Array
    x: jax.Array
    estimates: jax.Array


def decisions(
    denoiser: Denoiser, sampler: Sampler, params, past, act, keys: jax.Array
) -> Decisions:
    """Samples one frame after every context with every noise; jit it with the first two static.

    Each step's estimate is made again without the quantiser, at the x that the sampler was at.

    Args:
      past: [contexts, n, H, W, C]; act: int [contexts, n].
      keys: typed keys [noises]: noise j is the same for all contexts.
    """
    raw = Denoiser(denoiser.net, denoiser.sigma_data, denoiser.sigma_offset, "none")
    grid = sampler.grid()

    def of_context(past, act):
        many = jnp.repeat(past[None], len(keys), 0)
        told = jnp.repeat(act[None], len(keys), 0)
        drawn = imagination.draw(keys, past.shape[1:])
        denoise = sampling.bound(denoiser, params, told)
        made, trace = sampling.next_frame(
            sampler, denoise, drawn.start, stack(many), drawn.churn, trace=True
        )
        begin = sampling.start_of(sampler.start)(drawn.start, np.float32(grid[0]), many[:, -1])
        x = jnp.concatenate([begin[None], trace.x[:-1]])
        estimate = lambda x, sigma: raw(params, x, sigma, stack(many), told)
        estimates = jax.lax.map(lambda row: estimate(*row), (x, jnp.float32(grid[:-1])))
        return made, x, estimates

    made, x, estimates = jax.lax.map(lambda row: of_context(*row), (past, act))
    return Decisions(made, x.swapaxes(0, 1), estimates.swapaxes(0, 1))


def variety(frames: np.ndarray, keep=slice(None)) -> float:
    """V: the variance over noises, averaged over pixels and contexts, of frames [C, Z, ...]."""
    return float(np.asarray(frames[keep], np.float64).var(1, ddof=1).mean())


def context_share(estimates: np.ndarray, keep=slice(None)) -> float:
    """eta: of the variance of D over contexts x noises, the share that contexts explain.

        Var_c(E_z D) / Var_{c,z}(D), each averaged over pixels

    Args:
      estimates: [contexts, noises, ...], of one step.
    """
    found = np.asarray(estimates[keep], np.float64)
    return float(found.mean(1).var(0).mean() / found.reshape(-1, *found.shape[2:]).var(0).mean())


def leanings(
    denoiser: Denoiser, params, x, past, act, sigma, key: jax.Array, probes: int = 16
) -> jax.Array:
    """|dD/d past| / |dD/dx| in Frobenius norms, per unit of input, float32 [B]; by random probes.

    The mean square of J v over normal v is the squared norm of J.

    Args:
      x: [B, H, W, C]; past: [B, n, H, W, C]; act: int [B, n]; sigma: a scalar, x's level.
    """
    raw = Denoiser(denoiser.net, denoiser.sigma_data, denoiser.sigma_offset, "none")
    call = lambda x, past: raw(params, x, sigma, stack(past), act)
    axes = (1, 2, 3)

    def probe(key):
        one, other = jax.random.split(key)
        v = jax.random.normal(one, x.shape, x.dtype), jnp.zeros_like(past)
        w = jnp.zeros_like(x), jax.random.normal(other, past.shape, past.dtype)
        square = lambda tangent: jnp.sum(jax.jvp(call, (x, past), tangent)[1] ** 2, axes)
        return square(w), square(v)

    of_past, of_x = jax.lax.map(probe, jax.random.split(key, probes))
    return jnp.sqrt(of_past.mean(0) / of_x.mean(0))
