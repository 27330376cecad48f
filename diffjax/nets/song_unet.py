"""DDPM++ and NCSN++ (Song et al. 2021b, arXiv 2011.13456) as reimplemented and retrained by EDM.

Karras et al. 2022, appendix F.2 and Table 7. DDPM++ is positional embedding, standard encoder and
filter [1, 1]; NCSN++ is Fourier embedding of double width, residual encoder and filter
[1, 3, 3, 1].
"""

import chex
import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets.edm_blocks import (
    FourierEmbedding,
    Linear,
    PositionalEmbedding,
    Resample,
    Style,
    UNetBlock,
    group_norm,
    one_hot,
    or_zeros,
    xavier,
)

SKIP_SCALE = 0.5**0.5  # the sum of two branches keeps its variance


class SongUNet(nn.Module):
    """F(x, c_noise, label, augment): x [B, H, W, C] -> [B, H, W, channels] float32.

    H = W = R is the resolution of level 0; level l has R / 2^l pixels a side and
    model_channels * channel_mult[l] channels.

    Attributes:
      channels: of the output.
      num_classes: labels are 0 .. num_classes - 1 and num_classes, "no class". 0: unconditional.
      augment_dim: length of the augmentation labels; 0: none are taken.
      model_channels, channel_mult: see above; the first convolution gives model_channels.
      channel_mult_emb, channel_mult_noise: width of the embedding, and of the noise level's own,
        over model_channels.
      num_blocks: blocks a level (the decoder has one more).
      attn_resolutions: R / 2^l of the levels with attention; the lowest always has one.
      dropout: rate.
      embedding_type: "positional" or "fourier".
      encoder_type: "standard"; "skip" or "residual" feed the resampled input in at each level.
      decoder_type: "standard"; "skip" sums an output of every level.
      resample_filter: symmetric taps of even length.
      dtype: compute type; parameters, norm statistics, embeddings and the output are float32.
    """

    channels: int = 3
    num_classes: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, c_noise, label=None, augment=None, train: bool = False):
        """Computes F.

        Args:
          x: float [B, H, W, C].
          c_noise: float32 [B].
          label: int32 [B], float [B, num_classes] or None (no class).
          augment: float32 [B, augment_dim], or None: not augmented.
          train: whether dropout acts; it takes the rng "dropout".
        """
        chex.assert_rank(x, 4)
        chex.assert_shape(c_noise, x.shape[:1])
        style = Style(
            eps=1e-6,
            skip_scale=SKIP_SCALE,
            adaptive_scale=False,
            resample_proj=True,
            head_channels=0,
            taps=self.resample_filter,
            dropout=self.dropout,
            initial=xavier(),
            initial_last=xavier(1e-5),
            initial_qkv=xavier(0.2**0.5),
            dtype=self.dtype,
        )
        widths = tuple(self.model_channels * m for m in self.channel_mult)
        embedding = self._embed(c_noise, label, augment)
        x = x.astype(self.dtype)
        skips = Encoder(
            style,
            widths,
            self.model_channels,
            self.num_blocks,
            self.attn_resolutions,
            self.encoder_type,
            name="enc",
        )(x, embedding, train)
        x = Decoder(
            style,
            widths,
            self.channels,
            self.num_blocks,
            self.attn_resolutions,
            self.decoder_type,
            name="dec",
        )(skips, embedding, train)
        return x.astype(jnp.float32)

    def _embed(self, c_noise, label, augment):
        batch, width = len(c_noise), self.model_channels * self.channel_mult_noise
        if self.embedding_type == "fourier":
            e = FourierEmbedding(width, name="map_noise")(c_noise)
        else:
            e = PositionalEmbedding(width, endpoint=True, name="map_noise")(c_noise)
        e = jnp.roll(e, width // 2, axis=-1)  # to [sin | cos], as in the released networks
        if self.num_classes:
            # The one-hot is scaled to unit variance an entry, as the other inputs are.
            label = one_hot(label, self.num_classes, batch) * self.num_classes**0.5
            e = e + Linear(width, xavier(), name="map_label")(label)
        if self.augment_dim:
            augment = or_zeros(augment, self.augment_dim, batch)
            e = e + Linear(width, xavier(), use_bias=False, name="map_augment")(augment)
        width = self.model_channels * self.channel_mult_emb
        e = nn.silu(Linear(width, xavier(), name="map_layer0")(e))
        return nn.silu(Linear(width, xavier(), name="map_layer1")(e))


class Encoder(nn.Module):
    """x -> the skips that the decoder takes from the end; the last is the encoder's output."""

    style: Style
    widths: tuple[int, ...]
    stem: int
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    kind: str

    @nn.compact
    def __call__(self, x, embedding, train):
        s, aux, skips = self.style, x, []
        for level, width in enumerate(self.widths):
            r = x.shape[1] // 2 if level else x.shape[1]
            if not level:
                x = s.conv(self.stem, f"{r}x{r}_conv")(x)
            else:
                c = x.shape[-1]
                x = UNetBlock(c, s, "down", name=f"{r}x{r}_down")(x, embedding, train)
                if self.kind == "skip":
                    aux = Resample("down", s.taps, name=f"{r}x{r}_aux_down")(aux)
                    x = x + s.conv(c, f"{r}x{r}_aux_skip", size=1)(aux)
                elif self.kind == "residual":
                    conv = s.conv(c, f"{r}x{r}_aux_residual", resample="down", fused=True)
                    x = aux = (x + conv(aux)) * SKIP_SCALE
            skips.append(x)
            for i in range(self.num_blocks):
                block = UNetBlock(
                    width, s, "", r in self.attn_resolutions, name=f"{r}x{r}_block{i}"
                )
                x = block(x, embedding, train)
                skips.append(x)
        return skips


class Decoder(nn.Module):
    """The encoder's skips -> the output [B, H, W, channels] in the style's dtype."""

    style: Style
    widths: tuple[int, ...]
    channels: int
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    kind: str

    @nn.compact
    def __call__(self, skips, embedding, train):
        s, x, aux, skips = self.style, skips[-1], None, list(skips)
        deepest = len(self.widths) - 1
        for level in range(deepest, -1, -1):
            width, c = self.widths[level], x.shape[-1]
            if level == deepest:
                r = x.shape[1]
                x = UNetBlock(c, s, "", True, name=f"{r}x{r}_in0")(x, embedding, train)
                x = UNetBlock(c, s, name=f"{r}x{r}_in1")(x, embedding, train)
            else:
                r = 2 * x.shape[1]
                x = UNetBlock(c, s, "up", name=f"{r}x{r}_up")(x, embedding, train)
            for i in range(self.num_blocks + 1):
                attention = i == self.num_blocks and r in self.attn_resolutions
                block = UNetBlock(width, s, "", attention, name=f"{r}x{r}_block{i}")
                x = block((x, skips.pop()), embedding, train)
            if self.kind == "skip" or level == 0:
                if aux is not None:
                    aux = Resample("up", s.taps, name=f"{r}x{r}_aux_up")(aux)
                out = nn.silu(group_norm(x.shape[-1], s.eps, s.dtype, f"{r}x{r}_aux_norm")(x))
                out = s.conv(self.channels, f"{r}x{r}_aux_conv", initial=s.initial_last)(out)
                aux = out if aux is None else aux + out
        return aux
