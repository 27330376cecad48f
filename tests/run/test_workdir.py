"""What a run directory takes and refuses, and what is left when a run goes wrong."""

import fcntl
import json
import shutil
import signal
import struct

import jax
import numpy as np
import pytest

import train
from diffjax import systems
from diffjax.errors import UserError
from diffjax.run import loop, update
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints
from diffjax.run.logs import Logger, read_metrics
from diffjax.run.system import load_assets
from diffjax.weights import trees


def listing(folder) -> dict:
    """What every file in a folder holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_a_finished_run_says_so(copy, tiny_config, capsys):
    before = listing(copy)
    assert train.main([*tiny_config, "--workdir", str(copy)]) == 0
    assert "was finished already, step 6" in capsys.readouterr().err
    after = listing(copy)
    assert after.pop("log.jsonl").startswith(before.pop("log.jsonl"))
    changed = {k for k in before | after if before.get(k) != after.get(k)}
    assert not {k for k in changed if not k.startswith("tensorboard/")}


def test_a_stale_picture_is_drawn_again(copy, tiny_config):
    # Killed after the last checkpoint, before the last picture: an older one lies there.
    (copy / "samples" / "step_00000006.png").unlink()
    (copy / "weights.safetensors").unlink()
    newest = (copy / "samples.png").read_bytes()
    (copy / "samples.png").write_bytes(b"an older picture")
    assert train.main([*tiny_config, "--workdir", str(copy)]) == 0
    assert (copy / "samples.png").read_bytes() == newest
    assert trees.load(copy / "weights.safetensors")


def test_another_config_is_refused_with_its_fields(copy, tiny_config, capsys):
    before = listing(copy)
    flags = ["--config.batch_size=16", "--config.optimizer.b1=0.8", "--config.log_every=3"]
    assert train.main([*tiny_config, "--workdir", str(copy), *flags]) == 2
    error = capsys.readouterr().err
    assert "batch_size 8 -> 16" in error and "optimizer.b1 0.9 -> 0.8" in error
    assert "log_every" not in error
    assert listing(copy) == before


def test_a_run_from_before_a_field_is_that_of_its_default(copy, tiny_config, capsys):
    known = json.loads((copy / "config.json").read_text())
    for field in ("precond", "times", "stratified"):
        del known["diffusion"][field]
    del known["augment"], known["optimizer"]["warmup_from_zero"]
    (copy / "config.json").write_text(json.dumps(known))
    argv = [*tiny_config, "--workdir", str(copy)]
    assert train.main(argv) == 0
    assert "was finished already, step 6" in capsys.readouterr().err
    assert train.main([*argv, "--config.diffusion.precond=vp"]) == 2
    assert "diffusion.precond 'edm' -> 'vp'" in capsys.readouterr().err


def test_free_fields_may_change(copy, tiny_config):
    flags = ["--config.log_every=3", "--config.checkpoint_every=5", "--config.keep=7"]
    flags += ["--config.num_samples=4", "--config.sampling.steps=3", "--config.mesh.data=8"]
    assert train.main([*tiny_config, "--workdir", str(copy), *flags]) == 0


def test_other_data_are_refused(copy, tiny_config, tiny_arrays, capsys, tmp_path):
    # data.path may change, as data may lie elsewhere on another machine; what is there may not.
    same, other = tmp_path / "same.npz", tmp_path / "other.npz"
    np.savez(same, **tiny_arrays)
    np.savez(other, **{**tiny_arrays, "images": 255 - tiny_arrays["images"]})
    argv = [*tiny_config, "--workdir", str(copy)]
    assert train.main([*argv, f"--config.data.path={same}"]) == 0
    assert train.main([*argv, f"--config.data.path={other}"]) == 2
    assert "other data" in capsys.readouterr().err


def test_two_processes_do_not_share_a_workdir(copy, tiny_config, capsys):
    before = listing(copy)
    with (copy / ".lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert train.main([*tiny_config, "--workdir", str(copy)]) == 2
        assert "another process is training here" in capsys.readouterr().err
        assert listing(copy) == before
    assert train.main([*tiny_config, "--workdir", str(copy)]) == 0


def test_killed_while_the_workdir_was_made(tmp_path, trained, tiny_config):
    workdir = tmp_path / "half"
    (workdir / "assets").mkdir(parents=True)
    (workdir / ".lock").touch()
    (workdir / "assets" / "data.json").write_text('{"image_sha')
    (workdir / "config.json.tmp").write_text("{")
    assert train.main([*tiny_config, "--workdir", str(workdir)]) == 0
    made, wanted = listing(workdir), listing(trained)
    for name in ("assets/data.json", "config.json", "weights.safetensors"):
        assert made[name] == wanted[name]


def header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.npy", header("(1" + 13 * "0" + ",)")),  # 10 TB
        ("a.npy", header("(1" + 30 * "0" + ",)")),
        ("a.npy", header("(8,)")),
        ("a.npy", b"PK\x03\x04"),  # an archive, which np.load would open
        ("a.json", b"[" * 100_000),
        ("a.json", b"1" * 10_000),
    ],
)
def test_assets_that_no_memory_can_hold(tmp_path, name, content):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        load_assets(tmp_path)


def test_assets_that_were_lost_come_back(tmp_path, trained, tiny_config):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "assets")
    assert train.main([*tiny_config, "--workdir", str(copy)]) == 0
    assert listing(copy)["assets/data.json"] == listing(trained)["assets/data.json"]


def test_weights_without_checkpoints_are_not_trained_over(tmp_path, trained, tiny_config, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints")
    before = listing(copy)
    assert train.main([*tiny_config, "--workdir", str(copy)]) == 2
    assert "no checkpoint to go on from" in capsys.readouterr().err
    assert listing(copy) == before


@pytest.mark.slow
def test_time_may_end_a_run(tmp_path, tiny_config, capsys):
    # The budget is over after the first step; and stays over.
    argv = [*tiny_config, "--config.time_budget=0.001", "--workdir", str(tmp_path / "short")]
    assert train.main(argv) == 0
    assert "done, step 1." in capsys.readouterr().err
    assert [r["step"] for r in read_metrics(tmp_path / "short")] == [1]
    assert train.main(argv) == 0
    assert "was finished already, step 1." in capsys.readouterr().err


def test_nan_stops_the_run_with_what_is_good(tmp_path, tiny_config, capsys):
    workdir = tmp_path / "nan"
    flags = ["--config.optimizer.learning_rate=1e30", "--config.checkpoint_every=1"]
    argv = [*tiny_config, *flags, "--workdir", str(workdir)]
    assert train.main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    # Step 0 is finite and takes the weights to 1e29; the loss of step 1 overflows.
    assert "not finite at step 1; the last good checkpoint is step 1" in error
    assert Checkpoints(workdir, read_only=True).steps() == [1]
    assert [r["step"] for r in read_metrics(workdir)] == [1]
    assert all(np.isfinite(v) for r in read_metrics(workdir) for v in r.values())
    assert json.loads((workdir / "log.jsonl").read_text().splitlines()[-1]) | {"time": 0} == {
        "time": 0, "event": "not finite", "step": 1,
    }  # fmt: skip
    assert not list(workdir.glob("samples*"))
    # The directory is free again, and nothing has changed: the same ending.
    assert train.main(argv) == 2
    assert "not finite at step 1; the last good checkpoint is step 1" in capsys.readouterr().err


def test_nan_before_any_checkpoint(tmp_path, tiny_config, capsys):
    flags = ["--config.optimizer.learning_rate=1e30", "--config.log_every=4"]
    flags += ["--config.checkpoint_every=50", "--workdir", str(tmp_path / "nan")]
    assert train.main([*tiny_config, *flags]) == 2
    assert "not finite at step 1; no checkpoint yet" in capsys.readouterr().err
    assert not Checkpoints(tmp_path / "nan", read_only=True).steps()


@pytest.fixture
def born(make_config):
    """born(init_from, *overrides) -> params and EMA of a new run's state, flat."""

    def start(init_from, *overrides):
        config = make_config(*overrides)
        system, mesh = systems.make(config), meshes.make_mesh(config.mesh)
        shapes, shardings = update.state_shapes(system, config, mesh)
        weights, _ = loop.load_weights(system, str(init_from), shapes.params, shardings.params)
        state = update.init_state(system, config, shardings, weights)
        assert int(state.step) == 0
        return [
            {k: np.asarray(v) for k, v in trees.flatten(tree).items()}
            for tree in (state.params, state.ema["ema"])
        ]

    return start


