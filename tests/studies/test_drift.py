"""The study of drift: closed forms of its measures, and a tiny world from end to end."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from diffjax.core import denoisers
from diffjax.errors import UserError
from diffjax.studies import arms, drift, drift_measures, drift_report
from diffjax.systems.diamond import imagination, sampling
from diffjax.systems.diamond.denoiser import Denoiser
from diffjax.systems.diamond.request import Request
from diffjax.systems.diamond.sampling import Sampler

# ---- DIA-4: the world y = a p + sqrt(v) w, whose exact denoiser is known -------------------------

A, V, TOP = 0.95, 0.04, 5.0
KAPPA = np.sqrt(V / (V + TOP**2))
STATIONARY = {
    "unit": KAPPA**2 / (1 - A**2 * (1 - KAPPA) ** 2),
    "sigma_max": (KAPPA * TOP) ** 2 / (1 - A**2 * (1 - KAPPA) ** 2),
    "prev_plus_sigma_max": (KAPPA * TOP) ** 2 / (1 - (A + KAPPA * (1 - A)) ** 2),
}


@pytest.mark.parametrize("start", STATIONARY)
def test_an_exact_denoiser_s_worlds_have_the_variances_of_the_closed_form(start):
    sampler = Sampler(steps=40, order=2, sigma_min=1e-3, sigma_max=TOP, start=start)
    denoise = lambda x, sigma, past, _: (V * x + sigma**2 * A * past) / (V + sigma**2)

    def step(past, key):
        z = jax.random.normal(key, past.shape)
        made = sampling.next_frame(sampler, denoise, z, past)
        return made, made[:, 0, 0, 0]

    def world(key):
        keys = jax.random.split(key, 400)
        return jax.lax.scan(step, jnp.zeros((1000, 1, 1, 1)), keys)[1]

    seen = np.asarray(jax.jit(world)(jax.random.key(0)), np.float64)[
        200:
    ]  # 200 to forget the start
    assert seen.size >= 200_000
    assert seen.var() == pytest.approx(STATIONARY[start], rel=0.03)
    assert STATIONARY["unit"] == pytest.approx(0.0095, rel=0.01)  # far from the world's own 0.410
    assert pytest.approx(0.410, rel=0.001) == V / (1 - A**2)


# ---- measures ------------------------------------------------------------------------------------


def test_a_number_is_a_start_of_so_much_noise():
    z, past = jnp.ones((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 0.5)
    assert sampling.start_of("2.5")(z, 5.0, past).item() == 2.5
    assert sampling.start_of("prev_plus_sigma_max")(z, 5.0, past).item() == 5.5
    with pytest.raises(UserError, match="--start -1: a scale"):
        sampling.start_of("-1", "--start")


def test_curves_and_slopes():
    real = np.zeros((2, 9, 2, 2, 3), np.float32)
    made = real + np.arange(1, 10, dtype=np.float32)[:, None, None, None] / 10
    made[:, 8] = 0.99
    found = drift_measures.curves(jnp.asarray(made), jnp.asarray(real))
    np.testing.assert_allclose(found.error[0, :8], (np.arange(1, 9) / 10) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.bias[1, :8], np.arange(1, 9) / 10, rtol=1e-5)
    assert found.full[:, 8].tolist() == [1, 1] and found.full[:, :8].max() == 0
    line = 3.0 * np.arange(1, 21) + 5
    line[:4] = 100  # offsets before the fifth do not count
    assert drift_measures.slope(line) == pytest.approx(3.0)
    assert drift_measures.doubled(np.array([1.0, 1.5, 2.0, 2.1, 1.0])) == 4
    assert drift_measures.doubled(np.ones(7)) == 8


def test_frechet_distances_of_shifted_features():
    random = np.random.default_rng(0)
    real = random.normal(size=(50, 6, 3))
    away = np.arange(6)[None, :, None] * np.array([1.0, 0, 0])
    curve = drift_measures.frechet_curve(real + away, real)
    np.testing.assert_allclose(curve, np.arange(6.0) ** 2, atol=1e-6)
    flat = np.concatenate([random.normal(size=(200, 2)) * [5, 1], np.zeros((200, 1))], 1)
    project = drift_measures.principal(flat, 1)
    assert np.abs(project(np.array([[10.0, 0, 7]]) + flat.mean(0))).item() == pytest.approx(
        10, 0.01
    )


def test_the_share_of_contexts_is_an_analysis_of_variance():
    random = np.random.default_rng(0)
    context, noise = random.normal(size=(400, 1, 30)), random.normal(size=(1, 300, 30))
    share = drift_measures.context_share(2 * context + noise)
    assert share == pytest.approx(4 / 5, abs=0.02)
    assert drift_measures.context_share(np.broadcast_to(noise, (4, 300, 30))) == 0
    assert drift_measures.variety(2 * context + 3 * noise) == pytest.approx(9, rel=0.05)


class Linear:
    """A network F = a x + b (the mean of the past frames), of inputs that are scaled already."""

    def apply(self, variables, x, past, noise, act, told):
        a, b = variables["params"]
        return a * x + b * past.reshape(*past.shape[:3], -1, x.shape[-1]).mean(3)


def test_leanings_of_a_linear_network():
    denoiser, sigma, (a, b) = Denoiser(Linear(), quantiser="none"), 2.0, (0.7, -1.3)
    c = denoisers.edm_coefficients(0.5)(np.sqrt(sigma**2 + 0.3**2))
    of_x = abs(c.skip + c.out * a * c.input)
    of_past = abs(c.out * b / 0.5) / np.sqrt(4)  # the mean of four
    random = np.random.default_rng(0)
    frames = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    found = drift_measures.leanings(
        denoiser, (a, b), frames(2, 16, 16, 3), frames(2, 4, 16, 16, 3), jnp.zeros((2, 4), int),
        jnp.float32(sigma), jax.random.key(0), probes=32,
    )  # fmt: skip
    np.testing.assert_allclose(found, of_past / of_x, rtol=0.02)


def test_decisions_are_those_of_the_sampler():
    # D = skip x + out (a c_in x + b mean past): what the first step is shown and answers is known.
    denoiser = Denoiser(Linear(), quantiser="floor")
    sampler, params = Sampler(steps=2, start="sigma_max"), (0.1, 0.2)
    random = np.random.default_rng(0)
    past = jnp.asarray(random.uniform(-1, 1, (3, 4, 8, 8, 3)), jnp.float32)
    keys = drift.keys_of(0, np.arange(5))
    found = drift_measures.decisions(denoiser, sampler, params, past, jnp.zeros((3, 4), int), keys)
    assert found.x.shape == found.estimates.shape == (2, 3, 5, 8, 8, 3)
    np.testing.assert_array_equal(found.x[0, 0], found.x[0, 2])  # the same noises for all contexts
    want = 5 * imagination.draw(keys, (8, 8, 3)).start
    np.testing.assert_allclose(found.x[0, 1], want, rtol=1e-6)
    c = denoiser.coefficients(jnp.float32([5.0]))
    want = c.skip * found.x[0] + c.out * (
        0.1 * c.input * found.x[0] + 0.2 * past.mean(1)[:, None] / 0.5
    )
    np.testing.assert_allclose(found.estimates[0], want, atol=1e-5)
    # The last estimate, quantised, is the frame.
    np.testing.assert_allclose(denoiser.quantise(found.estimates[1]), found.frames, atol=1e-6)


# ---- what is compared ----------------------------------------------------------------------------


def rolled(error, features, reward=None):
    error = np.asarray(error, np.float32)
    reward = np.ones(error.shape, int) if reward is None else reward
    zero = np.zeros_like(error)
    return drift.Rolled(drift_measures.Curves(error, zero, zero), features, reward, None)


def test_arms_are_compared_in_pairs():
    random = np.random.default_rng(0)
    # A hundred starts of very different difficulty; the second arm is 1 % worse on each.
    hard = np.exp(random.normal(size=(100, 1))) * np.linspace(0.1, 1, 60)
    features = random.normal(size=(100, 60, 4))
    decided = {
        "frames": random.normal(size=(8, 4, 2, 2, 1)),
        "estimates": random.normal(size=(2, 8, 4, 2, 2, 1)),
        "leanings": np.ones((2, 8)),
    }
    more = {**decided, "frames": 3 * decided["frames"]}
    measured = {
        "a": {"rolled": [rolled(hard, features)], "decided": [decided]},
        "b": {"rolled": [rolled(1.01 * hard, features + 1)], "decided": [more]},
    }
    found = drift_report.compare({}, measured, rolled(0 * hard, features), 0.1)
    one, other = found["arms"]
    assert one["scores"]["auc"]["value"] == pytest.approx(hard[:, :50].mean(), rel=1e-6)
    assert other["less_first"]["auc"]["value"] == pytest.approx(
        0.01 * hard[:, :50].mean(), rel=1e-4
    )
    assert other["less_first"]["auc"]["low"] > 0  # which an unpaired comparison could not see
    low, high = (other["scores"]["auc"][k] - one["scores"]["auc"]["value"] for k in ("low", "high"))
    assert low < 0 < high
    assert other["no_worse"]["auc"]["verdict"] == "holds"
    assert other["no_worse"]["end"]["verdict"] == "does not hold"
    assert other["less_first"]["ln_variety"]["value"] == pytest.approx(2 * np.log(3))
    assert other["at"]["10"]["frechet"] == pytest.approx(4.0) and one["at"]["10"]["frechet"] < 1e-6
    psnr = 10 * np.log10(4 / hard[:, 49].mean())
    assert one["at"]["50"]["psnr"] == pytest.approx(psnr, rel=1e-4)
    assert set(one["at"]) == {"1", "10", "50"}


def test_the_numbers_of_an_arm():
    """60 offsets, of which the first 50 count: at offset k features are off by sqrt(3 k)."""
    random, k = np.random.default_rng(0), np.arange(1, 61)
    off = np.where(k <= 50, np.sqrt(3 * k), 1000.0)[None, :, None]
    features = np.repeat(random.normal(size=(40, 1, 1)), 60, 1)
    error = np.where(k <= 50, 0.25, 9.0) * np.ones((40, 1))
    # At offset 50 half of the frames are 0.3 too bright and half 0.1 too dark; elsewhere none.
    bias = np.where(k == 50, 1.0, 0.0) * np.where(np.arange(40) % 2, 0.3, -0.1)[:, None]
    paid = np.where(np.arange(40)[:, None] % 4 == 0, 2, np.ones((1, 60), int))
    one = rolled(error, features + off, paid)
    one = one._replace(curves=one.curves._replace(bias=np.asarray(bias, np.float32)))
    decided = {
        "frames": random.normal(size=(8, 4, 1, 1, 1)),
        "estimates": random.normal(size=(2, 8, 4, 1, 1, 1)),
        "leanings": np.array([8 * [2.0], 4 * [3.0] + 4 * [5.0]]),
    }
    found = drift_report.compare(
        {}, {"": {"rolled": [one], "decided": [decided]}}, rolled(0 * error, features), 0.1
    )
    (arm,) = found["arms"]
    value = {name: score["value"] for name, score in arm["scores"].items()}
    assert value["auc"] == pytest.approx(0.25)
    assert value["slope"] == pytest.approx(3.0) and value["end"] == pytest.approx(150.0)
    assert value["bias"] == pytest.approx(0.1)
    assert (value["lean_0"], value["lean_1"]) == (2.0, 4.0)
    assert arm["rewards"] == {"agreement": 0.75, "paid": 0.25, "paid_real": 0.0}
    assert arm["at"]["50"]["kid"] > 10 * abs(arm["at"]["1"]["kid"]) > 0
    # Two halves of 20 numbers: (2 + 1)/20 of their variance, of the mean and of the spread.
    assert found["floors"]["end"] == pytest.approx(0.15, rel=0.7)


def test_an_episode_may_be_just_as_long_as_is_wanted(tmp_path):
    for i in range(8):
        obs = np.full((14, 8, 8, 3), i, np.uint8)
        np.savez(tmp_path / f"{i}.npz", obs=obs, act=np.arange(14), rew=np.zeros(14))
    parts = SimpleNamespace(past=4, frame=(8, 8, 3), actions=14)
    found = drift.open_windows(str(tmp_path), SimpleNamespace(parts=parts), 10, 100)
    assert found["obs"][:, 13, 0, 0, 0].tolist() == list(range(8))
    assert found["act"][7].tolist() == list(range(14))
    with pytest.raises(UserError, match="fewer than 8 recorded"):
        drift.open_windows(str(tmp_path), SimpleNamespace(parts=parts), 11, 100)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(root, tmp_path_factory):
    """A run of seconds: the ball at 8 x 8 pixels."""
    workdir = tmp_path_factory.mktemp("drift") / "ball"
    unet = {"depths": "(1,)", "channels": "(8,)", "attention": "(False,)", "cond_channels": 8}
    fields = {
        "frame_size": 8, "learn": "world", "epochs": 1, "num_samples": 1, "sample_every": 9,
        **{f"collection.{k}": 200 for k in ("steps", "first_least", "first_most")},
        "evaluation.games": 2, "evaluation.final_games": 2, "evaluation.starts": 2,
        "evaluation.longest": 12, "evaluation.horizon": 4, "evaluation.seats": 2,
        **{f"{net}.{k}": v for net in ("denoiser", "reward_end") for k, v in unet.items()},
        "reward_end.lstm_dim": 8, "reward_end.segment": 6, "imagination.steps": 2,
        **{f"{net}.first_steps": 2 for net in ("denoiser", "reward_end")},
        **{f"{net}.batch_size": 8 for net in ("denoiser", "reward_end")},
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = root / "configs" / "diamond_tiny.py"
    assert train.main(["--config", str(config), "--workdir", str(workdir), *flags]) == 0
    return workdir


@pytest.mark.slow
def test_the_command(world, tmp_path, capsys):
    argv = ["--ref", str(world / "replay"), "--horizon", "10", "--starts", "9", "--batch", "4"]
    argv += ["--contexts", "3", "--noises", "2", "--long", "100", "--out", str(tmp_path / "d")]
    argv += ["--vary", "start=unit,sigma_max", "quantise=round"]
    assert drift.main(["--workdir", str(world), *argv]) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.gif", "d.json", "d.npz", "d.png"]
    names = ["start=unit quantise=round", "start=sigma_max quantise=round"]
    assert [row["arm"] for row in found["arms"]] == names
    assert found["starts"] == 9 and found["judge"] == "reward and end model of the first run"
    assert all(set(row["long"][0]) == {"100"} for row in found["arms"])
    with np.load(tmp_path / "d.npz") as arrays:
        error = arrays[f"{names[0]}/error"]
    assert error.shape == (1, 9, 10)
    assert found["arms"][0]["scores"]["auc"]["value"] == pytest.approx(error.mean(), rel=1e-5)
    # What is imagined does not depend on how many are at a time.
    again = [
        "--batch",
        "2",
        "--vary",
        "quantise=round",
        "--long",
        "0",
        "--out",
        str(tmp_path / "e"),
    ]
    assert drift.main(["--workdir", str(world), *argv, *again]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        np.testing.assert_allclose(arrays["quantise=round/error"], error, atol=1e-5)


@pytest.mark.slow
def test_windows_are_real_to_their_end(world):
    run = drift.open_run(world, SimpleNamespace(ema="", step=-1))
    found = drift.open_windows(str(world / "replay"), run, 5, 8)
    assert found["obs"].shape == (8, 9, 8, 8, 3) and found["act"].shape == (8, 9)
    still = (found["obs"][:, 1:] == found["obs"][:, :-1]).all((2, 3, 4))
    assert not still.all(1).any()
    real = drift.rolled(run, None, found, drift.open_judge("", run, None), SimpleNamespace(batch=5))
    assert real.curves.error.shape == (8, 5) and not real.curves.error.any()


@pytest.mark.slow
def test_refusals(world, capsys, trained):
    for words, message in (
        (["--horizon", "5000", "--ref", str(world / "replay")], "--horizon 5000: fewer than 8"),
        (["--vary", "start=unti"], "unknown --start 'unti'"),
        (["--horizon", "9"], "--horizon 9: at least 10"),
        (["--starts", "4"], "--starts 4: at least 8"),
        (["--ref", "nowhere"], "nowhere: no such folder of episodes"),
        (["--judge", "nowhere"], "no run directory nowhere"),
        (["--out", "no/where"], "--out no/where"),
        (["--steps", "0"], "--steps 0"),
        (["--contexts", "2"], "--contexts is at least 3 and --noises at least 2"),
        (["--noises", "1"], "--contexts is at least 3 and --noises at least 2"),
        (["--long", "50"], "--long 50: at least 100"),
        (["--seed", "-1"], "--seed -1"),
        (["--margin", "nan"], "--margin nan"),
    ):
        assert drift.main(["--workdir", str(world), *words]) == 2
        assert message in capsys.readouterr().err
    assert drift.main(["--workdir", str(trained)]) == 2
    assert "no run of the system diamond" in capsys.readouterr().err


def test_combinations():
    found = arms.combinations(Request(), ["steps=1,3", "start=unit,0.5"])
    assert found[0] == {"steps": 1, "start": "unit"} and len(found) == 4
    assert arms.title(found[3]) == "steps=3 start=0.5"
    assert arms.combinations(Request(), []) == [{}]
    for words, message in (
        (["strat=unit"], "did you mean 'start'"),
        (["steps=a"], "--vary steps=a: takes int"),
        (["horizon=3"], "has a flag of its own"),
        (["steps"], "write FIELD=VALUE"),
    ):
        with pytest.raises(UserError, match=message):
            arms.combinations(Request(), words, ("horizon",))
