"""What a request may ask of Algorithm 2 and of guidance, through the system and the commands."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sample
from diffjax import evaluate, nets, systems
from diffjax.core import processes
from diffjax.errors import UserError
from diffjax.run import cli, mesh, sampling
from diffjax.run.system import Problem, save_assets
from diffjax.systems.edm import preconditioning
from diffjax.systems.edm.request import Request, noise_levels, solve
from diffjax.weights import trees

GOLDEN = Path(__file__).parents[1] / "golden" / "core" / "samplers_gauss.npz"
SHAPE = (8, 8, 3)
SLOPE = np.linspace(0.2, 0.5, 3)


class Tinted:
    """F(x, c_noise, label) = slope x + gain tint[label]: each channel of a picture has its slope.

    The gain is its one parameter.
    """

    tint = np.array([0.1, -0.05, 0.2, 0.4])  # red, green, blue, no class

    def lazy_init(self, key, *args):
        return {"params": {"gain": jnp.ones(())}}

    def apply(self, variables, x, c_noise, label):
        tint = variables["params"]["gain"] * jnp.asarray(self.tint, jnp.float32)[label]
        return x * jnp.asarray(SLOPE, jnp.float32) + tint[:, None, None, None]


def estimate(x, sigma, label, gain=1.0, sd=0.5):
    """D(x; sigma) of it, equation 7 in float64."""
    total = sigma**2 + sd**2
    tint = gain * Tinted.tint[label][:, None, None, None]
    f = SLOPE * x / np.sqrt(total) + tint
    return sd**2 / total * x + sigma * sd / np.sqrt(total) * f


@pytest.fixture
def tinted(monkeypatch, make_config, tmp_path):
    """tinted(name, gain, *overrides) -> a run directory of that network."""
    monkeypatch.setattr(nets, "make", lambda *args, **kwargs: Tinted())

    def make(name="run", gain=1.0, *overrides, **about):
        config = make_config("diffusion.sigma_data=0.5", *overrides)
        data = {"image_shape": list(SHAPE), "class_names": ["red", "green", "blue"], **about}
        run = tmp_path / name
        save_assets({"data": data}, run)
        (run / "config.json").write_text(cli.config_json(config))
        trees.save({"gain": np.float32(gain)}, run / "weights.safetensors")
        return run

    return make


SIGMA = 0.5  # one Euler step from here to 0 is the estimate itself


@pytest.fixture
def one_step(tinted):
    """one_step(**request fields) -> (x at SIGMA, labels, samples as uint8 in float64)."""

    def go(run=None, **fields):
        run = run or tinted()
        system, _ = systems.load(run)
        calm = {"steps": 1, "sampler": "euler", "sigma_max": SIGMA, "guidance": 1.0}
        request = dataclasses.replace(system.request, **{**calm, **fields})
        place = mesh.make_mesh(mesh.LOCAL)
        params, _ = sampling.load_params(system, run, place, request=request)
        keys = jax.random.split(jax.random.key(1), 4)
        label = system.condition(request, np.arange(4))
        draw = lambda key: jax.random.normal(jax.random.split(jax.random.fold_in(key, 0))[0], SHAPE)
        x = SIGMA * np.float64(jax.vmap(draw)(keys))
        return x, label, np.float64(system.sample(params, keys, label, request)["image"])

    return go


def near(image, wanted):
    wanted = 127.5 * wanted + 128
    inside = (wanted > 2) & (wanted < 253)
    assert inside.mean() > 0.5
    assert np.abs(image - wanted)[inside].max() <= 1  # cut to whole levels


def test_rescaled_guidance(one_step):
    """Lin et al. 2024, section 3.4: a share phi of the way back to the conditional contrast."""
    for phi in 0.0, 0.4, 1.0:
        x, label, image = one_step(guidance=3.0, rescale=phi)
        c, u = estimate(x, SIGMA, label), estimate(x, SIGMA, np.full(4, 3))
        guided = u + 3 * (c - u)
        std = lambda a: a.std((1, 2, 3), keepdims=True)
        near(image, guided * (phi * std(c) / std(guided) + 1 - phi))


@pytest.mark.parametrize(
    "limits, inside",
    [((0.0, 0.5), True), ((0.0, 0.49), False), ((0.5, 9.0), False), ((0.49, 1e9), True)],
)
def test_guidance_in_an_interval(limits, inside, one_step):
    """Guided where guidance_min < sigma <= guidance_max (Kynkaanniemi et al. 2024)."""
    x, label, image = one_step(guidance=3.0, guidance_min=limits[0], guidance_max=limits[1])
    c, u = estimate(x, SIGMA, label), estimate(x, SIGMA, np.full(4, 3))
    near(image, u + 3 * (c - u) if inside else c)


@pytest.mark.parametrize("scale, guidance", [(2.0, 1.0), (0.0, 1.0), (1.5, 3.0)])
def test_autoguidance(scale, guidance, one_step, tinted):
    """Karras et al. 2024a: away from another run's estimate; then from the unconditional one."""
    worse = tinted("worse", -0.5)
    x, label, image = one_step(
        tinted("main"), autoguide=str(worse), autoguide_scale=scale, guidance=guidance
    )
    c, g = estimate(x, SIGMA, label), estimate(x, SIGMA, label, gain=-0.5)
    u = estimate(x, SIGMA, np.full(4, 3))
    main = g + scale * (c - g)
    near(image, u + guidance * (main - u))


def test_the_interval_holds_for_autoguidance_too(one_step, tinted):
    worse = str(tinted("worse", -0.5))
    x, label, image = one_step(tinted("main"), autoguide=worse, guidance_max=0.4)
    near(image, estimate(x, SIGMA, label))


