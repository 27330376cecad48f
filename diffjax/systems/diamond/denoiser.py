"""DIAMOND's denoiser: EDM's preconditioning with offset noise, frames of the past, a quantiser.

Training adds a constant to each sample and channel beside the white noise, x = y + sigma_offset o
+ sigma n, so that the network learns to make low frequencies and not to read them out of x (Alonso
et al. 2024, released code). The two together have the level s = sqrt(sigma^2 + sigma_offset^2),
and s stands in all of EDM's coefficients, c_noise too. Samplers tell sigma and add no offset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.core import denoisers
from diffjax.core.denoisers import Coefficients
from diffjax.systems.diamond.quantise import quantise


def coefficients(sigma_data: float = 0.5, sigma_offset: float = 0.3) -> Callable:
    """sigma -> `Coefficients` of EDM at sqrt(sigma^2 + sigma_offset^2), of sigma's shape.

    With an offset D is not the identity at sigma = 0: c_skip is at most 0.74 for the defaults.
    """
    of_level = denoisers.edm_coefficients(sigma_data)
    return lambda sigma: of_level(jnp.sqrt(sigma**2 + sigma_offset**2))


@dataclass(frozen=True)
class Denoiser:
    """D(x; sigma | past, act) = Q(c_skip x + c_out F(c_in x, past/sigma_data, c_noise, act)).

    Attributes:
      net: a linen module that is called as `nets.diamond_unet.DiamondUNet`.
      sigma_data: standard deviation of frames.
      sigma_offset: of the offset noise in training; CSGO's models have 0.1.
      quantiser: Q, one of `quantise.QUANTISERS`.
    """

    net: Any
    sigma_data: float = 0.5
    sigma_offset: float = 0.3
    quantiser: str = "floor"

    def coefficients(self, sigma: jax.Array) -> Coefficients:
        """The four numbers at sigma, in its shape."""
        return coefficients(self.sigma_data, self.sigma_offset)(sigma)

    def output(self, params, x, sigma, past, act=None, sigma_past=None) -> jax.Array:
        """The raw network's answer F, float32 [B, H, W, C].

        Args:
          x: the noisy frame [B, H, W, C].
          sigma: its noise level, float32, a scalar or [B].
          past: what it is conditioned on, [B, H, W, n C], oldest frame first.
          act: what the network takes: int [B, n], or float [B, n, actions], or None.
          sigma_past: the noise level of the past frames, a scalar or [B], for a network that is
            told it; None: they are clean. It is told without the offset.
        """
        sigma = jnp.reshape(sigma, (-1,))
        c = self.coefficients(sigma)
        told = None if sigma_past is None else jnp.log(jnp.reshape(sigma_past, (-1,))) / 4
        scaled = pixelwise(c.input) * x
        past = past / self.sigma_data
        return self.net.apply({"params": params}, scaled, past, c.noise, act, told)

    def estimate(self, x, sigma, output) -> jax.Array:
        """c_skip x + c_out F, before the quantiser."""
        c = self.coefficients(jnp.reshape(sigma, (-1,)))
        return pixelwise(c.skip) * x + pixelwise(c.out) * output

    def quantise(self, x) -> jax.Array:
        """Q."""
        return quantise(x, self.quantiser)

    def __call__(self, params, x, sigma, past, act=None, sigma_past=None) -> jax.Array:
        """D, float32 [B, H, W, C]; arguments as `output`."""
        return self.quantise(
            self.estimate(x, sigma, self.output(params, x, sigma, past, act, sigma_past))
        )


def pixelwise(a: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1], which broadcasts against frames."""
    return a[:, None, None, None]


@dataclass(frozen=True)
class Levels:
    """The noise levels of training: sigma = exp(mean + std z), clipped to [lowest, highest].

    Attributes are of ln sigma, but the last two; CSGO's models have the mean -1.2.
    """

    mean: float = -0.4
    std: float = 1.2
    lowest: float = 2e-3
    highest: float = 20.0

    def __call__(self, z: jax.Array) -> jax.Array:
        """Standard normal draws -> noise levels of their shape."""
        return jnp.clip(jnp.exp(self.mean + self.std * z), self.lowest, self.highest)


def stack(frames: jax.Array) -> jax.Array:
    """Frames [B, n, H, W, C], oldest first -> [B, H, W, n C], as networks take them."""
    b, n, h, w, c = frames.shape
    return frames.transpose(0, 2, 3, 1, 4).reshape(b, h, w, n * c)
