"""Tokenisers of CLIP and of BERT, made from the tokenizer.json that lies beside released weights.

Of that format what those two need is read: the vocabulary, the merges, BERT's lower-casing, and
the tokens that begin and end a text. Other models and settings are refused in one line.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from diffjax.errors import UserError

MAX_VOCABULARY = 1_000_000
LONGEST_WORD = 100  # characters; a longer word is one unknown token to BERT

# What CLIP's cleaning (the package ftfy) does to quotes, of all that it mends.
QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
START, END = "<|startoftext|>", "<|endoftext|>"
FIRST = re.compile(rf"{re.escape(START)}|{re.escape(END)}|'(?:s|t|re|ve|m|ll|d)", re.IGNORECASE)


@dataclass(frozen=True)
class Tokenizer:
    """A text's token ids.

    Attributes:
      pieces: text -> ids without those of start and end.
      start, end: the ids that go around them.
      size: ids are 0 .. size - 1.
    """

    pieces: Callable[[str], list[int]]
    start: int
    end: int
    size: int

    def ids(self, text: str) -> list[int]:
        """Returns a text's ids, with start and end."""
        return [self.start, *self.pieces(text), self.end]


def from_json(found, where: str) -> Tokenizer:
    """Makes the tokeniser that a tokenizer.json describes.

    Args:
      found: the file's JSON.
      where: the file, for messages.

    Raises:
      UserError: a tokeniser of another kind, or one that lacks something or has it wrong.
    """
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{where}: no tokenizer.json: it has no 'model'")
    kind, vocabulary = model.get("type"), _vocabulary(model, where)
    if kind == "BPE" or (kind is None and "merges" in model):
        if model.get("end_of_word_suffix") != "</w>":
            raise UserError(f"{where}: byte pairs without the suffix '</w>' of CLIP's")
        ranks = _ranks(model, vocabulary, where)
        start, end = (_id(vocabulary, token, where) for token in (START, END))
        for symbol in _bytes().values():
            _id(vocabulary, symbol, where)
            _id(vocabulary, symbol + "</w>", where)
        split = functools.partial(byte_pairs, vocabulary=vocabulary, ranks=ranks)
        pieces = lambda text: [i for word in clip_words(clean(text)) for i in split(word)]
    elif kind == "WordPiece" or (kind is None and "continuing_subword_prefix" in model):
        if model.get("continuing_subword_prefix", "##") != "##":
            raise UserError(f"{where}: word pieces that do not go on with '##'")
        normalizer = found.get("normalizer")
        lower = not isinstance(normalizer, dict) or normalizer.get("lowercase") is not False
        start, end = (_id(vocabulary, token, where) for token in ("[CLS]", "[SEP]"))
        unknown = _id(vocabulary, model.get("unk_token", "[UNK]"), where)
        split = functools.partial(word_pieces, vocabulary=vocabulary, unknown=unknown)
        pieces = lambda text: [i for word in bert_words(text, lower) for i in split(word)]
    else:
        raise UserError(
            f"{where}: a tokeniser of type {ascii(kind)[:60]}; CLIP's BPE and WordPiece"
        )
    return Tokenizer(pieces, start, end, max(vocabulary.values()) + 1)


def _vocabulary(model: dict, where: str) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_VOCABULARY:
        raise UserError(f"{where}: its model has no 'vocab'")
    if any(type(i) is not int or not 0 <= i < MAX_VOCABULARY for i in vocabulary.values()):
        raise UserError(f"{where}: its vocab has an id that is no whole number from 0")
    return vocabulary


def _ranks(model: dict, vocabulary: dict[str, int], where: str) -> dict[tuple[str, str], int]:
    """{pair: its place in the list of merges}, which may be "a b" or ["a", "b"]."""
    merges = model.get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_VOCABULARY:
        raise UserError(f"{where}: its model has no 'merges'")
    ranks = {}
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise UserError(f"{where}: merge {i} is {ascii(merge)[:60]}, no pair")
        _id(vocabulary, pair[0] + pair[1], where)
        ranks[pair[0], pair[1]] = i
    return ranks


