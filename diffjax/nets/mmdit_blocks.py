"""The block of MMDiT (Esser et al. 2024): two streams of tokens, each with weights, one attention.

A stream's layer is shifted, scaled and gated by the time vector in one of two ways:

    adaln   six vectors a block and stream from a linear layer of SiLU(c); LayerNorm (SD3, DiT)
    single  six vectors a sample for the whole net, to which each block and stream adds tables of
            its own; RMSNorm (Chen et al. 2024; the video transformers of Yang et al. 2025)
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets import rope3d
from diffjax.nets.attention import attend_masked
from diffjax.nets.dit import Mlp, xavier, zeros


class Style(NamedTuple):
    """What goes with a way of modulation.

    Attributes:
      norm: linen's class; without parameters where it is modulated.
      eps: of all norms.
      qkv_bias: whether queries, keys and values have one.
    """

    norm: type
    eps: float
    qkv_bias: bool


STYLES = {
    "adaln": Style(nn.LayerNorm, 1e-6, True),
    "single": Style(nn.RMSNorm, 1e-5, False),
}


def bare_norm(style: Style, dtype) -> nn.Module:
    """The style's norm without parameters."""
    more = {"use_bias": False} if style.norm is nn.LayerNorm else {}
    return style.norm(epsilon=style.eps, use_scale=False, dtype=dtype, **more)


