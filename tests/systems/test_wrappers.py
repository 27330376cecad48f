"""EDM's four wrappers as systems: against the released code, and from a snapshot to samples."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

import sample
from diffjax import convert, nets, systems
from diffjax.core import denoisers
from diffjax.errors import UserError
from diffjax.run import mesh, sampling
from diffjax.systems.edm import preconditioning
from diffjax.systems.edm.request import Request, noise_levels

GOLDEN = Path(__file__).parents[1] / "golden"
WRAPPERS = ("vp", "ve", "iddpm", "edm")
FIVE = {"image_shape": [4, 4, 3], "class_names": list("abcde"), "fingerprint": ""}


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def nhwc(a):
    return jnp.asarray(a.transpose(0, 2, 3, 1))


def nchw(a):
    return np.asarray(a).transpose(0, 3, 1, 2)


class Toy:
    """The golden files' network (tests/golden/core/README.md), NHWC; two halves for iDDPM."""

    def __init__(self, halves: int):
        self.halves = halves

    def lazy_init(self, key, *args):
        return {"params": {"unused": jnp.zeros(())}}

    def apply(self, variables, x, c, label, augment=None, train=False, rngs=None):
        c = c[:, None, None, None]
        y = jnp.tanh(0.7 * x) + 0.1 * jnp.sin(0.01 * c) * x[:, :, ::-1] + 0.05 * jnp.cos(c)
        # One-hot labels, of which "no class" has none: sum_k (k + 1) l_k is the number + 1.
        y += 0.02 * jnp.where(label < 5, label + 1, 0)[:, None, None, None]
        if augment is not None:
            y += 0.01 * (augment * jnp.arange(1, 10)).sum(1)[:, None, None, None]
        return jnp.concatenate([y, -y / 2], -1) if self.halves == 2 else y


@pytest.fixture
def toy_system(monkeypatch, make_config):
    """toy_system(precond, *overrides) -> the system around the golden files' network."""

    def make(precond, *overrides):
        def network(config, *, channels, num_classes, shape):
            assert (channels, num_classes, shape) == (6 if precond == "iddpm" else 3, 5, (4, 4, 3))
            return Toy(channels // 3)

        monkeypatch.setattr(nets, "make", network)
        assets = {"data": FIVE}
        if precond == "iddpm":
            assets[preconditioning.LEVELS] = arrays("core/precond")["iddpm_u"]
        words = f"diffusion.precond={precond}", "diffusion.sigma_data=0.5", *overrides
        return systems.make(make_config(*words), assets)

    return make


@pytest.mark.parametrize("precond", WRAPPERS)
def test_denoisers_are_the_released_ones(precond, toy_system):
    g, system = arrays("core/precond"), toy_system(precond)
    x, sigma = nhwc(g["x"]), g["sigma"].reshape(-1, 1, 1, 1)
    label = g["labels"].argmax(1).astype(np.int32)
    np.testing.assert_array_equal(g["labels"].sum(1), 1)
    got = system.denoiser({}, x, sigma, label, augment=g["augment_labels"])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(b).max())
    close(nchw(got), g[f"{precond}_D"])
    close(nchw(system.denoiser({}, x, sigma, np.full(8, 5))), g[f"{precond}_D_uncond"])


@pytest.mark.parametrize("precond", WRAPPERS)
def test_ranges_are_the_released_ones(precond):
    g = arrays("core/precond")
    wrapper = preconditioning.make(precond, 0.5, g["iddpm_u"])
    low, high = g[f"{precond}_sigma_range"]
    # The original takes exp(B) - 1 in float32, which loses VP's low end by 2.5%.
    assert wrapper.lowest == pytest.approx(low, rel=0.03 if precond == "vp" else 1e-6)
    assert wrapper.highest == pytest.approx(high, rel=1e-6)


