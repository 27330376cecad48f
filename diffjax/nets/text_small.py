"""A text encoder that is trained with the network that it tells: words, not a language.

It needs nothing but the captions: their words are its vocabulary, which a run keeps as an asset.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.nets.motion_transformer import Settings, Transformer, dense, positions

PADDING, START = 0, 1  # ids; every text begins with START, so that none is empty
WORD = re.compile(r"\w+|[^\w\s]")
LARGEST = 1 << 20  # of any number in an asset


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: 0 padding, 1 the start of a text, then buckets, then words.

    Attributes:
      words: those with an id of their own.
      buckets: how many ids all other words share, by a hash of the word.
      length: tokens of a text with its start; longer texts are cut.
    """

    words: tuple[str, ...]
    buckets: int = 64
    length: int = 32

    @property
    def size(self) -> int:
        """How many ids there are."""
        return START + 1 + self.buckets + len(self.words)

    def ids(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids int32 [B, length], mask bool [B, length], True = a token) of the texts."""
        first = START + 1 + self.buckets
        table = {word: first + i for i, word in enumerate(self.words)}
        other = lambda word: START + 1 + zlib.crc32(word.encode("utf-8", "replace")) % self.buckets
        rows = [
            [START, *(table[word] if word in table else other(word) for word in cut(text))]
            for text in texts
        ]
        ids = np.full((len(rows), self.length), PADDING, np.int32)
        for row, found in zip(ids, rows):
            row[: len(found)] = found[: self.length]
        return ids, ids != PADDING

    def to_json(self) -> dict:
        """Returns what `from_json` takes."""
        return {**asdict(self), "words": list(self.words)}


def cut(text: str) -> list[str]:
    """Returns a text's words and marks, in lower case."""
    return WORD.findall(text.lower())


def vocabulary(
    captions: Iterable[str],
    size: int = 4096,
    at_least: int = 2,
    buckets: int = 64,
    length: int = 32,
) -> Vocabulary:
    """Makes the vocabulary of a training set: its most frequent words.

    Args:
      captions: all of the training set's.
      size: at most so many words.
      at_least: a word that occurs less often shares an id, so that the shared ones are trained too.
      buckets, length: of `Vocabulary`.
    """
    counts = Counter(word for caption in captions for word in cut(caption))
    common = sorted((-n, word) for word, n in counts.items() if n >= at_least)
    return Vocabulary(tuple(word for _, word in common[:size]), buckets, length)


def from_json(found, where: str) -> Vocabulary:
    """Returns the vocabulary of which `to_json` made this; raises UserError where it did not."""
    words = found.get("words") if isinstance(found, dict) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}: no vocabulary of words")
    numbers = [found.get(name) for name in ("buckets", "length")]
    if any(type(n) is not int or not 0 < n <= LARGEST for n in numbers) or len(words) > LARGEST:
        raise UserError(f"{where}: its vocabulary has buckets and length {numbers}")
    return Vocabulary(tuple(words), *numbers)


class TextSmall(nn.Module):
    """Ids int32 [B, T], mask bool [B, T] -> tokens float32 [B, T, width] and their mask.

    Attributes:
      vocabulary: number of ids, `Vocabulary.size`.
      width, layers, heads: of the transformer over the words; layers may be 0.
      pooled: whether a text becomes one token, their mean, as `trans_enc` takes it.
      dropout: rate, in training, as in `MotionTransformer`.
    """

    vocabulary: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    pooled: bool = False
    dropout: float = 0.1

    @nn.compact
    def __call__(self, ids, mask, train: bool = False):
        """Returns (tokens, mask); both [B, 1, ...] if pooled. A text has a token at least."""
        chex.assert_rank(ids, 2)
        chex.assert_shape(mask, ids.shape)
        normal = nn.initializers.normal(1.0)
        h = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="words")(ids)
        h = nn.Dropout(self.dropout, deterministic=not train)(h + positions(*h.shape[1:]))
        if self.layers:
            sizes = (self.width, self.layers, self.heads, 2 * self.width)
            settings = Settings(*sizes, self.dropout, self.dropout, "einsum", jnp.float32)
            h = Transformer(settings, name="transformer")(h, mask, None, None, train)
        if self.pooled:
            real = mask[..., None].astype(h.dtype)
            h = (h * real).sum(1, keepdims=True) / real.sum(1, keepdims=True)
            mask = jnp.ones((len(h), 1), bool)
        return dense(h, self.width, "out"), mask
