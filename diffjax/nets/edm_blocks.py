"""What EDM's two UNets are made of (Karras et al. 2022, appendix F.2; the released networks).

Parameters are named as in the released state dicts, with "/" for ".": `kernel` is a convolution's
weight as [height, width, in, out] or a linear layer's as [in, out], `scale` a norm's weight, `bias`
a bias. So published weights are copied in by name alone.

Parameters, norm statistics, embeddings and softmax are float32 whatever `dtype` is; everything
else is computed in `dtype`.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from diffjax.nets.attention import attend
from diffjax.nets.group_norm import GroupNorm

# Output channels over `tensor`, input channels over `fsdp`.
SHARDING = (
    (r"(affine|map_\w+)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"kernel$", PartitionSpec(None, None, "fsdp", "tensor")),
)

# ---- initialisation: (fan_in, fan_out) -> initialisers of a kernel and of its bias ---------------

zeros = nn.initializers.zeros


def uniform(bound: float) -> Callable:
    """U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def xavier(scale: float = 1.0) -> Callable:
    """Kernel uniform with variance 2 scale^2/(fan_in + fan_out), bias 0 (Glorot & Bengio 2010)."""
    return lambda fan_in, fan_out: (uniform(scale * (6 / (fan_in + fan_out)) ** 0.5), zeros)


def kaiming(fan_in: int, fan_out: int):
    """Kernel and bias uniform in +-1/sqrt(fan_in): PyTorch's default, ADM's."""
    return (uniform(fan_in**-0.5),) * 2


def nothing(fan_in: int, fan_out: int):
    """Kernel and bias 0."""
    return zeros, zeros


def unit(fan_in: int, fan_out: int):
    """Kernel N(0, 1), bias 0: a table of class embeddings."""
    return nn.initializers.normal(1.0), zeros


# ---- layers --------------------------------------------------------------------------------------


class Linear(nn.Module):
    """x [..., in] -> [..., features], in float32: the embedding path is never in half precision."""

    features: int
    initial: Callable
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel_init, bias_init = self.initial(x.shape[-1], self.features)
        x = x.astype(jnp.float32) @ self.param(
            "kernel", kernel_init, (x.shape[-1], self.features), jnp.float32
        )
        return x + self.param("bias", bias_init, (self.features,)) if self.use_bias else x


