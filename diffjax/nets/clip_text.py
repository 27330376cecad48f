"""CLIP's text tower (Radford et al. 2021): token ids to one vector.

Parameters are named as in OpenAI's release, with "/" for ".": `kernel` is the weight of a linear
layer as [in, out], `scale` a norm's weight, `embedding` the table of tokens.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.motion_transformer import EPSILON, Projections, dense


def quick_gelu(x):
    """x sigmoid(1.702 x), which OpenAI's networks were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}


class ClipText(nn.Module):
    """Token ids int32 [B, T] -> [B, out] float32, not normalised. ViT-B/32's tower by default.

    Attributes:
      vocabulary: number of tokens; the last is the one that ends a text.
      length: the longest text, in tokens.
      width, layers, heads, hidden: of the transformer; hidden is the hidden layers' width.
      out: of the projection.
      activation: of the hidden layers, see `ACTIVATIONS`.
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 2048
    out: int = 512
    activation: str = "quick_gelu"

    @nn.compact
    def __call__(self, ids):
        """Computes the vector at each text's first token with the largest id, its end.

        What follows the end is not seen (a token sees those before it), so T may be anything from
        the longest text to `length`.
        """
        chex.assert_rank(ids, 2)
        small = nn.initializers.normal(0.02)
        h = nn.Embed(self.vocabulary, self.width, embedding_init=small, name="token_embedding")(ids)
        table = self.param("positional_embedding", small, (self.length, self.width))
        sizes = (self.layers, self.heads, self.hidden, self.activation)
        h = Transformer(*sizes, name="transformer")(h + table[: ids.shape[1]])
        h = nn.LayerNorm(epsilon=EPSILON, name="ln_final")(h)
        end = h[jnp.arange(len(ids)), jnp.argmax(ids, -1)]
        return end @ self.param("text_projection", small, (self.width, self.out))


class Blocks(nn.Module):
    """[B, T, width] -> the same: the blocks, one after the other."""

    layers: int
    heads: int
    hidden: int
    activation: str

    @nn.compact
    def __call__(self, h):
        for i in range(self.layers):
            h = Block(self.heads, self.hidden, self.activation, name=str(i))(h)
        return h


class Transformer(nn.Module):
    """[B, T, width] -> the same; there for its name."""

    layers: int
    heads: int
    hidden: int
    activation: str

    @nn.compact
    def __call__(self, h):
        sizes = (self.layers, self.heads, self.hidden, self.activation)
        return Blocks(*sizes, name="resblocks")(h)


class Block(nn.Module):
    """Attention to the tokens up to this one, and a hidden layer, each of a normalised input."""

    heads: int
    hidden: int
    activation: str

    @nn.compact
    def __call__(self, h):
        norm = lambda name: nn.LayerNorm(epsilon=EPSILON, name=name)(h)
        h = h + Attention(self.heads, name="attn")(norm("ln_1"))
        return h + Mlp(self.hidden, self.activation, name="mlp")(norm("ln_2"))


class Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, h):
        b, n, d = h.shape
        heads = lambda a: a.reshape(b, n, self.heads, d // self.heads)
        q, k, v = map(heads, Projections(h.dtype, name="in_proj")(h, None))
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        return dense(out.reshape(b, n, d), d, "out_proj")


class Mlp(nn.Module):
    hidden: int
    activation: str

    @nn.compact
    def __call__(self, h):
        hidden = ACTIVATIONS[self.activation](dense(h, self.hidden, "c_fc"))
        return dense(hidden, h.shape[-1], "c_proj")
