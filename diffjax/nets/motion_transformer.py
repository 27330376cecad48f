"""MDM's transformers over the frames of a motion (Tevet et al. 2023, figure 2; DiP: Tevet et al.
2025): an encoder that has the condition as its first token, or a decoder that attends to it.

Parameters are named as in the released state dicts, with "/" for ".": `kernel` is the weight of a
linear layer as [in, out], `scale` a norm's weight; `in_proj/kernel` [in, 3 width] has q, k and v.
"""

import math
from dataclasses import dataclass

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from diffjax.nets.attention import FUSED, attend_masked, implementation_for

# Into the heads or the hidden layer: columns over `tensor`; out of them: rows.
SHARDING = (
    (r"(out_proj|linear2|poseFinal|velFinal)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"kernel$", PartitionSpec("fsdp", "tensor")),
)
CONDITIONS = ("text", "action", "none")
MULTIPLE = 8  # of tokens, where cuDNN's attention and products in half precision are fast
EPSILON = 1e-5  # of PyTorch's LayerNorm


def uniform(fan_in: int):
    """PyTorch's start of a linear layer or a GRU, weights and biases: U(-1, 1) / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def dense(x, features: int, name: str, dtype=jnp.float32):
    """[..., in] -> [..., features]: a linear layer that starts as PyTorch's."""
    init = uniform(x.shape[-1])
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)(x)


def sinusoids(t, width: int):
    """t [...] -> [..., width] float32: sin(t w_i) at 2i and cos(t w_i) at 2i + 1,
    w_i = 10000^(-2i/width). Vaswani et al. 2017, section 3.5. NumPy in, NumPy out.
    """
    xp = np if isinstance(t, np.ndarray) else jnp
    w = np.exp(np.arange(0, width, 2) * (-math.log(10_000) / width)).astype(np.float32)
    a = t[..., None].astype(np.float32) * w
    return xp.stack([xp.sin(a), xp.cos(a)], -1).reshape(*t.shape, width)


def positions(length: int, width: int) -> np.ndarray:
    """Returns the rows of `sinusoids` for 0 .. length - 1, [length, width] float32."""
    return sinusoids(np.arange(length), width)


