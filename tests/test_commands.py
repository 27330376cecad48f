"""The commands from end to end: the same seed twice, scores as one line, the tiny config."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import sample
import train
from diffjax import evaluate, systems
from diffjax.run import feed, update
from diffjax.run import mesh as meshes
from diffjax.run.logs import read_metrics


def test_another_seed_is_another_run(make_config):
    # That the same seed is the same run to the last bit: tests/run/test_resume.py, which compares
    # two runs, one of them also stopped and started.
    found = {}
    for seed in 0, 0, 1:
        config = make_config(f"seed={seed}")
        system, mesh = systems.make(config), meshes.make_mesh(config.mesh)
        state = update.init_state(system, config, update.state_shapes(system, config, mesh)[1])
        batches = feed.make_feed(system, config, mesh)
        key = jax.random.fold_in(jax.random.key(seed), update.DATA)
        images = jax.jit(batches.take)(next(batches.start(0)), key, 0)["image"]
        kernel = np.asarray(state.params["conv_in"]["kernel"])
        now = kernel.tobytes(), np.asarray(images).tobytes()
        assert found.setdefault(seed, now) == now
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_run_directory_holds_what_it_should(trained):
    names = {p.name for p in trained.iterdir()}
    assert names >= {
        "config.json", "log.jsonl", "metrics.jsonl", "checkpoints", "assets", "samples",
        "samples.png", "loss.png", "weights.safetensors",
    }  # fmt: skip
    assert not [p for p in trained.rglob("*") if p.name.endswith((".tmp", ".part"))]
    record = read_metrics(trained)[0]
    assert record.keys() >= {"step", "time", "loss", "grad_norm", "learning_rate"}
    assert record.keys() >= {"images_per_second"}


def test_evaluate_prints_one_line(trained, capsys):
    argv = ["--workdir", str(trained), "--net", "pixels", "--num", "20", "--metrics", "fd,kid"]
    assert evaluate.main([*argv, "--batch", "16"]) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 1
    found = json.loads(first)
    assert found["feature_net"] == "pixels" and found["weights"] == "step 6, EMA ema"
    assert (found["num_fake"], found["num_real"], found["floor_num"]) == (20, 40, 20)
    assert found["request"]["steps"] == 4 and found["ref"] == "tiny.npz"
    assert found["scores"].keys() == {"fd", "kid"}
    for score in found["scores"].values():
        assert score["value"] > score["floor"]  # six steps of training are no match for the data
    # The samples do not depend on the batch, nor do their scores.
    assert evaluate.main([*argv, "--batch", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == found["scores"]


def test_evaluating_the_data_against_themselves(trained, tiny_arrays, tmp_path, monkeypatch):
    # Were the samples the data themselves, their distance would be 0: what is compared is right.
    from diffjax.run import sampling

    seen = {}

    def perfect(system, params, request, *, num, condition, **_):
        order = np.random.default_rng(0).permutation(40)
        labels = np.asarray(condition(np.arange(num)))
        seen["labels"] = labels
        return {"image": tiny_arrays["images"][order[:num]], "label": labels}

    monkeypatch.setattr(sampling, "collect", perfect)
    printed = []
    monkeypatch.setattr("builtins.print", lambda line, **_: printed.append(line))
    argv = ["--workdir", str(trained), "--net", "pixels", "--num", "40", "--metrics", "fd"]
    assert evaluate.main(argv) == 0
    assert abs(json.loads(printed[0])["scores"]["fd"]["value"]) < 1e-3
    np.testing.assert_array_equal(np.sort(seen["labels"]), np.sort(tiny_arrays["labels"]))


def test_help_lists_the_systems_flags(trained, capsys):
    with pytest.raises(SystemExit) as left:
        sample.main(["--workdir", str(trained), "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for flag in "--num", "--guidance", "--sampler", "--cond", "--churn", "--ema":
        assert flag in text
    with pytest.raises(SystemExit) as left:
        train.main(["--help"])
    assert left.value.code == 0
    assert "--config" in capsys.readouterr().out


def on_one_device(root, *words, cwd):
    """Runs a command as on a machine with one CPU device, with XLA's usual optimisations."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("last", [4, 400])
def test_steps_are_profiled(tmp_path, tiny_config, last):
    # Also where the run ends before the last step to record.
    argv = [*tiny_config, "--profile_steps", f"2:{last}", "--workdir", str(tmp_path / "run")]
    assert train.main(argv) == 0
    assert [p for p in (tmp_path / "run" / "profile").rglob("*.xplane.pb") if p.stat().st_size]


@pytest.mark.slow
def test_default_config_counts_its_parameters(root, tmp_path):
    done = on_one_device(root, root / "train.py", "--dry_run", "--deterministic", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^parameters  1,009,292$", done.stdout, re.M)
    assert re.search(r"^batch       32 .* 2400 steps$", done.stdout, re.M)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tiny_config_trains_samples_and_is_scored(root, tmp_path):
    config = root / "configs" / "edm_tiny.py"
    done = on_one_device(root, root / "train.py", "--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # No terminal: lines, not a bar.
    lines = done.stderr.splitlines()
    assert lines[0].startswith("runs/edm_tiny: from step 0 of 20")
    assert lines[-1].startswith("runs/edm_tiny: done, step 20") and "\r" not in done.stderr
    assert (tmp_path / "runs" / "edm_tiny" / "samples.png").is_file()
    flags = ["--workdir", "runs/edm_tiny", "--num"]
    done = on_one_device(root, root / "sample.py", *flags, "16", "--out", "o.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "o.npz") as arrays:
        assert arrays["image"].shape == (16, 24, 24, 3)
    done = on_one_device(root, "-m", "diffjax.evaluate", *flags, "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert scores.keys() == {"fd", "kid", "precision", "recall", "accuracy"}
    assert all(score["floor"] is not None for score in scores.values())
