"""DIAMOND's sampler: one frame from noise, in EDM's steps with departures of its own.

Alonso et al. 2024, released code. Where it departs from Karras et al. 2022, Algorithm 2:

- It starts from unit noise, not from sigma_0 times that. At every level the frame is then cleaner
  than the network is told, which leans on the past frames: less drift, and less diversity. `STARTS`
  has EDM's start, and the authors' other idea, noise around the previous frame.
- With churn the network is told sigma, not the level that the noise was raised to.
- With `s_past` the past frames get noise before every step, which stays on them: after i steps
  they have sqrt(i) times that noise, while the network is told of one (CSGO).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core import grids, processes, samplers
from diffjax.errors import UserError, choose

UNROLLED = 5  # steps at most that `Sampler.unroll` unrolls by itself
# name -> (z, sigma_0, previous frame) -> x_0
STARTS = {
    "unit": lambda z, sigma, previous: z,
    "sigma_max": lambda z, sigma, previous: sigma * z,
    "prev_plus_sigma_max": lambda z, sigma, previous: previous + sigma * z,
}


def start_of(name: str, what: str = "start of DIAMOND's sampler:") -> Callable:
    """Returns a start's (z, sigma_0, previous frame) -> x_0: one of `STARTS`, or "0.5", half of z.

    what: it is called in an error.

    Raises:
      UserError: neither.
    """
    try:
        scale = float(name)
    except ValueError:
        return choose(name, STARTS, what)
    if not 0 <= scale <= 1e6:
        raise UserError(f"{what} {name}: a scale of the noise, at least 0")
    return lambda z, sigma, previous: scale * z


@dataclass(frozen=True)
class Sampler:
    """Settings; the defaults are those of the Atari agents: three steps of Euler's method.

    Attributes:
      steps: evaluations of the network at order 1, 2 steps - 1 at order 2.
      sigma_min, sigma_max, rho: of the grid, `core.grids.karras`.
      order: 1 is Euler, 2 is Heun.
      s_churn, s_tmin, s_tmax, s_noise: EDM's, `core.samplers.churn`.
      s_past: standard deviation of what is added to the past frames before each step; above 0, the
        network is told it.
      start: one of `STARTS`, or a number, see `start_of`.
      unroll: whether the steps are compiled one by one instead of as a loop; None: on a GPU, if
        they are few, since it waits less between kernels. With s_past above 0 they always are.
    """

    steps: int = 3
    sigma_min: float = 2e-3
    sigma_max: float = 5.0
    rho: float = 7.0
    order: int = 1
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    s_noise: float = 1.0
    s_past: float = 0.0
    start: str = "unit"
    unroll: bool | None = None

    def __post_init__(self):
        start_of(self.start)
        if not self.s_past >= 0:
            raise UserError(f"DIAMOND's sampler: s_past {self.s_past} must be 0 or more")

    def grid(self) -> np.ndarray:
        """[steps + 1] decreasing noise levels, float64, the last 0; `UserError` where impossible.

        They are float32 numbers, so that a level that is meant to be s_tmin is.
        """
        levels = grids.karras(self.steps, self.sigma_min, self.sigma_max, self.rho)
        return levels.astype(np.float32).astype(np.float64)

    def hat(self) -> np.ndarray | None:
        """[steps] the levels that the steps begin from, or None without churn."""
        if not self.s_churn:
            return None
        return samplers.churn(self.grid(), self.s_churn, self.s_tmin, self.s_tmax)


# CSGO's settings, for (the next frame, its upsampling): (fast, in higher quality).
CSGO_NEXT = (Sampler(steps=1, s_past=0.005), Sampler(steps=3, s_past=0.005))
_UP = {"sigma_min": 1.0, "s_churn": 10.0, "s_tmin": 1.0, "s_tmax": 5.0, "s_noise": 0.9}
CSGO_UPSAMPLING = (Sampler(steps=1, order=2, **_UP), Sampler(steps=10, **_UP))


def next_frame(
    sampler: Sampler,
    denoise: Callable,
    z: jax.Array,
    past: jax.Array,
    noise: Callable | None = None,
    past_noise: Callable | None = None,
    previous: jax.Array | None = None,
    trace: bool = False,
):
    """Samples frames, float32 [B, H, W, C].

    The result is the last estimate itself, quantised where `denoise` quantises.

    Args:
      denoise: (x, sigma, past, sigma_past) -> x0: `Denoiser` with params and actions bound, see
        `bound`. sigma is a scalar, sigma_past a scalar or None.
      z: unit normal [B, H, W, C], of which `sampler.start` makes x_0.
      past: [B, H, W, n C].
      noise: k -> unit normal of z's shape, the k-th step's churn; needed where s_churn > 0.
      past_noise: k -> unit normal of past's shape, the k-th step's; needed where s_past > 0.
      previous: the last frame [B, H, W, C] before that which is sampled; None: the last C channels
        of `past`. Only the start from the previous frame looks at it.
      trace: also return core's `Trace`.

    Raises:
      UserError: settings that no sampler takes, or noise that is wanted and not given.
    """
    grid, hat = sampler.grid(), sampler.hat()
    previous = past[..., -z.shape[-1] :] if previous is None else previous
    x = start_of(sampler.start)(z, np.float32(grid[0]), previous)
    process = processes.edm()
    given = {"s_noise": sampler.s_noise, "order": sampler.order, "tell_hat": False, "trace": trace}
    unroll = sampler.unroll
    if unroll is None:
        unroll = sampler.steps <= UNROLLED and jax.default_backend() == "gpu"
    if not sampler.s_past and not unroll:
        told = lambda x, sigma: denoise(x, sigma, past, None)
        return samplers.ode(told, process, grid, x, noise, hat=hat, **given)
    if sampler.s_past and past_noise is None:
        raise UserError("DIAMOND's sampler: s_past draws noise: pass past_noise")
    seen = []
    for k in range(sampler.steps):
        sigma_past = None
        if sampler.s_past:
            sigma_past = jnp.float32(sampler.s_past)
            past = past + sigma_past * past_noise(k)
        step = samplers.ode(
            lambda x, sigma: denoise(x, sigma, past, sigma_past),  # noqa: B023
            *(process, grid[k : k + 2], x),
            None if noise is None else lambda _: noise(k),  # noqa: B023
            hat=None if hat is None else hat[k : k + 1],
            **given,
        )
        x, traced = step if trace else (step, None)
        seen.append(traced)
    if not trace:
        return x
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)


def bound(denoiser: Callable, params, act=None) -> Callable:
    """`denoise` of `next_frame`: a `Denoiser` with its parameters and the actions."""
    return lambda x, sigma, past, sigma_past: denoiser(params, x, sigma, past, act, sigma_past)
