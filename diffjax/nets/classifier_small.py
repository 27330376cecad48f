"""A small convolutional classifier of small pictures, whose inner layers serve as features."""

from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp


class Outputs(NamedTuple):
    """What the classifier computes, all float32.

    Attributes:
      logits: [n, classes].
      features: [n, features], the penultimate layer.
      spatial: [n, H/4, W/4, 4 * width], the last stage's first activations.
    """

    logits: jax.Array
    features: jax.Array
    spatial: jax.Array


class ClassifierSmall(nn.Module):
    """Two convolutions at each of three resolutions, a global mean, a hidden layer, a linear layer.

    Group normalisation keeps each picture's outputs independent of its batch.

    Attributes:
      classes: number of classes.
      width: channels at the first resolution; doubled at the second, fourfold at the third.
      features: size of the penultimate layer.
      dtype: of the computation; parameters are float32.
    """

    classes: int = 8
    width: int = 24
    features: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Outputs:
        """Classifies x, float [n, H, W, 3] in [-1, 1] with H and W multiples of 4 (made for 24)."""
        chex.assert_rank(x, 4)
        x = x.astype(self.dtype)
        activations = []
        for stage in range(3):
            for layer in range(2):
                stride = 2 if stage and not layer else 1
                name = f"{stage}_{layer}"
                x = nn.Conv(
                    self.width * 2**stage,
                    (3, 3),
                    stride,
                    use_bias=False,
                    dtype=self.dtype,
                    name=f"conv{name}",
                )(x)
                x = nn.GroupNorm(num_groups=8, dtype=self.dtype, name=f"norm{name}")(x)
                x = nn.silu(x)
                activations.append(x)
        hidden = nn.Dense(self.features, dtype=self.dtype, name="hidden")(x.mean((1, 2)))
        hidden = nn.silu(hidden)
        logits = nn.Dense(self.classes, dtype=jnp.float32, name="logits")(hidden)
        as_float32 = lambda a: a.astype(jnp.float32)
        return Outputs(logits, as_float32(hidden), as_float32(activations[-2]))
