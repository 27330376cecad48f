"""Samplers against closed forms: order of convergence, exact last step, cost, noise."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import core
from diffjax.core import denoisers, grids, guidance, processes, samplers
from diffjax.errors import UserError

MU, VAR = 0.3, 0.25
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def dct_process():
    """Relay diffusion in one dimension: patches of 4 lose their high frequencies as t grows."""
    k = np.arange(4)
    basis = np.sqrt(0.5) * np.cos(np.pi * (2 * k + 1) * k[:, None] / 8)
    basis[0] = 0.5
    to = lambda x: (x.reshape(*x.shape[:-1], -1, 4) @ basis.T.astype(x.dtype)).reshape(x.shape)
    back = lambda x: (x.reshape(*x.shape[:-1], -1, 4) @ basis.astype(x.dtype)).reshape(x.shape)
    tile = lambda a, x: jnp.tile(a, x.shape[-1] // 4)

    def alpha(t):
        xp = jnp if isinstance(t, jax.Array) else np
        return xp.exp(-((np.pi * k / 4) ** 2) * xp.asarray(t)[..., None] ** 2)

    apply = lambda a, x: back(tile(a, x) * to(x))
    process = processes.Process(alpha=alpha, sigma=lambda t: t, apply=apply)
    return process, to, back, tile


def gaussian(process, grid):
    """(denoise, start, end) for data N(MU, VAR): the exact denoiser and two points of its ODE.

    Every coefficient is Gaussian at every level, of mean A MU and variance A^2 VAR + sigma^2, and
    the flow keeps its standardised value.
    """
    start = np.random.default_rng(0).standard_normal((3, 8))
    spread = lambda level: np.sqrt(level.alpha**2 * VAR + level.sigma**2)
    first, last = process.at(grid[0]), process.at(grid[-1])
    if np.ndim(first.alpha) == 0:

        def denoise(x, t):
            level = process.at(t)
            gain = level.alpha * VAR / (level.alpha**2 * VAR + level.sigma**2)
            return MU + gain * (x - level.alpha * MU)

        z = (start - first.alpha * MU) / spread(first)
        return denoise, start, last.alpha * MU + spread(last) * z

    _, to, back, tile = dct_process()
    scaled = lambda a, x: back(tile(a, x) * to(x))  # mean 0, as a constant is not one frequency

    def denoise(x, t):
        level = process.at(t)
        return scaled(level.alpha * VAR / (level.alpha**2 * VAR + level.sigma**2), x)

    return denoise, start, scaled(spread(last) / spread(first), jnp.asarray(start))


TIMES = {
    "edm": (processes.edm(), 3.0, 0.3),
    "vp": (processes.vp(), 0.7, 0.1),
    "flow": (processes.flow(), 1.0, 0.3),  # alpha = 0 at the start
    "blur": (dct_process()[0], 1.5, 0.3),
}
heun = samplers.ode
euler = functools.partial(samplers.ode, order=1)
ddim = functools.partial(samplers.ddim, delta=samplers.posterior(0.0))
still = functools.partial(samplers.ddim, delta=samplers.fresh(0.0))
midpoint = functools.partial(samplers.ode, alpha=1 / 2)
ralston = functools.partial(samplers.ode, alpha=2 / 3)
dpm, dpm_heun = samplers.dpmpp, functools.partial(samplers.dpmpp, variant="heun")
dpm_first = functools.partial(samplers.dpmpp, order=1)


def unipc(order, variant="bh2", lower_order_final=False):
    return functools.partial(
        samplers.unipc, order=order, variant=variant, lower_order_final=lower_order_final
    )


@pytest.mark.parametrize(
    ("name", "sampler", "order"),
    [
        ("edm", euler, 1),
        ("edm", heun, 2),
        ("vp", heun, 2),
        ("vp", euler, 1),
        ("vp", midpoint, 2),  # on edm and flow a Gaussian makes it third order
        ("edm", ralston, 2),
        ("flow", euler, 1),
        ("flow", heun, 2),
        ("vp", ddim, 1),
        ("vp", functools.partial(ddim, correct=samplers.mean_estimate), 2),
        ("vp", functools.partial(ddim, correct=samplers.mean_slope), 1),
        ("blur", heun, 2),
        ("blur", still, 1),
        ("blur", functools.partial(still, correct=samplers.mean_estimate), 2),
        slow("blur", functools.partial(still, correct=samplers.mean_slope), 1),
        ("flow", dpm, 2),  # also from alpha = 0, where lambda is -inf
        ("flow", unipc(3), 2),
    ],
)
def test_order_of_convergence(name, sampler, order, x64):
    process, high, low = TIMES[name]
    assert order_of(sampler, process, lambda n: np.linspace(high, low, n + 1)) == pytest.approx(
        order, abs=0.1
    )


def order_of(sampler, process, grid_of):
    errors = []
    for n in (64, 128):
        grid = grid_of(n)
        denoise, start, end = gaussian(process, grid)
        errors.append(np.abs(sampler(denoise, process, grid, start) - end).max())
    return np.log2(errors[0] / errors[1])


# Evenly spaced in lambda, in which multistep methods live: process, highest and lowest ratio.
RATIOS = {
    "edm": (processes.edm(), 20.0, 0.02),
    "vp": (processes.vp(), 16.6, 0.47),
    "flow": (processes.flow(), 9.0, 0.43),
    "discrete": (processes.discrete(processes.cosine_betas(1000)), 7.0, 0.16),
}


@pytest.mark.parametrize(
    ("name", "sampler", "order"),
    [
        ("vp", dpm_first, 1),
        ("edm", dpm, 2),
        ("vp", dpm, 2),
        ("edm", dpm_heun, 2),
        slow("flow", dpm, 2),
        slow("flow", dpm_heun, 2),
        slow("discrete", dpm_heun, 2),
        slow("edm", unipc(1, "bh1"), 2),
        slow("discrete", unipc(1), 2),
        ("vp", unipc(1), 2),
        ("edm", unipc(2), 3),
        slow("edm", unipc(2, "bh1"), 3),
        slow("vp", unipc(2, "bh1"), 3),
        slow("flow", unipc(2, "bh1"), 3),
        slow("discrete", unipc(2), 3),
        ("edm", unipc(3), 4),
        slow("edm", unipc(3, "bh1"), 4),
        ("vp", unipc(3), 4),
        slow("vp", unipc(3, "bh1"), 4),
        ("flow", unipc(3), 4),
        slow("flow", unipc(3, "bh1"), 4),
        ("vp", unipc(3, lower_order_final=True), 2),
        slow("flow", unipc(2, lower_order_final=True), 2),
        slow("discrete", unipc(3, lower_order_final=True), 2),
    ],
)
def test_order_of_multistep_methods(name, sampler, order, x64):
    process, high, low = RATIOS[name]
    found = order_of(sampler, process, lambda n: process.t_of(np.geomspace(high, low, n + 1)))
    # what the warm-up leaves behind makes the higher orders uneven
    assert found == pytest.approx(order, abs={1: 0.05, 2: 0.12, 3: 0.12, 4: 0.3}[order])


def test_ancestral_sampling_is_ddim_with_eta_1(x64):
    """DDPM's own step from its tables, against posterior(1) and DPM-Solver++ 1 with eta = 1."""
    betas = processes.cosine_betas(12)
    abar = np.cumprod(1 - betas)
    before = np.append(1.0, abar[:-1])
    process, grid = processes.discrete(betas), np.arange(12.0, -1, -1)
    x, *z = np.random.default_rng(0).standard_normal((13, 3, 2))
    denoise = lambda x, t: jnp.tanh(x) * (0.4 + 0.02 * t)
    noise = lambda k: jnp.asarray(z)[k]

    want = x
    for k, i in enumerate(range(11, -1, -1)):
        mean = betas[i] * np.sqrt(before[i]) / (1 - abar[i]) * np.tanh(want) * (0.42 + 0.02 * i)
        mean = mean + (1 - before[i]) * np.sqrt(1 - betas[i]) / (1 - abar[i]) * want
        want = mean + np.sqrt(betas[i] * (1 - before[i]) / (1 - abar[i])) * z[k]
    for sampler in (
        functools.partial(samplers.ddim, delta=samplers.posterior(1.0)),
        functools.partial(samplers.dpmpp, order=1, eta=1.0),
    ):
        got = sampler(denoise, process, grid, x, noise)
        np.testing.assert_allclose(got, want, rtol=1e-11)


