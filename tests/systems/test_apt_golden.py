"""APT's pieces below the system against golden arrays: closed forms computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import load, near

from diffjax.core import denoisers, ema, guidance, processes
from diffjax.systems.apt import (
    alternation,
    bases,
    consistency,
    losses,
    multistep,
    optimizer,
    timesteps,
)

F32 = np.float32


# ---- times ---------------------------------------------------------------------------------------


def test_timesteps():
    g = load("timesteps")
    t = g["t"]
    for i, s in enumerate(g["s"]):
        near(timesteps.shift(t, s), g["shifted"][i], 1e-12)
        near(timesteps.shift(jnp.asarray(t, F32), float(s)), g["shifted"][i], 1e-6)
        near(timesteps.shift(t, 1 / s), g["inverse_of_t"][i], 1e-12)
        near(timesteps.mean(s), g["mean"][i], 1e-12)
        shifted = timesteps.shift(t[1:-1], s)
        near(2 * np.log((1 - shifted) / shifted), g["log_snr_of_shifted"][i], 1e-10)
        near(timesteps.consistency(32, s), g["cd_grid_32"][i], 1e-12)
        for steps in (1, 2, 4, 25):
            grid = timesteps.trailing(steps, s)
            near(grid[:-1], g[f"trailing_{steps}"][i], 1e-12)
            assert grid[-1] == 0
    made = [timesteps.for_resolution(*case) for case in g["res_shift_in"]]
    near(made, g["res_shift_out"], 1e-12)
    near(timesteps.of_ratio(g["edm_sigma"]), g["edm_t"], 1e-12)


# ---- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["non_saturating", "relativistic"])
def test_losses(name):
    g, family = load("losses"), losses.family(name)
    real, fake = jnp.asarray(g["real"]), jnp.asarray(g["fake"])
    p = "rp_" if family.paired else ""
    d, of_g = family.d(real, fake), family.g(real, fake)
    near(d, g["rp_d"] if p else g["d_real"] + g["d_fake"], 1e-6)
    near(jnp.mean(d), g[f"{p}loss_d"], 1e-6)
    near(jnp.mean(of_g), g[f"{p}loss_g"], 1e-6)
    of_d = jax.grad(lambda *a: jnp.mean(family.d(*a)), (0, 1))(real, fake)
    near(of_d[0], g[f"{p}dlossd_dreal"], 1e-6)
    near(of_d[1], g[f"{p}dlossd_dfake"], 1e-6)
    of_g = jax.grad(lambda *a: jnp.mean(family.g(*a)), (0, 1))(real, fake)
    near(of_g[1], g[f"{p}dlossg_dfake"], 1e-6)
    # The relativistic gradient to real logits exists (rp_dlossg_dreal) and must not be used.
    assert not np.any(of_g[0])


def quadratic(params, x):
    return 0.5 * jnp.einsum("bi,ij,bj->b", x, params["A"], x) + x @ params["b"] + params["c"]


# In float32 a difference of the critic's values cancels: at sigma 0.01 four digits are left of it.
FINITE = {"img": 1e-4, "vid": 1e-5}


def in_double(function):
    """Runs a test's body with 64 bits."""
    with jax.enable_x64(True):
        return function()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "sigma"), [("img", 0.01), ("vid", 0.1)])
def test_finite_differences(name, sigma, dtype):
    g = load("ar1_quadratic")
    exact = dtype == "float64"

    def body():
        params = {k: jnp.asarray(g[k], dtype) for k in "Abc"}
        x, eps = (jnp.asarray(g[k], dtype) for k in ("x_real", "eps"))
        tol = 1e-10 if exact else FINITE[name]
        of = jax.jit(
            lambda p, eps: losses.penalised(lambda x: quadratic(p, x), x, eps, sigma, "fd")
        )
        for k in range(3):
            logits, penalty = of(params, eps[k])
            near(logits, g["d_real"], 1e-10 if exact else 1e-6)
            near(penalty, g[f"{name}_ar1"][k], tol)
            near(jnp.sqrt(penalty), np.abs(g[f"{name}_delta"][k]), tol)
        total = lambda p: 100 * jnp.mean(of(p, eps[0])[1])
        loss, gradient = jax.value_and_grad(total)(params)
        near(loss, g[f"{name}_loss_k0"], tol)
        near(gradient["A"], g[f"{name}_gA"], tol)
        near(gradient["b"], g[f"{name}_gb"], tol)
        assert gradient["c"] == 0 == g[f"{name}_gc"]
        near(losses.gamma(100, sigma), g[f"{name}_gamma_equiv"], 1e-12)

    in_double(body) if exact else body()


