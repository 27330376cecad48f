"""The text encoder that is trained with its network: vocabulary, tokens, the module."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import drawn

from diffjax.errors import UserError
from diffjax.nets import text_small
from diffjax.weights import trees

CAPTIONS = ["A person walks.", "a person runs, then walks", "the person's dog jumps"]


def test_vocabulary():
    made = text_small.vocabulary(CAPTIONS, length=6, buckets=8)
    assert made.words == ("person", "a", "walks")  # by frequency, then by the alphabet
    assert text_small.vocabulary(CAPTIONS, size=1).words == ("person",)
    assert made.size == 2 + 8 + 3
    ids, mask = made.ids(["a PERSON walks and walks and walks", "", "zebra!"])
    assert ids.shape == mask.shape == (3, 6) and ids.dtype == np.int32
    assert list(ids[0, :4]) == [1, 11, 10, 12] and mask[0].all()
    assert list(mask[1]) == [True] + [False] * 5 and list(ids[1]) == [1] + [0] * 5
    assert {*ids[2, 1:3]} <= {*range(2, 10)}
    np.testing.assert_array_equal(ids[2], made.ids(["Zebra !"])[0][0])
    assert text_small.from_json(json.loads(json.dumps(made.to_json())), "asset") == made


@pytest.mark.parametrize(
    "found",
    [
        *([], {}, {"words": "ab", "buckets": 1, "length": 1}),
        {"words": ["a", 1], "buckets": 1, "length": 1},
        *({"words": [], "buckets": 0, "length": 1}, {"words": [], "buckets": 1}),
        {"words": [], "buckets": 1, "length": 10**9},
    ],
)
def test_a_broken_asset(found):
    with pytest.raises(UserError, match="asset: "):
        text_small.from_json(found, "asset")


@pytest.mark.parametrize(("pooled", "layers"), [(False, 1), (True, 1), (True, 0)])
def test_module(pooled, layers):
    made = text_small.vocabulary(CAPTIONS, length=8)
    ids, mask = made.ids(["", *CAPTIONS[:2]])
    net = text_small.TextSmall(made.size, width=16, layers=layers, pooled=pooled)
    params = {"params": trees.unflatten(drawn(net, ids, mask))}
    (tokens, real) = jax.jit(net.apply)(params, ids, mask)
    assert tokens.shape == (3, 1 if pooled else 8, 16) and real.shape == tokens.shape[:2]
    assert np.isfinite(tokens).all() and (real.all() if pooled else (real == mask).all())
    more, _ = jax.jit(net.apply)(params, *(np.pad(a, ((0, 0), (0, 3))) for a in (ids, mask)))
    np.testing.assert_allclose(more[:, :8][real], tokens[real], atol=1e-5)
    loss = lambda p: jnp.square(net.apply(p, ids, mask)[0][0]).sum()
    gradient = jax.jit(jax.grad(loss))(params)["params"]["words"]["embedding"]
    assert gradient[1].any() and not gradient[2:].any()  # the empty text has its start alone
