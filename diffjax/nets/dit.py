"""DiT (Peebles & Xie 2023, arXiv 2212.09748): a class-conditional transformer, adaLN-Zero.

Parameters are named as in the released state dict, with "/" for ".": `kernel` is the weight of a
linear layer as [in, out] or of the patch convolution as [p, p, C, d], `embedding` the label table.
With `scan` the blocks' parameters are stacked, under blocks/stack/... with a leading axis of layers
in place of blocks/0/..., blocks/1/...; `stack` and `unstack` convert.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from diffjax.nets import stacking
from diffjax.nets.attention import attend
from diffjax.nets.edm_blocks import PositionalEmbedding
from diffjax.nets.unet_small import depth_to_space

SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}

# Into the heads or the hidden layer: columns over `tensor`; out of them: rows.
SHARDING = (
    (r"stack\w*/.*(attn/proj|fc2)/kernel$", PartitionSpec(None, "tensor", "fsdp")),
    (r"stack\w*/.*kernel$", PartitionSpec(None, "fsdp", "tensor")),
    (r"(attn/proj|fc2)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"x_embedder/proj/kernel$", PartitionSpec(None, None, None, "tensor")),
    (r"kernel$", PartitionSpec("fsdp", "tensor")),
    (r"embedding$", PartitionSpec("fsdp", "tensor")),
)

xavier = nn.initializers.xavier_uniform()
small = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros


class DiT(nn.Module):
    """x [B, H, W, C], c_noise [B], label int32 [B] -> [B, H, W, channels] float32.

    Attributes:
      channels: of the output; the released nets give 2C, the second half their learned variance.
      num_classes: labels are 0 .. num_classes - 1 and num_classes, "no class". 0: unconditional.
      patch: side of a patch, one token.
      width, depth, heads: of the transformer; see SIZES.
      time_scale: what c_noise is multiplied with before its sinusoids, whose frequencies are
        1 .. 1/10000. 1 for timesteps 0..999 (the released nets); 1000 for c_noise of order 1.
      taps: blocks, counted from 1, after which the tokens [B, N, width] are returned, as a list:
        the backbone of a discriminator, which has neither an output nor blocks after the last tap.
        With `scan` the stacks then end at the taps: `stacking.backbone` converts. () for an output.
      scan: stack the layers and scan over them: compiles in seconds at any depth.
      remat: recompute each block in the backward pass, keeping its matrix products only.
      dtype: compute type; parameters, norm statistics, embeddings and the output are float32.
    """

    channels: int = 4
    num_classes: int = 1000
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    time_scale: float = 1.0
    taps: tuple[int, ...] = ()
    scan: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, c_noise, label=None, augment=None, train: bool = False):
        """Computes the output. label None is "no class"; augment and train are ignored."""
        chex.assert_rank(x, 4)
        chex.assert_shape(c_noise, x.shape[:1])
        b, h, w, _ = x.shape
        if label is None:
            label = jnp.full(b, self.num_classes, jnp.int32)
        rows, columns = h // self.patch, w // self.patch
        x = PatchEmbedder(self.width, self.patch, self.dtype, name="x_embedder")(x)
        x = x + position_embedding(rows, columns, self.width).astype(self.dtype)
        c = TimestepEmbedder(self.width, name="t_embedder")(c_noise * self.time_scale)
        c = c + LabelEmbedder(self.num_classes, self.width, name="y_embedder")(label)
        how = (self.depth, self.heads, self.taps, self.scan, self.remat, self.dtype)
        x = Blocks(*how, name="blocks")(x, c)
        if self.taps:
            return x
        last = FinalLayer(self.patch**2 * self.channels, self.dtype, name="final_layer")
        x = last(x, c).reshape(b, rows, columns, -1)
        return depth_to_space(x, self.patch).astype(jnp.float32)


class PatchEmbedder(nn.Module):
    """[B, H, W, C] -> [B, HW/p^2, width]: a linear map of each patch, tokens row by row."""

    width: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        # Xavier as of the flattened patch, which is one linear layer; not as of a convolution.
        init = lambda key, shape, dtype=jnp.float32: xavier(
            key, (shape[0] * shape[1] * shape[2], shape[3]), dtype
        ).reshape(shape)
        p = (self.patch, self.patch)
        x = nn.Conv(self.width, p, p, "VALID", dtype=self.dtype, kernel_init=init, name="proj")(x)
        return x.reshape(x.shape[0], -1, self.width)


def position_embedding(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed positions [rows * columns, width] float32.

    First half of the channels from the column, second from the row; each half [sin | cos] of the
    index times 10000^(-i / (width/4)), i = 0 .. width/4 - 1.
    """
    quarter = width // 4
    f = 10_000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    parts = [g(index * f) for index in (column, row) for g in (np.sin, np.cos)]
    return np.concatenate(parts, -1).astype(np.float32)


