"""`ode` and `ddim` against EDM's Algorithm 2, its Table 1 and k-diffusion, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import denoisers, grids, processes, samplers


@pytest.fixture
def gauss(golden, x64):
    """The Gaussian denoiser of the goldens on any process, their start and their noise port."""

    class Gauss:
        arrays = golden("samplers_gauss")
        latents = arrays["latents"]

        def __init__(self):
            self.told = []

        def denoiser(self, x, ratio):
            jax.debug.callback(lambda r: self.told.append(float(r)), ratio, ordered=True)
            mu, var = self.arrays["mu"], self.arrays["var"]
            return mu + var / (var + ratio**2) * (x - mu)

        def noise(self, k):
            return jnp.asarray(self.arrays["noise"])[k]

        def run(self, process, levels, hat=None, **settings):
            """The sampler of EDM's Table 1, given noise levels."""
            times = lambda levels: np.append(process.t_of(levels[levels > 0]), 0.0)
            grid = times(levels)
            hat = None if hat is None else times(hat)
            x = process.perturb(0 * self.latents, self.latents, process.at(grid[0]))
            denoise = denoisers.on(process, self.denoiser)
            return samplers.ode(denoise, process, grid, x, self.noise, hat=hat, **settings)

        def check(self, key, x, tol, close):
            jax.effects_barrier()
            close(x, self.arrays[key], tol)
            # a callback's thread is outside the x64 context, so these arrive as float32
            close(self.told, self.arrays[f"{key}/sigma_calls"], 2e-5)

    return Gauss()


# sampler settings of each key: levels, churn (s_churn, s_min, s_max), s_noise
ALGORITHM_2 = {
    "edm_n18_det": ((18,), None, 1.0),
    "edm_n8_det": ((8,), None, 1.0),
    "edm_n12_rho3": ((12, 0.01, 50.0, 3.0), None, 1.0),
    "edm_n10_netrange": ((10, 0.02, 20.0), None, 1.0),
    "edm_n18_churn_c10vp": ((18,), (30, 0.01, 1), 1.007),
    "edm_n32_churn_imagenet": ((32,), (40, 0.05, 50), 1.003),
}


@pytest.mark.parametrize("key", ALGORITHM_2)
def test_algorithm_2(key, gauss, close):
    levels, churned, s_noise = ALGORITHM_2[key]
    grid = grids.karras(*levels)
    hat = None if churned is None else samplers.churn(grid, *churned)
    gauss.check(key, gauss.run(processes.edm(), grid, hat, s_noise=s_noise), 1e-10, close)


def test_algorithm_2_of_a_network_that_knows_only_its_training_levels(gauss, golden, close):
    u = golden("precond")["iddpm_u"]
    low, high = golden("precond")["iddpm_sigma_range"]
    grid = grids.nearest(grids.karras(16, max(0.002, low), min(80.0, high)), u)
    hat = grids.nearest(samplers.churn(grid, 10, 0.05, 50), u)
    x = gauss.run(processes.edm(), grid, hat, s_noise=1.003)
    gauss.check("edm_n16_iddpmround_churn", x, 1e-10, close)


RANGES = {
    "vp": (0.010485992787, 152.16696973),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
    "edm": (0.002, 80.0),
}


def ablation(n, steps, schedule, scaling, net_range=(0.0, np.inf)):
    """(process, levels) of one row of EDM's Table 1."""
    low, high = max(RANGES[steps][0], net_range[0]), min(RANGES[steps][1], net_range[1])
    betas = processes.vp_betas(low, high)
    u = denoisers.iddpm_levels()
    levels = {
        "vp": lambda: grids.vp(n, *betas),
        "ve": lambda: grids.exponential(n, low, high),
        "iddpm": lambda: grids.of_levels(n, u, low, high),
        "edm": lambda: grids.karras(n, low, high),
    }[steps]()
    process = {"vp": processes.vp(*betas), "ve": processes.ve(), "linear": processes.edm()}
    assert scaling == ("vp" if schedule == "vp" else "none")
    return process[schedule], levels


TABLE_1 = [
    f"abl_{steps}_{path}_{solver}"
    for steps in RANGES
    for path in ("vp_vp", "ve_none", "linear_none")
    for solver in ("euler", "heun")
]


