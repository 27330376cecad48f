"""What DIAMOND's three networks are made of (Alonso et al. 2024; the released networks).

Parameters are named as in the released state dicts, with "/" for "." and a number joined to the
name before it: `d_blocks.0.resblocks.1` is `d_blocks_0/resblocks_1`. Kernels are [height, width,
in, out] or [in, out]. So published weights are copied in by name alone.

Parameters, norm statistics, what blocks are told and softmax are float32 whatever `dtype` is;
everything else is computed in `dtype`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from diffjax.nets.attention import attend
from diffjax.nets.edm_blocks import uniform
from diffjax.nets.group_norm import GroupNorm

# Output channels over `tensor`, input channels over `fsdp`.
SHARDING = (
    (r"(linear|merged|cond_proj_\d|head_\d|ih|hh)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"kernel$", PartitionSpec(None, None, "fsdp", "tensor")),
)

GROUP, EPS, HEAD = 32, 1e-5, 8  # channels a group, of the norms, channels a head of attention

zeros = nn.initializers.zeros
State = tuple[jax.Array, jax.Array]  # an LSTM's (h, c), float32 [B, hidden] each


def linear(features: int, fan_in: int, name: str, bias: bool = True) -> nn.Dense:
    """A float32 linear layer with PyTorch's initialisation, U(-1, 1)/sqrt(fan_in)."""
    init = uniform(fan_in**-0.5)
    return nn.Dense(features, bias, kernel_init=init, bias_init=init, name=name)


