import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.classifier_small import ClassifierSmall


@pytest.fixture(scope="module")
def small():
    net = ClassifierSmall(classes=5, width=8, features=16)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.2 * rng.normal(size=s.shape).astype(s.dtype), shapes)
    return jax.jit(net.apply), params


def test_shapes_and_dtypes(small):
    apply, params = small
    for h, w in ((24, 24), (32, 8)):
        out = apply(params, jnp.ones((2, h, w, 3)))
        assert out.logits.shape == (2, 5)
        assert out.features.shape == (2, 16)
        assert out.spatial.shape == (2, h // 4, w // 4, 32)
    half = ClassifierSmall(classes=5, width=8, features=16, dtype=jnp.bfloat16)
    out = jax.eval_shape(half.apply, params, jnp.ones((2, 24, 24, 3)))
    assert {a.dtype for a in out} == {jnp.dtype(jnp.float32)}
    assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_default_is_below_a_megabyte():
    shapes = jax.eval_shape(
        ClassifierSmall().init, jax.random.key(0), jnp.zeros((1, 24, 24, 3), jnp.float32)
    )
    assert 4 * sum(p.size for p in jax.tree.leaves(shapes)) < 1_000_000


def test_outputs_do_not_depend_on_the_batch(small):
    apply, params = small
    x = jax.random.normal(jax.random.key(1), (3, 24, 24, 3))
    together, alone = apply(params, x), apply(params, x[1:2])
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a[1], b[0], atol=1e-5)


def test_features_are_what_the_logits_are_linear_in(small):
    apply, params = small
    out = apply(params, jax.random.normal(jax.random.key(2), (4, 24, 24, 3)))
    layer = params["params"]["logits"]
    np.testing.assert_allclose(
        out.features @ layer["kernel"] + layer["bias"], out.logits, atol=1e-5
    )
