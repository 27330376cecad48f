"""One alternation of APT's two networks: who is moved by what, and what changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import near
from apt_networks import normal, perceptron, transformer

from diffjax.errors import UserError
from diffjax.nets import discriminator, dit
from diffjax.run import mesh as meshes
from diffjax.systems.apt import alternation
from diffjax.systems.apt.alternation import Settings

LN2 = np.log(2)


@functools.cache
def game(networks, settings):
    """(jitted step, state of step 0, what D's and G's steps take)."""
    generate, discriminate, d, g, shape = networks()
    step = jax.jit(alternation.alternation(generate, discriminate, settings))
    key, rows = jax.random.key(3), jnp.arange(8)
    data = jax.random.fold_in(key, 2)
    x, label = 0.5 * alternation.normal(data, rows, shape), rows % 3
    for_d = alternation.draw_d(key, rows, x, label, settings, 1.0, (label + 1) % 3)
    for_g = alternation.draw_g(key, rows, x, label, settings)
    return step, alternation.create(g, d, settings), for_d, for_g


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


R1 = Settings(sigma=0.1)


def test_a_new_discriminator_is_blind():
    step, state, *given = game(perceptron, R1)
    d = {**state.params["d"], "last": jnp.zeros(16)}
    after, metrics = step(state._replace(params={**state.params, "d": d}), *given, 1e-3)
    near(metrics["loss_d"], 2 * LN2, 1e-6)
    assert metrics["r1"] == 0 and metrics["logit_real"] == 0 and metrics["logit_fake"] == 0
    # D moves first, so that the generator has a gradient in the first alternation.
    assert not same(after.params["g"], state.params["g"])
    assert metrics["loss_g"] != np.float32(LN2)


def test_who_is_moved_by_what():
    step, state, for_d, for_g = game(perceptron, R1)
    after, metrics = step(state, for_d, for_g, 1e-3)
    other, _ = step(state, for_d, for_g._replace(z=2 * for_g.z), 1e-3)
    assert same(after.params["d"], other.params["d"])
    assert same(after.opt_state["d"], other.opt_state["d"])
    assert not same(after.params["g"], other.params["g"])
    want = jax.tree.map(lambda a, b: 0.995 * a + 0.005 * b, state.ema, after.params["g"])
    for got, wanted in zip(jax.tree.leaves(after.ema), jax.tree.leaves(want)):
        near(got, wanted, 1e-6)
    # The penalty only adds.
    without = game(perceptron, Settings(weight=0.0))[0](state, for_d, for_g, 1e-3)[1]
    assert metrics["r1"] > 0 and "r1" not in without
    near(metrics["loss_d"] - metrics["r1"], without["loss_d"], 1e-5)


def test_made_samples_are_constants_for_the_discriminator():
    generate, discriminate, d, g, _ = perceptron()
    _, _, for_d, for_g = game(perceptron, R1)

    def through(g):
        made = jax.lax.stop_gradient(generate(g, for_d.z, for_d.cond_fake))
        return alternation.d_loss(discriminate, R1, d, made, for_d)[0]

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(through)(g)))
    # In the relativistic family real logits are a constant of the generator's loss.
    paired = Settings(family="relativistic")
    of = lambda x: alternation.g_loss(generate, discriminate, paired, g, d, for_g._replace(x=x))
    assert not np.any(jax.grad(of)(for_d.x))
    assert of(for_d.x) != of(2 * for_d.x)


def test_a_bad_number_changes_nothing():
    step, state, for_d, for_g = game(perceptron, R1)
    before, _ = step(state, for_d, for_g, 1e-3)
    bad = for_d._replace(x=for_d.x.at[0].set(np.nan))
    after, metrics = step(before, bad, for_g, 1e-3)
    assert not np.isfinite(metrics["loss_d"])
    assert int(after.bad_step) == 1 and same(after._replace(bad_step=before.bad_step), before)
    assert same(step(after, for_d, for_g, 1e-3)[0], after)


def test_draws_of_a_step():
    key, rows = jax.random.key(0), jnp.arange(4)
    x, label = jnp.asarray(normal(0, 4, 3)), jnp.arange(4)
    for settings in (R1, Settings(family="relativistic", r2=True)):
        paired = settings.r2
        for_d = alternation.draw_d(key, rows, x, label, settings, 12.0, label + 1)
        assert same(for_d.t_real, for_d.t_fake) == same(for_d.cond_fake, label) == paired
        assert (for_d.eps_fake is not None) == paired
        for_g = alternation.draw_g(key, rows, x, label, settings, 12.0)
        assert not same(for_g.z, for_d.z) and not same(for_g.t, for_d.t_real)
        assert not same(for_d.z, for_d.eps_real) and (for_g.x is not None) == paired
        # The last two rows alone are the same as in the batch.
        few = alternation.draw_d(key, rows[2:], x[2:], label[2:], settings, 12.0, label[2:] + 1)
        assert same(few, jax.tree.map(lambda a: a[2:], for_d))


def test_what_a_step_refuses():
    generate, discriminate, *_ = perceptron()
    with pytest.raises(UserError, match="adversarial loss"):
        alternation.alternation(generate, discriminate, Settings(family="hinge"))


def close(a, b, share=1.0):
    """Whether that share of each leaf's numbers agrees to 1e-6."""
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.mean(np.abs(one - other) < 1e-6) >= share