class TimestepEmbedder(nn.Module):
    """t [B] -> [B, width] float32: sinusoids of 256 channels, then two layers."""

    width: int

    @nn.compact
    def __call__(self, t):
        t = PositionalEmbedding(256)(t)
        return Mlp(self.width, self.width, nn.silu, small, ("0", "2"), name="mlp")(t)


class LabelEmbedder(nn.Module):
    """label int32 [B] -> [B, width] float32, a row of a table; the last is "no class"."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, label):
        table = nn.Embed(
            self.num_classes + 1, self.width, embedding_init=small, name="embedding_table"
        )
        return table(label)


class Mlp(nn.Module):
    """[..., in] -> [..., out]: two linear layers with an activation between them."""

    hidden: int
    out: int
    activation: Callable
    initial: Callable
    names: tuple[str, str]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for width, name in zip((self.hidden, self.out), self.names):
            x = self.activation(x) if name == self.names[1] else x
            x = nn.Dense(width, dtype=self.dtype, kernel_init=self.initial, name=name)(x)
        return x


class Modulation(nn.Module):
    """c [B, width] -> `chunks` arrays [B, 1, width]; float32, zero at the start."""

    chunks: int
    width: int

    @nn.compact
    def __call__(self, c):
        dense = nn.Dense(self.chunks * self.width, kernel_init=zeros, dtype=jnp.float32, name="1")
        return jnp.split(dense(nn.silu(c))[:, None], self.chunks, -1)


def modulate(x, shift, scale, dtype):
    """LayerNorm without parameters, then x (1 + scale) + shift."""
    x = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)(x)
    return x * (1 + scale.astype(dtype)) + shift.astype(dtype)


class Attention(nn.Module):
    """Self-attention over the tokens, [B, N, width] to the same."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        b, n, d = x.shape
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name=name)
        qkv = dense(3 * d, "qkv")(x).reshape(b, n, 3, self.heads, -1)
        return dense(d, "proj")(attend(*jnp.moveaxis(qkv, 2, 0)).reshape(b, n, d))


class Block(nn.Module):
    """A DiT block: attention and MLP, each shifted, scaled and gated by c. Figure 3, adaLN-Zero."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, c):
        d = x.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = Modulation(6, d, name="adaLN_modulation")(c)
        attention = Attention(self.heads, self.dtype, name="attn")
        x = x + gate1.astype(self.dtype) * attention(modulate(x, shift1, scale1, self.dtype))
        gelu = lambda a: nn.gelu(a, approximate=True)
        mlp = Mlp(4 * d, d, gelu, xavier, ("fc1", "fc2"), self.dtype, name="mlp")
        return x + gate2.astype(self.dtype) * mlp(modulate(x, shift2, scale2, self.dtype))


class Blocks(nn.Module):
    """The stack of blocks, unrolled or scanned; with taps, the list of what they saw."""

    depth: int
    heads: int
    taps: tuple[int, ...]
    scan: bool
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, c):
        block, seen = Block, []
        if self.remat:
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan)
        for first, end in stacking.stretches(self.depth, self.taps):
            if not self.scan:
                for i in range(first, end):
                    x = block(self.heads, self.dtype, name=str(i))(x, c)
            else:
                layer = nn.scan(
                    lambda module, x, c: (module(x, c), None),
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=nn.broadcast,
                    length=end - first,
                )
                name = f"stack_{first}" if self.taps else "stack"
                x = layer(block(self.heads, self.dtype, name=name), x, c)[0]
            seen.append(x)
        return seen if self.taps else x


class FinalLayer(nn.Module):
    """[B, N, width] -> [B, N, out]: the last modulation and a linear layer that starts as zero."""

    out: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, c):
        shift, scale = Modulation(2, x.shape[-1], name="adaLN_modulation")(c)
        x = modulate(x, shift, scale, self.dtype)
        return nn.Dense(self.out, dtype=self.dtype, kernel_init=zeros, name="linear")(x)


def stack(params: dict) -> dict:
    """Parameters of an unrolled net -> of the same net with `scan`."""
    blocks = [params["blocks"][str(i)] for i in range(len(params["blocks"]))]
    return {**params, "blocks": {"stack": jax.tree.map(lambda *a: jnp.stack(a), *blocks)}}


def unstack(params: dict) -> dict:
    """The inverse of `stack`."""
    return {**params, "blocks": stacking.unstack(params["blocks"])}