def test_exact_penalties():
    g = load("ar1_quadratic")
    params = {k: jnp.asarray(g[k]) for k in "Abc"}
    critic = lambda x: quadratic(params, x)
    real, fake = jnp.asarray(g["x_real"]), jnp.asarray(g["x_fake"])
    logits, r1 = losses.penalised(critic, real, None, 1.0, "exact")
    near(logits, g["d_real"], 1e-6)
    near(r1, g["exact_r1"], 1e-5)
    logits, r2 = losses.penalised(critic, fake, None, 1.0, "exact")
    near(logits, g["d_fake"], 1e-6)
    near(r2, g["exact_r2"], 1e-5)
    for k, eps in enumerate(g["eps"]):
        logits, slope = losses.penalised(critic, real, eps, 1.0, "jvp")
        near(logits, g["d_real"], 1e-6)
        near(slope, g["jvp_sq"][k], 1e-5)
        near(losses.penalised(critic, real, eps, 0.1, "jvp")[1], 0.01 * g["jvp_sq"][k], 1e-5)


def test_the_discriminator_s_whole_loss():
    g = load("ar1_quadratic")
    params = {k: jnp.asarray(g[k]) for k in "Abc"}
    t = jnp.zeros(5)
    given = alternation.ForD(
        jnp.asarray(g["x_real"]), None, None, None, t, t, jnp.asarray(g["eps"][0])
    )
    discriminate = lambda d, x, t, cond: quadratic(d, x)

    def loss(**fields):
        settings = alternation.Settings(**fields)
        return alternation.d_loss(discriminate, settings, params, jnp.asarray(g["x_fake"]), given)[
            0
        ]

    near(loss(weight=0.0), g["loss_d_ns"], 1e-6)
    near(loss(sigma=0.01, mode="fd"), g["loss_d_total_img"], 1e-5)
    near(loss(sigma=0.1, mode="fd"), g["loss_d_total_vid"], 1e-5)
    # gamma = 2 is lambda sigma^2 = 1.
    near(loss(sigma=0.1, mode="exact"), g["exact_total_gamma2"], 1e-5)
    assert loss(sigma=0.1, mode="jvp") > loss(weight=0.0)


@pytest.mark.parametrize(("name", "sigma"), [("img", 0.01), ("vid", 0.1)])
def test_the_expectation_over_noise(name, sigma):
    # For a quadratic the expansion of the expectation is exact.
    g = load("ar1_quadratic")
    a, gradient = g["A"].astype(float), g["grad_real"]
    curvature = 2 * np.sum(a**2) + np.trace(a) ** 2
    want = sigma**2 * np.sum(gradient**2, 1) + sigma**4 / 4 * curvature
    near(want, g[f"{name}_expected_ar1"], 1e-10)


# ---- distillation --------------------------------------------------------------------------------


