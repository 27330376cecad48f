"""CLIP's text tower and DistilBERT against the released code's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from mdm_original import load, manifest, params_of

from diffjax.nets import text
from diffjax.nets.clip_text import ClipText
from diffjax.nets.distilbert import DistilBert
from diffjax.nets.tokenizers import Tokenizer
from diffjax.weights import trees


def test_clip(near):
    g = load("text_encoders")
    net = ClipText(50, width=32, layers=2, heads=4, hidden=128, out=16)
    params = params_of(manifest("text_encoders")["clip_text"])
    run = jax.jit(net.apply)
    near(run({"params": params}, g["clip_ids"]), g["clip_out"], 2e-5)
    # Nothing after the end is seen, nor need it be there.
    longest = int(np.argmax(g["clip_ids"], -1).max()) + 1
    near(run({"params": params}, g["clip_ids"][:, :longest]), g["clip_out"], 2e-5)


def test_distilbert(near):
    g = load("text_encoders")
    net = DistilBert(50, 64, width=32, layers=2, heads=4, hidden=64)
    args = (g["bert_ids"], g["bert_attention_mask"] > 0)
    params = params_of(manifest("text_encoders")["distilbert"])
    run = jax.jit(net.apply)
    near(run({"params": params}, *args), g["bert_out"], 2e-5)
    more = [np.pad(a, ((0, 0), (0, 7))) for a in args]
    near(run({"params": params}, *more)[:, :9], g["bert_out"], 2e-5)


def test_of_a_long_text_clip_s_last_token_is_the_end():
    net = ClipText(50, width=8, layers=1, heads=2, hidden=8, out=4)
    letters = Tokenizer(lambda words: [ord(c) - 96 for c in words], 48, 49, 50)
    encoder = text.clip(
        net, net.init(jax.random.key(0), jnp.zeros((1, 5), int))["params"], letters, 5
    )
    ids, mask = encoder.tokens(["ab", "abc", "abcdef"])
    assert ids.tolist() == [[48, 1, 2, 49, 0], [48, 1, 2, 3, 49], [48, 1, 2, 3, 49]]
    assert mask.sum(1).tolist() == [4, 5, 5]
    vectors, seen = encoder.encode(["abcx", "abcyz"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors.shape == (2, 1, 4) and seen.tolist() == [[True], [True]]


def test_published_sizes():
    one = jnp.zeros((1, 8), int)
    count = lambda net, *args: sum(
        leaf.size
        for leaf in trees.flatten(jax.eval_shape(net.init, jax.random.key(0), *args)).values()
    )
    assert count(ClipText(), one) == 63_428_096
    assert count(DistilBert(), one, one > 0) == 66_362_880
