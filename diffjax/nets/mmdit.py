"""MMDiT for pictures and films in one network (Esser et al. 2024), with 3-D rotary positions.

Two streams of tokens: space-time patches of x, and the condition (text, or a class). Each has
weights of its own; attention is joint, over all of both. Lin et al. 2025a post-train such a network
of 36 blocks and do not print its width; the published nets of the same group (Wang et al. 2025) are
the last rows of SIZES.

With `taps` the network returns the visual tokens after those blocks and has neither an output nor
blocks after the last tap: the backbone of a discriminator.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from diffjax.nets import rope3d, stacking
from diffjax.nets.dit import small, xavier, zeros
from diffjax.nets.edm_blocks import PositionalEmbedding
from diffjax.nets.mmdit_blocks import STYLES, Block, Tables, bare_norm

# name -> fields. The last two are SeedVR2's: 16 + 16 + 1 input channels, 16 of the output.
SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
    "3B": {
        "width": 2560,
        "depth": 32,
        "heads": 20,
        "modulation": "single",
        "feed": "swiglu",
        "shared_from": 10,
    },
    "7B": {
        "width": 3072,
        "depth": 36,
        "heads": 24,
        "modulation": "single",
        "rope": "stretch3d",
        "last_text_pre_only": False,
        "output": "linear",
    },
}

# Into the heads or the hidden layer: columns over `tensor`; out of them: rows.
SHARDING = (
    (r"stack_\d+/.*(proj|fc2|out)/kernel$", PartitionSpec(None, "tensor", "fsdp")),
    (r"stack_\d+/.*kernel$", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/.*(proj|fc2|out)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"kernel$", PartitionSpec("fsdp", "tensor")),
    (r"class_in$", PartitionSpec(None, None, "tensor")),
)


class MMDiT(nn.Module):
    """x [B, (T,) H, W, C], c_noise [B], condition -> [B, (T,) H, W, channels] float32.

    Attributes:
      channels: of the output.
      num_classes: of conditions that are labels; num_classes is "no class". 0: unconditional.
      class_tokens: how many tokens of the text stream a label becomes.
      patch, patch_frames: side of a patch and its length in frames: one token. Features are in the
        order (frame, row, column, channel), the channel fastest.
      width, depth, heads, hidden, modulation, feed: see `mmdit_blocks`.
      attention: one of `attention.IMPLEMENTATIONS`; a gradient penalty needs second derivatives,
        which "cudnn" does not have.
      rope: "mm3d", "stretch3d" or "none".
      shared_from: from this block (from 0) on both streams have the same weights; None: never.
      last_text_pre_only: the last block reads text and does not change it, as nobody would see.
      output: "adaln" (modulated norm), "single" (norm with weights, tables; their sample's part is
        that of the attention, as released) or "linear" (nothing before it). "": as modulation.
      time_scale: what c_noise is multiplied with before its sinusoids. 1000 for t in [0, 1].
      taps: blocks, counted from 1, after which tokens are returned; () for an output.
      scan: stack the layers between taps and scan over them: compiles in seconds at any depth.
      remat: recompute each block in the backward pass, keeping its matrix products only.
      dtype: compute type; parameters, norm statistics, embeddings and the output are float32.
    """

    channels: int = 4
    num_classes: int = 0
    class_tokens: int = 1
    patch: int = 2
    patch_frames: int = 1
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 0
    modulation: str = "adaln"
    feed: str = "gelu"
    attention: str = "einsum"
    rope: str = "mm3d"
    shared_from: int | None = None
    last_text_pre_only: bool = True
    output: str = ""
    time_scale: float = 1000.0
    taps: tuple[int, ...] = ()
    scan: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, c_noise, label=None, augment=None, train: bool = False, mask=None):
        """Computes the output, or with `taps` the list of visual tokens [B, N, width].

        Args:
          x: a picture [B, H, W, C] or a film [B, T, H, W, C].
          c_noise: float [B].
          label: int32 [B]; or tokens of a text, float [B, L, any width]; None is "no class".
          augment, train: ignored.
          mask: bool [B, L], True: a text token that counts; None: all do.
        """
        chex.assert_rank(x, {4, 5})
        chex.assert_shape(c_noise, x.shape[:1])
        film = x if x.ndim == 5 else x[:, None]
        tokens, grid = patches(film, self.patch_frames, self.patch)
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name=name)
        vid = dense(self.width, "patch_in")(tokens.astype(self.dtype))
        txt = self._condition(label, len(x), dense)
        single = self.modulation == "single"
        c = TimeEmbedder(self.width, single, name="time")(c_noise * self.time_scale)
        turn = (None, None)
        if self.rope != "none":
            both = rope3d.angles(self.rope, txt.shape[1], grid, self.width // self.heads)
            turn = tuple(rope3d.turns(None if a is None else a[:, None]) for a in both)
        of_each = ("width", "heads", "hidden", "modulation", "feed", "attention", "dtype")
        of_all = ("depth", "shared_from", "last_text_pre_only", "scan", "remat")
        pick = lambda names: {name: getattr(self, name) for name in names}
        blocks = Blocks(pick(of_each), **pick(of_all), name="blocks")
        seen = blocks(vid, txt, c, turn, mask, self.taps or (self.depth,))
        if self.taps:
            return seen
        features = self.patch_frames * self.patch**2 * self.channels
        last = Output(features, self.output or self.modulation, self.dtype, name="final")
        y = unpatched(last(seen[-1], c), grid, self.patch_frames, self.patch)
        return y.reshape(*x.shape[:-1], self.channels).astype(jnp.float32)

    def _condition(self, label, batch: int, dense):
        """Tokens [B, L, width] of the second stream."""
        if label is not None and jnp.ndim(label) == 3:
            return dense(self.width, "text_in")(jnp.asarray(label, self.dtype))
        shape = (self.num_classes + 1, self.class_tokens, self.width)
        table = self.param("class_in", nn.initializers.normal(1.0), shape)
        if label is None:
            label = jnp.full(batch, self.num_classes, jnp.int32)
        return jnp.take(table, label, axis=0).astype(self.dtype)


class Blocks(nn.Module):
    """The stack of blocks, unrolled or scanned between taps.

    Attributes:
      fields: of `mmdit_blocks.Block`, the same for all.
      depth, shared_from, last_text_pre_only, scan, remat: see `MMDiT`.
    """

    fields: dict
    depth: int
    shared_from: int | None
    last_text_pre_only: bool
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, vid, txt, c, turn, mask, taps):
        """[visual tokens after each of taps], blocks counted from 1; none runs after the last."""
        special = self.depth - 1 if self.last_text_pre_only else 0
        cuts, seen = (self.shared_from or 0, special), []
        for first, end in stacking.stretches(self.depth, taps, cuts):
            if not self.scan or end - first == 1:
                for i in range(first, end):
                    vid, txt = self._block(i, str(i))(vid, txt, c, turn, mask)
            else:
                layer = nn.scan(
                    lambda block, tokens, *a: (block(*tokens, *a), None),
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=nn.broadcast,
                    length=end - first,
                )
                block = self._block(first, f"stack_{first}")
                vid, txt = layer(block, (vid, txt), c, turn, mask)[0]
            if end in taps:
                seen.append(vid)
        return seen

    def _block(self, i: int, name: str) -> Block:
        block = Block
        if self.remat:
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan)
        return block(
            **self.fields,
            shared=self.shared_from is not None and i >= self.shared_from,
            text_output=not (self.last_text_pre_only and i == self.depth - 1),
            name=name,
        )


class TimeEmbedder(nn.Module):
    """t [B] -> [B, width], or [B, 6 width] for the single modulation; float32.

    Sinusoids of 256 channels and two layers; [sin | cos] and three in the single form, as the two
    families have it.
    """

    width: int
    single: bool

    @nn.compact
    def __call__(self, t):
        names = {"in": self.width, "out": self.width}
        e = PositionalEmbedding(256)(t)
        if self.single:
            e = jnp.roll(e, 128, -1)
            names = {"in": self.width, "hid": self.width, "out": 6 * self.width}
        for name, width in names.items():
            e = e if name == "in" else nn.silu(e)
            e = nn.Dense(width, kernel_init=small, dtype=jnp.float32, name=name)(e)
        return e


class Output(nn.Module):
    """[B, N, width] -> [B, N, features]: a linear layer that starts as zero, after its norm."""

    features: int
    kind: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, c):
        d = x.shape[-1]
        if self.kind == "adaln":
            mod = nn.Dense(2 * d, kernel_init=zeros, dtype=jnp.float32, name="mod")
            shift, scale = jnp.split(mod(nn.silu(c))[:, None], 2, -1)
            x = bare_norm(STYLES["adaln"], self.dtype)(x) * (1 + scale.astype(self.dtype))
            x = x + shift.astype(self.dtype)
        elif self.kind == "single":
            own = Tables(d, ("out_shift", "out_scale"), name="ada")()
            c = c.reshape(len(c), 1, d, 6)
            shift, factor = c[..., 0] + own["out_shift"], c[..., 1] + own["out_scale"]
            x = nn.RMSNorm(epsilon=STYLES["single"].eps, dtype=self.dtype, name="norm")(x)
            x = x * factor.astype(self.dtype) + shift.astype(self.dtype)
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=zeros, name="proj")(x)


def patches(film: jax.Array, frames: int, side: int):
    """[B, T, H, W, C] -> (tokens [B, N, frames side^2 C], their grid (T', H', W')).

    Tokens frame by frame, row by row; features (frame, row, column, channel), the channel fastest.
    """
    b, t, h, w, c = film.shape
    grid = (t // frames, h // side, w // side)
    x = film.reshape(b, grid[0], frames, grid[1], side, grid[2], side, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, grid[0] * grid[1] * grid[2], -1), grid


def unpatched(tokens: jax.Array, grid: tuple[int, int, int], frames: int, side: int) -> jax.Array:
    """The inverse of `patches`: [B, N, frames side^2 C] -> [B, T, H, W, C]."""
    b, (t, h, w) = len(tokens), grid
    x = tokens.reshape(b, t, h, w, frames, side, side, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, t * frames, h * side, w * side, -1)