def test_2m_in_its_own_words(x64):
    """D' = (1 + 1/(2r)) D - 1/(2r) D before: Lu et al., with x/alpha in ratios, on vp."""
    process = processes.vp()
    ratios = np.geomspace(20.0, 0.02, 9)
    grid = np.append(process.t_of(ratios), 0.0)
    denoise = lambda x, t: jnp.tanh(x) * (0.4 + t)
    start = np.random.default_rng(0).standard_normal((3, 2))
    x, before, lam = start, None, -np.log(ratios)
    for i, t in enumerate(grid[:-1]):
        now, end = process.at(t), process.at(grid[i + 1])
        d = np.asarray(denoise(x, t))
        if i == len(grid) - 2:
            x = d
            break
        h, guess = lam[i + 1] - lam[i], d
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            guess = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * before
        x = end.sigma / now.sigma * x - end.alpha * np.expm1(-h) * guess
        before = d
    noise = lambda k: jnp.ones_like(start)
    for eta, tol in [(0.0, 1e-11), (1e-20, 1e-8)]:  # and with eta -> 0, on the stochastic path
        got = samplers.dpmpp(denoise, process, grid, start, noise, eta=eta)
        np.testing.assert_allclose(got, x, rtol=tol)


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_2m_sde_has_the_right_variance(variant):
    """Data N(MU, VAR): after 40 noisy steps to a low level the samples still are."""
    process = processes.vp()
    grid = process.t_of(np.geomspace(50.0, 0.05, 41))
    denoise, _, _ = gaussian(process, grid)
    normal = np.random.default_rng(0).standard_normal((42, 4000), np.float32)
    noise = lambda k: jnp.asarray(normal)[k + 1]
    x = samplers.dpmpp(denoise, process, grid, normal[0], noise, eta=1.0, variant=variant)
    last = process.at(grid[-1])
    assert np.mean(x) == pytest.approx(last.alpha * MU, abs=0.03)
    assert np.var(x) == pytest.approx(last.alpha**2 * VAR + last.sigma**2, rel=0.08)


