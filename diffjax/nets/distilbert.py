"""DistilBERT (Sanh et al. 2019): token ids to a vector each.

Parameters are named as in the released weights, with "/" for ".": `kernel` is the weight of a
linear layer as [in, out], `scale` a norm's weight, `embedding` a table.
"""

import chex
import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets.attention import attend_masked
from diffjax.nets.motion_transformer import dense

EPSILON = 1e-12  # of its norms


class DistilBert(nn.Module):
    """Token ids int32 [B, T], mask bool [B, T] -> the last hidden states [B, T, width] float32.

    Attributes:
      vocabulary: number of tokens.
      length: the longest text, in tokens.
      width, layers, heads, hidden: of the transformer; hidden is the hidden layers' width.
    """

    vocabulary: int = 30522
    length: int = 512
    width: int = 768
    layers: int = 6
    heads: int = 12
    hidden: int = 3072

    @nn.compact
    def __call__(self, ids, mask):
        """Computes the states. mask: True = a token, of which there is at least one a text."""
        chex.assert_rank(ids, 2)
        chex.assert_shape(mask, ids.shape)
        h = Embeddings(self.vocabulary, self.length, self.width, name="embeddings")(ids)
        sizes = (self.layers, self.heads, self.hidden)
        return Transformer(*sizes, name="transformer")(h, mask)


class Embeddings(nn.Module):
    """ids [B, T] -> [B, T, width]: tokens and positions, normalised."""

    vocabulary: int
    length: int
    width: int

    @nn.compact
    def __call__(self, ids):
        embed = lambda n, name: nn.Embed(
            n, self.width, embedding_init=nn.initializers.normal(0.02), name=name
        )
        h = embed(self.vocabulary, "word_embeddings")(ids)
        h = h + embed(self.length, "position_embeddings")(jnp.arange(ids.shape[1]))
        return nn.LayerNorm(epsilon=EPSILON, name="LayerNorm")(h)


class Transformer(nn.Module):
    """[B, T, width] -> the same; there for its name."""

    layers: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, h, mask):
        return Layers(self.layers, self.heads, self.hidden, name="layer")(h, mask)


class Layers(nn.Module):
    """The layers, one after the other."""

    layers: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, h, mask):
        for i in range(self.layers):
            h = Layer(self.heads, self.hidden, name=str(i))(h, mask)
        return h


class Layer(nn.Module):
    """Attention and a hidden layer; each is added and then normalised."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, h, mask):
        norm = lambda name, x: nn.LayerNorm(epsilon=EPSILON, name=name)(x)
        h = norm("sa_layer_norm", h + Attention(self.heads, name="attention")(h, mask))
        return norm("output_layer_norm", h + Mlp(self.hidden, name="ffn")(h))


class Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, h, mask):
        b, n, d = h.shape
        heads = lambda name: dense(h, d, name).reshape(b, n, self.heads, d // self.heads)
        out = attend_masked(heads("q_lin"), heads("k_lin"), heads("v_lin"), mask)
        return dense(out.reshape(b, n, d), d, "out_lin")


class Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, h):
        return dense(nn.gelu(dense(h, self.hidden, "lin1"), approximate=False), h.shape[-1], "lin2")
