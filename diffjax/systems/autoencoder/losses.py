"""What an autoencoder is trained by: a reconstruction error and the KL divergence of its posterior.

    loss = mean over pixel values |x^ - x|  +  kl_weight KL(q(z | x) || N(0, 1)) / (H W C)

The evidence bound of Kingma and Welling (2014), with a Laplace ("l1") or Gaussian ("l2") likelihood
and the divergence weighed down as in latent diffusion (Rombach et al. 2022): both sums of a picture
are divided by its number of values, so kl_weight is on that paper's scale, 1e-6.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ERRORS: dict[str, Callable] = {"l1": jnp.abs, "l2": jnp.square}


def kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each number, in nats; float32, of their shape.

    (mean^2 + exp(logvar) - 1 - logvar)/2: Kingma and Welling (2014), appendix B.
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return 0.5 * (jnp.square(mean) + jnp.expm1(logvar) - logvar)


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of values with the range [-1, 1]: 10 log10(4 / mean square
    error), of all of them together; 99 dB at most, so that it is finite."""
    error = jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))
    return 10 * jnp.log10(4 / jnp.maximum(error, 4 * 10**-9.9))
