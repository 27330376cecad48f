"""DIAMOND's preconditioning, quantiser and sampler against the released code's arrays."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diamond_original import GOLDEN, load, near, network, ours, stacked, theirs
from jax.experimental import io_callback

from diffjax.core import grids
from diffjax.errors import UserError
from diffjax.systems.diamond import sampling
from diffjax.systems.diamond.denoiser import Denoiser, Levels, coefficients
from diffjax.systems.diamond.quantise import LEVELS, floor_level, quantise, round_level, to_float
from diffjax.systems.diamond.sampling import Sampler, next_frame


@pytest.mark.parametrize(
    ("name", "offset"), [("main_off0.3", 0.3), ("csgo_off0.1", 0.1), ("off0", 0)]
)
def test_coefficients(name, offset):
    g = load("precond")
    c = coefficients(0.5, offset)(jnp.asarray(g["sigma"]))
    for got, what in zip(c, ("c_skip", "c_out", "c_in", "c_noise")):
        near(got, g[f"{name}/{what}"], 1e-6)


def test_levels():
    g = load("precond")
    z = jnp.asarray(g["train_sigma/z"])
    near(Levels()(z), g["train_sigma/sigma"], 1e-6)
    near(Levels(mean=-1.2)(z), g["train_sigma_csgo/sigma"], 1e-6)
    for name, (n, low, high) in {
        **{f"n{n}": (n, 0.002, 5) for n in (1, 3, 5, 10)},
        **{f"n{n}_up": (n, 1, 5) for n in (1, 10)},
        "n18_edm": (18, 0.002, 80),
    }.items():
        near(Sampler(n, low, high).grid(), g[f"sigmas/{name}"], 1e-6)
    # The last level of the upsampler is churned: it is s_tmin, to the last bit.
    fast, good = sampling.CSGO_UPSAMPLING
    assert good.grid()[-2] == 1 and np.all(good.hat() > good.grid()[:-1]) and fast.hat() > 5


def test_quantiser():
    g = load("quantise")
    np.testing.assert_array_equal(LEVELS, g["level_float"])
    level = jnp.arange(256, dtype=jnp.uint8)
    floats = jax.jit(to_float)(level)
    np.testing.assert_array_equal(floats, g["level_float"])
    again = jax.jit(floor_level)(floats)
    np.testing.assert_array_equal(again, g["requant_level"])
    np.testing.assert_array_equal(again, g["save_roundtrip_level"])
    assert np.flatnonzero(np.asarray(again) != level).tolist() == [*range(1, 64)]
    np.testing.assert_array_equal(jax.jit(floor_level)(g["x"]), g["q_level"])
    np.testing.assert_array_equal(jax.jit(quantise)(g["x"]), g["q"])
    np.testing.assert_array_equal(jax.jit(round_level)(floats), level)
    x = np.linspace(-1.2, 1.2, 1001, dtype=np.float32)
    assert np.abs(quantise(x, "round") - np.clip(x, -1, 1)).max() < 1.001 / 255
    assert quantise(x, "none") is x and quantise(x, "clip").max() == 1
    with pytest.raises(UserError, match="quantiser 'rond' .did you mean 'round'"):
        quantise(x, "rond")


ARITHMETIC = json.loads((GOLDEN / "sampler_arith_configs.json").read_text())


def settings(name, **more):
    given = dict(ARITHMETIC[name])
    return Sampler(steps=given.pop("num_steps_denoising"), **given, **more)


@pytest.mark.parametrize(
    ("name", "unroll"),
    [*((n, False) for n in ARITHMETIC), pytest.param("churn_heun5", True, marks=pytest.mark.slow)],
)
def test_arithmetic(name, unroll):
    """The k-th evaluation returns the k-th of the given estimates, whatever it is asked."""
    g = {k.removeprefix(f"{name}/"): v for k, v in load("sampler_arith").items() if name in k}
    asked = []

    def answer(x, sigma):
        asked.append((np.array(x), float(sigma)))
        return np.asarray(ours(g["denoised"][len(asked) - 1]))

    def denoise(x, sigma, past, sigma_past):
        return io_callback(answer, jax.ShapeDtypeStruct(x.shape, x.dtype), x, sigma, ordered=True)

    sampler = settings(name, unroll=unroll)
    drawn = ours(g["noise"])
    churned = np.zeros(sampler.steps, int)  # the k-th step's draw: the original counts churned ones
    if sampler.s_churn:
        churned = np.cumsum(sampler.hat() > sampler.grid()[:-1])
    z = drawn[0]
    noise = lambda k: drawn[jnp.asarray(churned)[k]]
    x, seen = next_frame(sampler, denoise, z, z, noise, trace=True)
    # The last step lands on the estimate itself, where the original's rounds: by 1e-5 of the result
    # in heun3, whose state is a hundred times larger before it.
    np.testing.assert_array_equal(theirs(x), g["denoised"][-1])
    near(theirs(seen.x), g["traj"][1:], 5e-6)
    near(theirs(np.stack([x for x, _ in asked])), g["den_in"], 5e-6)
    near([sigma for _, sigma in asked], g["den_sigma"], 5e-6)


def bound(quantiser="none"):
    g = load("sampler_tiny")
    net, params = network("denoiser")
    return sampling.bound(Denoiser(net, quantiser=quantiser), params, g["act"]), stacked(g["obs"])


def sampled(name, quantiser):
    """(the frame, the trace) of the tiny network with the golden draws."""
    drawn = ours(load("sampler_tiny")[f"{name}/noise"])
    sampler = settings(name)
    churned = np.cumsum(sampler.hat() > sampler.grid()[:-1]) if sampler.s_churn else [0] * 5
    noise = lambda k: drawn[jnp.asarray(churned)[k]]
    denoise, past = bound(quantiser)
    run = jax.jit(lambda z, past: next_frame(sampler, denoise, z, past, noise, trace=True))
    return run(drawn[0], past)


slow = lambda *names: [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["euler3", *slow("heun3", "churn_euler5")])
def test_sampler(name):
    g = load("sampler_tiny")
    x, seen = sampled(name, "floor")
    off = np.abs(theirs(seen.x) - g[f"{name}/traj"])
    print("pixels off", np.mean(off > 1e-4), "by", off.max())
    assert np.mean(off > 1e-4) <= 0.01 and off.max() < 2.01 * 2 / 255
    np.testing.assert_array_equal(quantise(x, "round"), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler3", "heun3", "churn_euler5"])
def test_sampler_without_the_quantiser(name):
    g = load("sampler_tiny")
    x, seen = sampled(name, "none")
    calls = 1 + (name == "heun3")
    near(theirs(x), g[f"{name}_noquant/traj"][-1], 1e-4)
    near(theirs(seen.x), g[f"{name}_noquant/traj"], 1e-4)
    near(theirs(seen.x0), g[f"{name}_noquant/denoised"][::calls], 1e-4)


@pytest.mark.slow
def test_starts():
    g, z = load("drift_init_modes"), ours(load("sampler_tiny")["euler3/noise"][0])
    denoise, past = bound()
    grid = Sampler().grid()
    near(grid / grid[0], g["residual_coeff"], 1e-6)
    run = jax.jit(lambda x: next_frame(Sampler(), denoise, x, past, trace=True))
    for start in sampling.STARTS:
        first = sampling.STARTS[start](z, np.float32(grid[0]), past[..., -3:])
        x, seen = run(first)
        near(theirs(x), g[f"{start}/final"], 1e-4)
        xs = np.stack([first, *seen.x[:-1]])
        c_in = coefficients()(jnp.asarray(grid[:-1], jnp.float32)).input
        rms = np.sqrt(np.mean(np.square(xs), (1, 2, 3, 4))) * c_in
        near(rms, g[f"{start}/rms_cin_x"], 1e-4)


def test_starts_in_closed_form():
    """y = a p + sqrt(v) w with its exact denoiser: many small steps give the ODE's affine map."""
    a, v, p, highest = 0.95, 0.04, 0.7, 5.0
    kappa = (v / (v + highest**2)) ** 0.5
    denoise = lambda x, sigma, past, _: (v * x + sigma**2 * a * past) / (v + sigma**2)
    z = jnp.asarray([-1.0, 0.0, 2.0]).reshape(3, 1, 1, 1)
    past, m = jnp.full_like(z, p), a * p
    for start, mean, std in (
        ("unit", m * (1 - kappa), kappa),
        ("sigma_max", m * (1 - kappa), kappa * highest),
        ("prev_plus_sigma_max", m + kappa * (p - m), kappa * highest),
    ):
        sampler = Sampler(steps=400, order=2, start=start)
        np.testing.assert_allclose(next_frame(sampler, denoise, z, past), mean + std * z, atol=2e-4)
    # Three steps of Euler's method shrink the distance to the mean further than the ODE does.
    x = next_frame(Sampler(), denoise, z, past)
    np.testing.assert_allclose((x[2] - x[1]) / 2, 0.0196, rtol=0.01)


def test_settings_that_are_refused():
    with pytest.raises(UserError, match="start of DIAMOND's sampler: 'units' .did you mean 'unit'"):
        Sampler(start="units")
    with pytest.raises(UserError, match="s_past -1"):
        Sampler(s_past=-1)
    with pytest.raises(UserError, match="pass past_noise"):
        next_frame(Sampler(s_past=0.1), None, jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))
    with pytest.raises(UserError, match="sigma_min"):
        Sampler(sigma_max=0.001).grid()
    assert grids.karras(3, 0.002, 5)[0] == pytest.approx(5)