@pytest.mark.parametrize("key", TABLE_1)
def test_table_1(key, gauss, close):
    _, steps, schedule, scaling, solver = key.split("_")
    process, levels = ablation(10, steps, schedule, scaling)
    x = gauss.run(process, levels, order=1 if solver == "euler" else 2)
    # iddpm: the original evaluates abar in float32; vp: exp() - 1 cancels in the original
    tol = 1e-5 if "iddpm" in key or "vp" in key else 1e-10
    gauss.check(key, x, tol, close)


@pytest.mark.parametrize(("name", "alpha"), [("0.500", 1 / 2), ("0.667", 2 / 3), ("0.750", 0.75)])
def test_second_order_family(name, alpha, gauss, close):
    x = gauss.run(*ablation(10, "edm", "linear", "none"), alpha=alpha)
    gauss.check(f"abl_edm_linear_none_heun_alpha{name}", x, 1e-10, close)


@pytest.mark.parametrize("key", ["abl_vp_vp_vp_heun_churn", "abl_ve_ve_none_heun_churn"])
def test_churn_on_other_processes(key, gauss, close):
    process, levels = ablation(12, *key.split("_")[1:4])
    hat = samplers.churn(levels, 10, 0.05, 50)
    gauss.check(key, gauss.run(process, levels, hat, s_noise=1.003), 1e-5, close)


def test_vp_with_a_limited_range(gauss, close):
    x = gauss.run(*ablation(10, "vp", "vp", "vp", net_range=(0.002, 80.0)), order=1)
    gauss.check("abl_vp_vp_vp_euler_defaultrange", x, 1e-5, close)


@pytest.mark.parametrize("path", ["vp_vp", "linear_none"])
def test_table_1_with_rounding(path, gauss, golden, close):
    u, net_range = golden("precond")["iddpm_u"], golden("precond")["iddpm_sigma_range"]
    process, levels = ablation(10, "iddpm", *path.split("_"), net_range)
    x = gauss.run(process, grids.nearest(levels, u))
    gauss.check(f"abl_iddpm_{path}_heun_round", x, 1e-5, close)


def test_scaled_is_the_same_as_vp(gauss, close):
    """vp is the scaled form of alpha = 1, sigma = sqrt(e^B - 1), and of nothing else."""
    vp = processes.vp()
    plain = processes.Process(
        alpha=lambda t: 0 * t + 1,
        sigma=lambda t: vp.sigma(t) / vp.alpha(t),
        t_of=vp.t_of,
    )
    levels = grids.vp(4)
    close(gauss.run(processes.scaled(plain, vp.alpha), levels), gauss.run(vp, levels), 1e-10)
    assert np.abs(gauss.run(plain, levels) - gauss.run(vp, levels)).max() > 1e-3


def nonlinear(arrays):
    mu = arrays["mu"]
    return lambda x, sigma: mu + 0.5 * jnp.tanh((x - mu) / (1 + sigma))


def gaussian(arrays):
    mu, var = arrays["mu"], arrays["var"]
    return lambda x, sigma: mu + var / (var + sigma**2) * (x - mu)


@pytest.mark.parametrize("net", ["gauss", "nonlin"])
@pytest.mark.parametrize("name", ["euler", "heun", "euler_ancestral"])
def test_k_diffusion(name, net, golden, close, x64):
    arrays = golden("samplers_kdiff")
    given = golden("samplers_gauss")
    denoise = (gaussian if net == "gauss" else nonlinear)(given)
    noise = lambda k: jnp.asarray(given["noise"])[k]
    grid = grids.karras(10, 0.02, 20.0)
    close(grid, arrays["sigmas/karras_n10"], 1e-12)
    run = {
        "euler": lambda *a: samplers.ode(*a, order=1),
        "heun": samplers.ode,
        "euler_ancestral": lambda *a: samplers.ddim(*a, delta=samplers.posterior(1.0)),
    }[name]
    x = run(denoise, processes.edm(), grid, given["latents"] * grid[0], noise)
    close(x, arrays[f"{name}_{net}"], 1e-10)
