"""The norm with what is folded into it, against flax's and the same written out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import nets
from diffjax.nets.edm_blocks import Conv, xavier
from diffjax.nets.group_norm import GroupNorm

NORMAL = np.random.default_rng(0).standard_normal


def params(c):
    return {"params": {"scale": 1 + 0.3 * NORMAL(c), "bias": 0.3 * NORMAL(c)}}


@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_folded_equals_written_out(mean):
    x, add = mean + NORMAL((2, 4, 6, 24)), NORMAL((2, 24))
    scale, shift = NORMAL((2, 24)), NORMAL((2, 24))
    weights = params(24)
    plain = nn.GroupNorm(8, epsilon=1e-5, use_fast_variance=False)
    want = plain.apply(weights, jnp.asarray(x + add[:, None, None], jnp.float32))
    want = want * (scale + 1)[:, None, None] + shift[:, None, None]
    got = GroupNorm(8, 1e-5, jnp.float32).apply(weights, x, before=add, after=(scale, shift))
    np.testing.assert_allclose(got, want, atol=3e-6 * (1 + mean**2))


def test_a_tuple_stands_for_its_concatenation_also_where_groups_straddle():
    a, b = NORMAL((2, 4, 4, 8)), NORMAL((2, 4, 4, 4))
    norm, weights = GroupNorm(4, 1e-6, jnp.float32), params(12)  # groups of 3: one has 2 + 1
    joined = norm.apply(weights, np.concatenate([a, b], -1))
    np.testing.assert_allclose(norm.apply(weights, (a, b)), joined, atol=1e-6)

    conv = Conv(5, xavier())
    weights = conv.init(jax.random.key(0), np.concatenate([a, b], -1))
    np.testing.assert_allclose(
        conv.apply(weights, (a, b)), conv.apply(weights, np.concatenate([a, b], -1)), atol=1e-5
    )


def test_rounding_the_convolutions_first_changes_nothing():
    fields = {"model_channels": 32, "channel_mult": (1,), "num_blocks": 1, "dropout": 0.0}
    fields |= {"attn_resolutions": (), "augment_dim": 0, "dtype": "bfloat16", "kind": "ddpmpp"}
    net = nets.make(fields, channels=3, num_classes=0, shape=(8, 8, 3))
    x, c = NORMAL((2, 8, 8, 3)).astype(np.float32), np.ones(2, np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, c)["params"]
    weights = jax.tree.map(lambda s: 0.1 * NORMAL(s.shape).astype(np.float32), shapes)
    once = nets.rounded(fields, weights)
    types = {leaf.dtype for leaf in jax.tree.leaves(once)}
    assert types == {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    apply = jax.jit(net.apply)
    got, want = (apply({"params": p}, x, c) for p in (once, weights))
    assert np.std(want) > 0.01
    np.testing.assert_array_equal(got, want)