def test_encoding_and_back(x64):
    """DDIM upwards from data and down again: the data, to the error of the steps."""
    process = processes.vp()
    grid = process.t_of(np.geomspace(20.0, 0.01, 400))
    denoise, _, _ = gaussian(process, grid)
    data = MU + np.sqrt(VAR) * np.random.default_rng(0).standard_normal(50)
    noise = ddim(denoise, process, grid[::-1], data)
    assert np.std(noise) == pytest.approx(np.std(data) / np.sqrt(VAR), rel=0.02)
    np.testing.assert_allclose(ddim(denoise, process, grid, noise), data, atol=0.02)


def test_the_corrector_with_mean_slope_is_heun_on_edm(x64):
    grid = grids.karras(6, 0.02, 10.0)
    denoise, start, _ = gaussian(processes.edm(), grid)
    corrected = functools.partial(still, correct=samplers.mean_slope)
    args = denoise, processes.edm(), grid, 10 * start
    np.testing.assert_allclose(corrected(*args), heun(*args), rtol=1e-12)


def counted(denoise):
    seen = []
    note = lambda t: seen.append(float(t))

    def wrapped(x, t):
        jax.debug.callback(note, t, ordered=True)
        return denoise(x, t)

    return wrapped, seen


@pytest.mark.parametrize(
    ("sampler", "n", "calls"),
    [
        (euler, 5, 5),
        (heun, 5, 9),
        (heun, 1, 1),
        (ddim, 5, 5),
        (functools.partial(ddim, correct=samplers.mean_estimate), 5, 9),
        (functools.partial(samplers.dpmpp, eta=1.0), 5, 5),
        (samplers.unipc, 5, 5),
        (samplers.unipc, 1, 1),
    ],
)
def test_cost_and_last_step(sampler, n, calls):
    """2N - 1 evaluations at second order, and the end is the last estimate, to the last bit."""
    for process, grid in [
        (processes.edm(), grids.karras(n)),
        (processes.flow(), grids.linear(n)),
    ]:
        denoise, seen = counted(lambda x, t: jnp.sin(37 * x) / 3)
        start = np.random.default_rng(0).standard_normal((4, 3), np.float32)
        noise = lambda k: jnp.ones((4, 3))
        x, trace = sampler(denoise, process, grid, start, noise, trace=True)
        jax.effects_barrier()
        assert len(seen) == calls
        assert trace.x.shape == trace.x0.shape == (n, 4, 3) and np.all(np.isfinite(trace.x))
        np.testing.assert_array_equal(x, trace.x0[-1])
        np.testing.assert_array_equal(x, trace.x[-1])


