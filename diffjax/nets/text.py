"""Texts as networks of motions are told them: vectors of a frozen encoder, CLIP's or DistilBERT's.

Of released weights and their tokenizer.json a `TextEncoder` is made; `text_small` is the encoder
that needs neither.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.nets.clip_text import ClipText
from diffjax.nets.distilbert import DistilBert
from diffjax.nets.tokenizers import Tokenizer

CONTEXT = 22  # tokens that MDM gives CLIP of a caption of HumanML3D or KIT, with start and end
MULTIPLE = 8  # the words of a batch are padded to a multiple, so that few lengths are compiled


@dataclass(frozen=True)
class TextEncoder:
    """A frozen encoder of texts.

    Attributes:
      width: of its vectors.
      tokens: texts -> (ids int32 [B, T], mask bool [B, T], True = a token).
      tower: (ids, mask) -> (vectors float32 [B, T', width], mask bool [B, T']), compiled; T' is T,
        or 1 where a text is one vector.
      batch: texts at a time.
    """

    width: int
    tokens: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
    tower: Callable
    batch: int = 64

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens float32 [B, T, width], mask bool [B, T], True = a token) of the texts.

        Raises:
          UserError: a text that is longer than the encoder takes.
        """
        if not len(texts):
            return np.zeros((0, 1, self.width), np.float32), np.zeros((0, 1), bool)
        ids, mask = self.tokens(texts)
        rows = min(self.batch, 1 << (len(ids) - 1).bit_length())
        extra = ((0, -len(ids) % rows), (0, 0))
        padded = np.pad(ids, extra, mode="edge"), np.pad(mask, extra, mode="edge")
        done = [
            # Put and got by name, so that a caller may forbid all other transfers.
            jax.device_get(self.tower(*jax.device_put([a[i : i + rows] for a in padded])))
            for i in range(0, len(padded[0]), rows)
        ]
        tokens, masks = (np.concatenate(part) for part in zip(*done))
        return tokens[: len(ids)], masks[: len(ids)]


def clip(net: ClipText, params, tokenizer: Tokenizer, context: int = CONTEXT) -> TextEncoder:
    """Returns the encoder of CLIP's text tower: a text is one vector.

    Args:
      net, params: the tower and its weights.
      tokenizer: of the same vocabulary.
      context: how many tokens of a text are read; of a longer one the last of them becomes its
        end. MDM: 22 for HumanML3D and KIT, 77 elsewhere.
    """

    def tokens(texts):
        rows = [tokenizer.ids(text) for text in texts]
        rows = [r if len(r) <= context else [*r[: context - 1], tokenizer.end] for r in rows]
        return _padded(rows, context)

    def tower(params, ids, mask):
        return net.apply({"params": params}, ids)[:, None], mask[:, :1]

    return TextEncoder(net.out, tokens, _compiled(tower, params))


def distilbert(net: DistilBert, params, tokenizer: Tokenizer) -> TextEncoder:
    """Returns the encoder of DistilBERT: a text is a vector a word piece, start and end included.

    Args:
      net, params: the network and its weights.
      tokenizer: of the same vocabulary.
    """

    def tokens(texts):
        rows = [tokenizer.ids(text) for text in texts]
        longest = max(map(len, rows))
        if longest > net.length:
            text = texts[[len(row) for row in rows].index(longest)]
            raise UserError(f"a text of {longest} tokens, at most {net.length}: {text[:60]!r}...")
        return _padded(rows, min(net.length, longest + -longest % MULTIPLE))

    def tower(params, ids, mask):
        return net.apply({"params": params}, ids, mask), mask

    return TextEncoder(net.width, tokens, _compiled(tower, params))


def _compiled(tower: Callable, params) -> Callable:
    """(ids, mask) -> the tower's output, with its weights on the device and not in the program."""
    return functools.partial(jax.jit(tower), jax.device_put(params))


def _padded(rows: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, length], 0 after each row's; mask bool [B, length])."""
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.arange(length) < np.asarray([len(row) for row in rows])[:, None]
    ids[mask] = [i for row in rows for i in row]
    return ids, mask
