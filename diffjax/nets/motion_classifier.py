"""A small convolutional classifier of motion clips, whose inner layer serves as features."""

from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

KERNEL = 5
DILATIONS = (1, 2, 4, 8)


class MotionOutputs(NamedTuple):
    """What the classifier computes, all float32.

    Attributes:
      logits: one [n, classes] a head.
      features: [n, features], the penultimate layer.
    """

    logits: tuple[jax.Array, ...]
    features: jax.Array


class MotionClassifier(nn.Module):
    """Residual dilated convolutions over time, a mean over frames, a hidden layer, linear heads.

    Every step is of one frame or sees padding as 0, and the mean is over the clip's own frames:
    what a clip gives does not depend on how far it is padded.

    Attributes:
      classes: number of classes of each head.
      width: channels of the convolutions.
      features: size of the penultimate layer.
    """

    classes: tuple[int, ...]
    width: int = 96
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> MotionOutputs:
        """Classifies x, float [n, N, D] of about unit variance; mask bool [n, N], True in the clip.

        A clip without frames gives what a clip of zeros would.
        """
        chex.assert_rank([x, mask], [3, 2])
        inside = mask[..., None].astype(jnp.float32)
        x = nn.Dense(self.width, name="inputs")(x * inside) * inside
        for i, dilation in enumerate(DILATIONS):
            h = nn.LayerNorm(name=f"norm{i}")(x) * inside
            h = nn.Conv(
                self.width, (KERNEL,), kernel_dilation=(dilation,), padding="SAME", name=f"conv{i}"
            )(h)
            h = nn.Dense(self.width, name=f"mix{i}")(nn.silu(h))
            x = x + h * inside
        x = nn.silu(nn.LayerNorm(name="norm")(x)) * inside
        mean = x.sum(1) / jnp.maximum(inside.sum(1), 1)
        hidden = nn.silu(nn.Dense(self.features, name="hidden")(mean))
        heads = [nn.Dense(n, name=f"head{i}")(hidden) for i, n in enumerate(self.classes)]
        return MotionOutputs(tuple(heads), hidden)
