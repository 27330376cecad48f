"""APT by its commands: three runs of one, kills, devices, scores, an alarm, mistakes."""

import json
import re
import shutil
import signal

import apt_runs
import jax
import numpy as np
import pytest
from PIL import Image

import sample
import train
from diffjax import evaluate, systems
from diffjax.run import mesh as meshes
from diffjax.run import sampling, update
from diffjax.run.feed import make_feed
from diffjax.run.logs import read_metrics
from diffjax.systems.apt import adversary


@pytest.fixture(scope="module")
def post_trained(trained, tmp_path_factory):
    """Stages B and C of the tiny run, never interrupted, and the words that made them."""
    workdir = tmp_path_factory.mktemp("apt") / "whole"
    argv = apt_runs.words(trained)
    assert train.main([*argv, "--workdir", str(workdir)]) == 0
    return workdir, argv


def events(workdir) -> list[tuple]:
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [(record["event"], record["step"]) for record in map(json.loads, lines)]


@pytest.mark.slow
def test_what_a_run_leaves(post_trained):
    workdir, _ = post_trained
    for name in ("samples.png", "base.png", "loss.png", "weights.safetensors"):
        assert (workdir / name).stat().st_size > 0
    records = read_metrics(workdir)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    # D knows nothing before its first step, and G's loss is taken after it.
    assert records[0]["d_adversarial"] == pytest.approx(2 * np.log(2), abs=1e-6)
    assert records[0]["logit_real"] == 0
    for name in ("loss_d", "loss_g", "logit_real", "logit_fake", "grad_norm_g"):
        assert len({r[name] for r in records}) > 3, name
    assert [r["step"] for r in read_metrics(workdir / "distilled")] == [1, 2, 3, 4]
    assert Image.open(workdir / "base.png").size == Image.open(workdir / "samples.png").size


