"""A convolutional autoencoder with a Gaussian posterior: pictures to a few channels, and back.

The shape of latent diffusion's first stage (Rombach et al. 2022) without attention and made small:
residual blocks at each level, a space-to-depth in front, which takes the most expensive level away.
It has no norm over the whole batch and no position, so a picture's latents are its own alone.
"""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.unet_small import conv, depth_to_space, space_to_depth

# The posterior starts narrow, so that the decoder has something to read from the first step on.
FIRST_LOGVAR = -4.0
LIMITS = (-30.0, 20.0)  # of a log variance: its exponential stays finite in float32


class Block(nn.Module):
    """GroupNorm, SiLU, 3x3, twice; plus skip. Statistics of the norms are float32."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        h = x
        for name, zero in (("in", False), ("out", True)):
            h = nn.silu(nn.GroupNorm(8, dtype=self.dtype, name=f"norm_{name}")(h))
            h = conv(self.width, self.dtype, f"conv_{name}", zero=zero)(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype, name="dense_skip")(x)
        return x + h


class Encoder(nn.Module):
    """x [B, H, W, C] -> (mean, logvar), float32 [B, H/f, W/f, latent_channels] each."""

    widths: Sequence[int]
    blocks: int
    patch: int
    latent_channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = space_to_depth(x, self.patch).astype(self.dtype)
        x = conv(self.widths[0], self.dtype, "conv_in")(x)
        for level, width in enumerate(self.widths):
            if level:
                x = conv(width, self.dtype, f"conv_down_{level}", stride=2)(x)
            for i in range(self.blocks):
                x = Block(width, self.dtype, name=f"down_{level}_{i}")(x)
        x = nn.silu(nn.GroupNorm(8, dtype=self.dtype, name="norm_out")(x)).astype(jnp.float32)
        mean = conv(self.latent_channels, jnp.float32, "conv_mean")(x)
        logvar = conv(self.latent_channels, jnp.float32, "conv_logvar", zero=True)(x)
        return mean, jnp.clip(logvar + FIRST_LOGVAR, *LIMITS)


class Decoder(nn.Module):
    """z [B, h, w, latent_channels] -> [B, h f, w f, channels] float32."""

    channels: int
    widths: Sequence[int]
    blocks: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z):
        x = conv(self.widths[-1], self.dtype, "conv_in")(z.astype(self.dtype))
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks):
                x = Block(width, self.dtype, name=f"up_{level}_{i}")(x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = conv(self.widths[level - 1], self.dtype, f"conv_up_{level}")(x)
        x = nn.silu(nn.GroupNorm(8, dtype=self.dtype, name="norm_out")(x))
        x = conv(self.channels * self.patch**2, self.dtype, "conv_out")(x)
        return depth_to_space(x, self.patch).astype(jnp.float32)


class Autoencoder(nn.Module):
    """An encoder to a Gaussian's mean and log variance, and a decoder back to pictures.

    Attributes:
      channels: C of the pictures.
      widths: channels of each level, multiples of 8; each level halves the resolution.
      blocks: residual blocks a level, in the encoder and in the decoder.
      patch: side of the space-to-depth in front.
      latent_channels: of the latents.
      dtype: compute type; parameters, norm statistics, mean, logvar and pictures are float32.
    """

    channels: int = 3
    widths: Sequence[int] = (32, 64)
    blocks: int = 1
    patch: int = 2
    latent_channels: int = 4
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        shared = {name: getattr(self, name) for name in ("widths", "blocks", "patch", "dtype")}
        self.encoder = Encoder(latent_channels=self.latent_channels, **shared)
        self.decoder = Decoder(channels=self.channels, **shared)

    @property
    def factor(self) -> int:
        """f: by how much a side of the latents is shorter than the picture's."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The latents' shape for pictures of a shape (H, W, C)."""
        return shape[0] // self.factor, shape[1] // self.factor, self.latent_channels

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pictures [B, H, W, C] in [-1, 1] -> (mean, logvar), float32 [B, h, w, latent_channels];
        H and W are multiples of f."""
        chex.assert_rank(x, 4)
        return self.encoder(x)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents [B, h, w, latent_channels] -> pictures float32 [B, h f, w f, C], not clipped."""
        chex.assert_rank(z, 4)
        return self.decoder(z)

    def __call__(self, x: jax.Array, noise: jax.Array):
        """Returns (pictures again, mean, logvar) by z = mean + exp(logvar/2) noise.

        Args:
          x: [B, H, W, C] in [-1, 1].
          noise: [B, h, w, latent_channels], standard normal; 0: the mean.
        """
        mean, logvar = self.encode(x)
        return self.decode(mean + jnp.exp(logvar / 2) * noise), mean, logvar
