"""How the denoiser of a world is trained further, to make a frame in one call: its `Backbone`.

A sample x0 is the next frame; what it is conditioned on is (past [B, H, W, n C] in [-1, 1], oldest
frame first, act int [B, n]), clean and without dropout: nothing here was trained without it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax.nets import tapping
from diffjax.nets.diamond_blocks import ResBlock
from diffjax.run.system import Backbone, Unrolled
from diffjax.systems.diamond import moments, sampling
from diffjax.systems.diamond import request as requests
from diffjax.systems.diamond.denoiser import stack
from diffjax.systems.diamond.request import Request
from diffjax.systems.diamond.settings import Parts
from diffjax.systems.diamond.state import padded


def estimate(parts: Parts) -> Callable:
    """(params, x, sigma, (past, act)) -> x0, not quantised: that would end gradients.

    Args:
      parts: `Parts`; params are {network: params}, sigma a scalar or [B, 1, 1, 1].
    """
    smooth = dataclasses.replace(parts.denoiser, quantiser="none")
    return lambda params, x, sigma, cond: smooth(params["denoiser"], x, sigma, *cond)


def start_of(sampler: sampling.Sampler) -> tuple[float, float] | None:
    """(its first noise level, the deviation of the noise that it starts from there); None where it
    starts from more than noise: around the previous frame."""
    highest = float(sampler.grid()[0])
    named = {"unit": 1.0, "sigma_max": highest, "prev_plus_sigma_max": None}
    scale = named[sampler.start] if sampler.start in named else float(sampler.start)
    return None if scale is None else (highest, scale)


def make(config, parts: Parts, default: Request) -> Backbone | None:
    """Returns the backbone of a run; None where one call from noise is not what its sampler does.

    The discriminator is shown a frame scaled as past ones are, x/sigma_data, and is told the noise
    level t/(1 - t), kept in the range of training, with the offset in it, as in training.

    Args:
      config: the run's.
      default: the run's request: what it is sampled by is what one call is to replace.
    """
    steps = dataclasses.replace(requests.sampler_of(default), s_churn=0.0)
    start = start_of(steps)
    if start is None:
        return None
    net, scale, levels = parts.denoiser.net, parts.denoiser.sigma_data, parts.levels
    past = (*parts.frame[:2], parts.past * parts.frame[2])
    whole = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype)
    inputs = (
        whole(parts.frame, jnp.float32),
        whole(past, jnp.float32),
        whole((), jnp.float32),
        whole((parts.past,), jnp.int32),
    )

    def tapped(taps: tuple[int, ...]):
        look, select = tapping.tapped(net, ResBlock, taps, inputs)

        def features(params, x, told, cond):
            frames, act = cond
            return look(params["denoiser"], x, frames / scale, told, act), None

        return features, lambda params: {"denoiser": select(params["denoiser"])}

    def feed(x, t):
        sigma = jnp.clip(t / jnp.maximum(1 - t, 1e-6), levels.lowest, levels.highest)
        return x / scale, parts.denoiser.coefficients(sigma).noise

    def examples(batch, key):
        frames = padded(batch["obs"], batch["mask"])
        return frames[:, -1], (stack(frames[:, :-1]), batch["act"])

    # A teacher's last estimate is not rounded down: what learns from it is, when it is sampled.
    quantiser = "none" if default.quantise == "none" else "clip"
    teacher = dataclasses.replace(parts.denoiser, quantiser=quantiser)

    def sampled(params, z, cond):
        denoise = sampling.bound(teacher, params["denoiser"], cond[1])
        return sampling.next_frame(steps, denoise, z, cond[0])

    def request(wanted: Request) -> Request:
        return dataclasses.replace(wanted, steps=1, sampler="euler", s_churn=0.0)

    return Backbone(
        shape=lambda cond: parts.frame,
        mask=lambda cond: None,
        std=scale,
        start=start,
        lowest=levels.lowest,
        blocks=lambda: len(tapping.blocks(net, ResBlock, inputs)),
        tapped=tapped,
        feed=feed,
        examples=examples,
        unconditional=None,
        finish=None,
        asks=("horizon", "policy", "fps"),
        unrolled=Unrolled(
            one=lambda: (jnp.zeros((1, *past)), jnp.zeros((1, parts.past), jnp.int32)),
            source=lambda workdir: moments.source(config, parts, workdir),
            request=request,
            sampled=sampled,
        ),
    )
