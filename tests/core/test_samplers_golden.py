"""Samplers against EDM's code, k-diffusion, UniPC, consistency models and guided-diffusion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import denoisers, grids, guidance, processes, samplers


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
    pytest.param(
        f"abl_{steps}_{path}_{solver}",
        marks=[pytest.mark.slow] if solver == "euler" and steps in ("ve", "iddpm") else [],
    )
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


def kdiff():
    """What k-diffusion or UniPC calls it -> our sampler."""
    table = {
        "euler": functools.partial(samplers.ode, order=1),
        "heun": samplers.ode,
        "euler_ancestral": functools.partial(samplers.ddim, delta=samplers.posterior(1.0)),
        "dpmpp_2m": samplers.dpmpp,
    }
    for variant in ("midpoint", "heun"):
        for eta in (0, 1):
            table[f"dpmpp_2m_sde_{variant}_eta{eta}"] = functools.partial(
                samplers.dpmpp, eta=eta, variant=variant
            )
    for variant in ("bh1", "bh2"):
        for order in (1, 2, 3):
            table[f"unipc_{variant}_o{order}"] = functools.partial(
                samplers.unipc, order=order, variant=variant
            )
    return table


KDIFF = kdiff()
NETS = {"gauss": gaussian, "nonlin": nonlinear}


@pytest.mark.parametrize("name", KDIFF)
def test_k_diffusion_and_unipc(name, golden, close, x64):
    arrays, given = golden("samplers_kdiff"), golden("samplers_gauss")
    noise = lambda k: jnp.asarray(given["noise"])[k]
    grid = arrays["sigmas/karras_n10"]
    start = given["latents"] * grid[0]
    # UniPC's own code ends above 0: nine steps
    grid = grid[:-1] if name.startswith("unipc") else grid
    for net, make in NETS.items():
        x = KDIFF[name](make(given), processes.edm(), grid, start, noise)
        close(x, arrays[f"{name}_{net}"], 1e-10)


def test_k_diffusion_with_other_steps(golden, close, x64):
    arrays, given = golden("samplers_kdiff"), golden("samplers_gauss")
    noise = lambda k: jnp.asarray(given["noise"])[k]
    denoise, edm = gaussian(given), processes.edm()
    grid = grids.exponential(10, 0.02, 20.0, rho=2.0)
    close(grid, arrays["sigmas/polyexp_n10_rho2"], 1e-12)
    x = samplers.dpmpp(denoise, edm, grid, given["latents"] * grid[0])
    close(x, arrays["dpmpp_2m_gauss_polyexp"], 1e-10)

    grid = grids.karras(10, 0.02, 20.0)
    hat = samplers.churn(grid, 5, 0.05, 10)
    start = given["latents"] * grid[0]
    x = samplers.ode(denoise, edm, grid, start, noise, hat=hat, s_noise=1.003)
    close(x, arrays["heun_churn_gauss"], 1e-10)


def test_how_much_noise_an_ancestral_step_keeps_and_adds(golden, close):
    arrays = golden("samplers_kdiff")
    sigma, end, eta = arrays["ancestral_in"].T
    edm = processes.edm()
    up = [
        samplers.posterior(e)(edm.at(s), edm.at(n)) for s, n, e in zip(sigma, end, eta, strict=True)
    ]
    got = np.stack([np.sqrt(end**2 - np.square(up)), up], axis=1)
    close(got, arrays["ancestral_down_up"], 1e-10)


CONSISTENCY = {
    "onestep": (40, (0,)),
    "multistep_0_22_39": (40, (0, 22, 39)),
    "multistep_0_17_34_39_s40": (40, (0, 17, 34, 39)),
    "multistep_0_67_150_s151": (151, (0, 67, 150)),
}


@pytest.mark.parametrize("name", CONSISTENCY)
def test_consistency(name, golden, close):
    """A consistency model is EDM's preconditioning moved; it is sampled by fresh noise."""
    arrays = golden("consistency")

    def net(x, c, cond):
        return 0.6 * jnp.tanh(1.3 * x) + 0.2 * jnp.sin(0.01 * c) * x[..., ::-1]

    d = denoisers.preconditioned(net, denoisers.consistency_coefficients())
    denoise = guidance.clip(denoisers.on(processes.edm(), d))
    noise = lambda k: jnp.asarray(arrays["noise"])[k]
    n, kept = CONSISTENCY[name]
    levels = grids.karras(n)
    grid = levels[list(kept)] if len(kept) > 1 else levels[[0, -1]]
    x, trace = samplers.ddim(
        denoise,
        processes.edm(),
        grid,
        80 * arrays["xT"],
        noise,
        delta=samplers.fresh(1.0),
        std=samplers.fresh(1.0, floor=0.002),
        trace=True,
    )
    np.testing.assert_array_equal(x, trace.x0[-1])
    close(x, arrays[name], 2e-5)


def test_consistency_coefficients(golden, close):
    arrays = golden("consistency")
    c = jax.jit(denoisers.consistency_coefficients())(arrays["bc_sigma"])
    close(np.stack([c.skip, c.out, c.input]), arrays["bc_coeffs"], 2e-6)
    close(c.noise, arrays["rescaled_t"], 2e-6)


def test_encoding(golden, close):
    """DDIM upwards, from index 3 to 4 and from 700 to 701."""
    arrays = golden("ddpm_steps")
    process = processes.discrete(processes.linear_betas(1000))

    def net(x, t):
        return 0.8 * jnp.tanh(x) * (0.3 + t / 1000) + 0.1 * x[..., ::-1]

    denoise = guidance.clip(denoisers.from_eps(process, net, told=lambda t: t - 1))
    got = [
        samplers.ddim(denoise, process, [t + 1, t + 2], x, delta=samplers.posterior(0.0))
        for t, x in zip(arrays["t"].astype(float), arrays["xT"], strict=True)
    ]
    close(got, arrays["ddim_reverse"], 2e-5)


def test_pieces_of_ddpm(golden, close):
    """q(x_t | x_0), the posterior's mean and variance, and x0 <-> eps, at indices 3 and 700."""
    arrays = golden("ddpm_steps")
    process = processes.discrete(processes.linear_betas(1000))
    x0, x, eps = arrays["x0"], arrays["xT"], arrays["noise"][0]
    t = arrays["t"].reshape(-1, 1, 1, 1) + 1.0
    now, end = process.at(t), process.at(t - 1)
    close(process.perturb(x0, eps, now), arrays["q_sample"], 2e-5)
    close(denoisers.convert(eps, x, now, "eps", "x0"), arrays["x0_from_eps"], 2e-5)
    close(denoisers.convert(x0, x, now, "x0", "eps"), arrays["eps_from_x0"], 2e-5)
    std = samplers.posterior(1.0)(now, end)
    close(std.ravel() ** 2, arrays["post_var"], 2e-5)
    kept = end._replace(sigma=np.sqrt(end.sigma**2 - std**2))
    close(process.perturb(x0, process.noise(x, x0, now), kept), arrays["post_mean"], 2e-5)