def rounded(params, dtype):
    """Returns params with the linear layers of frames and tokens in `dtype`, as they are at use.

    The network's result is the same. Use it before a loop of evaluations.
    """
    cast = lambda leaf: leaf.astype(dtype)
    if not isinstance(params, dict):
        return params
    if "kernel" in params:
        return jax.tree.map(cast, params)
    kept = ("embed_timestep", "embed_text", "embed_action")  # computed in float32
    return {k: v if k in kept else rounded(v, dtype) for k, v in params.items()}


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) in float32, of x's dtype; by erf, as PyTorch's, and in one kernel."""
    wide = x.astype(jnp.float32)
    return (wide * 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class TimeEmbedder(nn.Module):
    """t [B], an index as the schedule has it, whole or not -> [B, width] float32."""

    width: int

    @nn.compact
    def __call__(self, t):
        return Mlp(self.width, name="time_embed")(sinusoids(t, self.width))


class Mlp(nn.Module):
    """[..., in] -> [..., width] float32: two linear layers with SiLU between them."""

    width: int

    @nn.compact
    def __call__(self, x):
        return dense(nn.silu(dense(x, self.width, "0")), self.width, "2")


class ActionEmbedder(nn.Module):
    """label int32 [B] -> [B, width] float32: a row of a table; zeros for num_actions, "none"."""

    num_actions: int
    width: int

    @nn.compact
    def __call__(self, label):
        shape = (self.num_actions, self.width)
        table = self.param("action_embedding", nn.initializers.normal(1.0), shape)
        there = label < self.num_actions
        return jnp.where(there[:, None], table[jnp.where(there, label, 0)], 0)


def embed_condition(net, condition, drop, batch: int):
    """Returns the condition's tokens [B, T, width] float32 and their mask, or (None, None).

    A dropped text is zeros before its linear layer, so that its bias remains; a dropped action is
    zeros after the table. Within a compact method of `net`, of whose attributes it takes condition,
    num_actions and width; `condition` and `drop` are as for `MotionTransformer`.
    """
    if net.condition not in CONDITIONS:
        raise ValueError(f"condition {net.condition!r}: one of {CONDITIONS}")
    if net.condition == "none":
        return None, None
    keep = 1.0 if drop is None else 1.0 - drop.astype(jnp.float32)[:, None]
    if net.condition == "action":
        chex.assert_shape(condition, (batch,))
        embed = ActionEmbedder(net.num_actions, net.width, name="embed_action")
        return (embed(condition) * keep)[:, None], None
    tokens, mask = condition
    chex.assert_shape(tokens, (batch, ...))
    chex.assert_shape(mask, tokens.shape[:2])
    keep = keep if drop is None else keep[..., None]
    return dense(tokens.astype(jnp.float32) * keep, net.width, "embed_text"), mask


class FirstAndRest(nn.Module):
    """[B, N, in] -> [B, N, features], by frames; with `rest` frame 0 has its own layer."""

    features: int
    first: str
    rest: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        if not self.rest:
            return dense(x, self.features, self.first, self.dtype)
        parts = ((x[:, :1], self.first), (x[:, 1:], self.rest))
        return jnp.concatenate([dense(p, self.features, n, self.dtype) for p, n in parts], 1)


def input_process(net) -> nn.Module:
    names = ("poseEmbedding", "velEmbedding" if net.rot_vel else "")
    return FirstAndRest(net.width, *names, net.dtype, name="input_process")


def output_process(net) -> nn.Module:
    names = ("poseFinal", "velFinal" if net.rot_vel else "")
    return FirstAndRest(net.features, *names, net.dtype, name="output_process")


class MotionTransformer(nn.Module):
    """A noisy motion x [B, N, features] -> the network's answer, of the same shape, float32.

    Attributes:
      features: numbers a frame.
      condition: "text", "action" or "none".
      num_actions: how many, for "action".
      decoder: frames attend to frames, then to the condition's tokens (`trans_dec`); else the
        condition is a token before the frames (`trans_enc`).
      emb_trans_dec: whether a decoder has the time as a token before the frames.
      emb_policy: of a decoder's memory: "add", time added to every token, or "concat", time as a
        token before them.
      mask_frames: whether frames attend to none that the mask leaves out. All outputs are computed
        either way. The published 1000-step models were trained without.
      rot_vel: frame 0 has input and output layers of its own (the poses of a motion whose other
        frames are velocities).
      width, layers, heads, ff: of the transformer; ff is the hidden layer's width.
      dropout: rate, in training: of the embedded tokens, after each attention, and in and after
        each hidden layer.
      attention_dropout: rate of the attention's weights; None: `dropout`. Above 0, training
        computes them as an array; at 0 it may use cuDNN.
      attention: what computes it, see `attention.attend_masked`. With "xla" and "cudnn" masks must
        be True up to a length.
      dtype: compute type; parameters, statistics of norms and softmax, the embedding of time and
        condition and the output are float32.
    """

    features: int
    condition: str = "text"
    num_actions: int = 0
    decoder: bool = False
    emb_trans_dec: bool = False
    emb_policy: str = "add"
    mask_frames: bool = True
    rot_vel: bool = False
    width: int = 512
    layers: int = 8
    heads: int = 4
    ff: int = 1024
    dropout: float = 0.1
    attention_dropout: float | None = None
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, t, condition=None, *, mask=None, drop=None, prefix=None, train=False):
        """Computes the output.

        Args:
          x: float [B, N, features].
          t: [B], the schedule's index, as it is.
          condition: for "text" (tokens float [B, T, C], bool [B, T] with True = a token), T = 1
            for an encoder; for "action" int32 [B], num_actions for none; for "none" ignored.
          mask: bool [B, N], True = a frame of the motion, or None for all.
          drop: bool [B], True = without the condition, or None for no one.
          prefix: float [B, C, features], frames before x that are known, or None. They are told
            as they are, whatever t.
          train: whether dropout is on, which draws from rngs {"dropout": key}.
        """
        chex.assert_shape(x, (None, None, self.features))
        chex.assert_shape(t, x.shape[:1])
        b, known = x.shape[0], 0 if prefix is None else prefix.shape[1]
        mask = mask if self.mask_frames else None
        if known:
            x = jnp.concatenate([prefix.astype(x.dtype), x], 1)
            mask = None if mask is None else _before(mask, known)

        time = TimeEmbedder(self.width, name="embed_timestep")(t)[:, None]
        tokens, tokens_mask = embed_condition(self, condition, drop, b)
        memory = time if tokens is None else time + tokens
        h = input_process(self)(x)
        if self.decoder:
            if self.emb_policy == "concat" and tokens is not None:
                memory = jnp.concatenate([time, tokens], 1)
                tokens_mask = None if tokens_mask is None else _before(tokens_mask, 1)
            first = time if self.emb_trans_dec else None
        else:
            chex.assert_shape(memory, (b, 1, self.width))
            first, memory = memory, None
        if first is not None:
            h = jnp.concatenate([first.astype(self.dtype), h], 1)
            mask = None if mask is None else _before(mask, 1)
        h = h + positions(h.shape[1], self.width).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)

        name = "seqTransDecoder" if self.decoder else "seqTransEncoder"
        memory = None if memory is None else memory.astype(self.dtype)
        rate = self.dropout if self.attention_dropout is None else self.attention_dropout
        implementation = implementation_for(self.attention, self.dtype, self.width // self.heads, b)
        settings = Settings(
            *(self.width, self.layers, self.heads, self.ff, self.dropout, rate),
            *(implementation, self.dtype),
        )
        h = Transformer(settings, name=name)(h, mask, memory, tokens_mask, train)
        skip = known + (first is not None)
        if self.rot_vel:  # frame 0, which has a layer of its own, may be in the prefix
            return output_process(self)(h[:, skip - known :])[:, known:].astype(jnp.float32)
        return output_process(self)(h[:, skip:]).astype(jnp.float32)


def _before(mask, n: int):
    """bool [B, N] -> [B, n + N], n times True first."""
    return jnp.pad(mask, ((0, 0), (n, 0)), constant_values=True)


@dataclass(frozen=True)
class Settings:
    """Of a transformer: `MotionTransformer`'s attributes of the same names."""

    width: int
    layers: int
    heads: int
    ff: int
    dropout: float
    attention_dropout: float
    implementation: str
    dtype: jnp.dtype


