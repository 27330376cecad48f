"""DIAMOND's denoising network: a UNet that sees the last frames beside the noisy next one.

Alonso et al. 2024, section 3, and the released code, whose CSGO model is the same network, wider,
with attention, and with the noise level of the past frames told too. Height and width need not
divide by anything: inside they are padded with zeros on the right and below.
"""

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffjax.nets.diamond_blocks import (
    Downsample,
    Norm,
    ResBlocks,
    Upsample,
    conv,
    linear,
    zeros,
)
from diffjax.nets.edm_blocks import FourierEmbedding, rounded

ATARI = {
    "cond_channels": 256,
    "depths": (2, 2, 2, 2),
    "channels": (64, 64, 64, 64),
    "attention": (False, False, False, False),
}
CSGO = {
    "cond_channels": 2048,
    "depths": (2, 2, 2, 2),
    "channels": (128, 256, 512, 1024),
    "attention": (False, False, True, True),
    "num_actions": 51,
    "told_past_noise": True,
}
CSGO_UPSAMPLER = {
    **CSGO,
    "channels": (64, 64, 128, 256),
    "attention": (False, False, False, True),
    "num_actions": 0,
}


class DiamondUNet(nn.Module):
    """The raw network F, to be preconditioned.

    Attributes:
      cond_channels: numbers that blocks are told; a multiple of twice the past frames.
      depths: residual blocks a level, first the finest.
      channels: of each level, multiples of 32 or below 64.
      attention: whether each level's blocks have attention; the middle's always have.
      num_actions: how many there are; 0: the network is told none.
      image_channels: of a frame.
      told_past_noise: whether it is told how noisy the past frames are (CSGO).
      merged: (path of an adaptive norm, numbers that it is told), ...: what `merged` says of its
        parameters; () for a network as it is trained.
      dtype: compute type; see `diamond_blocks` for what is float32 always.
    """

    cond_channels: int
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    num_actions: int = 0
    image_channels: int = 3
    told_past_noise: bool = False
    merged: tuple[tuple[str, int], ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, past, c_noise, act=None, c_noise_past=None):
        """Computes F, float32 [B, H, W, image_channels].

        Args:
          x: the noisy frame, scaled by c_in: [B, H, W, image_channels].
          past: what it is conditioned on, scaled: [B, H, W, n image_channels], oldest first.
          c_noise: float32 [B] or [1].
          act: int [B, n], the actions after each past frame, oldest first; or float [B, n,
            num_actions], several at a time; None where num_actions is 0.
          c_noise_past: float32 [B] or [1], the same of the past frames, or None: 0.
        """
        chex.assert_rank([x, past], 4)
        height, width = x.shape[1:3]
        told = self.tell(c_noise, act, c_noise_past)
        x = jnp.concatenate([past.astype(self.dtype), x.astype(self.dtype)], -1)
        x = conv(x, self.channels[0], "conv_in", self.dtype)
        x = UNet(self.depths, self.channels, self.attention, self.dtype, name="unet")(x, told)
        x = nn.silu(Norm(self.dtype, name="norm_out")(x[:, :height, :width]))
        x = conv(x, self.image_channels, "conv_out", self.dtype, init=zeros)
        return x.astype(jnp.float32)

    def tell(self, c_noise, act, c_noise_past):
        """What the blocks are told, float32 [B, cond_channels] (or [1, ...] without actions).

        Where layers are `merged`: {path of a norm: what its own layer makes of that}.
        """
        c = self.cond_channels
        told = FourierEmbedding(c, scale=1.0, name="noise_emb")(c_noise)
        if self.told_past_noise:
            level = jnp.zeros(1) if c_noise_past is None else c_noise_past
            told = told + FourierEmbedding(c, scale=1.0, name="noise_cond_emb")(level)
        if self.num_actions:
            init = nn.initializers.normal(1.0)
            embed = nn.Embed(
                self.num_actions, c // act.shape[1], embedding_init=init, name="act_emb_0"
            )
            several = act.ndim == 3
            each = act.astype(jnp.float32) @ embed.embedding if several else embed(act)
            told = told + each.reshape(each.shape[0], c)
        told = nn.silu(linear(c, c, "cond_proj_0")(told))
        told = linear(c, c, "cond_proj_2")(told)
        if not self.merged:
            return told
        paths, widths = zip(*self.merged)
        made = linear(sum(widths), c, "merged")(told)
        return dict(zip(paths, jnp.split(made, np.cumsum(widths)[:-1], -1)))


def merged(net: DiamondUNet, params: dict) -> tuple[DiamondUNet, dict]:
    """Returns a network that computes the same, with one layer for all that its norms are told.

    A denoiser has two linear layers a block that all take one short vector, 44 for Atari: at batch
    1 they cost an accelerator as much time as convolutions do. Convolutions get their parameters in
    the type that they compute in, once instead of at each evaluation. For sampling: the parameters
    of the result have other names and types, and Adam would treat them alike.

    Args:
      params: of `net`, as it is trained.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    layers = [path.removesuffix("/kernel") for path in flat if path.endswith("/linear/kernel")]
    widths = [flat[f"{layer}/kernel"].shape[-1] for layer in layers]
    taken = {f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")}
    kept = {path: array for path, array in flat.items() if path not in taken}
    for name in ("kernel", "bias"):
        parts = [flat[f"{layer}/{name}"] for layer in layers]
        kept[f"merged/{name}"] = jnp.concatenate(parts, -1)
    rows = tuple(zip((layer.removesuffix("/linear") for layer in layers), widths))
    kept = rounded(traverse_util.unflatten_dict(kept, sep="/"), net.dtype)
    return net.clone(merged=rows), kept


class UNet(nn.Module):
    """x [B, H, W, channels[0]], told float32 [B, E] -> [B, H', W', channels[0]], H' >= H padded.

    Each level of the way up takes all that its level of the way down made, its input included, and
    ends with the width of the level above.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, told):
        levels = len(self.channels)
        multiple = 2 ** (levels - 1)
        x = jnp.pad(x, [(0, 0), *((0, -side % multiple) for side in x.shape[1:3]), (0, 0)])
        blocks = lambda name, channels, attention: ResBlocks(
            tuple(channels), attention, self.dtype, name=name
        )
        memory = []
        for i, (depth, channels) in enumerate(zip(self.depths, self.channels)):
            if i:
                x = Downsample(self.dtype, name=f"downsamples_{i}")(x)
            made = blocks(f"d_blocks_{i}", [channels] * depth, self.attention[i])(x, told)
            memory.append([x, *made])
            x = made[-1]
        x = blocks("mid_blocks", [self.channels[-1]] * 2, True)(x, told)[-1]
        for j in range(levels):
            i = levels - 1 - j
            if j:
                x = Upsample(self.dtype, name=f"upsamples_{j}")(x)
            widths = [self.channels[i]] * self.depths[i] + [self.channels[max(0, i - 1)]]
            up = blocks(f"u_blocks_{j}", widths, self.attention[i])
            x = up(x, told, memory[i][::-1])[-1]
        return x
