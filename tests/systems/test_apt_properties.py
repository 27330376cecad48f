"""What APT's pieces must do whatever the numbers: limits, invariances, who gets a gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import load, near, params_by_rule

from diffjax.core import denoisers, processes, samplers
from diffjax.errors import UserError
from diffjax.nets import discriminator, dit
from diffjax.nets.discriminator import ReadOut
from diffjax.nets.dit import DiT
from diffjax.run import mesh as meshes
from diffjax.systems.apt import (
    alternation,
    bases,
    consistency,
    losses,
    multistep,
    timesteps,
)
from diffjax.systems.apt.alternation import Settings

LN2 = np.log(2)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- times ---------------------------------------------------------------------------------------


def test_shifts_compose():
    t = np.linspace(0, 1, 50)
    np.testing.assert_array_equal(timesteps.shift(t, 1), t)
    twice = timesteps.shift(timesteps.shift(t, 3), 4)
    np.testing.assert_allclose(twice, timesteps.shift(t, 12), rtol=1e-12)
    assert timesteps.shift(0.5, 12) == 12 / 13


def test_the_ensemble_has_the_exact_mean_and_does_not_depend_on_its_batch():
    rows = jnp.arange(20_000)
    for s in (1.0, 12.0):
        t = np.asarray(timesteps.ensemble(jax.random.key(0), rows, s))
        assert t.min() >= 0 and t.max() <= 1
        assert abs(t.mean() - timesteps.mean(s)) < 3 * t.std() / np.sqrt(len(t))
    assert round(timesteps.mean(12), 4) == 0.8445
    few = timesteps.ensemble(jax.random.key(0), jnp.array([7, 3]), 12.0)
    np.testing.assert_array_equal(few, t[[7, 3]])
    noise = alternation.normal(jax.random.key(0), jnp.array([3]), (4,))
    all_noise = alternation.normal(jax.random.key(0), jnp.arange(5), (4,))
    np.testing.assert_array_equal(noise[0], all_noise[3])
    n = np.asarray(consistency.indices(jax.random.key(1), rows, 4))
    assert np.all(np.abs(np.bincount(n, minlength=5)[1:] / len(n) - 0.25) < 0.02)


# ---- losses --------------------------------------------------------------------------------------


def test_losses_at_the_start_and_far_out():
    kind, paired = losses.family("non_saturating"), losses.family("relativistic")
    zero = jnp.zeros(4)
    near(kind.d(zero, zero), np.full(4, 2 * LN2), 1e-6)
    near(kind.g(None, zero), np.full(4, LN2), 1e-6)
    near(paired.d(zero, zero), np.full(4, LN2), 1e-6)
    # Non-saturating: where D is sure that a sample is made, the generator's slope is -1, not 0.
    slope = jax.grad(lambda f: kind.g(None, f).mean())(jnp.array([-88.0, -1e4]))
    near(slope, [-0.5, -0.5], 1e-6)
    assert kind.d(jnp.bfloat16(1), jnp.bfloat16(1)).dtype == jnp.float32
    with pytest.raises(UserError, match="adversarial loss"):
        losses.family("hinge")


@pytest.mark.parametrize("mode", losses.MODES)
def test_penalties_of_a_linear_critic(mode):
    w, x, eps = normal(0, 8), normal(1, 4096, 8), normal(2, 4096, 8)
    critic = lambda b: lambda x: x @ w + b
    logits, penalty = losses.penalised(critic(0.0), x, eps, 0.1, mode)
    near(logits, critic(0.0)(x), 1e-6)
    want = 0.01 * np.sum(w.astype(float) ** 2)
    # A draw's relative standard deviation is sqrt(2).
    assert abs(np.mean(penalty) / want - 1) < 4 * np.sqrt(2 / 4096)
    moved = losses.penalised(critic(5.0), x, eps, 0.1, mode)[1]
    near(moved, penalty, 1e-4 if mode == "fd" else 0)
    mean = lambda b: jnp.mean(losses.penalised(critic(b), x, eps, 0.1, mode)[1])
    assert jax.grad(mean)(0.0) == 0
    assert not np.any(losses.penalised(critic(0.0), x, eps, 0.0, mode)[1])


def test_modes_agree_where_the_critic_is_nearly_linear():
    critic = lambda x: jnp.sum(jnp.tanh(x), 1)
    x, eps = normal(0, 64, 6), normal(1, 64, 6)
    with jax.enable_x64(True):
        x, eps = jnp.asarray(x, float), jnp.asarray(eps, float)
        jvp, fd = (losses.penalised(critic, x, eps, 1e-5, m)[1] for m in ("jvp", "fd"))
        near(fd, jvp, 1e-4)
    with pytest.raises(UserError, match="gradient penalty"):
        losses.penalised(critic, x, eps, 0.1, "autodiff")


@pytest.mark.slow
def test_in_half_precision_the_directional_derivative_holds_and_the_difference_does_not():
    x, eps = normal(0, 16, 8, 8, 4), normal(1, 16, 8, 8, 4)
    t, label = np.full(16, 0.5, np.float32), np.zeros(16, np.int32)
    d, params = transformer_critic(width=96, depth=12)

    def penalty(mode, dtype):
        critic = lambda x: d(params, x, t, label, dtype)
        return float(jnp.mean(jax.jit(lambda: losses.penalised(critic, x, eps, 0.01, mode)[1])()))

    exact = penalty("jvp", jnp.float32)
    assert abs(penalty("fd", jnp.float32) / exact - 1) < 0.05
    assert abs(penalty("jvp", jnp.bfloat16) / exact - 1) < 0.05
    assert penalty("fd", jnp.bfloat16) / exact > 1.2


# ---- distillation --------------------------------------------------------------------------------


def test_boundary_and_one_step():
    velocity = lambda x, t: 3 * x + t
    x = jnp.asarray(normal(0, 4, 3))
    np.testing.assert_array_equal(consistency.boundary(velocity, x, jnp.zeros((4, 1))), x)
    infinite = lambda x, t: x / t
    np.testing.assert_array_equal(consistency.boundary(infinite, x, jnp.zeros((4, 1))), x)
    g = bases.generator(denoisers.from_flow(processes.flow(), velocity), 1.0)
    np.testing.assert_array_equal(g(x), consistency.boundary(velocity, x, jnp.ones((4, 1))))


@pytest.mark.parametrize(
    ("shift", "euler", "heun"), [(1, 2e-3, 2e-3), (12, 0.17, 0.03), (24, 0.3, 0.06)]
)
def test_a_teacher_s_step_keeps_the_exact_consistency_function(shift, euler, heun):
    g = load("consistency_gaussian")
    mu, s = g["mu_c"], g["s_c"]
    f = lambda x, t: mu + s * (x - (1 - t) * mu) / np.sqrt((1 - t) ** 2 * s**2 + t**2)
    x, t, t_next = (g[f"s{shift}_{k}"] for k in ("x_t", "t", "t_next"))
    velocity = lambda x, t: (
        (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2) * (x - (1 - t) * mu) - mu
    )
    near(f(x, t[:, None]), g[f"s{shift}_fstar_t"], 1e-10)
    for solver, allowed in (("euler", euler), ("heun", heun)):
        x1 = consistency.SOLVERS[solver](velocity, x, t[:, None], t_next[:, None])
        error = np.abs(f(x1, t_next[:, None]) - f(x, t[:, None])).max()
        assert error < allowed * 1.05, (solver, error)


def test_euler_s_step_is_ddim_s():
    velocity = lambda x, t: jnp.sin(x) + t
    denoise = denoisers.from_flow(processes.flow(), velocity)
    x = jnp.asarray(normal(0, 5))
    want = samplers.ddim(denoise, processes.flow(), [0.8, 0.6], x, delta=samplers.posterior(0.0))
    near(consistency.euler(velocity, x, 0.8, 0.6), want, 1e-6)


def test_losses_of_the_distillation():
    velocity = lambda x, t: x * t
    x0, eps = jnp.asarray(normal(0, 6, 5)), jnp.asarray(normal(1, 6, 5))
    grid, n = timesteps.consistency(8), jnp.arange(1, 7)
    run = functools.partial(consistency.loss, velocity, lambda x, t: eps - x0, x0, eps, n, grid)
    x, t, t_next = consistency.noised(x0, eps, grid, n)
    ratio = run(space="x") / run()
    near(ratio, t[:, 0] ** 2, 1e-5)
    # Huber's: far out the norm, near 0 its square over 2 c.
    norm = jnp.sqrt(5 * run())
    near(run(huber=True), norm, 2e-3)
    # The target has no gradient: the student's own gradient is that of a regression.
    of = lambda a: jnp.sum(consistency.loss(lambda x, t: a * x, lambda x, t: x, x0, eps, n, grid))
    wanted = consistency.target(lambda x, t: 2.0 * x, lambda x, t: x, x, t, t_next)
    by_hand = jnp.sum(jnp.mean(2 * (2.0 * x - wanted.v) * x, 1))
    near(jax.grad(of)(2.0), by_hand, 1e-5)
    other = run(average=lambda x, t: x * t + 1)
    assert np.abs(other - run())[1:].max() > 1e-3
    assert abs(other - run())[0] < 1e-6  # n = 1: the boundary; no bootstrap
    with pytest.raises(UserError, match="solver"):
        run(solver="rk4")
    with pytest.raises(UserError, match="space"):
        run(space="eps")
    with pytest.raises(UserError, match="consistency grid"):
        timesteps.consistency(0)


# ---- bases ---------------------------------------------------------------------------------------


BASES = {
    "flow": (processes.flow(), 1.0),
    "shifted": (processes.flow(3.0), 1.0),
    "edm": (processes.edm(), 80.0),
    "vp": (processes.vp(), 1.0),
    "discrete": (processes.discrete(processes.linear_betas(1000)), 1000),
}


@pytest.mark.parametrize("name", BASES)
def test_every_base_has_the_same_velocity(name):
    # Data N(0.3, 0.5^2): the best guess and the path's velocity are known on every process.
    process, end = BASES[name]

    def denoise(x, t):
        level = process.at(t)
        gain = level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)
        return 0.3 + gain * (x - level.alpha * 0.3)

    last = bases.last_time(process, end)
    t = jnp.asarray(np.linspace(0.05, last, 6), jnp.float32)[:, None]
    x = jnp.asarray(normal(0, 6, 3))
    variance = (1 - t) ** 2 * 0.25 + t**2
    want = (t - (1 - t) * 0.25) / variance * (x - (1 - t) * 0.3) - 0.3
    velocity = bases.velocity(process, denoise)
    near(velocity(x, t), want, 1e-4 if name == "discrete" else 2e-5)
    assert np.all(np.isfinite(velocity(x, jnp.zeros((6, 1)))))


def test_times_of_bases():
    near(bases.last_time(processes.edm(), 80.0), 0.98765, 1e-5)
    near(bases.last_time(processes.edm(), 5.0), 0.83333, 1e-5)
    assert bases.last_time(processes.flow(), 1.0) == 1


def test_what_a_discriminator_s_network_is_fed():
    x, t = jnp.asarray(0.5 * normal(0, 5, 3)), jnp.array([0.0, 0.25, 0.5, 0.9, 1.0])
    fed, told = bases.feed_edm(0.5, 0.002, 80.0)(x, t)
    near(fed, x / 0.5, 1e-6)
    sigma = np.array([0.002, 1 / 3, 1, 9, 80])
    near(told, np.log(sigma) / 4, 1e-5)
    fed, told = bases.feed_index(50)(x, t)
    np.testing.assert_array_equal(told, [0, 12, 25, 44, 49])
    np.testing.assert_array_equal(fed, x)
    assert bases.feed_flow(x, t) == (x, t)


def test_few_steps_need_noise_and_agree_in_one():
    f = lambda x, t: jnp.tanh(x) * t
    z = jnp.asarray(normal(0, 4))
    one = multistep.sample(f, timesteps.trailing(1), z)
    np.testing.assert_array_equal(one, f(z, 1.0))
    np.testing.assert_array_equal(multistep.sample(f, [1, 0], z, mode="ode"), one)
    with pytest.raises(UserError, match="noise"):
        multistep.sample(f, timesteps.trailing(2), z)


# ---- one alternation of networks -----------------------------------------------------------------


def transformer_critic(width=24, depth=3, bias=True):
    """(discriminate, its weights): a DiT with two taps and a read-out; no weight is 0."""
    net = DiT(num_classes=3, width=width, depth=depth, heads=2, taps=(1, depth), time_scale=1000.0)
    read = ReadOut(bias=bias)
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    backbone = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    tokens = [jax.ShapeDtypeStruct((1, 16, width), jnp.float32)] * 2
    readout = jax.eval_shape(read.init, jax.random.key(0), tokens)["params"]
    params = params_by_rule({"backbone": backbone, "readout": readout})[0]

    def d(params, x, t, label, dtype=jnp.float32):
        features = lambda p, x, t, label: net.clone(dtype=dtype).apply({"params": p}, x, t, label)
        logits = lambda p, features: read.apply({"params": p}, features)
        return bases.discriminator(features, logits)(params, x, t, label)

    return d, params


def transformer():
    """(generate, discriminate, G's weights, D's, shape of a sample): of two narrow blocks."""
    net = DiT(channels=4, num_classes=3, width=24, depth=2, heads=2, time_scale=1000.0)
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    g = params_by_rule(jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"])[0]

    def generate(g, z, label):
        told = lambda x, t: net.apply({"params": g}, x, jnp.broadcast_to(t, len(x)), label)
        return bases.generator(denoisers.from_flow(processes.flow(), told), 1.0)(z)

    return generate, *transformer_critic(depth=2), g, (8, 8, 4)


def perceptron():
    """The same of one hidden layer each; D's last layer is "last"."""
    g = {"in": normal(0, 6, 16) / 3, "out": normal(1, 16, 6) / 4}
    d = {"in": normal(2, 6, 16) / 3, "t": normal(3, 16), "last": normal(4, 16) / 4}
    generate = lambda g, z, label: z - jnp.tanh(z @ g["in"] + label[:, None]) @ g["out"]
    hidden = lambda d, x, t, label: x @ d["in"] + t[:, None] * d["t"] + label[:, None]
    discriminate = lambda d, x, t, label: jnp.tanh(hidden(d, x, t, label)) @ d["last"]
    return generate, discriminate, d, g, (6,)


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