def test_slices_change_rounding_only():
    settings = Settings(sigma=0.1, family="relativistic", r2=True)
    step, state, *given = game(perceptron, settings)
    want, metrics = step(state, *given, 1e-3)
    got, seen = game(perceptron, dataclasses.replace(settings, parts=4))[0](state, *given, 1e-3)
    assert sorted(seen) == sorted(metrics)
    for name, value in metrics.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    close(got.params, want.params)


@pytest.mark.parametrize(
    ("family", "mode", "passes"),
    [
        ("non_saturating", "jvp", 15),
        pytest.param("non_saturating", "fd", 15, marks=pytest.mark.slow),
        pytest.param("non_saturating", "exact", 15, marks=pytest.mark.slow),
        pytest.param("relativistic", "jvp", 19, marks=pytest.mark.slow),
    ],
)
def test_a_step_computes_what_it_needs_and_no_more(family, mode, passes):
    # In forward passes F of G and of D, which cost the same here; a backward pass to weights and
    # inputs is 2 F. D's step F + 3 x 3 F, G's 3 F + 2 F: with D's weights frozen; with pairs and R2
    # 13 F and 6 F. The exact penalty is no dearer, as it goes through x by reverse mode.
    layers, width = 12, 128

    def chain(p, x):
        for w in p:
            x = jnp.maximum(x @ w, 0)
        return x

    generate = lambda p, z, cond: chain(p, z)
    discriminate = lambda p, x, t, cond: chain(p, x).sum(-1)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    weights, x = [struct(width, width)] * layers, struct(64, width)
    settings = Settings(family=family, r2=family == "relativistic", mode=mode)
    state = jax.eval_shape(lambda w: alternation.create(w, w, settings), weights)
    given = jax.eval_shape(lambda: jax.random.key(0)), struct(64).update(dtype=jnp.int32), x, None
    for_d, for_g = (
        jax.eval_shape(functools.partial(draw, settings=settings), *given)
        for draw in (alternation.draw_d, alternation.draw_g)
    )
    step = alternation.alternation(generate, discriminate, settings)
    lowered = jax.jit(step).lower(state, for_d, for_g, 1e-3)
    flops = lowered.compile().cost_analysis()["flops"]
    forward = layers * 2 * 64 * width**2
    print(f"{flops / forward:.2f} forward passes")
    assert abs(flops / forward / passes - 1) < 0.1


@pytest.mark.slow
def test_devices_change_rounding_only():
    settings = Settings(sigma=0.1, family="relativistic", r2=True)
    step, state, *given = game(transformer, settings)
    want, metrics = step(state, *given, 1e-3)
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    where = meshes.tree_shardings(state, (*discriminator.SHARDING, *dit.SHARDING), mesh)
    rows = jax.device_put(tuple(given), meshes.rows(mesh))
    got, seen = step(jax.device_put(state, where), *rows, 1e-3)
    for tree in (got.params, got.opt_state, got.ema):
        assert any("tensor" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(tree))
    for name, value in metrics.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    # RMSProp's first step is a gradient's sign: where that is rounding, it may differ.
    close(got.ema, want.ema, 0.99)