def swiglu_width(width: int) -> int:
    """256 ceil((8 width/3)/256): as many parameters as two layers of 4 width, roughly."""
    return 256 * -(-8 * width // (3 * 256))


class SwiGLU(nn.Module):
    """[..., d] -> [..., d]: out(SiLU(gate(x)) up(x)), without biases. Shazeer 2020."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        dense = lambda width, name: nn.Dense(
            width, use_bias=False, dtype=self.dtype, kernel_init=xavier, name=name
        )
        hidden = nn.silu(dense(self.hidden, "gate")(x)) * dense(self.hidden, "up")(x)
        return dense(x.shape[-1], "out")(hidden)


class Tables(nn.Module):
    """A block's and stream's own part of the "single" modulation: {"attn_shift": [d], ...}.

    Shifts and gates begin as N(0, 1/d), scales as N(1, 1/d).
    """

    width: int
    names: tuple[str, ...]

    @nn.compact
    def __call__(self):
        spread = nn.initializers.normal(self.width**-0.5)
        one = lambda *args: 1 + spread(*args)
        pick = lambda name: one if name.endswith("scale") else spread
        return {name: self.param(name, pick(name), (self.width,)) for name in self.names}


class Stream(nn.Module):
    """One stream's half of a block: `queries` before the joint attention, `finish` after it.

    Attributes:
      width, heads: of the transformer.
      hidden: of the MLP; 0 for the usual width of its kind.
      modulation: "adaln" or "single".
      feed: "gelu" (tanh) or "swiglu", the kind of MLP.
      output: False leaves out all that comes after the attention: SD3's last text block.
      dtype: compute type; parameters, modulation and norm statistics are float32.
    """

    width: int
    heads: int
    hidden: int
    modulation: str
    feed: str
    output: bool
    dtype: jnp.dtype

    def setup(self):
        style, d = STYLES[self.modulation], self.width
        if self.modulation == "adaln":
            chunks = 6 if self.output else 2
            self.mod = nn.Dense(chunks * d, kernel_init=zeros, dtype=jnp.float32)
        else:
            parts = ("shift", "scale", "gate") if self.output else ("shift", "scale")
            layers = ("attn", "mlp") if self.output else ("attn",)
            self.ada = Tables(d, tuple(f"{a}_{p}" for a in layers for p in parts))
        dense = {"dtype": self.dtype, "kernel_init": xavier}
        self.qkv = nn.Dense(3 * d, use_bias=style.qkv_bias, **dense)
        self.q_norm = nn.RMSNorm(epsilon=style.eps, dtype=self.dtype)
        self.k_norm = nn.RMSNorm(epsilon=style.eps, dtype=self.dtype)
        self.norm = bare_norm(style, self.dtype)
        if not self.output:
            return
        self.proj = nn.Dense(d, **dense)
        gelu = lambda a: nn.gelu(a, approximate=True)
        if self.feed == "gelu":
            self.mlp = Mlp(self.hidden or 4 * d, d, gelu, xavier, ("fc1", "fc2"), self.dtype)
        else:
            self.mlp = SwiGLU(self.hidden or swiglu_width(d), self.dtype)

    def modulate(self, c) -> list:
        """[shift, factor, gate] of the attention and of the MLP, each [B, 1, d] float32.

        c: the time vector [B, d], or for "single" [B, 6 d], channel slowest, then the layer, then
        shift, scale, gate.
        """
        if self.modulation == "adaln":
            parts = jnp.split(self.mod(nn.silu(c))[:, None], 6 if self.output else 2, -1)
            return [part + 1 if i % 3 == 1 else part for i, part in enumerate(parts)]
        tables = self.ada()
        c = c.reshape(c.shape[0], 1, self.width, 6)
        place = {"attn_shift": 0, "attn_scale": 1, "attn_gate": 2}
        place |= {"mlp_shift": 3, "mlp_scale": 4, "mlp_gate": 5}
        return [c[..., place[name]] + table for name, table in tables.items()]

    def queries(self, x, c, turn):
        """(q, k, v) [B, N, heads, d/heads] for the joint attention, normed and turned.

        Args:
          x: tokens [B, N, d].
          c: as in `modulate`.
          turn: (cos, sin) [N, 1, m] of `rope3d.turns`, or None.
        """
        shift, factor, *_ = self.modulate(c)
        h = self.norm(x) * factor.astype(self.dtype) + shift.astype(self.dtype)
        qkv = self.qkv(h).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        return rope3d.rotate(self.q_norm(q), turn), rope3d.rotate(self.k_norm(k), turn), v

    def finish(self, x, attended, c):
        """x + gate (W_o a + b), then x + gate' MLP(norm(x) factor + shift); [B, N, d]."""
        _, _, gate, shift, factor, gate2 = (m.astype(self.dtype) for m in self.modulate(c))
        x = x + gate * self.proj(attended.reshape(x.shape))
        return x + gate2 * self.mlp(self.norm(x) * factor + shift)


class Block(nn.Module):
    """(visual [B, N, d], text [B, L, d]) -> the same after a joint block.

    Attributes:
      width, heads, hidden, modulation, feed, dtype: of `Stream`.
      shared: whether both streams have the same weights.
      text_output: False: text is read and returned as it is; SD3's last block.
      attention: one of `attention.IMPLEMENTATIONS`.
    """

    width: int
    heads: int
    hidden: int = 0
    modulation: str = "adaln"
    feed: str = "gelu"
    shared: bool = False
    text_output: bool = True
    attention: str = "einsum"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, vid, txt, c, turn, mask=None):
        """Computes the block.

        Args:
          vid, txt: tokens of `dtype`.
          c: the time vector, see `Stream.modulate`.
          turn: (text's, visual), each (cos, sin) [tokens, 1, m] or None.
          mask: bool [B, L], True: a text token that is attended to. None: all are. A fused
            `attention` wants the padding at the end.
        """
        make = lambda name, output: Stream(
            self.width,
            self.heads,
            self.hidden,
            self.modulation,
            self.feed,
            output,
            self.dtype,
            name=name,
        )
        of_vid = make("all" if self.shared else "vid", True)
        of_txt = of_vid if self.shared else make("txt", self.text_output)
        n = vid.shape[1]
        vid_qkv, txt_qkv = of_vid.queries(vid, c, turn[1]), of_txt.queries(txt, c, turn[0])
        # Text last, so that its padding is at the end: what fused attention can leave out.
        q, k, v = (jnp.concatenate(pair, 1) for pair in zip(vid_qkv, txt_qkv))
        if mask is not None:
            mask = jnp.concatenate([jnp.ones((len(mask), n), bool), mask], 1)
        attended = attend_masked(q, k, v, mask, self.attention)
        vid = of_vid.finish(vid, attended[:, :n], c)
        if self.text_output:
            txt = of_txt.finish(txt, attended[:, n:], c)
        return vid, txt