class Transformer(nn.Module):
    """Tokens [B, N, width] -> the same, after all layers.

    For the fused implementations of attention and for products in half precision the tokens are
    padded to a multiple of 8 on the way in, once, and the padding is masked.
    """

    settings: Settings

    @nn.compact
    def __call__(self, h, mask, memory, memory_mask, train: bool):
        n = h.shape[1]
        half = jnp.dtype(self.settings.dtype).itemsize == 2
        if half or self.settings.implementation in FUSED:
            h, mask = _padded(h, mask)
            if memory is not None and memory.shape[1] > 1:
                memory, memory_mask = _padded(memory, memory_mask)
        # Built as one layer and its copies: all begin with the same weights, as PyTorch's do.
        first = self.is_initializing()
        stack = nn.map_variables(Layers, "params", trans_out_fn=_alike, mutable=first, init=first)(
            self.settings, name="layers"
        )
        return stack(h, mask, memory, memory_mask, train)[:, :n]


def _alike(variables):
    """The variables of a stack at its start, with the first layer's in the place of every one's."""
    params = variables["params"]
    # Copies: a training step donates its state, and can donate no buffer twice.
    return {**variables, "params": {n: jax.tree.map(jnp.copy, params["0"]) for n in params}}


def _padded(h, mask):
    """(h [B, N, d], mask [B, N] or None) with N rounded up to a multiple of 8."""
    n = h.shape[1]
    extra = -n % MULTIPLE
    if not extra:
        return h, mask
    mask = jnp.ones(h.shape[:2], bool) if mask is None else mask
    return jnp.pad(h, ((0, 0), (0, extra), (0, 0))), jnp.pad(mask, ((0, 0), (0, extra)))


class Layers(nn.Module):
    """The layers, one after the other."""

    settings: Settings

    @nn.compact
    def __call__(self, h, mask, memory, memory_mask, train: bool):
        for i in range(self.settings.layers):
            layer = Layer(self.settings, name=str(i))
            h = layer(h, mask, memory, memory_mask, train)
        return h


class Layer(nn.Module):
    """Attention to the tokens, to the memory if there is one, and a hidden layer; each is added
    and then normalised, as in Vaswani et al. 2017.
    """

    settings: Settings

    @nn.compact
    def __call__(self, h, mask, memory, memory_mask, train: bool):
        settings = self.settings
        drop = nn.Dropout(settings.dropout, deterministic=not train)
        # The variance in a second pass, as PyTorch's: more exact, and XLA makes one kernel of it.
        norm = lambda name, x: nn.LayerNorm(
            epsilon=EPSILON, use_fast_variance=False, dtype=settings.dtype, name=name
        )(x)
        attention = lambda name: Attention(settings, name=name)
        h = norm("norm1", h + drop(attention("self_attn")(h, None, mask, train)))
        if memory is not None:
            seen = attention("multihead_attn")(h, memory, memory_mask, train)
            h = norm("norm2", h + drop(seen))
        hidden = gelu(dense(h, settings.ff, "linear1", settings.dtype))
        hidden = dense(drop(hidden), settings.width, "linear2", settings.dtype)
        return norm("norm2" if memory is None else "norm3", h + drop(hidden))


class Attention(nn.Module):
    """h [B, N, width] attends to itself, or to memory [B, S, width]."""

    settings: Settings

    @nn.compact
    def __call__(self, h, memory, mask, train: bool):
        settings = self.settings
        b, n, d = h.shape
        q, k, v = Projections(settings.dtype, name="in_proj")(h, memory)
        heads = lambda a: a.reshape(b, -1, settings.heads, d // settings.heads)
        rate = settings.attention_dropout
        drop = nn.Dropout(rate, deterministic=False) if train and rate else None
        out = attend_masked(heads(q), heads(k), heads(v), mask, settings.implementation, drop)
        # Zero, where PyTorch's other linear layers have a random bias.
        init, zeros = uniform(d), nn.initializers.zeros
        out_proj = nn.Dense(
            d, dtype=settings.dtype, kernel_init=init, bias_init=zeros, name="out_proj"
        )
        return out_proj(out.reshape(b, n, d))


class Projections(nn.Module):
    """q of h, k and v of h or of the memory: one matrix [width, 3 width], Xavier of the whole."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, memory):
        d = h.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (d, 3 * d))
        bias = self.param("bias", nn.initializers.zeros, (3 * d,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if memory is None:
            return jnp.split(h @ kernel + bias, 3, -1)
        k, v = jnp.split(memory @ kernel[:, d:] + bias[d:], 2, -1)
        return h @ kernel[:, :d] + bias[:d], k, v