def _id(vocabulary: dict[str, int], token, where: str) -> int:
    if not isinstance(token, str) or token not in vocabulary:
        raise UserError(f"{where}: no token {ascii(token)[:60]} in its vocab")
    return vocabulary[token]


# ---- CLIP: byte pairs ----------------------------------------------------------------------------


def clean(text: str) -> str:
    """Returns the text as CLIP cleans it: entities decoded, one space between words, lower case."""
    text = html.unescape(html.unescape(text.translate(QUOTES)))
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def clip_words(text: str) -> list[str]:
    """Cuts a text as CLIP does: the endings 's 't 're 've 'm 'll 'd, runs of letters, single
    digits, and runs of anything else but spaces.
    """
    words, at = [], 0
    while at < len(text):
        if first := FIRST.match(text, at):
            end = first.end()
        else:
            kind, end = _kind(text[at]), at + 1
            while kind != "number" and end < len(text) and _kind(text[end]) == kind:
                end += 1
        word, at = text[at:end], end
        if not word.isspace():
            words.append(word)
    return words


def _kind(character: str) -> str:
    group = unicodedata.category(character)[0]
    if group in "LN":
        return {"L": "letter", "N": "number"}[group]
    return "space" if character.isspace() else "other"


@functools.cache
def _bytes() -> dict[int, str]:
    """{byte: the character that stands for it}: itself where it is printable in Latin-1, else the
    next of those from 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (b for b in range(256) if b not in printable)
    table = {b: chr(256 + i) for i, b in enumerate(others)}
    return {b: table.get(b, chr(b)) for b in range(256)}


def byte_pairs(word: str, vocabulary: dict[str, int], ranks: dict) -> list[int]:
    """Returns the ids of a word's parts. Sennrich et al. 2016, on bytes.

    From single bytes, of which the last carries the word's end, the neighbours that were merged
    first when the vocabulary was made are merged, everywhere in the word, until there are none.
    """
    if word in (START, END):
        return [vocabulary[word]]
    parts = [_bytes()[b] for b in word.encode("utf-8", "replace")]
    parts[-1] += "</w>"
    while len(parts) > 1:
        pairs = list(zip(parts, parts[1:]))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            both = i + 1 < len(parts) and pairs[i] == best
            merged.append(best[0] + best[1] if both else parts[i])
            i += 1 + both
        parts = merged
    return [vocabulary[part] for part in parts]


# ---- BERT: word pieces ---------------------------------------------------------------------------


def bert_words(text: str, lower: bool) -> list[str]:
    """Cuts a text as BERT does: at spaces, around punctuation and around each Chinese character,
    without control characters; in lower case and without accents if `lower`.
    """
    text = "".join(map(_plain, text))
    if lower:
        marks = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in marks if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _plain(character: str) -> str:
    code = ord(character)
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if code in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf"):
        return ""
    return f" {character} " if any(a <= code <= b for a, b in CHINESE) else character


CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def _is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and all of ASCII that is neither a letter nor a digit nor a space."""
    ascii_mark = "!" <= character <= "~" and not character.isalnum()
    return ascii_mark or unicodedata.category(character).startswith("P")


def word_pieces(word: str, vocabulary: dict[str, int], unknown: int) -> list[int]:
    """Returns the ids of a word's parts: the longest that the vocabulary has, from the left.

    The unknown id alone if it cannot be cut so, or has more than 100 characters.
    """
    if len(word) > LONGEST_WORD:
        return [unknown]
    ids, at = [], 0
    while at < len(word):
        prefix = "##" if at else ""
        ends = range(len(word), at, -1)
        end = next((end for end in ends if prefix + word[at:end] in vocabulary), None)
        if end is None:
            return [unknown]
        ids.append(vocabulary[prefix + word[at:end]])
        at = end
    return ids
