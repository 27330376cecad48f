"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233) as reimplemented and retrained by EDM.

Karras et al. 2022, appendix F.2 and Table 7.
"""

import chex
import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets.edm_blocks import (
    Linear,
    PositionalEmbedding,
    Style,
    UNetBlock,
    group_norm,
    kaiming,
    nothing,
    one_hot,
    or_zeros,
    unit,
)


class DhariwalUNet(nn.Module):
    """F(x, c_noise, label, augment): x [B, H, W, C] -> [B, H, W, channels] float32.

    H = W = R is the resolution of level 0; level l has R / 2^l pixels a side and
    model_channels * channel_mult[l] channels. Attributes as `SongUNet`'s. Attention has heads of 64
    channels, and none where there are fewer.
    """

    channels: int = 3
    num_classes: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, c_noise, label=None, augment=None, train: bool = False):
        """Computes F; the arguments are those of `SongUNet`."""
        chex.assert_rank(x, 4)
        chex.assert_shape(c_noise, x.shape[:1])
        style = Style(
            eps=1e-5,
            skip_scale=1.0,
            adaptive_scale=True,
            resample_proj=False,
            head_channels=64,
            taps=(1, 1),
            dropout=self.dropout,
            initial=kaiming,
            initial_last=nothing,
            initial_qkv=kaiming,
            dtype=self.dtype,
        )
        widths = tuple(self.model_channels * m for m in self.channel_mult)
        topology = (style, widths, self.num_blocks, self.attn_resolutions)
        embedding = self._embed(c_noise, label, augment)
        skips = Encoder(*topology, name="enc")(x.astype(self.dtype), embedding, train)
        x = Decoder(*topology, name="dec")(skips, embedding, train)
        x = nn.silu(group_norm(x.shape[-1], style.eps, self.dtype, "out_norm")(x))
        return style.conv(self.channels, "out_conv", initial=nothing)(x).astype(jnp.float32)

    def _embed(self, c_noise, label, augment):
        batch, width = len(c_noise), self.model_channels * self.channel_mult_emb
        e = PositionalEmbedding(self.model_channels, name="map_noise")(c_noise)
        if self.augment_dim:
            augment = or_zeros(augment, self.augment_dim, batch)
            e = e + Linear(e.shape[-1], nothing, use_bias=False, name="map_augment")(augment)
        e = nn.silu(Linear(width, kaiming, name="map_layer0")(e))
        e = Linear(width, kaiming, name="map_layer1")(e)
        if self.num_classes:
            label = one_hot(label, self.num_classes, batch)
            e = e + Linear(width, unit, use_bias=False, name="map_label")(label)
        return nn.silu(e)


class Encoder(nn.Module):
    """x -> the skips that the decoder takes from the end; the last is the encoder's output."""

    style: Style
    widths: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]

    @nn.compact
    def __call__(self, x, embedding, train):
        skips = []
        for level, width in enumerate(self.widths):
            if level == 0:
                r = x.shape[1]
                x = self.style.conv(width, f"{r}x{r}_conv")(x)
            else:
                r = x.shape[1] // 2
                down = UNetBlock(x.shape[-1], self.style, "down", name=f"{r}x{r}_down")
                x = down(x, embedding, train)
            skips.append(x)
            for i in range(self.num_blocks):
                attention = r in self.attn_resolutions
                block = UNetBlock(width, self.style, "", attention, name=f"{r}x{r}_block{i}")
                x = block(x, embedding, train)
                skips.append(x)
        return skips


class Decoder(nn.Module):
    """The encoder's skips -> features [B, H, W, widths[0]]."""

    style: Style
    widths: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]

    @nn.compact
    def __call__(self, skips, embedding, train):
        x, skips = skips[-1], list(skips)
        deepest = len(self.widths) - 1
        for level in range(deepest, -1, -1):
            c = x.shape[-1]
            if level == deepest:
                r = x.shape[1]
                x = UNetBlock(c, self.style, "", True, name=f"{r}x{r}_in0")(x, embedding, train)
                x = UNetBlock(c, self.style, name=f"{r}x{r}_in1")(x, embedding, train)
            else:
                r = 2 * x.shape[1]
                x = UNetBlock(c, self.style, "up", name=f"{r}x{r}_up")(x, embedding, train)
            for i in range(self.num_blocks + 1):
                block = UNetBlock(
                    self.widths[level],
                    self.style,
                    "",
                    r in self.attn_resolutions,
                    name=f"{r}x{r}_block{i}",
                )
                x = block((x, skips.pop()), embedding, train)
        return x