class Conv(nn.Module):
    """A convolution with zero padding that keeps the size, and optional resampling by 2.

    x [B, H, W, in] -> [B, H, W, features] in `dtype`, or with H and W halved or doubled. A tuple
    of tensors stands for their concatenation: each meets its part of the kernel, none is copied.

    Attributes:
      size: side of the kernel, odd.
      resample: "", "down" or "up".
      taps: the resampling filter along one axis.
      fused: only with "down": filter after the convolution instead of before it, with one padding
        for both at the start, as NCSN++'s residual encoder has it.
      interleaved: n > 1: output channel o of the kernel goes to output o % n, and a tuple of n
        outputs is returned. The kernel is rearranged and not, at far greater cost, the output.
    """

    features: int
    initial: Callable
    size: int = 3
    resample: str = ""
    taps: tuple[int, ...] = (1, 1)
    fused: bool = False
    interleaved: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        parts = x if isinstance(x, tuple) else (x,)
        area, width = self.size**2, sum(part.shape[-1] for part in parts)
        kernel_init, bias_init = self.initial(area * width, area * self.features)
        shape = (self.size, self.size, width, self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        bias = self.param("bias", bias_init, (self.features,))
        if self.interleaved > 1:
            apart = lambda a: a.reshape(*a.shape[:-1], -1, self.interleaved).swapaxes(-1, -2)
            kernel, bias = (apart(a).reshape(a.shape) for a in (kernel, bias))
        x, start = 0, 0
        for part in parts:
            stop = start + part.shape[-1]
            x, start = x + self._convolve(part, kernel[:, :, start:stop]), stop
        x = x + bias.astype(self.dtype)
        return tuple(jnp.split(x, self.interleaved, -1)) if self.interleaved > 1 else x

    def _convolve(self, x, kernel):
        pad = self.size // 2
        # A 1x1 convolution and a resampling commute: the convolution goes where pixels are few.
        late = self.size == 1 and self.resample == "up"
        if self.resample and not self.fused and not late:
            x = resample(x, self.resample, self.taps)
        if self.fused:
            pad += (len(self.taps) - 1) // 2
        x = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=[(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.fused:
            x = downsample(x, self.taps, pad=0)
        return upsample(x, self.taps) if late else x


class Resample(nn.Module):
    """`resample` as a module, so that it has a name among the layers. No parameters."""

    direction: str
    taps: tuple[int, ...]

    def __call__(self, x):
        return resample(x, self.direction, self.taps)


def resample(x: jax.Array, direction: str, taps: tuple[int, ...]) -> jax.Array:
    """Halves ("down") or doubles ("up") H and W of x [B, H, W, C]; float32 or bfloat16."""
    return upsample(x, taps) if direction == "up" else downsample(x, taps)


def downsample(x: jax.Array, taps: tuple[int, ...], pad: int | None = None) -> jax.Array:
    """Every second value of x filtered with the normalised taps along H and W, zero padding.

    Taps of even length, symmetric: [1, 1] is the mean over 2x2. Written as sums of strided slices,
    which XLA fuses; a depthwise convolution is slow on accelerators.
    """
    f = np.asarray(taps) / np.sum(taps)
    pad = (len(f) - 1) // 2 if pad is None else pad
    for axis in (1, 2):
        x = jnp.pad(x, [(pad, pad) if a == axis else (0, 0) for a in range(4)])
        count = (x.shape[axis] - len(f)) // 2 + 1
        cut = lambda k: lax.slice_in_dim(x, k, k + 2 * count - 1, 2, axis)  # noqa: B023
        x = sum(float(w) * cut(k) for k, w in enumerate(f))
    return x


def upsample(x: jax.Array, taps: tuple[int, ...]) -> jax.Array:
    """Zeros between the values of x, then a filter with twice the normalised taps along H and W.

    Taps of even length, symmetric: [1, 1] repeats each value. The boundary is zero, so that longer
    filters darken the border. Each output parity uses every second tap: no zeros are made.
    """
    f = 2 * np.asarray(taps) / np.sum(taps)
    half = len(f) // 2
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(half, half) if a == axis else (0, 0) for a in range(4)])

        def parity(p, axis=axis, size=size, padded=padded):
            taps = [k for k in range(len(f)) if (p + k - half) % 2 == 0]
            starts = [(p + k - half) // 2 + half for k in taps]
            cut = lambda start: lax.slice_in_dim(padded, start, start + size, axis=axis)
            return sum(float(f[k]) * cut(start) for k, start in zip(taps, starts))

        x = jnp.stack([parity(0), parity(1)], axis + 1)
        x = x.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 2 :])
    return x