def test_estimates_in_lower_precision_leave_the_state_alone():
    denoise = lambda x, t: x.astype(jnp.bfloat16) / 2
    x = heun(denoise, processes.edm(), grids.karras(3), jnp.ones((2, 2)))
    assert x.dtype == jnp.float32


def test_batch_jit_vmap_and_pmap_change_nothing():
    """n samples at once are n samples one by one, on one device or on eight, for every sampler."""
    process, grid = processes.edm(), grids.karras(4)
    hat = samplers.churn(grid, 3.0, 0.05, 50.0)
    assert np.any(hat > grid[:-1]) and np.any(hat == grid[:-1])
    devices = jax.device_count()
    keys = jax.random.split(jax.random.key(1), devices)
    start = 80 * np.random.default_rng(0).standard_normal((devices, 2), np.float32)
    denoise = lambda x, t: jnp.tanh(x) * 0.5

    def run(keys, start):
        noise = samplers.draws(keys, (2,), process)
        args = denoise, process, grid, start, noise
        # one after the other in one program: compiling is what this test waits for
        found = {
            "ode": heun(*args, hat=hat),
            "ddim": samplers.ddim(*args, delta=samplers.posterior(1.0)),
            "dpmpp": samplers.dpmpp(*args, eta=1.0),
            "unipc": samplers.unipc(*args),
        }
        return jnp.stack([*found.values()], axis=1)

    quick = jax.jit(run)
    one = lambda key, start: run(key[None], start[None])[0]
    together = np.asarray(quick(keys, start))
    pairs = {
        "eager": run(keys, start),
        "single": np.concatenate(
            [quick(keys[i : i + 1], start[i : i + 1]) for i in range(devices)]
        ),
        "vmap": jax.vmap(one)(keys, start),
        "pmap": jax.pmap(one)(keys, start),
    }
    for name, got in pairs.items():
        np.testing.assert_allclose(got, together, rtol=2e-6, atol=1e-6, err_msg=name)
    other = np.abs(together - quick(keys[::-1], start)).max((0, 2))
    assert np.all(other[:3] > 1e-4) and other[3] == 0  # noise enters all but the last


def test_draws():
    plain = processes.edm()
    second = processes.Process(plain.alpha, plain.sigma, colour=lambda first, second: second)
    keys = jax.random.split(jax.random.key(0), 2000)
    a, b = (jax.jit(samplers.draws(keys, (3,), p)) for p in (plain, second))
    assert a(0).shape == (2000, 3)
    drawn = np.stack([a(0).ravel(), a(1).ravel(), b(0).ravel()])
    np.testing.assert_allclose(np.cov(drawn), np.eye(3), atol=0.06)
    alone = jax.jit(samplers.draws(keys[5:6], (3,), plain))(2)
    np.testing.assert_array_equal(alone[0], a(2)[5])


def test_churn():
    grid = grids.karras(10)
    hat = samplers.churn(grid, 3.0, 0.05, 50.0)
    inside = (grid[:-1] >= 0.05) & (grid[:-1] <= 50)
    np.testing.assert_allclose(hat / grid[:-1], np.where(inside, 1.3, 1.0))
    np.testing.assert_allclose(samplers.churn(grid, 1e9) / grid[:-1], np.sqrt(2))


def test_churn_adds_the_missing_noise(x64):
    """From the marginal at t, a churned step starts from the marginal at t^: here on vp."""
    process = processes.vp()
    grid, hat = np.array([0.3, 0.1]), np.array([0.4])
    spread = lambda t: process.at(t).alpha ** 2 * VAR + process.at(t).sigma ** 2
    seen = {}

    def denoise(x, t):
        jax.debug.callback(lambda x: seen.update(x=np.asarray(x)), x)
        return x

    rng = np.random.default_rng(0)
    start, noise = np.sqrt(spread(0.3)) * rng.standard_normal(20000), rng.standard_normal(20000)
    euler(denoise, process, grid, start, lambda k: jnp.asarray(noise), hat=hat)
    jax.effects_barrier()
    assert np.var(seen["x"]) == pytest.approx(spread(0.4), rel=0.03)


