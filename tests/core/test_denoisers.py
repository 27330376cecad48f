"""Preconditionings and predictions against EDM's wrappers and against the thing they predict."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from diffjax.core import denoisers, guidance, processes
from diffjax.errors import UserError


def toy(x, c, cond):
    """The inner network of the golden arrays (see their README), NCHW."""
    labels, augment = cond or (None, None)
    c = jnp.reshape(c, (-1, 1, 1, 1))
    y = jnp.tanh(0.7 * x) + 0.1 * jnp.sin(0.01 * c) * x[..., ::-1] + 0.05 * jnp.cos(c)
    for scale, given in [(0.02, labels), (0.01, augment)]:
        if given is not None:
            k = jnp.arange(1, given.shape[1] + 1)
            y = y + scale * (k * given).sum(1)[:, None, None, None]
    return y


def coefficients(name, golden):
    return {
        "vp": denoisers.vp_coefficients(),
        "ve": denoisers.ve_coefficients(),
        "iddpm": denoisers.iddpm_coefficients(golden("precond")["iddpm_u"]),
        "edm": denoisers.edm_coefficients(),
    }[name]


@pytest.mark.parametrize("name", ["vp", "ve", "iddpm", "edm"])
def test_preconditioning(name, golden, close):
    arrays = golden("precond")
    x, sigma = jnp.asarray(arrays["x"]), arrays["sigma"].reshape(-1, 1, 1, 1)
    labels, augment = arrays["labels"], arrays["augment_labels"]
    c = jax.jit(coefficients(name, golden))(sigma)
    close(c.input * x, arrays[f"{name}_net_input"], 5e-6)
    close(c.noise.ravel(), arrays[f"{name}_c_noise"], 5e-6)
    d = jax.jit(denoisers.preconditioned(toy, coefficients(name, golden)))
    close(d(x, sigma, (labels, augment)), arrays[f"{name}_D"], 5e-6)
    close(d(x, sigma, (0 * labels, 0 * augment)), arrays[f"{name}_D_nolabel"], 5e-6)
    close(d(x, sigma), arrays[f"{name}_D_uncond"], 5e-6)


def test_preconditioning_stays_float32_around_a_bfloat16_network(golden, close):
    arrays = golden("precond")
    net = lambda x, c, cond: x.astype(jnp.bfloat16)
    x, sigma = jnp.asarray(arrays["x"]), arrays["sigma"].reshape(-1, 1, 1, 1)
    c = jax.jit(denoisers.edm_coefficients())(sigma)
    got = jax.jit(denoisers.preconditioned(net, denoisers.edm_coefficients()))(x, sigma)
    assert got.dtype == jnp.float32
    want = c.skip * x + c.out * (c.input * x).astype(jnp.bfloat16).astype(jnp.float32)
    close(got, want, 1e-6)


def test_edm_coefficients_give_unit_variances():
    """What they are made for: unit input and target variance, for data of variance sd^2."""
    sd, sigma = 0.7, np.float32([0.01, 0.7, 5.0, 100.0])
    c = (np.asarray(v) for v in jax.jit(denoisers.edm_coefficients(sd))(sigma))
    c = denoisers.Coefficients(*c)
    np.testing.assert_allclose(c.input**2 * (sd**2 + sigma**2), 1, rtol=1e-5)
    target = ((1 - c.skip) ** 2 * sd**2 + c.skip**2 * sigma**2) / c.out**2
    np.testing.assert_allclose(target, 1, rtol=1e-5)


PROCESSES = {
    "edm": (processes.edm(), 2.0),
    "vp": (processes.vp(), 0.4),
    "flow": (processes.flow(), 0.4),
    "discrete": (processes.discrete(processes.cosine_betas(100)), 30.0),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_right_predictions_give_x0_back(name):
    process, t = PROCESSES[name]
    x0, n = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    level = process.at(t)
    x = process.perturb(x0, n, level)
    v = level.alpha * n - level.sigma * x0
    found = {
        "eps": denoisers.from_eps(process, lambda x, t: n)(x, t),
        "v": denoisers.from_v(process, lambda x, t: v)(x, t),
        "x0": denoisers.from_x0(process, lambda x, t: x0)(x, t),
        "D": denoisers.on(process, lambda x, ratio: x - ratio * n)(x, t),
    }
    if name == "flow":
        found["flow"] = denoisers.from_flow(process, lambda x, t: n - x0)(x, t)
    for kind, got in found.items():
        np.testing.assert_allclose(got, x0, atol=2e-6, err_msg=kind)


CONTINUOUS = {name: PROCESSES[name][0] for name in ("edm", "vp", "flow")}
CONTINUOUS["shifted"] = processes.flow(3.0)
KINDS = {
    **{name: name for name in denoisers.PREDICTIONS},
    "edm": denoisers.edm_coefficients(0.7),
    "vp": denoisers.vp_coefficients(),
    "ve": denoisers.ve_coefficients(),
    "iddpm": denoisers.iddpm_coefficients(np.array([20.0, 3.0, 1.0, 0.3, 0.0])),
    "consistency": denoisers.consistency_coefficients(),
}


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    process=st.sampled_from(sorted(CONTINUOUS)),
    ratio=st.floats(0.05, 50.0),
    source=st.sampled_from(sorted(KINDS)),
    target=st.sampled_from(sorted(KINDS)),
    value=st.floats(-3, 3),
    x=st.floats(-3, 3),
)
def test_every_prediction_converts_into_every_other(process, ratio, source, target, value, x):
    """There and back, and by way of x0 as directly."""
    with jax.enable_x64(True):
        p = CONTINUOUS[process]
        level = p.at(p.t_of(ratio))
        to = lambda value, a, b: float(denoisers.convert(value, x, level, KINDS[a], KINDS[b]))
        other = to(value, source, target)
        # edm's x is as large as its noise, and one prediction may be a small part of the other
        size = 1 + ratio * abs(x) + abs(value) + abs(to(value, source, "x0"))
        size = 1e-9 * size * (1 + ratio + 1 / ratio) ** 2
        assert to(other, target, source) == pytest.approx(value, abs=size)
        assert to(to(value, source, "x0"), "x0", target) == pytest.approx(other, abs=size)


@pytest.mark.parametrize("name", PROCESSES)
def test_conversions_are_what_their_names_say(name):
    process, t = PROCESSES[name]
    x0, n = np.random.default_rng(0).standard_normal((2, 3, 4))
    level = process.at(t)
    x = level.alpha * x0 + level.sigma * n
    want = {"x0": x0, "eps": n, "v": level.alpha * n - level.sigma * x0, "flow": n - x0}
    for source in want:
        for target in want:
            got = denoisers.convert(want[source], x, level, source, target)
            np.testing.assert_allclose(got, want[target], atol=1e-12, err_msg=f"{source} {target}")
    ratio = jnp.float32(level.sigma / level.alpha)
    for coefficients in (denoisers.edm_coefficients(), denoisers.vp_coefficients()):
        # the network of a preconditioned denoiser that is right about x0
        f = denoisers.convert(x0, x, level, "x0", coefficients)
        d = denoisers.preconditioned(lambda x, c, cond, f=f: f, coefficients)
        np.testing.assert_allclose(d(jnp.float32(x / level.alpha), ratio), x0, atol=2e-5)


def test_predicting_is_the_way_back():
    process = processes.flow()
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    net = lambda x, t, cond: jnp.sin(x) * t + cond
    denoise = denoisers.from_flow(process, net)
    got = denoisers.predicting(process, denoise, "flow")(x, 0.3, 0.5)
    np.testing.assert_allclose(got, np.sin(x) * 0.3 + 0.5, atol=1e-6)
    # at t = 1 there is no data in x, and the velocity still tells it
    np.testing.assert_allclose(denoise(x, 1.0, 0.5), x - (np.sin(x) + 0.5), atol=1e-6)
    with pytest.raises(UserError, match="did you mean 'flow'"):
        denoisers.predicting(process, denoise, "flwo")(x, 0.3, 0.5)


def test_what_the_network_is_told():
    seen = []
    process = processes.discrete(processes.cosine_betas(10))
    net = lambda x, t, cond: seen.append((float(t), cond)) or x
    denoise = denoisers.from_eps(process, net, told=lambda t: t - 1)
    functools.partial(denoise, cond="label")(jnp.ones(3), 10.0)
    assert seen == [(9.0, "label")]


def test_guidance():
    cond, uncond = lambda x, t: 2 * x, lambda x, t: x - 1
    x, t = np.linspace(-1, 1, 5, dtype=np.float32), np.float32(0.5)
    assert guidance.cfg(cond, uncond, 1.0) is cond
    np.testing.assert_allclose(guidance.cfg(cond, uncond, 0.0)(x, t), uncond(x, t))
    np.testing.assert_allclose(guidance.cfg(cond, uncond, 3.0)(x, t), x - 1 + 3 * (x + 1))
    weights = jnp.array([1.0, 0.0, 2.0, 0.0, 1.0])
    np.testing.assert_allclose(guidance.cfg(cond, uncond, weights)(x, t), x - 1 + weights * (x + 1))


@pytest.mark.parametrize(("t", "guided"), [(0.2, False), (0.21, True), (0.6, True), (0.61, False)])
def test_guidance_interval(t, guided):
    cond, uncond = lambda x, t: 2 * x, lambda x, t: x - 1
    x = jnp.linspace(-1, 1, 5)
    within = guidance.cfg(cond, uncond, 3.0, interval=(0.2, 0.6))
    want = (guidance.cfg(cond, uncond, 3.0) if guided else cond)(x, t)
    np.testing.assert_allclose(jax.jit(within)(x, t), want)
    np.testing.assert_allclose(within(x, jnp.full(5, t)), want)


def test_rescaled_guidance():
    """The contrast of each sample goes the way phi to that of the conditional one."""
    rng = np.random.default_rng(0)
    c, u = rng.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    x = jnp.zeros_like(c)
    plain = np.asarray(guidance.cfg(lambda x, t: c, lambda x, t: u, 4.0)(x, 1.0))
    for phi in (0.0, 0.7, 1.0):
        got = guidance.cfg(lambda x, t: c, lambda x, t: u, 4.0, rescale=phi)(x, 1.0)
        std = lambda a: np.asarray(a).reshape(3, -1).std(1)
        np.testing.assert_allclose(std(got), phi * std(c) + (1 - phi) * std(plain), rtol=1e-5)
        ratio = np.asarray(got) / plain  # one number a sample
        np.testing.assert_allclose(ratio, ratio[:, :1, :1, :1] + 0 * ratio, rtol=1e-4)
    flat = guidance.rescaled(jnp.ones((2, 3)), jnp.asarray(c[:2, 0, :3, 0]), 1.0)
    np.testing.assert_array_equal(flat, 1.0)  # nothing to rescale


def test_guidances_compose():
    """Autoguidance under cfg in an interval, rescaled, clipped, in-painted: written out."""
    main, guide, nobody = (lambda x, t, k=k: k * x + t for k in (2.0, 1.5, 1.0))
    x = jnp.linspace(-1, 1, 10).reshape(2, 5)
    mask = jnp.arange(5) < 2
    good = guidance.autoguidance(main, guide, 2.0)
    np.testing.assert_allclose(good(x, 0.5), 2.5 * x + 0.5, rtol=1e-6)
    both = guidance.cfg(good, nobody, 3.0, interval=(0.2, 0.6), rescale=1.0)
    denoise = jax.jit(guidance.inpaint(guidance.clip(both, -2.0, 2.0), 7.0, mask))
    inside = np.asarray(5.5 * x + 0.5)
    inside = inside * (2.5 * x).std(1, keepdims=True) / inside.std(1, keepdims=True)
    outside = 2.5 * x + 0.7
    for t, want in [(0.5, inside), (0.7, outside)]:
        want = np.where(mask, 7.0, np.clip(want, -2, 2))
        np.testing.assert_allclose(denoise(x, t), want, rtol=1e-5)


def test_clip_and_inpaint():
    denoise = lambda x, t: 3 * x
    x = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(guidance.clip(denoise)(x, 1.0), [-1, -1, 0, 1, 1])
    mask = jnp.array([True, False, False, False, True])
    np.testing.assert_allclose(guidance.inpaint(denoise, 7.0, mask)(x, 1.0), [7, -1.5, 0, 1.5, 7])