@pytest.mark.parametrize(
    "loss, net", [("vp", "vp"), ("ve", "ve"), ("edm", "edm"), ("edm", "vp"), ("edm", "iddpm")]
)
def test_losses_are_the_released_ones(loss, net, toy_system, monkeypatch):
    """With the stored draws in the place of random ones."""
    g = arrays("core/losses")
    times = {"vp": "vp", "ve": "ve", "edm": "lognormal"}[loss]
    paper = "diffusion.p_mean=-1.2", "diffusion.p_std=1.2", "diffusion.label_dropout=0.0"
    system = toy_system(net, f"diffusion.times={times}", *paper)
    images = np.round(127.5 * (np.clip(nhwc(g["images"]), -1, 1) + 1)).astype(np.uint8)
    label = g["labels"].argmax(1).astype(np.int32)
    batch = {"image": jnp.asarray(images), "label": label, "row": np.arange(8)}
    level = g["rnd_normal" if loss == "edm" else "rnd_uniform"]

    stored = {(1, 1, 1): jnp.asarray(level), (4, 4, 3): nhwc(g["eps"])}
    take = lambda key, shape=(), dtype=None: stored.get(tuple(shape), jnp.ones(8))
    monkeypatch.setattr(jax, "vmap", lambda f: f)  # a draw of all rows in the place of a row's
    monkeypatch.setattr(jax.random, "fold_in", lambda key, data: key)
    monkeypatch.setattr(jax.random, "split", lambda key, n: np.zeros((8, n)))
    monkeypatch.setattr(jax.random, "normal", take)
    monkeypatch.setattr(jax.random, "uniform", take)
    got, _ = system.loss({}, batch, None)

    # The pictures were cut to 256 levels, so the stored loss is taken of those by the formulas of
    # Table 1 in float64, and of the stored pictures to see that these are the formulas.
    sigma = g[f"{loss}_train_sigma"].reshape(8, 1, 1, 1).astype(np.float64)
    weight = 1 / sigma**2 if loss != "edm" else (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    coefficients = preconditioning.make(net, 0.5, arrays("core/precond")["iddpm_u"]).coefficients

    def by_hand(x0):
        x = x0 + sigma * np.float64(nhwc(g["eps"]))
        c = [np.float64(a) for a in coefficients(jnp.asarray(sigma, jnp.float32))]
        f = Toy(1).apply({}, jnp.asarray(c[2] * x), jnp.asarray(c[3].ravel()), label)
        return weight * (c[0] * x + c[1] * np.float64(f) - x0) ** 2

    released = g[f"{loss}loss_{net}net"]
    stored_by_hand = nchw(by_hand(np.float64(nhwc(g["images"]))))
    assert np.abs(stored_by_hand - released).max() < 3e-5 * np.abs(released).max()
    np.testing.assert_allclose(got, by_hand(images / 127.5 - 1).mean(), rtol=3e-5)


def visited(calls, n):
    """(grid, hat) of the levels that Algorithm 2 was called at: t^_0, t_1, t^_1, t_2, ..., t^_n."""
    assert len(calls) == 2 * n - 1
    return calls[1::2], calls[0::2]


def test_levels_are_the_released_ones():
    g, u = arrays("core/samplers_gauss"), arrays("core/precond")["iddpm_u"]
    iddpm = preconditioning.make("iddpm", 0.5, u)
    # S_churn 40 between 0.05 and 50: levels are rounded, churned, and rounded again.
    grid, hat = noise_levels(Request(steps=16, churn=40.0, s_min=0.05, s_max=50.0), iddpm)
    inner, calls = visited(g["edm_n16_iddpmround_churn/sigma_calls"], 16)
    assert np.isin(grid.astype(np.float32), u).all() and grid[0] == hat[0] and grid[-1] == 0
    np.testing.assert_allclose(grid[1:-1], inner, rtol=1e-6)
    np.testing.assert_allclose(hat, calls, rtol=1e-6)
    # A range of [0.02, 20] whatever is asked: the golden's network, and VE's lower end.
    inner, calls = visited(g["edm_n10_netrange/sigma_calls"], 10)
    narrow = preconditioning.make("edm", 0.5)._replace(lowest=0.02, highest=20.0)
    grid, hat = noise_levels(Request(steps=10), narrow)
    np.testing.assert_allclose(grid[1:-1], inner, rtol=1e-10)
    np.testing.assert_allclose(hat, calls, rtol=1e-10)
    assert noise_levels(Request(), preconditioning.make("ve", 0.5))[0][-2] == pytest.approx(0.02)


def test_more_steps_than_levels():
    """Where levels fall together one is kept, and the published 256 steps are such a case."""
    iddpm = preconditioning.make("iddpm", 0.5, denoisers.iddpm_levels().astype(np.float32))
    for steps in 256, 5000:
        grid, hat = noise_levels(Request(steps=steps), iddpm)
        assert np.all(np.diff(grid) < 0) and len(grid) == len(hat) + 1 < steps
        assert grid[-1] == 0 and grid[-2] == iddpm.lowest


@pytest.mark.parametrize(
    "grid, schedule", [("vp", "vp"), ("ve", "ve"), ("iddpm", "iddpm"), ("edm", "edm")]
)
def test_grids_are_table_1(grid, schedule):
    g = arrays("core/samplers_gauss")
    low, high = {"vp": (0.010485992787, 152.16696973), "ve": (0.02, 100.0)}.get(
        schedule, (0.002, 81.0 if schedule == "iddpm" else 80.0)
    )
    request = Request(steps=10, sigma_min=low, sigma_max=high, grid=grid)
    levels, _ = noise_levels(request, preconditioning.make("edm", 0.5))
    called = g[f"abl_{schedule}_linear_none_euler/sigma_calls"]
    # iddpm: the original's table is made of float32 abar; vp: exp() - 1 cancels there.
    tol = {"iddpm": 5e-4, "vp": 1e-5}.get(schedule, 1e-10)
    np.testing.assert_allclose(levels[:-1], called, rtol=tol)


TINY = {"img_channels": 3, "num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [8]}
ADM = {**TINY, "img_resolution": 16, "label_dim": 10, "model_channels": 32}
SONG = {**TINY, "img_resolution": 8, "attn_resolutions": [4], "model_channels": 16}


def state_of(kind, arguments, outputs, by_rule):
    """A state dict by rule of a network whose names and shapes are those of ours, turned back."""
    from diffjax.systems.edm import published
    from diffjax.weights import edm_pickles, trees

    about = edm_pickles.Architecture("EDMPrecond", arguments, {}, kind)
    config, (size, _, _) = published.config_of(about, ""), published.image_shape(about, "")
    shape = (size, size, 3)
    classes = published.num_classes(about, "")
    net = nets.make(config.network, channels=outputs, num_classes=classes, shape=shape)
    inputs = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, int)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    like = {k: np.empty(s.shape, np.float32) for k, s in trees.flatten(shapes).items()}
    state = published.from_params(like, (1, 1))
    return net, {name: by_rule(name, array.shape) for name, array in state.items()}


def converted(tmp_path, data: bytes):
    file, out = tmp_path / "net.pkl", tmp_path / "run"
    file.write_bytes(data)
    assert convert.main([str(file), "--out", str(out)]) == 0
    system, config = systems.load(out)
    params, _ = sampling.load_params(system, out, mesh.make_mesh(ConfigDict(mesh.LOCAL)))
    return out, system, config, params


def samples(out, tmp_path, *flags):
    argv = ["--workdir", out, "--num", "8", "--out", tmp_path / "a.npz", *flags]
    assert sample.main([str(word) for word in argv]) == 0
    with np.load(tmp_path / "a.npz") as found:
        return found["image"]


@pytest.mark.slow
def test_an_iddpm_snapshot(craft, by_rule, tmp_path):
    """The released code's D, and samples."""
    g, u = arrays("nets/net_adm_sigma"), arrays("core/precond")["iddpm_u"]
    manifest = json.loads((GOLDEN / "nets" / "manifest_tiny_adm_sigma.json").read_text())
    state = {name: by_rule(name, shape) for name, (shape, _) in manifest.items()}
    data = craft("iDDPMPrecond", "DhariwalUNet", ADM, {**state, "u": u}, M=1000)
    out, system, config, params = converted(tmp_path, data)
    assert (config.diffusion.precond, config.diffusion.times) == ("iddpm", "lognormal")
    np.testing.assert_array_equal(np.load(out / "assets" / "noise_levels.npy"), u)
    label, sigma = g["labels"].argmax(1).astype(np.int32), g["sigma"].reshape(2, 1, 1, 1)
    with jax.default_matmul_precision("highest"):
        denoise = jax.jit(system.denoiser)
        got = denoise(params, nhwc(g["x_noisy"]), sigma, label)
        nobody = denoise(params, nhwc(g["x_noisy"]), sigma, np.full(2, 10, np.int32))
    limit = 2e-5 * np.abs(g["D"]).max()
    assert np.abs(nchw(got) - g["D"]).max() < limit
    assert np.abs(nchw(nobody) - g["D_nolabel_noaug"]).max() < limit
    assert samples(out, tmp_path, "--steps", "2", "--cond", "3").std() > 1

    # And out again: every array of the original, the table of levels among them.
    assert convert.main([str(out), "--out", str(tmp_path / "back.safetensors")]) == 0
    back = load_file(tmp_path / "back.safetensors")
    assert sorted(back) == sorted(manifest)
    for name, array in {**state, "u": u}.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


@pytest.mark.parametrize("wrapper", ["VPPrecond", "VEPrecond"])
@pytest.mark.slow
def test_a_vp_or_ve_snapshot(wrapper, craft, by_rule, tmp_path):
    """Table 1's columns by hand around the network alone, and samples."""
    net, state = state_of("SongUNet", SONG, 3, by_rule)
    out, system, config, params = converted(tmp_path, craft(wrapper, "SongUNet", SONG, state))
    name = wrapper.removesuffix("Precond").lower()
    assert (config.diffusion.precond, config.diffusion.times) == (name, name)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    sigma = np.array([0.05, 1.0, 60.0], np.float64)
    if wrapper == "VPPrecond":
        t = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9
        out_scale, scale, told = -sigma, 1 / np.sqrt(sigma**2 + 1), 999 * t
    else:
        out_scale, scale, told = sigma, np.ones(3), np.log(sigma / 2)
    up = lambda a: a[:, None, None, None]
    f = net.apply({"params": params}, np.float32(up(scale) * x), np.float32(told), np.zeros(3, int))
    wanted = x + up(out_scale) * np.float64(f)
    got = system.denoiser(params, x, np.float32(up(sigma)), np.zeros(3, np.int32))
    # 1e-4: the network is told up to 855, and the rounding of that is in its sines.
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    image = samples(out, tmp_path, "--steps", "3", "--grid", name)
    assert image.shape == (8, 8, 8, 3) and image.std() > 1


@pytest.mark.parametrize(
    "wrapper, attributes, fragment",
    [
        ("VPPrecond", {"beta_d": 18.0}, "VPPrecond with beta_d 18.0, not 19.9"),
        ("VEPrecond", {"sigma_max": 50}, "VEPrecond with sigma_max 50, not 100"),
        ("iDDPMPrecond", {}, "lacks u, the table of noise levels"),
    ],
)
def test_wrappers_with_other_numbers(wrapper, attributes, fragment, craft, tmp_path, capsys):
    file, out = tmp_path / "net.pkl", tmp_path / "run"
    file.write_bytes(craft(wrapper, "SongUNet", SONG, {}, **attributes))
    assert convert.main([str(file), "--out", str(out)]) == 2
    assert fragment in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "table",
    [None, np.zeros(4), np.arange(4.0), np.array([3.0, np.nan, 0.0]), np.array([3, 2, 0])],
    ids=["none", "zeros", "rising", "nan", "whole numbers"],
)
def test_tables_that_are_none(table):
    with pytest.raises(UserError, match="noise_levels.npy"):
        preconditioning.make("iddpm", 0.5, table)


