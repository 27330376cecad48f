"""Guidance: functions from a denoiser to a denoiser.

Whatever changes the estimate of x0 (pulling it towards a condition, keeping it in range, fixing the
known part of a picture) wraps `denoise(x, t) -> x0`, so it works with every sampler and process.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cfg(
    cond: Callable,
    uncond: Callable,
    scale,
    interval: tuple | None = None,
    rescale: float = 0.0,
) -> Callable:
    """Classifier-free guidance: D_u + w (D_c - D_u).

    Ho & Salimans 2022, eq. 6, on x0 estimates; there the weight is counted from D_c, here w = 1 is
    no guidance and w = 0 unconditional. On eps or v it is the same thing: all are linear in x0.
    With a worse model in the place of `uncond` it is `autoguidance`. A guided denoiser is a
    denoiser: it can be guided, clipped or in-painted again.

    Args:
      cond, uncond: denoise(x, t) -> x0, with their conditioning bound. w = 1, a Python number,
        returns `cond` itself, so nothing is paid for it.
      scale: w, a number or an array that broadcasts against x (one weight a sample).
      interval: (low, high) in the process' own time: guide where low < t <= high, else D_c alone
        (Kynkäänniemi et al. 2024, who count in sigma: that is t on `edm`, else `t_of` it first).
        With a scalar t, `uncond` is not evaluated outside the interval.
      rescale: phi of `rescaled`, which large weights want; 0 is none.
    """
    if isinstance(scale, int | float) and scale == 1:
        return cond

    def everywhere(x, t):
        d_c, d_u = cond(x, t), uncond(x, t)
        guided = d_u + jnp.asarray(scale, d_u.dtype) * (d_c - d_u)
        return rescaled(guided, d_c, rescale) if rescale else guided

    if interval is None:
        return everywhere
    low, high = interval

    def inside(x, t):
        guided = (jnp.asarray(t) > low) & (jnp.asarray(t) <= high)
        if jnp.ndim(guided) == 0:
            return jax.lax.cond(guided, everywhere, cond, x, t)
        return jnp.where(guided, everywhere(x, t), cond(x, t))

    return inside


def rescaled(guided, like, phi: float) -> jax.Array:
    """phi guided std(like)/std(guided) + (1 - phi) guided: guidance without its excess contrast.

    Lin et al. 2024 ("Common diffusion noise schedules and sample steps are flawed"), section
    3.4, here on estimates of x0. guided, like: [B, ...]; a standard deviation is one sample's, over
    every axis but the first.
    """
    axes = tuple(range(1, guided.ndim))
    wanted, std = (a.std(axes, keepdims=True) for a in (like, guided))
    ratio = jnp.where(std > 0, wanted / jnp.where(std > 0, std, 1), 1)
    return guided * (phi * ratio + 1 - phi)


def autoguidance(
    main: Callable,
    guide: Callable,
    scale,
    interval: tuple | None = None,
    rescale: float = 0.0,
) -> Callable:
    """D_guide + w (D_main - D_guide): away from what a worse version of the model would do.

    Karras et al. 2024a ("Guiding a diffusion model with a bad version of itself"). The guide is the
    same model with fewer parameters or less training, told the same condition; so quality improves
    without the loss of variety that `cfg` brings. Arguments as `cfg`. Together with it:
    cfg(autoguidance(main, guide, 2.0), uncond, 1.5).
    """
    return cfg(main, guide, scale, interval, rescale)


def clip(denoise: Callable, low: float = -1.0, high: float = 1.0) -> Callable:
    """The estimate kept within [low, high], the range of the data.

    DDPM's and DDIM's "clip_denoised" (Ho et al. 2020, released code): both then take the noise that
    belongs to the clipped estimate, which the samplers here always do.
    """
    return lambda x, t: jnp.clip(denoise(x, t), low, high)


def inpaint(denoise: Callable, known, mask) -> Callable:
    """The estimate with its known part put in: where(mask, known, D).

    Every step then heads for a picture that agrees with `known`. A last step that returns the
    estimate itself (`ode` on edm and flow, `ddim` to sigma = 0) returns `known` exactly. Used for
    editing motion by Tevet et al. 2023. known, mask: broadcast against x; mask is bool.
    """
    return lambda x, t: jnp.where(mask, known, denoise(x, t))