def test_init_from_starts_at_those_weights(born, trained, read_state, same_bits):
    wanted = trees.load(trained / "weights.safetensors")
    newest = read_state(trained)
    same_bits(wanted, {k: newest[f"ema/ema/{k}"] for k in wanted})
    for source in trained, trained / "weights.safetensors":
        # Other seed, other learning rate: none of them touches the weights.
        for tree in born(source, "seed=5", "optimizer.learning_rate=1e-4"):
            same_bits(tree, wanted)


def test_init_from_reaches_the_loop(tmp_path, trained, tiny_config, stopped_at):
    # The loss of a first step from the trained weights is below that from new ones.
    flags = ["--init_from", str(trained), "--workdir", str(tmp_path / "new")]
    with stopped_at(1, signal.SIGINT):
        assert train.main([*tiny_config, *flags]) == 130
    losses = [read_metrics(workdir)[0]["loss"] for workdir in (tmp_path / "new", trained)]
    assert losses[0] < 0.99 * losses[1]
    # And once it has a checkpoint, it goes on from there and needs its parent no more.
    flags[1] = str(tmp_path / "deleted")
    assert train.main([*tiny_config, *flags]) == 0
    assert [r["step"] for r in read_metrics(tmp_path / "new")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("widths", ["(16,)", "(8,8)"])
@pytest.mark.parametrize("source", ["", "weights.safetensors"])
def test_init_from_another_network(tmp_path, trained, tiny_config, capsys, widths, source):
    flags = [f"--config.network.widths={widths}", "--init_from", str(trained / source)]
    assert train.main([*tiny_config, *flags, "--workdir", str(tmp_path / "new")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(trained) in lines[0]
    assert not (tmp_path / "new").exists()


def test_dry_run_counts_and_writes_nothing(tmp_path, monkeypatch, capsys, tiny_config, make_config):
    monkeypatch.chdir(tmp_path)
    assert train.main([*tiny_config, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    shapes = jax.eval_shape(systems.make(make_config()).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert f"parameters  {count:,}\n" in printed
    assert "batch       8 " in printed and "FLOPs" in printed and "MiB" in printed
    assert not list(tmp_path.iterdir())


def test_progress_lines_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("diffjax.run.logs.time.monotonic", lambda: now[0])
    log = Logger(tmp_path, start=0, steps=1000, batch_size=4)
    for step in range(10, 130, 10):
        now[0] += 10
        log.metrics(step, {"loss": 0.5}, None)
    log.close()
    lines = capsys.readouterr().err.splitlines()
    # One line a minute, at one step a second.
    assert lines == [
        "step 60/1000  loss 0.5000  1.00 steps/s  15:40 left",
        "step 120/1000  loss 0.5000  1.00 steps/s  14:40 left",
    ]
    rates = [r["images_per_second"] for r in read_metrics(tmp_path)]
    assert rates == [4.0] * 12