@pytest.fixture
def smaller(make_config, tmp_path):
    """A run of a smaller network with the weights that it is born with."""
    config = make_config("network.embedding=8", "network.patch=1")
    about = {"image_shape": list(SHAPE), "class_names": ["red", "green", "blue"]}
    save_assets({"data": about}, tmp_path / "smaller")
    (tmp_path / "smaller" / "config.json").write_text(cli.config_json(config))
    params = systems.load(tmp_path / "smaller")[0].init(jax.random.key(0))
    trees.save(params, tmp_path / "smaller" / "weights.safetensors")
    return tmp_path / "smaller"


def drawn(run, tmp_path, *flags):
    argv = ["--workdir", run, "--num", 6, "--steps", 3, "--out", tmp_path / "a.npz", *flags]
    assert sample.main([str(word) for word in argv]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        return arrays["image"].astype(int)


@pytest.mark.slow
def test_commands_guide_by_another_run(trained, smaller, tmp_path, capsys):
    plain = "--guidance", "1"
    by = lambda scale: ("--autoguide", smaller, "--autoguide_scale", scale)
    own = drawn(trained, tmp_path, *plain)
    # With scale 0 all is the guide's, with 1 nothing is; else neither is.
    theirs = drawn(trained, tmp_path, *plain, *by(0))
    assert f"guided by {smaller}, weights.safetensors" in capsys.readouterr().out
    assert np.abs(theirs - drawn(smaller, tmp_path, *plain)).max() <= 1
    np.testing.assert_array_equal(drawn(trained, tmp_path, *plain, *by(1)), own)
    away = drawn(trained, tmp_path, *plain, *by(2))
    assert np.abs(away - own).max() > 3 and np.abs(away - theirs).max() > 3
    # An earlier step of the same run serves too.
    early = "--autoguide", trained, "--autoguide_scale", 0, "--autoguide_step", 3
    assert np.abs(drawn(trained, tmp_path, *plain, *early) - drawn(
        trained, tmp_path, *plain, "--step", 3
    )).max() <= 1  # fmt: skip

    argv = ["--workdir", trained, "--num", 6, "--steps", 2, "--net", "pixels", "--no_cache", *by(2)]
    assert evaluate.main([str(word) for word in argv] + ["--metrics", "fd"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["request"]["autoguide"] == str(smaller) and "guided by" in line["weights"]


def test_guides_that_cannot_guide(one_step, tinted, tmp_path):
    main = tinted("main")
    two = tinted("two", 1.0, class_names=["red", "green"])
    large = tinted("large", 1.0, image_shape=[16, 16, 3])
    for guide, fragment in [
        (two, "--autoguide .*two: its class_names are red, green, not red, green, blue as here"),
        (large, "--autoguide .*large: its image_shape are 16, 16, 3, not 8, 8, 3"),
        (tmp_path / "mian", "no run directory .*mian.*did you mean '.*main'"),
    ]:
        with pytest.raises(UserError, match=fragment):
            one_step(main, autoguide=str(guide))


def test_a_model_without_classes_has_nothing_to_guide(one_step, tinted):
    """A scale that was asked for is refused; one that the config has by default is passed over."""
    run = tinted("plain", 1.0, "sampling.guidance=2.0", class_names=[])
    with pytest.raises(UserError, match="--guidance 3: this model has no classes"):
        one_step(run, guidance=3.0)
    for scale in 1.0, 2.0:
        x, label, image = one_step(run, guidance=scale)
        near(image, estimate(x, SIGMA, label))


def test_a_config_names_no_other_run(make_config):
    config = make_config().copy_and_resolve_references()
    config.unlock()
    config.sampling.autoguide = "runs/other"
    with pytest.raises(UserError, match="config.sampling.autoguide"):
        systems.make(config)


@pytest.mark.parametrize(
    "fields, fragment",
    [
        ({"s_noise": -1.0}, "--s_noise -1.0"),
        ({"s_min": 2.0, "s_max": 1.0}, "--s_min 2 is above --s_max 1"),
        ({"s_max": float("nan")}, "--s_max nan"),
        ({"rescale": 1.5}, "--rescale 1.5"),
        ({"guidance_min": 3.0, "guidance_max": 1.0}, "--guidance_min 3 is above"),
        ({"autoguide_scale": float("inf")}, "--autoguide_scale inf"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_numbers_that_cannot_be(fields, fragment, one_step):
    with pytest.raises(UserError, match=fragment):
        one_step(**fields)


@pytest.mark.parametrize(
    "key, steps, settings",
    [
        ("edm_n32_churn_imagenet", 32, (40.0, 0.05, 50.0, 1.003)),
        ("edm_n18_churn_c10vp", 18, (30.0, 0.01, 1.0, 1.007)),
    ],
)
def test_algorithm_2_by_its_flags(key, steps, settings):
    """Against the released code, on the golden files' Gaussian, in float64."""
    names = ("churn", "s_min", "s_max", "s_noise")
    request = Request(steps=steps, **dict(zip(names, settings, strict=True)))
    grid, hat = noise_levels(request, preconditioning.make("edm", 0.5))
    with np.load(GOLDEN) as g, jax.enable_x64(True):
        mu, var, noise = jnp.asarray(g["mu"]), jnp.asarray(g["var"]), jnp.asarray(g["noise"])
        denoise = lambda x, sigma: mu + var / (var + sigma**2) * (x - mu)
        start = jnp.asarray(g["latents"]) * grid[0]
        problem = Problem(denoise, processes.edm(), grid, start, lambda k: noise[k])
        got = solve(request, problem, hat)
        np.testing.assert_allclose(got, g[key], rtol=0, atol=1e-10 * np.abs(g[key]).max())
        np.testing.assert_allclose(hat, g[f"{key}/sigma_calls"][::2], rtol=1e-10)