@pytest.mark.slow
def test_killed_in_each_stage(post_trained, tmp_path, stopped_at, read_state, same_bits):
    whole, argv = post_trained
    argv = [*argv, "--workdir", str(tmp_path / "pieces")]
    with stopped_at(2, signal.SIGTERM):  # of the distillation
        assert train.main(argv) == 143
    assert not (tmp_path / "pieces" / "checkpoints").exists()
    with stopped_at(2, signal.SIGINT):  # the distillation is beyond that: of the adversaries
        assert train.main(argv) == 130
    assert train.main(argv) == 0
    pieces = tmp_path / "pieces"
    assert events(pieces / "distilled")[:2] == [("start", 0), ("checkpoint", 0)]
    assert "resume" in {event for event, _ in events(pieces)}
    same_bits(read_state(pieces / "distilled"), read_state(whole / "distilled"))
    state = read_state(whole)
    assert {name.split("/")[1] for name in state if name.startswith("opt_state/")} == {"g", "d"}
    same_bits(read_state(pieces), state)
    assert (pieces / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


@pytest.mark.slow
def test_a_distilled_run_is_a_base(post_trained, tmp_path, read_state, same_bits):
    # Its own base is found by its config; the last stage is then the same run.
    whole, _ = post_trained
    argv = [*apt_runs.words(whole / "distilled"), "--workdir", str(tmp_path / "c")]
    assert train.main(argv) == 0
    assert not (tmp_path / "c" / "distilled").exists()
    same_bits(read_state(tmp_path / "c"), read_state(whole))


@pytest.mark.slow
def test_samples_and_scores(post_trained, tiny_data, tmp_path, capsys):
    workdir, _ = post_trained
    pictures = {}
    for name, words in {
        "one": [],
        "again": ["--batch", "3"],
        "two": ["--steps", "2"],
        "ode": ["--steps", "2", "--mode", "ode"],
        "raw": ["--ema", "none"],
        "red": ["--cond", "red"],
    }.items():
        out = tmp_path / f"{name}.npz"
        words = ["--workdir", str(workdir), "--num", "6", "--out", str(out), *words]
        assert sample.main(words) == 0
        pictures[name] = np.load(out)["image"].astype(int)
    assert np.abs(pictures["one"] - pictures["again"]).max() <= 1
    for name in ("two", "ode", "raw"):
        assert np.abs(pictures[name] - pictures["one"]).max() > 1, name
    assert not np.load(tmp_path / "red.npz")["label"].any()
    capsys.readouterr()
    words = ["--workdir", str(workdir), "--num", "32", "--net", "pixels", "--metrics", "kid"]
    assert evaluate.main([*words, "--no_cache"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["request"]["steps"] == 1 and np.isfinite(found["scores"]["kid"]["value"])


@pytest.mark.slow
def test_a_run_is_sampled_without_its_base(post_trained, tmp_path):
    whole, _ = post_trained
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "assets", "weights.safetensors"):
        (shutil.copytree if name == "assets" else shutil.copy)(whole / name, moved / name)
    out = tmp_path / "out.npz"
    assert sample.main(["--workdir", str(moved), "--num", "4", "--out", str(out)]) == 0
    assert np.load(out)["image"].shape == (4, 8, 8, 3)


@pytest.mark.slow
def test_one_device_equals_eight(trained, mesh_of):
    config = apt_runs.of(trained, batch_size=16, optimizer__eps=1e-2)
    system = systems.make(config)
    found = []
    for sizes in {"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}:
        mesh = mesh_of(**sizes)
        _, shardings = update.state_shapes(system, config, mesh)
        state = update.init_state(system, config, shardings, system.begin(mesh)[0])
        state = jax.device_put(state, shardings)
        feed = make_feed(system, config, mesh)
        step = jax.jit(update.step_function(system, config, feed, mesh), donate_argnums=0)
        data, seen = feed.start(0), []
        for i in range(3):
            share = jax.device_put(np.float32(i / 3), meshes.replicated(mesh))
            fed = next(data)
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, fed, share)
            seen.append(metrics)
        found.append(jax.device_get((state.params, state.ema, seen)))
    pieces = state.params["d"]["readout"]["heads_0"]["q"]["kernel"].addressable_shards
    assert {s.data.shape for s in pieces} == {(4, 4)}  # of (8, 8)
    (one, ema, seen), (eight, other, again) = found
    for a, b in zip(seen, again, strict=True):
        for name in ("d_adversarial", "loss_g", "logit_real"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves((one, ema)), jax.tree.leaves((eight, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_collapse_ends_the_run(post_trained, tmp_path, monkeypatch, capsys):
    whole, _ = post_trained
    told = []

    def lost(records, below):
        told.append((len(records), below))
        return (3, "D has won") if records[-1]["step"] == 5 else None

    monkeypatch.setattr(adversary, "collapsed", lost)
    argv = [*apt_runs.words(whole / "distilled"), "--workdir", str(tmp_path / "lost")]
    assert train.main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "lost: D has won; the last good checkpoint is step 3" in line
    assert told == [(i, 0.1) for i in range(1, 6)]
    assert ("alarm", 3) in events(tmp_path / "lost") and (tmp_path / "lost/loss.png").exists()
    assert sampling.WEIGHTS not in {p.name for p in (tmp_path / "lost").iterdir()}


MISTAKES = {
    "stage": ({"stage": "third"}, "unknown config.stage 'third'"),
    "base": ({"base": "nowhere"}, "no run directory nowhere"),
    "family": ({"adversarial__family": "hinge"}, "config.adversarial.family|adversarial loss"),
    "mode": ({"adversarial__r1_mode": "exat"}, "adversarial.r1_mode 'exat' .did you mean 'exact'"),
    "taps": ({"adversarial__taps": "(9,)", "adversarial__g_from": "diffusion"}, "has 4 blocks"),
    "clip": ({"optimizer__clip": 1.0}, "config.optimizer.clip 1.0: this stage takes RMSProp"),
    "weight": ({"adversarial__r1_weight": -1.0}, "config.adversarial.r1_weight -1.0"),
    "solver": ({"distillation__solver": "rk4"}, "distillation.solver 'rk4'"),
    "target": ({"distillation__target": "eam"}, "distillation.target.* 'eam' .did you mean 'ema'"),
    "guidance": ({"distillation__guidance": -2.0}, "config.distillation.guidance -2.0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(trained, tmp_path, capsys, name):
    given, wanted = MISTAKES[name]
    given = {"base": trained, **given}
    argv = [*apt_runs.words(given.pop("base"), **given), "--workdir", str(tmp_path / "new")]
    assert train.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ") and re.search(wanted, line), line


@pytest.mark.slow
def test_more_mistakes(post_trained, trained, tmp_path, capsys):
    whole, argv = post_trained
    refused = lambda *words: (train.main([*words]), capsys.readouterr().err.splitlines()[-1])
    new = ["--workdir", str(tmp_path / "new")]
    status, line = refused(*argv, *new, "--init_from", str(trained))
    assert status == 2 and "--init_from: of one run, and this command trains 2" in line
    status, line = refused(*apt_runs.words(whole / "distilled"), *new, "--init_from", str(trained))
    assert status == 2 and "--init_from: this run starts from the runs" in line
    status, line = refused(*apt_runs.words(whole / "distilled", stage="distil"), *new)
    assert status == 2 and "is distilled already" in line
    status, line = refused(
        *apt_runs.words(trained, adversarial__shift=2.0), "--workdir", str(whole)
    )
    assert status == 2 and "adversarial.shift 1.0 -> 2.0" in line
    for flag, value in ("--steps", "0"), ("--mode", "odd"), ("--shift", "0"):
        assert sample.main(["--workdir", str(whole), flag, value]) == 2
        assert flag in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_that_went_on_is_refused(trained, tmp_path, stopped_at, capsys):
    # Half distilled by one teacher and half by another would be neither.
    base = tmp_path / "base"
    shutil.copytree(trained, base)
    argv = [*apt_runs.words(base, stage="distil"), "--workdir", str(tmp_path / "b")]
    # Not finished: where a run is done, its teacher no longer matters.
    with stopped_at(2, signal.SIGTERM):
        assert train.main(argv) == 143
    newest = max(int(p.name) for p in (base / "checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(base / "checkpoints" / str(newest))
    capsys.readouterr()
    assert train.main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"step {newest}, EMA ema" in line and "now there is" in line


@pytest.mark.slow
def test_dry_run_counts_both_networks(post_trained, capsys):
    whole, _ = post_trained
    assert train.main([*apt_runs.words(whole / "distilled"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "d/readout/heads_0/query" in out and "g/conv_in/kernel" in out
