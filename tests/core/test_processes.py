"""Each process against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import processes
from diffjax.errors import UserError

BETAS = processes.linear_betas(1000)

# process, times, closed form of dx/dt at fixed x0 and n
CLOSED = {
    "edm": (processes.edm(), [0.002, 1.0, 80.0], lambda t, x0, n: n),
    "ve": (processes.ve(), [0.01, 1.0, 900.0], lambda t, x0, n: n / (2 * np.sqrt(t))),
    "flow": (processes.flow(), [0.1, 0.5, 1.0], lambda t, x0, n: n - x0),
    "shifted flow": (
        processes.flow(3.0),
        [0.1, 0.5, 1.0],
        lambda t, x0, n: (n - x0) * 3 / (1 + 2 * t) ** 2,
    ),
    "vp": (
        processes.vp(),
        [1e-3, 0.3, 1.0],
        # dx/dt = -beta/2 (x - n/sigma), beta = dB/dt
        lambda t, x0, n: vp_velocity(t, 19.9 * t + 0.1, 19.9 * t**2 / 2 + 0.1 * t, x0, n),
    ),
    "discrete": (
        processes.discrete(BETAS),
        [1.0, 400.0, 1000.0],
        lambda t, x0, n: vp_velocity(
            t,
            -np.log1p(-BETAS[int(t) - 1]),
            -np.log1p(-BETAS[: int(t)]).sum(),
            x0,
            n,
        ),
    ),
}


def vp_velocity(t, beta, integral, x0, n):
    alpha, sigma = np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))
    return -beta / 2 * alpha * x0 + beta / 2 * alpha**2 / sigma * n


@pytest.mark.parametrize("name", CLOSED)
def test_velocity(name, x64):
    process, times, want = CLOSED[name]
    x0, n = np.random.default_rng(0).standard_normal((2, 5))

    @jax.jit
    def found(level):
        x = process.perturb(x0, n, level)
        return process.noise(x, x0, level), process.velocity(x, x0, level)

    for t in times:
        noise, velocity = found(process.at(t))
        np.testing.assert_allclose(noise, n, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(velocity, want(t, x0, n), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", CLOSED)
def test_host_and_traced_schedules_agree(name):
    process, times, _ = CLOSED[name]
    times = np.array([*times, 0.0])
    host, traced = process.at(times), jax.jit(process.at)(jnp.asarray(times, jnp.float32))
    assert host.alpha.dtype == host.sigma.dtype == np.float64
    assert traced.alpha.dtype == traced.sigma.dtype == jnp.float32
    for a, b in zip(host, traced, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert host.alpha[-1] == 1 and host.sigma[-1] == 0


@pytest.mark.parametrize("name", CLOSED)
def test_t_of_inverts_the_ratio(name):
    process, times, _ = CLOSED[name]
    level = process.at(np.array(times)[:-1])  # flow has no ratio at t = 1
    np.testing.assert_allclose(process.t_of(level.sigma / level.alpha), level.t, rtol=1e-9)


@pytest.mark.parametrize("name", CLOSED)
def test_one_time_a_sample(name):
    """A [B, 1] time is B scalar times."""
    process, times, _ = CLOSED[name]
    x, x0 = np.random.default_rng(0).standard_normal((2, len(times), 4)).astype(np.float32)
    t = np.array(times, np.float32)
    velocity = lambda x, x0, t: process.velocity(x, x0, process.at(t))
    together = jax.jit(velocity)(x, x0, t[:, None])
    each = jax.jit(jax.vmap(velocity))(x, x0, t)
    np.testing.assert_allclose(together, each, rtol=1e-6)


def test_vp_against_edm(golden, close):
    arrays = golden("precond")
    level = processes.vp().at(arrays["vp_t"])
    close(level.sigma / level.alpha, arrays["vp_sigma_of_t"], 1e-10)
    close(processes.vp().t_of(arrays["vp_sigma_of_t"]), arrays["vp_t_of_sigma"], 1e-10)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)


def test_vp_betas_reach_the_wanted_range():
    np.testing.assert_allclose(processes.vp_betas(0.010485992787, 152.16696973), (19.9, 0.1), 1e-7)
    vp = processes.vp(*processes.vp_betas(0.02, 100.0))
    level = vp.at(np.array([1e-3, 1.0]))
    np.testing.assert_allclose(level.sigma / level.alpha, [0.02, 100.0])


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [50, 1000])
def test_ddpm_tables(name, steps, golden, close):
    arrays = {
        k.split("/")[1]: v
        for k, v in golden("ddpm_tables").items()
        if k.startswith(f"{name}{steps}/")
    }
    index = np.arange(50) if steps == 50 else golden("ddpm_tables")["idx1000"]
    betas = {"linear": processes.linear_betas, "cosine": processes.cosine_betas}[name](steps)
    level = processes.discrete(betas).at(index + 1)
    before = processes.discrete(betas).at(index)
    close(betas[index], arrays["betas"], 1e-11)
    close(level.alpha, arrays["sqrt_alphas_cumprod"], 1e-11)
    close(level.sigma, arrays["sqrt_one_minus_alphas_cumprod"], 1e-11)
    close(before.alpha**2, arrays["alphas_cumprod_prev"], 1e-11)
    close(1 / level.alpha, arrays["sqrt_recip_alphas_cumprod"], 1e-11)
    close(level.sigma / level.alpha, arrays["sqrt_recipm1_alphas_cumprod"], 1e-11)
    variance = betas[index] * (before.sigma / level.sigma) ** 2
    close(variance, arrays["posterior_variance"], 1e-11)


@pytest.mark.parametrize(
    "call",
    [
        lambda: processes.discrete([0.1, 1.5]),
        lambda: processes.discrete([]),
        lambda: processes.flow(0.0),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(UserError):
        call()


@pytest.mark.parametrize("t", [1, 500, 999])
def test_whole_jax_times_are_times(t):
    process = processes.discrete(processes.linear_betas(1000))
    host, device = process.at(t), process.at(jnp.int32(t))
    np.testing.assert_allclose(device.alpha, host.alpha, rtol=2e-5)
    np.testing.assert_allclose(device.sigma, host.sigma, rtol=2e-3)
