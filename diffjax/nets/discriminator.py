"""Read-out heads that make a discriminator of any backbone which exposes tokens of its blocks.

Lin et al. 2025a: after some blocks of the diffusion network, a block with cross-attention only, in
which one learned token asks the visual tokens; what it was told is concatenated over the taps,
normed, and projected to one logit. The text reaches no head but through the backbone.

    features(backbone, x, t, condition)  ->  [tokens [B, N_k, d_k], ...]
    ReadOut                              ->  logits [B]

`DiT` and `MMDiT` with `taps` are such backbones; `captured` makes one of any other network.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from diffjax.errors import UserError
from diffjax.nets.attention import attend_masked
from diffjax.nets.dit import xavier, zeros

OF_36 = (16, 26, 36)  # the paper's taps, of its 36 blocks

# Of a head at any depth of the tree; into the attention or the hidden layer: columns.
SHARDING = (
    (r"heads_\d+/.*(proj|fc2)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"heads_\d+/.*kernel$", PartitionSpec("fsdp", "tensor")),
)


def taps(depth: int) -> tuple[int, ...]:
    """Blocks, counted from 1, to read from: 16, 26 and 36 of 36, in proportion for other depths.

    Rounded half up. In nets of one or two blocks taps that coincide are one, and a tap before the
    first block is none. For a discriminator of a part of the network, as the paper's ablation has
    it, give the depth of that part. Lin et al. 2025a.
    """
    if depth < 1:
        raise UserError(f"taps: a network of {depth} blocks")
    # In whole numbers: floor(L k/36 + 1/2).
    return tuple(sorted({(2 * depth * k + 36) // 72 for k in OF_36} - {0}))


class Head(nn.Module):
    """Tokens [B, N, d] -> what a learned token e learned of them, [B, d] float32.

        y = e + W_o softmax(q(e) k(n)^T / sqrt(c)) v(n),  n = RMSNorm(tokens)
        y + MLP(LayerNorm(y))

    q and k are RMS-normed over a head's channels. No positions: the order of tokens is the
    backbone's business. Float32 throughout, whatever the backbone computes in.

    Attributes:
      heads: of the attention; 0: one for every 64 channels.
    """

    heads: int = 0

    @nn.compact
    def __call__(self, tokens, mask=None):
        """mask: bool [B, N], True: a token that counts; None: all do."""
        b, n, d = tokens.shape
        heads = self.heads or max(1, d // 64)
        if d % heads:
            raise UserError(f"read-out: {d} channels do not divide into {heads} heads")
        dense = lambda name: nn.Dense(d, kernel_init=xavier, name=name)
        norm = lambda name: nn.RMSNorm(epsilon=1e-6, name=name)
        split = lambda a: a.reshape(*a.shape[:-1], heads, d // heads)
        e = self.param("query", nn.initializers.normal(0.02), (1, d))
        x = norm("pre_norm")(tokens.astype(jnp.float32))
        q, k, v = split(dense("q")(e)), split(dense("k")(x)), split(dense("v")(x))
        q = jnp.broadcast_to(norm("q_norm")(q), (b, 1, heads, d // heads))
        attended = attend_masked(q, norm("k_norm")(k), v, mask)
        y = e + dense("proj")(attended.reshape(b, d))
        return y + HeadMlp(name="mlp")(y)


class HeadMlp(nn.Module):
    """[B, d] -> [B, d]: LayerNorm, then two layers of 4 d and d with tanh-GELU between."""

    @nn.compact
    def __call__(self, y):
        d = y.shape[-1]
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        y = nn.Dense(4 * d, kernel_init=xavier, name="fc1")(y)
        return nn.Dense(d, kernel_init=xavier, name="fc2")(nn.gelu(y, approximate=True))


class ReadOut(nn.Module):
    """[tokens [B, N_k, d_k], ...] -> logits [B] float32, 0 for every input at the start.

    Attributes:
      heads: of each head's attention; 0: one for every 64 of its channels.
      frames: above 1, a logit for each of so many frames, [B, frames]: each head then asks the
        tokens of one frame, which are N_k / frames in a row (after Lin et al. 2025b).
      bias: of the logit. Leave it out under a relativistic loss, which does not see it: RMSProp
        would turn the rounding noise of its gradient into steps.
    """

    heads: int = 0
    frames: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, features, masks=None):
        """masks: [bool [B, N_k] or None, ...], True: a token that counts; None: all do."""
        read = []
        for i, tokens in enumerate(features):
            mask = masks[i] if masks else None
            if self.frames > 1:
                cut = lambda a: a.reshape(-1, a.shape[1] // self.frames, *a.shape[2:])
                tokens, mask = cut(tokens), None if mask is None else cut(mask)
            read.append(Head(self.heads, name=f"heads_{i}")(tokens, mask))
        y = nn.LayerNorm(epsilon=1e-6, name="out_norm")(jnp.concatenate(read, -1))
        dense = nn.Dense(1, use_bias=self.bias, kernel_init=zeros, name="out_proj")
        return dense(y).reshape((-1, self.frames) if self.frames > 1 else -1)


def captured(net: nn.Module, names: tuple[str, ...]) -> Callable:
    """Returns features(params, ...) of a network without taps of its own: what modules returned.

    For a U-Net: blocks of the encoder, the middle and the decoder, each of its own width. What
    comes after the last of them is not computed under jit; its parameters stay in the tree and
    have no gradient.

    Args:
      net: called as net.apply({"params": params}, ...).
      names: paths of modules, "enc/16x16_block0", each of which runs once and returns an array
        [B, ..., d]; all axes between become tokens.

    Returns:
      a function (params, *args, **named) -> [[B, N_k, d_k], ...], in the order of `names`. It
      raises `UserError` where the network has no such module.
    """

    def features(params, *args, **named):
        watch = lambda module, method: method == "__call__" and "/".join(module.path) in names
        _, state = net.apply({"params": params}, *args, capture_intermediates=watch, **named)
        leaves = jax.tree_util.tree_leaves_with_path(state.get("intermediates", {}))
        seen = {"/".join(str(k.key) for k in path[:-2]): leaf for path, leaf in leaves}
        if missing := [name for name in names if name not in seen]:
            raise UserError(f"features: the network ran no module {missing[0]!r}")
        return [seen[name].reshape(len(seen[name]), -1, seen[name].shape[-1]) for name in names]

    return features
