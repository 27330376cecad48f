"""The networks that score motions: text and motion in one space, and an action classifier.

Guo et al. 2022 trained the first three for HumanML3D and KIT; Guo et al. 2020 the classifier, for
HumanAct12. Parameters are named as in the released files, with "/" for ".". All in float32.
"""

import chex
import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets.motion_gru import GRU
from diffjax.nets.motion_transformer import EPSILON, dense, uniform

SLOPE = 0.2  # of every leaky ReLU
CONTACTS = 4  # the last numbers of a frame, which the movement encoder does not see


class MovementEncoder(nn.Module):
    """A motion [B, N, D] -> movements [B, N // 4, out], of all but the four foot contacts.

    Attributes:
      hidden, out: channels of the two convolutions, each of which halves the frames.
    """

    hidden: int = 512
    out: int = 512

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Computes the movements. `train` turns dropout on, which draws from {"dropout": key}."""
        chex.assert_rank(x, 3)
        convolutions = Convolutions((self.hidden, self.out), name="main")
        return dense(convolutions(x[..., :-CONTACTS], train), self.out, "out_net")


class Convolutions(nn.Module):
    """[B, N, in] -> [B, N // 2^k, out]: k convolutions over four frames each, every second one."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train: bool):
        for i, width in enumerate(self.widths):
            init = uniform(4 * x.shape[-1])
            start = {"kernel_init": init, "bias_init": init}
            x = nn.Conv(width, (4,), (2,), ((1, 1),), name=str(3 * i), **start)(x)
            x = nn.leaky_relu(nn.Dropout(0.2, deterministic=not train)(x), SLOPE)
        return x


class SequenceEncoder(nn.Module):
    """A sequence [B, N, in] -> a point of the space that texts and motions share, [B, out].

    The motion encoder (of movements; hidden 1024, out 512) and the text encoder (of word vectors
    and parts of speech; hidden 512, out 512) are this.
    """

    hidden: int = 1024
    out: int = 512

    @nn.compact
    def __call__(self, x, lengths, tags=None):
        """Computes the embedding.

        Args:
          x: [B, N, in]: movements, or word vectors.
          lengths: int32 [B], how many of the N there are; of movements, frames // 4.
          tags: one-hot parts of speech [B, N, 15] for a text encoder, else None.
        """
        chex.assert_rank(x, 3)
        chex.assert_shape(lengths, x.shape[:1])
        if tags is not None:
            x = x + dense(tags, x.shape[-1], "pos_emb")
        x = dense(x, self.hidden, "input_emb")
        start = self.param("hidden", nn.initializers.normal(1.0), (2, 1, self.hidden))
        start = jnp.broadcast_to(start, (2, x.shape[0], self.hidden))
        _, last = GRU(self.hidden, bidirectional=True, name="gru")(x, lengths, start)
        both = jnp.concatenate([last[0], last[1]], -1)
        return Head(self.hidden, self.out, name="output_net")(both)


class Head(nn.Module):
    """[B, in] -> [B, out]: a linear layer, a norm, a leaky ReLU, a linear layer."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(epsilon=EPSILON, name="1")(dense(x, self.hidden, "0"))
        return dense(nn.leaky_relu(x, SLOPE), self.out, "3")


class ActionClassifier(nn.Module):
    """Joints [B, N, 72] -> (features [B, 30], logits [B, actions]).

    Attributes:
      actions: how many classes.
      hidden, layers: of the GRU.
      features: numbers that the Frechet distance of actions is taken on.
    """

    actions: int = 12
    hidden: int = 128
    layers: int = 2
    features: int = 30

    @nn.compact
    def __call__(self, x, lengths, initial):
        """Computes both.

        Args:
          x: [B, N, 72], 24 joints' x, y, z.
          lengths: int32 [B], how many frames there are.
          initial: the GRU's first states, float32 [layers, B, hidden]. The released code draws
            them from N(0, 1) at every call.
        """
        chex.assert_rank(x, 3)
        chex.assert_shape(lengths, x.shape[:1])
        chex.assert_shape(initial, (self.layers, x.shape[0], self.hidden))
        _, last = GRU(self.hidden, self.layers, name="recurrent")(x, lengths, initial)
        features = jnp.tanh(dense(last[-1], self.features, "linear1"))
        return features, dense(features, self.actions, "linear2")