def gaussian(mu, s):
    """The velocity of the straight path from noise to N(mu, s^2)."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * s**2 + t**2
        return (t - (1 - t) * s**2) / variance * (x - (1 - t) * mu) - mu

    return velocity


def toy(g):
    w, b = jnp.asarray(g["student_W"]), jnp.asarray(g["student_b"])
    return lambda x, t: 0.3 * x @ w.T + b * (1 - t) + 0.1 * t * x


@pytest.mark.parametrize("shift", [1, 12, 24])
@pytest.mark.parametrize("weight", [1.0, 7.5])
def test_distillation(shift, weight):
    g = load("consistency_gaussian")
    of = lambda name: g[f"s{shift}_{name}"]
    case = lambda name: of(f"w{'1' if weight == 1 else '7p5'}_{name}")
    teachers = [gaussian(g[f"mu_{k}"].astype(F32), g[f"s_{k}"].astype(F32)) for k in "cu"]
    teacher, student = guidance.cfg(*teachers, weight), toy(g)
    grid, n = timesteps.consistency(32, shift), jnp.asarray(g["n"])
    x, t, t_next = consistency.noised(jnp.asarray(g["x0"]), jnp.asarray(g["eps"]), grid, n)
    near(x, of("x_t"), 1e-6)
    near(t[:, 0], of("t"), 1e-6)
    near(t_next[:, 0], of("t_next"), 1e-6)
    near(teacher(x, t), case("v"), 1e-5)
    for solver in ("euler", "heun"):
        made = consistency.target(student, teacher, x, t, t_next, solver)
        near(made.x, case(f"x_{solver}"), 1e-5)
        near(made.x0, case(f"target_{solver}"), 1e-5)
        np.testing.assert_array_equal(made.x0[0], made.x[0])  # n = 1: the boundary, to the bit
    near(x - t * student(x, t), case("pred"), 1e-5)
    made = consistency.target(student, teacher, x, t, t_next)
    near(made.v, case("v_target"), 1e-5)
    near(consistency.error(student(x, t), made, t, "x"), case("loss_per"), 1e-5)
    args = student, teacher, jnp.asarray(g["x0"]), jnp.asarray(g["eps"]), n, grid
    near(jnp.mean(consistency.loss(*args)), case("loss_v"), 1e-5)
    near(jnp.mean(consistency.loss(*args, space="x")), case("loss_x"), 1e-5)


# ---- bases ---------------------------------------------------------------------------------------


def test_generators_of_every_base():
    g = load("bases")
    z, out = jnp.asarray(g["z"]), jnp.asarray(g["net_out"])
    seen = []

    def net(x, *told):
        seen.append(x)
        return out

    flow = denoisers.from_flow(processes.flow(), net)
    near(bases.generator(flow, 1.0)(z), g["flow_t1"], 1e-5)
    near(bases.generator(flow, 0.7)(z), g["flow_t07"], 1e-5)
    for i, (name, betas) in enumerate(
        [("linear", processes.linear_betas), ("cosine", processes.cosine_betas)]
    ):
        process = processes.discrete(betas(1000))
        level = process.at(1000)
        near([level.alpha, level.sigma], g[f"vp_{name}_alpha_sigma"], 1e-10)
        near(bases.amplification(process, 1000), g["amplification_eps"][i], 1e-8)
        # In float64, as the schedule's end is; float32 times give it to 1e-4.
        near(
            denoisers.convert(out, z, level, "eps", "x0"),
            g[f"eps_{name}"],
            1e-4 if name == "cosine" else 1e-5,
        )
        v = bases.generator(denoisers.from_v(process, net, lambda t: t - 1), 1000)
        near(v(z), g[f"vvp_{name}"], 1e-5)
    x0 = denoisers.from_x0(processes.discrete(processes.cosine_betas(50)), net)
    near(bases.generator(x0, 50)(z), g["x0_direct"], 1e-5)
    edm = denoisers.preconditioned(net, denoisers.edm_coefficients(0.5))
    for name, sigma, scale in (("80", 80, 80), ("5", 5, 5), ("5_unit", 5, 1)):
        made = bases.generator(edm, sigma, scale)(z)
        near(made, g["edm_5_unit_start" if name == "5_unit" else f"edm_{name}"], 1e-5)
        near(seen[-1], g[f"edm_{name}_netin"], 1e-5)


def test_few_steps():
    g = load("multistep")
    student, noise = toy(g), jnp.asarray(g["noise"])
    f = lambda x, t: x - t * student(x, t)
    x, seen = multistep.sample(
        f, np.append(g["t"], 0), noise[0], lambda k: noise[k + 1], trace=True
    )
    near(seen.x0, g["x_after_each"], 1e-5)
    near(x, g["x_after_each"][-1], 1e-5)
    near(multistep.sample(f, [1, 0], noise[0]), g["x_after_each"][0], 1e-5)
    c = load("consistency_gaussian")
    # Many steps of the ODE find the exact map from noise to data of a Gaussian.
    teacher = gaussian(c["mu_c"].astype(F32), c["s_c"].astype(F32))
    f = lambda x, t: x - t * teacher(x, t)
    ends = [
        multistep.sample(f, timesteps.trailing(n), noise[0], mode="ode") - g["x_fstar_onestep"]
        for n in (64, 128)
    ]
    worst = [np.abs(e).max() for e in ends]
    assert worst[1] < 2e-2 and 1.8 < worst[0] / worst[1] < 2.2


# ---- optimiser and alternation -------------------------------------------------------------------


def test_rmsprop():
    g = load("rmsprop")
    tx, lr = optimizer.rmsprop(), float(g["lr"])
    params, average = jnp.zeros(5), jnp.ones(5)
    state = tx.init(params)
    for k, gradient in enumerate(jnp.asarray(g["grads"])):
        direction, state = tx.update(gradient, state)
        for i in range(5):  # each scale against its own largest
            near(-lr * direction[i], g["updates_rmsprop_eps_outside"][k, i], 1e-5)
        params = params - lr * direction
        average = ema.update(average, params, 1 - 0.995)
        near(average, g["ema_0995_from_ones"][k], 1e-5)
        assert direction[4] == 0
        of_adam = g["updates_adam_b1_0_b2_09"][k, 0] / g["updates_rmsprop_eps_outside"][k, 0]
        near(of_adam, np.sqrt(1 - 0.9 ** (k + 1)), 1e-6)
        near(g["ratio_adam_over_rmsprop"][k], np.sqrt(1 - 0.9 ** (k + 1)), 1e-10)
    first = tx.update(jnp.asarray([3.0]), tx.init(jnp.zeros(1)))[0]
    near(first, [10**0.5], 1e-6)


GOLDEN_RUNS = {
    "ns_vid": {"sigma": 0.1},
    "rp_r1r2": {"sigma": 0.1, "weight": 1000.0, "family": "relativistic", "r2": True},
}


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_two_alternations(name, parts):
    g = load("alternation")
    generate = lambda p, z, cond: z @ p["W"].T + p["m"]
    settings = alternation.Settings(mode="fd", parts=parts, **GOLDEN_RUNS[name])
    params = {"W": jnp.asarray(g["W0"]), "m": jnp.asarray(g["m0"])}
    critic = {"A": jnp.asarray(g["A0"]), "b": jnp.asarray(g["b0"]), "c": jnp.zeros(())}
    state = alternation.create(params, critic, settings)
    step = jax.jit(
        alternation.alternation(generate, lambda d, x, t, cond: quadratic(d, x), settings)
    )
    t, paired = jnp.zeros(4), settings.family == "relativistic"
    for k in range(2):
        x, z = g["x_real"][k], g["z"]
        for_d = alternation.ForD(x, None, z[2 * k], None, t, t, g["eps_real"][k], g["eps_fake"][k])
        for_g = alternation.ForG(z[2 * k + 1], None, t, x if paired else None)
        state, metrics = step(state, for_d, for_g, float(g["lr"]))
        near([metrics["loss_d"], metrics["r1"], metrics["loss_g"]], g[f"{name}_log"][k], 1e-5)
    got = {**state.params["g"], **state.params["d"]}
    got |= {f"ema_{k}": v for k, v in state.ema.items()}
    assert int(state.step) == 2 and int(state.bad_step) == -1
    for key in ("A", "b", "c", "W", "m", "ema_W", "ema_m"):
        if f"{name}_{key}" in g:
            near(np.reshape(got[key], g[f"{name}_{key}"].shape), g[f"{name}_{key}"], 1e-5)
    assert "rp_r1r2_c" not in g