def test_a_new_iddpm_run_keeps_its_table(make_config):
    system = systems.make(make_config("diffusion.precond=iddpm"))
    table = system.assets["noise_levels"]
    np.testing.assert_allclose(table, arrays("core/precond")["iddpm_u"], rtol=1e-3)
    # The variances' half of the network's output is there, and takes no part in the loss.
    params = jax.jit(system.init)(jax.random.key(0))
    assert params["conv_out"]["kernel"].shape[-1] == 6 * 4
    batch = {"image": jnp.zeros((2, 8, 8, 3), jnp.uint8), "label": np.zeros(2, int)}
    gradient = jax.jit(jax.grad(lambda p: system.loss(p, batch, jax.random.key(1))[0]))
    batch["row"] = np.arange(2)
    bias = np.asarray(gradient(params)["conv_out"]["bias"]).reshape(4, 6)
    assert np.all(bias[:, 3:] == 0) and np.all(bias[:, :3] != 0)


def test_requests_outside_what_a_network_knows(toy_system):
    system = toy_system("ve")
    ask = lambda **fields: system.condition(
        dataclasses.replace(system.request, **fields), np.arange(2)
    )
    with pytest.raises(UserError, match="knows noise levels from 0.02 to 100"):
        ask(sigma_min=0.001, sigma_max=0.01)
    with pytest.raises(UserError, match="--grid 'vpp'"):
        ask(grid="vpp")
    with pytest.raises(UserError, match="2000 steps, but only"):
        ask(grid="iddpm", steps=2000)
    with pytest.raises(UserError, match="no levels that decrease"):
        ask(grid="vp", sigma_min=0.5, sigma_max=1.0)
