"""Tokenisers on small vocabularies: CLIP's example ids, BERT's rules, and broken files."""

import copy

import pytest
import tiny_tokenizers
from mdm_original import load

from diffjax.errors import UserError
from diffjax.nets import tokenizers

# Words of the example prompts with the ids that they have there; single bytes have theirs by rule.
WORDS = """person walks forward the walked and is picking up his toolbox throws ball he 's running
in circles then jumps very long sentence that goes on"""
NUMBERS = [2533, 8192, 2342, 518, 8667, 537, 533, 9545, 705, 787, 46599, 14723, 1069, 797, 568]
NUMBERS += [2761, 530, 19411, 1594, 18911, 1070, 1538, 12737, 682, 2635, 525]
IDS = dict(zip(WORDS.split(), NUMBERS, strict=True))


def test_clip_ids_of_the_released_tokeniser():
    # A vocabulary a word: merges of all of them would need the released order.
    g = load("text_encoders")
    of = lambda words: tokenizers.from_json(tiny_tokenizers.clip(words), "t")
    for prompt, want in zip(g["clip_prompts"], g["clip_token_ids22"].tolist()):
        ids = []
        for word in tokenizers.clip_words(tokenizers.clean(str(prompt))):
            ids += of({w: i for w, i in IDS.items() if w == word}).pieces(word)
        ids = [49406, *ids, 49407]
        if 0 in want:
            assert ids + [0] * (22 - len(ids)) == want
        else:
            assert ids[:21] + [49407] == want
    assert of({}).ids("") == [49406, 49407]


def test_merges_go_by_rank_and_everywhere():
    found = tiny_tokenizers.clip({})
    model = found["model"]
    for i, merge in enumerate(
        [("b", "c"), ("a", "b"), ("bc", "a"), ("bc", "bc</w>"), ("b", "c</w>")]
    ):
        model["vocab"]["".join(merge)] = 600 + i
        model["merges"].append(list(merge))
    pieces = tokenizers.from_json(found, "t").pieces
    assert pieces("abc") == [601, 256 + 66]  # b and c</w> would be next, but a has its b
    assert pieces("bcabcd") == [602, 600, 256 + 67]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 20&nbsp;steps...", ["it", "'s", "2", "0", "steps", "..."]),
        ("they&amp;apos;ll  go\n", ["they", "'ll", "go"]),
        ("a \u201cquote\u201d", ["a", '"', "quote", '"']),
        ("we've 'vehicles", ["we", "'ve", "'ve", "hicles"]),
        ("!'s", ["!'", "s"]),
        ("A<|endoftext|>b", ["a", "<|endoftext|>", "b"]),
        ("caf\u00e9 \u00b2\u00bd", ["caf\u00e9", "\u00b2", "\u00bd"]),
    ],
)
def test_clip_words(text, words):
    assert tokenizers.clip_words(tokenizers.clean(text)) == words


def test_bytes_that_no_merge_knows():
    tokenizer = tokenizers.from_json(tiny_tokenizers.clip({}), "t")
    order = tiny_tokenizers.symbols()
    snow = [order.index(chr(c)) for c in (0xE2, 256 + 33 + 1 + 0x98 - 0x7F)]
    ids = tokenizer.pieces("\u2603")
    assert len(ids) == 3 and ids[0] == snow[0] and ids[2] >= 256


def test_bert():
    tokenizer = tokenizers.from_json(tiny_tokenizers.bert(), "t")
    assert tokenizer.ids("A  person walks\tslowly.") == [2, 4, 5, 6, 7, 9, 10, 11, 3]
    assert tokenizer.pieces("Caf\u00e9 walking! jumping") == [14, 6, 8, 13, 1]
    assert tokenizer.pieces("a" * 101 + " a") == [1, 4]
    assert tokenizer.pieces("a\u200ba\x00 \ufffda'") == [1, 4, 12]
    assert tokenizers.bert_words("x\u4e00y \u00c9", False) == ["x", "\u4e00", "y", "\u00c9"]
    assert tokenizer.ids("") == [2, 3]


def broken(change, made=tiny_tokenizers.bert):
    found = copy.deepcopy(made())
    change(found["model"])
    return found


CLIP = lambda: tiny_tokenizers.clip({"ab": 700})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "no tokenizer.json"),
        ({"model": 3}, "no tokenizer.json"),
        (broken(lambda m: m.update(type="Unigram")), "of type 'Unigram'"),
        (broken(lambda m: m.pop("vocab")), "no 'vocab'"),
        (broken(lambda m: m["vocab"].update(x=-1)), "no whole number"),
        (broken(lambda m: m["vocab"].update(x="1")), "no whole number"),
        (broken(lambda m: m["vocab"].update(x=10**9)), "no whole number"),
        (broken(lambda m: m["vocab"].pop("[CLS]")), r"no token '\[CLS\]'"),
        (broken(lambda m: m.update(unk_token=None)), "no token None"),
        (broken(lambda m: m.update(continuing_subword_prefix="@@")), "'##'"),
        (broken(lambda m: m.pop("merges"), CLIP), "no 'merges'"),
        (broken(lambda m: m.update(end_of_word_suffix=None), CLIP), "'</w>'"),
        (broken(lambda m: m["merges"].append("a"), CLIP), "merge 1 is 'a', no pair"),
        (broken(lambda m: m["merges"].append(["a", 1]), CLIP), "merge 1 is"),
        (broken(lambda m: m["merges"].append("x y"), CLIP), "no token 'xy'"),
        (broken(lambda m: m["vocab"].pop("a"), CLIP), "no token 'a'"),
    ],
)
def test_broken_files(found, words):
    with pytest.raises(UserError, match=words) as error:
        tokenizers.from_json(found, "tokenizer.json")
    assert "\n" not in str(error.value) and "tokenizer.json" in str(error.value)


def test_a_word_of_more_than_a_hundred_characters_is_unknown():
    vocabulary = {"a": 5, "##a": 6}
    assert tokenizers.word_pieces(100 * "a", vocabulary, 9) == [5, *99 * [6]]
    assert tokenizers.word_pieces(101 * "a", vocabulary, 9) == [9]