def conv(x, features: int, name: str, dtype, size=3, stride=1, init: Callable | None = None):
    """x [B, H, W, C] through a convolution with zero padding size // 2 on all sides.

    With stride 2, height and width become ceil(H/2) and ceil(W/2). The kernel is drawn from
    `init`, by default as the bias is: U(-1, 1)/sqrt(fan_in).
    """
    default = uniform((size * size * x.shape[-1]) ** -0.5)
    return nn.Conv(
        *(features, (size, size), stride, size // 2),
        kernel_init=init or default,
        bias_init=default,
        dtype=dtype,
        name=name,
    )(x)


def groups(channels: int) -> int:
    """How many groups a norm has: of 32 channels or more, 80 channels have two."""
    return max(1, channels // GROUP)


class Norm(nn.Module):
    """Group normalisation of x [B, H, W, C], with parameters."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        return GroupNorm(groups(x.shape[-1]), EPS, self.dtype, name="norm")(x)


class AdaptiveNorm(nn.Module):
    """Group normalisation, then scale and shift that a linear layer makes of `told` [B, E].

    Where `told` is a dict, {path of a norm: [B, 2 C]}, that layer's work was done before.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, told):
        channels = x.shape[-1]
        if isinstance(told, dict):
            made = told["/".join(self.path)]
        else:
            made = linear(2 * channels, told.shape[-1], "linear")(told)
        after = jnp.split(made, 2, -1)
        return GroupNorm(groups(channels), EPS, self.dtype, affine=False)(x, after=after)


class SelfAttention(nn.Module):
    """Attention among the pixels of x [B, H, W, C], in heads of 8 channels.

    What it is added to is the normalised input, not the input.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        x = Norm(self.dtype, name="norm")(x)
        qkv = jnp.split(conv(x, 3 * c, "qkv_proj", self.dtype, size=1), 3, -1)
        heads = max(1, c // HEAD)
        y = attend(*(part.reshape(b, h * w, heads, -1) for part in qkv)).reshape(x.shape)
        return x + nn.Conv(c, (1, 1), kernel_init=zeros, dtype=self.dtype, name="out_proj")(y)


class ResBlock(nn.Module):
    """Two 3x3 convolutions behind adaptive norms, a skip, then maybe attention.

    x [B, H, W, C], told float32 [B, E] -> [B, H, W, channels].
    """

    channels: int
    attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, told):
        skip = x
        if x.shape[-1] != self.channels:
            skip = conv(x, self.channels, "proj", self.dtype, size=1)
        x = nn.silu(AdaptiveNorm(self.dtype, name="norm1")(x, told))
        x = conv(x, self.channels, "conv1", self.dtype)
        x = nn.silu(AdaptiveNorm(self.dtype, name="norm2")(x, told))
        x = conv(x, self.channels, "conv2", self.dtype, init=zeros) + skip
        return SelfAttention(self.dtype, name="attn")(x) if self.attention else x


class ResBlocks(nn.Module):
    """Residual blocks one after another; returns every block's output.

    Attributes:
      channels: output channels, one entry a block.
      attention: whether each block has it.
    """

    channels: tuple[int, ...]
    attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, told, skips=()):
        """x [B, H, W, C]; skips: one tensor a block, to the right of its input, or none."""
        outputs = []
        for i, channels in enumerate(self.channels):
            x = jnp.concatenate([x, skips[i]], -1) if skips else x
            x = ResBlock(channels, self.attention, self.dtype, name=f"resblocks_{i}")(x, told)
            outputs.append(x)
        return outputs


class Downsample(nn.Module):
    """x [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C], a strided convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.orthogonal()
        return conv(x, x.shape[-1], "conv", self.dtype, stride=2, init=init)


class Upsample(nn.Module):
    """x [B, H, W, C] -> [B, 2H, 2W, C]: each pixel four times, then a convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
        return conv(x.reshape(b, 2 * h, 2 * w, c), c, "conv", self.dtype)


class SmallResBlock(nn.Module):
    """One convolution behind a norm, and a skip; it is told nothing. The actor-critic's block."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        skip = x
        if x.shape[-1] != self.channels:
            skip = conv(x, self.channels, "skip_projection", self.dtype, size=1)
        x = nn.silu(Norm(self.dtype, name="f_0")(x))
        return skip + conv(x, self.channels, "f_2", self.dtype)


def flatten(x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> [B, C H W], channels first: the order of the published LSTMs' inputs."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


class LSTM(nn.Module):
    """PyTorch's LSTM: gates in the order i, f, g, o, and two biases, which Adam moves twice as far.

    Its forget gates begin open, with a bias of 1.

    Attributes:
      hidden: size of h and c.
      dtype: compute type of the products; gates and state are float32.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, state: State) -> tuple[jax.Array, State]:
        """Runs x [B, T, in] from a state: returns (every h, float32 [B, T, hidden], last state)."""
        gate = jnp.arange(4 * self.hidden) // self.hidden
        forget = lambda key, shape, dtype=jnp.float32: (gate == 1).astype(dtype)
        xavier, orthogonal = nn.initializers.xavier_uniform(), nn.initializers.orthogonal()
        of_x = Affine(4 * self.hidden, xavier, forget, name="ih")(x.shape[-1])
        of_h = Affine(4 * self.hidden, orthogonal, zeros, name="hh")(self.hidden)

        def affine(x, weights):
            kernel, bias = weights[0].astype(self.dtype), weights[1]
            x = x.astype(self.dtype)
            return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias

        def step(state, gates):
            h, c = state
            i, f, g, o = jnp.split(gates + affine(h, of_h), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        gates = affine(x, of_x)  # of all steps in one product
        if x.shape[1] == 1:
            state, h = step(state, gates[:, 0])
            return h[:, None], state
        state, h = lax.scan(step, state, jnp.swapaxes(gates, 0, 1))
        return jnp.swapaxes(h, 0, 1), state


class Affine(nn.Module):
    """The weights of one of an LSTM's two layers: size -> (kernel [size, features], bias)."""

    features: int
    kernel_init: Callable
    bias_init: Callable

    @nn.compact
    def __call__(self, size: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (size, self.features))
        return kernel, self.param("bias", self.bias_init, (self.features,))


def no_state(batch: int, hidden: int) -> State:
    """The state of an LSTM before it saw anything."""
    return jnp.zeros((batch, hidden)), jnp.zeros((batch, hidden))
