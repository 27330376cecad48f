"""What APT's pieces must do whatever the numbers: limits, invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import load, near
from apt_networks import normal, transformer_critic

from diffjax.core import denoisers, processes, samplers
from diffjax.errors import UserError
from diffjax.systems.apt import (
    alternation,
    bases,
    consistency,
    losses,
    multistep,
    timesteps,
)

LN2 = np.log(2)


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
