"""A UNet of one million parameters that learns small drawings on two CPU cores in minutes.

Not a published network: the published ones are for a GPU. It keeps what matters of them (residual
blocks scaled and shifted by the noise level, skips from encoder to decoder, a zero-initialised
head) and starts with a space-to-depth, which alone makes it about four times cheaper.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Output channels over `tensor`, input channels over `fsdp`.
SHARDING = (
    (r"conv.*/kernel$", PartitionSpec(None, None, "fsdp", "tensor")),
    (r"dense.*/kernel$", PartitionSpec("fsdp", "tensor")),
)


class Block(nn.Module):
    """GroupNorm, SiLU, 3x3; the same again with a scale and shift from the embedding; plus skip."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, embedding):
        norm = lambda name: nn.GroupNorm(8, dtype=self.dtype, name=name)
        scale, shift = jnp.split(
            nn.Dense(2 * self.width, dtype=self.dtype, name="dense_film")(embedding), 2, axis=-1
        )
        h = conv(self.width, self.dtype, "conv_in")(nn.silu(norm("norm_in")(x)))
        h = norm("norm_out")(h) * (1 + scale[:, None, None]) + shift[:, None, None]
        h = conv(self.width, self.dtype, "conv_out", zero=True)(nn.silu(h))
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype, name="dense_skip")(x)
        return x + h


def conv(width: int, dtype, name: str, *, stride: int = 1, zero: bool = False) -> nn.Conv:
    """A 3x3 convolution, zero-initialised where a residual branch must start as nothing."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(width, (3, 3), stride, dtype=dtype, kernel_init=init, name=name)


class UNetSmall(nn.Module):
    """x [B, H, W, C], c_noise [B], label int32 [B] -> [B, H, W, C] float32.

    Attributes:
      channels: C of the output.
      widths: channels of each level; each level halves the resolution of the one before.
      num_classes: labels are 0 .. num_classes - 1; num_classes itself is the null label, "no
        class". 0: unconditional, labels are ignored.
      patch: side of the space-to-depth; H and W must divide by patch * 2^(levels - 1).
      embedding: width of the noise-and-class embedding.
      frequencies: number of geometric frequencies from 1 to max_frequency for c_noise. c_noise =
        ln(sigma)/4 lives in about [-1.5, 1.2]: frequencies far above 16 would only add noise, and
        with frequencies of 1000 the class conditioning fails silently.
      dtype: compute type; parameters, norm statistics and output are float32.
    """

    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 64)
    num_classes: int = 0
    patch: int = 2
    embedding: int = 128
    frequencies: int = 16
    max_frequency: float = 16.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, c_noise, label=None, augment=None, train: bool = False):
        """Computes the output. augment and train are ignored: it has no dropout either."""
        chex.assert_rank(x, 4)
        chex.assert_shape(c_noise, x.shape[:1])
        embedding = self._embed(c_noise, label)
        x = space_to_depth(x, self.patch).astype(self.dtype)
        x = conv(self.widths[0], self.dtype, "conv_in")(x)
        skips = [x]
        for level, w in enumerate(self.widths):
            if level:
                x = conv(w, self.dtype, f"conv_down_{level}", stride=2)(x)
                skips.append(x)
            x = Block(w, self.dtype, name=f"down_{level}")(x, embedding)
            skips.append(x)
        x = Block(self.widths[-1], self.dtype, name="middle")(x, embedding)
        for level, w in reversed(list(enumerate(self.widths))):
            for i in range(2):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = Block(w, self.dtype, name=f"up_{level}_{i}")(x, embedding)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = nn.Dense(self.widths[level - 1], dtype=self.dtype, name=f"dense_up_{level}")(x)
        x = nn.silu(nn.GroupNorm(8, dtype=self.dtype, name="norm_out")(x))
        x = conv(self.channels * self.patch**2, self.dtype, "conv_out", zero=True)(x)
        return depth_to_space(x, self.patch).astype(jnp.float32)

    def _embed(self, c_noise, label):
        f = jnp.geomspace(1.0, self.max_frequency, self.frequencies)
        angle = c_noise[:, None].astype(jnp.float32) * f
        e = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        e = nn.Dense(self.embedding, dtype=self.dtype, name="dense_noise")(e)
        if self.num_classes:
            # N(0, 1) rows: flax's default (std 1/sqrt(width)) is drowned by the noise embedding.
            table = nn.Embed(
                self.num_classes + 1,
                self.embedding,
                embedding_init=nn.initializers.normal(1.0),
                dtype=self.dtype,
                name="classes",
            )
            e = e + table(label)
        e = nn.Dense(self.embedding, dtype=self.dtype, name="dense_embedding")(nn.silu(e))
        return nn.silu(e)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/p, W/p, p p C]: each p x p patch becomes the channels of one pixel."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`: [B, h, w, p p C] -> [B, h p, w p, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)
