"""Relay diffusion's released code as its golden arrays have it: settings, denoiser, noise, runs.

Shared by the tests of the core, where the denoiser is a formula, and of the networks.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.core import grids, guidance, processes, samplers

RELAY = Path(__file__).parents[1] / "golden" / "relay"
SETTINGS = json.loads((RELAY / "sampler_settings.json").read_text())
# (L in training, B) of the published models, and the L that CelebA-HQ is sampled with.
SCHEDULES = {"imagenet": (0.93, 3.0), "celebahq_train": (0.89, 2.0), "celebahq_sample": (1.05, 2.0)}


def nhwc(a):
    return np.moveaxis(np.asarray(a), -3, -1)


def nchw(a):
    return np.moveaxis(np.asarray(a), -1, -3)


def make(quantile=0.93, blur_max=3.0, patch=4, **fields):
    return processes.blurred(processes.relay_blur(blur_max, quantile), patch, **fields)


def closed_form(label, shape):
    """The golden's denoiser on [B, H, W, C]: a shrinking towards a pattern, one a class."""
    h, w, c = (np.arange(n) for n in shape)
    m = 0.3 * np.sin(0.7 * w[None, :, None] + 0.4 * h[:, None, None] + c)
    m = m if label is None else m + 0.2 * np.reshape(label, (-1, 1, 1, 1))

    def denoise(x, t):
        pattern = jnp.asarray(m, x.dtype)
        return pattern + 0.25 / (0.25 + t**2) * (x - pattern)

    return denoise


class Port:
    """The golden's noise as a port: a coloured draw takes two of its arrays, a white one one."""

    def __init__(self, noise, process, block, skip=0):
        self.noise, self.process, self.skip = jnp.asarray(nhwc(noise)), process, skip
        self.each = 2 if block else 1

    def __call__(self, k):
        """Coloured draw k; `skip` more arrays go by at each step but the first (see below)."""
        first = self.each * k + self.skip * ((k + 1) // 2)
        second = self.noise[first + 1] if self.each == 2 else None
        return self.process.colour(self.noise[first], second)


def run(tag, arrays, noise, start, denoise_of, **variant):
    """A run of sampler_settings.json; the sigmas at which its denoiser was called are checked."""
    s = {**SETTINGS[tag]}
    block, eta = s["s_block"], s["s_noise"]
    process = make(
        s["truncation_t"], s["blur_sigma_max"], s["up_scale"], block=block,
        normalize=variant.pop("normalize", False),
    )  # fmt: skip
    grid = grids.karras(s["num_steps"], s["sigma_min"], s["sigma_max"], s["rho"])
    grid = grids.below(grid, s["truncation_sigma"])
    # CelebA-HQ's script draws once more at the beginning of each step, for a churn that is off.
    port = Port(noise, process, block, skip=int(s["script"] == "generate_celebahq"))
    classes = arrays["labels"].argmax(1) if s["class_labels"] else None
    called = []

    def told(denoise):
        def f(x, t):
            jax.debug.callback(lambda t: called.append(float(t)), t, ordered=True)
            return denoise(x, t)

        return f

    denoise = told(denoise_of(classes))
    scale = variant.pop("scale", s["cfg_scale"])
    if scale > 1:  # the released code takes every scale up to 1 for none
        denoise = guidance.cfg(denoise, told(denoise_of(None)), scale)
    x = jnp.asarray(nhwc(start)) + jnp.float32(grid[0]) * port(0)
    x = samplers.relay(denoise, process, grid, x, lambda k: port(k + 1), eta=eta, **variant)
    jax.effects_barrier()
    np.testing.assert_allclose(called, arrays.get(f"{tag}_call_sigmas", called), rtol=2e-6)
    return nchw(x)