def test_what_the_denoiser_is_told():
    grid = grids.karras(3)
    hat = samplers.churn(grid, 1.0)
    for tell_hat, want in [(True, hat), (False, grid[:-1])]:
        denoise, seen = counted(lambda x, t: 0 * x)
        noise = lambda k: jnp.zeros(2)
        euler(denoise, processes.edm(), grid, jnp.ones(2), noise, hat=hat, tell_hat=tell_hat)
        jax.effects_barrier()
        np.testing.assert_allclose(seen, want, rtol=1e-6)


def test_steps_of_ddim():
    """One step each, written out: how much noise is kept and how much is new."""
    x, x0, z = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    process = processes.discrete(processes.cosine_betas(20))
    grid = np.array([12.0, 5.0])
    now, end = process.at(12.0), process.at(5.0)
    n = (x - now.alpha * x0) / now.sigma
    for delta, std, kept, added in [
        (samplers.fresh(0.6), None, 0.8 * end.sigma, 0.6 * end.sigma),
        (samplers.fresh(1.0), None, 0.0, end.sigma),
        (
            samplers.posterior(0.0),
            lambda now, end: 0.5 * end.sigma,
            end.sigma,
            0.5 * end.sigma,
        ),
    ]:
        got = samplers.ddim(
            lambda x, t: x0, process, grid, x, lambda k: jnp.asarray(z), delta=delta, std=std
        )
        want = end.alpha * x0 + kept * n + added * z
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_which_draw_a_step_takes():
    """Step i takes draw i; with a corrector 2i, then 2i + 1, which is the one that stays."""
    grid = grids.karras(4)
    noise = lambda k: jnp.full(2, k, jnp.float32)
    sampler = functools.partial(samplers.ddim, delta=samplers.fresh(1.0), trace=True)
    args = lambda x, t: 0 * x, processes.edm(), grid, jnp.ones(2), noise
    _, plain = sampler(*args)
    _, corrected = sampler(*args, correct=samplers.mean_estimate)
    np.testing.assert_allclose(plain.x[:-1, 0], grid[1:-1] * [0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(corrected.x[:-1, 0], grid[1:-1] * [1, 3, 5], rtol=1e-6)


def test_guided_samples_of_two_points():
    """A whole pipeline: the exact denoiser of two points, guided to one of them."""
    points = jnp.array([-1.0, 1.0])

    def mixture(x, t):
        return jnp.tanh(x / t**2)

    to_one = guidance.cfg(lambda x, t: 0 * x + points[1], mixture, 1.0)
    start = 80 * np.random.default_rng(0).standard_normal(64, np.float32)
    x = heun(mixture, processes.edm(), grids.karras(12), start)
    np.testing.assert_allclose(jnp.abs(x), 1, atol=1e-3)
    assert {-1.0, 1.0} == set(np.round(np.asarray(x)).tolist())
    x = heun(to_one, processes.edm(), grids.karras(12), start)
    np.testing.assert_allclose(x, 1, atol=1e-5)


def test_the_ten_lines_of_the_map():
    assert doctest.testmod(core) == (0, 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run(np.array([1.0])),
        lambda run: run(np.array([1.0, 2.0, 0.0])),
        lambda run: run(np.array([2.0, np.nan, 0.0])),
        lambda run: run(np.array([2.0, 0.0]), order=3),
        lambda run: run(np.array([2.0, 0.0]), hat=np.array([1.5])),
        lambda run: run(np.array([2.0, 0.0]), hat=np.array([2.5])),  # noise missing
        lambda run: run(
            np.array([2.0, 0.0]),
            process=dct_process()[0],
            hat=np.array([2.5]),
            noise=lambda k: jnp.zeros(4),
        ),
        lambda run: samplers.ddim(
            lambda x, t: x,
            dct_process()[0],
            np.array([2.0, 1.0, 0.0]),
            jnp.ones(4),
            delta=samplers.posterior(1.0),
        ),
        lambda run: samplers.ddim(
            lambda x, t: x,
            processes.edm(),
            np.array([2.0, 1.0, 0.0]),
            jnp.ones(4),
            delta=samplers.fresh(1.0),
        ),
        lambda run: run([1.0, 2.0]),
        lambda run: run([1.0, 2.0], sampler=dpm),
        lambda run: run([1.0, 2.0], sampler=samplers.unipc),
        lambda run: run([1.0, 2.0], sampler=still, delta=samplers.fresh(0.5)),
        lambda run: run([0.0, 1.0], sampler=still),
        lambda run: run([2.0, 0.0], sampler=dpm, order=3),
        lambda run: run([2.0, 0.0], sampler=dpm, variant="bh2"),
        lambda run: run([2.0, 1.0, 0.0], sampler=dpm, eta=-1.0),
        lambda run: run([2.0, 1.0, 0.0], sampler=dpm, eta=1.0),  # noise missing
        lambda run: run([2.0, 0.0], sampler=samplers.unipc, order=0),
        lambda run: run([2.0, 0.0], sampler=samplers.unipc, variant="heun"),
        lambda run: run([2.0, 0.0], sampler=dpm, process=dct_process()[0]),
        lambda run: run([2.0, 0.0], sampler=samplers.unipc, process=dct_process()[0]),
    ],
)
def test_nonsense_is_refused(call):
    def run(grid, process=None, noise=None, sampler=samplers.ode, **settings):
        process = processes.edm() if process is None else process
        return sampler(lambda x, t: x, process, grid, jnp.ones(4), noise, **settings)

    with pytest.raises(UserError):
        call(run)


# DDPM and DDIM of guided-diffusion, float32. name: (betas, steps, spec, what the network predicts,
# clip, delta, std, how t is told)
small, large = samplers.posterior(1.0), samplers.transition
LOOPS = {
    "ddim_lin_ddim10_eta0.0": ("linear", 1000, "ddim10", "eps", True, samplers.posterior(0.0)),
    "ddim_lin_ddim10_eta0.5": ("linear", 1000, "ddim10", "eps", True, samplers.posterior(0.5)),
    "ddim_lin_ddim10_eta1.0": ("linear", 1000, "ddim10", "eps", True, small),
    "ddim_cos_10_eta0_noclip": ("cosine", 1000, "10", "eps", False, samplers.posterior(0.0)),
    "ddim_cos50_ddim10_startx_eta1": ("cosine", 50, "ddim10", "x0", True, small),
    "p_lin_fixedlarge": ("linear", 1000, "10", "eps", True, small, large),
    "p_lin_fixedsmall_noclip": ("linear", 1000, "10", "eps", False, small),
    "p_lin_startx": ("linear", 1000, "10", "x0", True, small),
    "p_lin_rescale_T400": ("linear", 400, "10", "eps", True, small, None, 1000 / 400),
}


@pytest.mark.parametrize("name", LOOPS)
def test_ddpm_and_ddim(name, golden, close):
    betas, steps, spec, predicts, clip, delta, *rest = LOOPS[name]
    std, scale = (*rest, *(None, 1.0)[len(rest) :])
    arrays = golden("ddpm_steps")
    told = []

    def net(x, t):
        jax.debug.callback(lambda t: told.append(float(t)), t, ordered=True)
        return 0.8 * jnp.tanh(x) * (0.3 + t / 1000) + 0.1 * x[..., ::-1]

    make = {"linear": processes.linear_betas, "cosine": processes.cosine_betas}[betas]
    process = processes.discrete(make(steps))
    predicting = {"eps": denoisers.from_eps, "x0": denoisers.from_x0}[predicts]
    denoise = predicting(process, net, told=lambda t: (t - 1) * scale)
    denoise = guidance.clip(denoise) if clip else denoise
    noise = lambda k: jnp.asarray(arrays["noise"])[k]
    grid = grids.respaced(steps, spec)
    x = samplers.ddim(denoise, process, grid, arrays["xT"], noise, delta=delta, std=std)
    jax.effects_barrier()
    close(told, arrays[f"{name}/t_seen"], 1e-6)
    close(x, arrays[name], 2e-5)
