"""Small tokenizer.json files: CLIP's with the ids of some words, and BERT's."""

import itertools

START, END = "<|startoftext|>", "<|endoftext|>"


def symbols():
    """The 256 characters that stand for bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def clip(words: dict[str, int], start: int = 49406) -> dict:
    """A vocabulary of bytes and of whole words with these ids; merges from the left.

    The parts of words have ids from 516 on, or with CLIP's own `start` others than its words have.
    """
    vocabulary = {s: i for i, s in enumerate(symbols())}
    vocabulary |= {s + "</w>": 256 + i for i, s in enumerate(symbols())}
    merges, spare = [], itertools.count(600_000 if start == 49406 else 516)
    for word, number in words.items():
        whole = word + "</w>"
        left = word[0]
        for i, c in enumerate(word[1:], 1):
            right = c + "</w>" if i == len(word) - 1 else c
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
            left += right
            if left != whole:
                vocabulary.setdefault(left, next(spare))
        vocabulary[whole] = number
    vocabulary |= {START: start, END: start + 1}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "end_of_word_suffix": "</w>"}
    return {"version": "1.0", "model": model}


def bert() -> dict:
    """A vocabulary of 15 pieces."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "person", "walk", "##s", "##ing", "slow"]
    words += ["##ly", ".", "'", "!", "cafe"]
    vocabulary = {word: i for i, word in enumerate(words)}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary}
    model["continuing_subword_prefix"] = "##"
    return {"model": model, "normalizer": {"type": "BertNormalizer", "lowercase": True}}
