"""Averages from stored averages, where the answer is known in closed form."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import sample
import train
from diffjax import convert, systems
from diffjax.core import ema
from diffjax.run import cli, sampling, update
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints
from diffjax.run.system import save_assets
from diffjax.weights import trees

STEPS, EVERY = 240, 40
STORED = {"short": 0.05, "long": 0.10}


def moved(share):
    """The factor by which every weight has moved after that share of the training."""
    return 1 + 0.5 * np.asarray(share) ** 1.5


def averaged(std, n):
    """The power average of `moved` after n of STEPS steps.

    The products of betas telescope: step k of n has the weight (k^(g+1) - (k-1)^(g+1))/n^(g+1).
    """
    g, k = float(ema.std_to_exponent(std)), np.arange(1, n + 1, dtype=np.float64)
    return np.sum((k ** (g + 1) - (k - 1) ** (g + 1)) / n ** (g + 1) * moved(k / STEPS))


def test_the_rule_makes_that_average(make_config):
    config = make_config().copy_and_resolve_references()
    config.unlock()
    config.ema = {"power": {"kind": "power", "relative_std": 0.1}}
    rule = jax.jit(update.ema_rule("power", config.ema.power, config.batch_size))
    average = 7.0  # forgotten at the first update
    for n in range(40):
        average += float(rule(n)) * (moved((n + 1) / STEPS) - average)
    assert average == pytest.approx(averaged(0.1, 40), rel=1e-6)


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory):
    """A run whose weights moved as `moved` says, with two averages every 40 steps."""
    run = tmp_path_factory.mktemp("posthoc") / "run"
    config = make_config().copy_and_resolve_references()
    config.unlock()
    config.ema = {name: {"kind": "power", "relative_std": std} for name, std in STORED.items()} | {
        "plain": {"kind": "constant", "decay": 0.9}
    }
    system = systems.make(config)
    params = system.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.1, params)
    times = lambda factor: jax.tree.map(lambda a: jnp.asarray(a * factor), params)
    save_assets(system.assets, run)
    (run / "config.json").write_text(cli.config_json(config))
    checkpoints = Checkpoints(run, keep=1, keep_every=EVERY)
    tx = update.make_optimizer(config.optimizer)
    for step in range(EVERY, STEPS + 1, EVERY):
        emas = {name: times(averaged(std, step)) for name, std in STORED.items()}
        emas["plain"] = times(-1.0)
        number = jnp.int32(step)
        state = update.State(number, times(moved(step / STEPS)), emas, tx.init(params), number)
        meta = {"elapsed": 0.0, "fingerprint": "", "ema": sorted(config.ema)}
        checkpoints.save(state, meta)
    checkpoints.close()
    return run, system, trees.flatten(params)


def factor(run, ema, step=-1):
    """By how much the weights that `ema` names are those of the start, and what is said of them."""
    path, system, first = run
    mesh = meshes.make_mesh(meshes.LOCAL)
    params, said = sampling.load_params(system, path, mesh, ema=ema, step=step)
    ratios = [np.asarray(a) / first[name] for name, a in trees.flatten(params).items()]
    ratios = np.concatenate([r.ravel() for r in ratios])
    assert np.ptp(ratios) < 1e-4 * abs(ratios.mean())
    return ratios.mean(), said


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("std, step", [slow(0.06, -1), (0.08, -1), slow(0.2, -1), slow(0.08, 160)])
def test_other_widths(run, std, step):
    """Widths that were never tracked, of an average that is known."""
    got, said = factor(run, f"posthoc:{std}", step)
    last = STEPS if step < 0 else step
    wanted = averaged(std, last)
    nearest = min(abs(averaged(tracked, last) - wanted) for tracked in STORED.values())
    assert abs(got - wanted) < nearest / 10
    assert f"EMA posthoc:{std} ({2 * last // EVERY} stored averages" in said


@pytest.mark.parametrize("name", STORED)
def test_a_width_that_was_tracked_is_itself(run, name):
    got, said = factor(run, f"posthoc:{STORED[name]}")
    assert got == pytest.approx(averaged(STORED[name], STEPS), rel=1e-5)
    assert "profile off by 0.00%" in said


def test_the_error_is_of_the_profile():
    """By its integral, on a fine grid of times."""
    seen, std = [100.0, 100.0, 250.0, 400.0], [0.05, 0.1, 0.05, 0.1]
    weights = ema.posthoc(seen, std, 400.0, [0.08, 0.15])
    t = (np.arange(400_000) + 0.5) / 1000
    shape = lambda end, s: np.where(
        t < end, (ema.std_to_exponent(s) + 1) / end * (t / end) ** ema.std_to_exponent(s), 0
    )
    made = sum(w[:, None] * shape(*a) for w, a in zip(weights, zip(seen, std)))
    wanted = np.stack([shape(400.0, s) for s in (0.08, 0.15)])
    off = np.sqrt(((made - wanted) ** 2).sum(1) / (wanted**2).sum(1))
    got = ema.posthoc_error(weights, seen, std, 400.0, [0.08, 0.15])
    np.testing.assert_allclose(got, off, rtol=1e-3)
    assert np.all(got > 0.01)


@pytest.mark.slow
def test_sampled_by_the_command(run, tmp_path, capsys):
    def drawn(which):
        argv = ["--workdir", str(run[0]), "--num", "4", "--steps", "2", "--ema", which]
        assert sample.main([*argv, "--out", str(tmp_path / "a.npz")]) == 0
        with np.load(tmp_path / "a.npz") as arrays:
            return arrays["image"].astype(int)

    same = np.abs(drawn("posthoc:0.1") - drawn("long"))
    assert same.max() <= 1
    assert "EMA posthoc:0.1 (12 stored averages" in capsys.readouterr().out


def test_written_by_the_command(run, tmp_path, capsys):
    """The average of a known movement of the weights, in a file for elsewhere."""
    out = tmp_path / "a.safetensors"
    argv = [str(run[0]), "--out", str(out), "--ema", "posthoc:0.08", "--step", "200"]
    assert convert.main(argv) == 0
    assert "step 200, EMA posthoc:0.08 (10 stored averages" in capsys.readouterr().out
    found, wanted = load_file(out), averaged(0.08, 200)
    assert sorted(found) == sorted(name.replace("/", ".") for name in run[2])
    for name, first in run[2].items():
        np.testing.assert_allclose(found[name.replace("/", ".")], wanted * first, rtol=2e-3)
    away = min(abs(averaged(tracked, 200) / wanted - 1) for tracked in STORED.values())
    assert away > 5e-3  # neither of the stored ones is within that


def refused(capsys, *argv) -> str:
    assert sample.main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_refusals(run, trained, tmp_path, capsys):
    ask = lambda path, ema, *more: refused(capsys, "--workdir", path, "--ema", ema, *more)
    assert "write posthoc:STD with a relative width" in ask(run[0], "posthoc:wide")
    for width in "0.3", "0", "1e-300":
        said = ask(run[0], f"posthoc:{width}")
        assert "at least 0.0001 and below 0.2887, as posthoc:0.08" in said
    assert "below 0.2887" in ask(run[0], "posthoc:nan")
    assert "no checkpoint of step 7" in ask(run[0], "posthoc:0.1", "--step", 7)
    assert "no average of kind power in config.ema" in ask(trained, "posthoc:0.1")
    one = tmp_path / "one"
    config = json.loads((run[0] / "config.json").read_text())
    del config["ema"]["long"]
    one.mkdir()
    (one / "config.json").write_text(json.dumps(config))
    (one / "assets").symlink_to(run[0] / "assets")
    (one / "checkpoints").mkdir()
    (one / "checkpoints" / "40").symlink_to(run[0] / "checkpoints" / "40")
    said = ask(one, "posthoc:0.1")
    assert "holds 1 stored average(s) up to step 40, and at least 2 are needed" in said
    assert "config.keep_every" in said


@pytest.mark.slow
def test_a_training_run_keeps_what_is_needed(tiny_config, root, tmp_path, capsys):
    """From train.py's config to a width that it never tracked."""
    file = tmp_path / "mine.py"
    tiny = root / "configs" / "edm_tiny.py"
    file.write_text(
        "from diffjax.run.cli import load_config\n"
        "def get_config():\n"
        f"    config = load_config({str(tiny)!r})\n"
        "    config.ema = {n: {'kind': 'power', 'relative_std': s} for n, s in"
        " (('a', 0.05), ('b', 0.1))}\n"
        "    return config\n"
    )
    flags = ["--config", str(file), *tiny_config[2:], "--workdir", str(tmp_path / "run")]
    assert train.main([*flags, "--config.keep=1", "--config.keep_every=3"]) == 0
    argv = ["--workdir", str(tmp_path / "run"), "--num", "2", "--ema", "posthoc:0.12"]
    assert sample.main([*argv, "--out", str(tmp_path / "a.npz")]) == 0
    assert "step 6, EMA posthoc:0.12 (4 stored averages" in capsys.readouterr().out
    assert train.main([*flags, "--config.ema.a.relative_std=0.5"]) == 2
    assert "config.ema.a: ema: relative std 0.5: must be at least" in capsys.readouterr().err