def group_norm(channels: int, eps: float, dtype, name: str) -> GroupNorm:
    """Group normalisation of `channels` with min(32, channels // 4) groups."""
    return GroupNorm(min(32, channels // 4), eps, dtype, name=name)


class PositionalEmbedding(nn.Module):
    """c [B] -> [cos | sin] of c f, [B, channels] float32, f geometric from 1 to 1/10000.

    endpoint: whether 1/10000 itself is the last frequency.
    """

    channels: int
    endpoint: bool = False

    def __call__(self, c):
        half = self.channels // 2
        f = 10_000.0 ** (-np.arange(half) / (half - self.endpoint))
        angle = c.astype(jnp.float32)[:, None] * f.astype(np.float32)
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class FourierEmbedding(nn.Module):
    """c [B] -> [cos | sin] of 2 pi c freqs, [B, channels] float32. Tancik et al. 2020.

    `freqs` is drawn once and never trained. It is kept among the parameters, behind a
    stop_gradient: so it is saved, sharded and loaded like the rest, Adam's direction for it is
    exactly 0 and every EMA of it is itself. Weight decay would shrink it; EDM uses none.
    """

    channels: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, c):
        f = self.param("freqs", nn.initializers.normal(self.scale), (self.channels // 2,))
        angle = c.astype(jnp.float32)[:, None] * (2 * jnp.pi * lax.stop_gradient(f))
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def one_hot(label: jax.Array | None, num_classes: int, batch: int) -> jax.Array:
    """Labels as float32 [B, num_classes]: "no class" is the zero vector.

    Args:
      label: int [B], num_classes itself meaning "no class"; or [B, num_classes] as it is; or None,
        no class at all.
    """
    if label is None:
        return jnp.zeros((batch, num_classes))
    label = jnp.asarray(label)
    return label.astype(jnp.float32) if label.ndim == 2 else jax.nn.one_hot(label, num_classes)


def or_zeros(augment: jax.Array | None, augment_dim: int, batch: int) -> jax.Array:
    """Augmentation labels float32 [B, augment_dim]; None is zeros, "not augmented"."""
    return jnp.zeros((batch, augment_dim)) if augment is None else augment.astype(jnp.float32)


def rounded(params, dtype):
    """Returns params with the convolutions' in `dtype`, as `Conv` has them at each use.

    The network's result is the same. Use it before a loop of evaluations: to round 56 M parameters
    and write them takes 1 % of the time of an evaluation at batch 256.
    """
    if not isinstance(params, dict):
        return params
    if getattr(params.get("kernel"), "ndim", 0) == 4:
        return {name: leaf.astype(dtype) for name, leaf in params.items()}
    return {name: rounded(leaf, dtype) for name, leaf in params.items()}


# ---- the block -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Style:
    """In what the blocks of the two UNets differ.

    Attributes:
      eps: of the norms.
      skip_scale: of a sum of two branches.
      adaptive_scale: the embedding scales and shifts after the second norm, instead of being added
        before it.
      resample_proj: the skip of a resampling block has a 1x1 convolution.
      head_channels: channels a head of attention; 0: one head.
      initial, initial_last, initial_qkv: initialisation of layers; of the last of each branch; of
        queries, keys and values.
    """

    eps: float
    skip_scale: float
    adaptive_scale: bool
    resample_proj: bool
    head_channels: int
    taps: tuple[int, ...]
    dropout: float
    initial: Callable
    initial_last: Callable
    initial_qkv: Callable
    dtype: jnp.dtype

    def conv(self, features: int, name: str, **fields) -> Conv:
        """A `Conv` of this style."""
        fields = {"initial": self.initial, "taps": self.taps, "dtype": self.dtype, **fields}
        return Conv(features, name=name, **fields)


class UNetBlock(nn.Module):
    """Two 3x3 convolutions with the embedding between them, a skip, then maybe attention.

    x [B, H, W, C], embedding float32 [B, E] -> [B, H', W', channels] in the style's dtype. x may
    be a tuple of tensors, which stands for their concatenation. Dropout, in training only, is on
    the input of the second convolution.
    """

    channels: int
    style: Style
    resample: str = ""
    attention: bool = False

    @nn.compact
    def __call__(self, x, embedding, train: bool):
        s, skip = self.style, x
        norm = lambda width, name: group_norm(width, s.eps, s.dtype, name)
        width = sum(part.shape[-1] for part in x) if isinstance(x, tuple) else x.shape[-1]
        x = nn.silu(norm(width, "norm0")(x))
        x = s.conv(self.channels, "conv0", resample=self.resample)(x)
        told = Linear(self.channels * (1 + s.adaptive_scale), s.initial, name="affine")(embedding)
        if s.adaptive_scale:
            x = norm(self.channels, "norm1")(x, after=jnp.split(told, 2, -1))
        else:
            x = norm(self.channels, "norm1")(x, before=told)
        x = nn.Dropout(s.dropout)(nn.silu(x), deterministic=not train)
        x = s.conv(self.channels, "conv1", initial=s.initial_last)(x)
        x = (x + self._skip(skip, width)) * s.skip_scale
        heads = self.channels // s.head_channels if s.head_channels else 1
        if not self.attention or not heads:
            return x
        b, h, w, c = x.shape
        qkv = s.conv(3 * c, "qkv", size=1, initial=s.initial_qkv, interleaved=3)
        qkv = qkv(norm(c, "norm2")(x))
        a = attend(*(part.reshape(b, h * w, heads, -1) for part in qkv)).reshape(x.shape)
        return (s.conv(c, "proj", size=1, initial=s.initial_last)(a) + x) * s.skip_scale

    def _skip(self, x, width):
        if width != self.channels or (self.resample and self.style.resample_proj):
            return self.style.conv(self.channels, "skip", size=1, resample=self.resample)(x)
        x = jnp.concatenate(x, -1) if isinstance(x, tuple) else x
        return resample(x, self.resample, self.style.taps) if self.resample else x
