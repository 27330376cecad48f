"""MDM's recurrent network (Tevet et al. 2023, `gru`), and PyTorch's GRU, which evaluators use too.

In the released code the recurrence runs over the motions of the batch in the place of the frames,
and published numbers have that defect. Here it runs over the frames; the weights are the same.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from diffjax.nets.motion_transformer import (
    TimeEmbedder,
    embed_condition,
    input_process,
    output_process,
    positions,
    uniform,
)

SHARDING = (
    (r"(poseFinal|velFinal)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"kernel$", PartitionSpec("fsdp", "tensor")),
)


class MotionGRU(nn.Module):
    """A noisy motion x [B, N, features] -> the network's answer, of the same shape, float32.

    Attributes:
      features, condition, num_actions, rot_vel, dtype: as of `MotionTransformer`.
      width, layers: of the GRU.
      dropout: rate, in training: of what goes into the first layer.
    """

    features: int
    condition: str = "text"
    num_actions: int = 0
    rot_vel: bool = False
    width: int = 512
    layers: int = 8
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, t, condition=None, *, mask=None, drop=None, prefix=None, train=False):
        """Computes the output; arguments are `MotionTransformer`'s.

        The mask is ignored: a frame sees those before it only, and padding comes after.
        """
        chex.assert_shape(x, (None, None, self.features))
        chex.assert_shape(t, x.shape[:1])
        known = 0 if prefix is None else prefix.shape[1]
        if known:
            x = jnp.concatenate([prefix.astype(x.dtype), x], 1)
        told = TimeEmbedder(self.width, name="embed_timestep")(t)[:, None]
        tokens, _ = embed_condition(self, condition, drop, x.shape[0])
        told = told if tokens is None else told + tokens
        chex.assert_shape(told, (x.shape[0], 1, self.width))
        told = jnp.broadcast_to(told, (*x.shape[:2], self.width))
        h = input_process(self)(jnp.concatenate([x, told.astype(x.dtype)], -1))
        h = h + positions(h.shape[1], self.width).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h, _ = GRU(self.width, self.layers, dtype=self.dtype, name="gru")(h)
        return output_process(self)(h)[:, known:].astype(jnp.float32)


class GRU(nn.Module):
    """Gated recurrent units over the second axis, as PyTorch has them: gates in the order r, z, n,
    n = tanh(W x + b + r (U h + c)), h' = (1 - z) n + z h. Cho et al. 2014 with r after the matrix.

    Attributes:
      hidden: size of the state.
      layers: how many, one on the other.
      bidirectional: whether every layer has a second half that starts at each row's last step;
        a layer's output is then both halves', forward first.
      dtype: compute type of the products; the state is float32.
    """

    hidden: int
    layers: int = 1
    bidirectional: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, lengths=None, initial=None):
        """Returns (outputs [B, N, hidden or 2 hidden], last states [layers (times 2), B, hidden]).

        Args:
          x: [B, N, in].
          lengths: int32 [B]: the state stays as it is in steps from there on. None: N.
          initial: the first states, float32 [layers (times 2), B, hidden], or None for zeros.
        """
        directions = ("", "_reverse") if self.bidirectional else ("",)
        there = None
        if lengths is not None:
            there = jnp.arange(x.shape[1])[:, None] < lengths[None]  # [N, B]
        last = []
        for i in range(self.layers):
            outputs = []
            for suffix in directions:
                h = jnp.zeros((x.shape[0], self.hidden)) if initial is None else initial[len(last)]
                out, h = self.run(x, f"l{i}{suffix}", h, there, bool(suffix))
                outputs.append(out)
                last.append(h)
            x = jnp.concatenate(outputs, -1)
        return x, jnp.stack(last)

    def run(self, x, layer: str, h, there, reverse: bool):
        """One layer in one direction -> (outputs [B, N, hidden], last state [B, hidden])."""
        affine = lambda side, size: Affine(
            3 * self.hidden, self.hidden, self.dtype, name=f"{side}_{layer}"
        )(size)
        kernel, bias = affine("ih", x.shape[-1])
        # All frames' products in one; only what depends on the state is left for the scan.
        gates = jnp.swapaxes(x.astype(self.dtype) @ kernel + bias, 0, 1)
        kernel, bias = affine("hh", self.hidden)

        def step(h, at):
            gates, there = at
            of_h = (h.astype(self.dtype) @ kernel + bias).astype(jnp.float32)
            r, z, n = jnp.split(gates.astype(jnp.float32), 3, -1)
            r_h, z_h, n_h = jnp.split(of_h, 3, -1)
            z = jax.nn.sigmoid(z + z_h)
            n = jnp.tanh(n + jax.nn.sigmoid(r + r_h) * n_h)
            new = (1 - z) * n + z * h
            new = new if there is None else jnp.where(there[:, None], new, h)
            return new, new.astype(self.dtype)

        h, out = jax.lax.scan(step, h.astype(jnp.float32), (gates, there), reverse=reverse)
        return jnp.swapaxes(out, 0, 1), h


class Affine(nn.Module):
    """The weights of one of a GRU's matrices: in -> (kernel [in, features], bias [features])."""

    features: int
    fan_in: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, size: int):
        init = uniform(self.fan_in)
        kernel = self.param("kernel", init, (size, self.features))
        bias = self.param("bias", init, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)
