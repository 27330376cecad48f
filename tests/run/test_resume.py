"""Nothing lost: an interrupted run continues as if nothing had happened, to the last bit."""

import functools
import json
import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image

import train
from diffjax import systems
from diffjax.data import sources
from diffjax.data.base import LazySource
from diffjax.run import mesh as meshes
from diffjax.run import sampling
from diffjax.run.checkpoints import Checkpoints, cut_jsonl
from diffjax.run.feed import make_feed
from diffjax.run.logs import read_metrics
from diffjax.run.processes import Signals
from diffjax.weights import trees

ALL = [1, 2, 3, 4, 5, 6]


def losses(workdir) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(workdir)}


def events(workdir) -> list[tuple]:
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [(record["event"], record["step"]) for record in map(json.loads, lines)]


def on_disk(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, tiny_config, stopped_at):
    """The run of `trained`, stopped by SIGTERM as it logs step 1, then started again."""
    workdir = tmp_path_factory.mktemp("runs") / "resumed"
    argv = [*tiny_config, "--workdir", str(workdir)]
    with stopped_at(1, signal.SIGTERM):
        status = train.main(argv)
    then = {"status": status, "saved": on_disk(workdir), "logged": list(losses(workdir))}
    # A kill may have left a line of a step that no checkpoint holds, and half of another.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "step": 4, "loss": 99.0}\n{"time": 1.0, "st')
    assert train.main(argv) == 0
    return workdir, then


def test_sigterm_saves_and_says_143(resumed):
    workdir, then = resumed
    step = then["saved"][-1]
    assert then["status"] == 143
    assert step == 2, "not one of the steps that are saved anyway"
    assert then["logged"][-1] <= step


def test_resumed_equals_uninterrupted(resumed, trained, read_state, same_bits):
    whole, pieces = read_state(trained), read_state(resumed[0])
    assert any(name.startswith("opt_state/") for name in whole)
    assert {name.split("/")[0] for name in whole} >= {"step", "params", "ema", "opt_state"}
    same_bits(pieces, whole)
    assert (resumed[0] / "samples.png").read_bytes() == (trained / "samples.png").read_bytes()
    weights = [trees.load(workdir / sampling.WEIGHTS) for workdir in (resumed[0], trained)]
    same_bits(*weights)


def test_parameters_moved(trained, read_state):
    # Else equality would say nothing.
    first, last = read_state(trained, 3), read_state(trained, 6)
    moved = [k for k in last if k.startswith("params/") and (first[k] != last[k]).any()]
    assert len(moved) > 10 and last["step"] == 6


def test_metrics_have_each_step_once(resumed, trained):
    assert list(losses(trained)) == ALL
    assert [r["step"] for r in read_metrics(resumed[0])] == ALL
    # A line has the mean since the line before: a run that saves between two lines has another.
    assert losses(resumed[0]) == losses(trained)


def test_log_tells_what_happened(resumed, trained):
    step = resumed[1]["saved"][-1]
    assert events(resumed[0])[:1] == [("start", 0)]
    assert ("checkpoint", step) in events(resumed[0])
    assert ("resume", step) in events(resumed[0])
    assert events(trained) == [("start", 0)] + [("checkpoint", s) for s in (3, 6)]
    record = json.loads((trained / "log.jsonl").read_text().splitlines()[0])
    assert record["seed"] == 0 and record["versions"]["jax"] and len(record["devices"]) == 8


@pytest.fixture
def folder_data(tmp_path, tiny_arrays, monkeypatch):
    """The tiny pictures as files in folders, read one by one however small the set is."""
    names = tiny_arrays["class_names"]
    for i, (image, label) in enumerate(
        zip(tiny_arrays["images"], tiny_arrays["labels"], strict=True)
    ):
        path = tmp_path / "pictures" / names[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    lazily = functools.partial(sources.open_source, max_bytes=0)
    monkeypatch.setattr(sources, "open_source", lazily)
    assert isinstance(lazily(tmp_path / "pictures"), LazySource)
    return tmp_path / "pictures"


@pytest.mark.parametrize("balanced", [True, False])
def test_streamed_batches_begin_anywhere(folder_data, make_config, balanced):
    config = make_config(f"data.path={folder_data}", f"data.balanced={balanced}")
    mesh = meshes.make_mesh(config.mesh)
    feed = make_feed(systems.make(config), config, mesh)
    whole = [next_batch for _, next_batch in zip(range(8), feed.start(0), strict=False)]
    for step in 3, 7:
        batch = next(feed.start(step))
        for name, shape in feed.shapes.items():
            assert batch[name].sharding == shape.sharding and batch[name].shape == shape.shape
            np.testing.assert_array_equal(batch[name], whole[step][name])
    images = np.concatenate([batch["image"] for batch in whole[:5]])
    if not balanced:  # five batches of eight: each of the forty pictures once
        assert len({image.tobytes() for image in images}) == 40


@pytest.mark.slow
def test_streamed_data_resume_too(
    tmp_path, tiny_config, folder_data, stopped_at, monkeypatch, read_state, same_bits
):
    # Also: what is saved is the state of that step, though the writer works in the background
    # while the next steps reuse the memory.
    saved, save = {}, Checkpoints.save

    def copied(self, state, meta):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        saved[int(state.step)] = {
            meshes.path_name(path): np.array(leaf, copy=True) for path, leaf in leaves
        }
        save(self, state, meta)

    argv = [*tiny_config, f"--config.data.path={folder_data}", "--config.data.balanced=False"]
    argv += ["--config.checkpoint_every=2", "--config.keep=9"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", copied)
        assert train.main([*argv, "--workdir", str(whole)]) == 0
    assert sorted(saved) == on_disk(whole) == [2, 4, 6]
    same_bits(read_state(whole, 4), saved[4])

    # Saved at 2 and 4 and where it is stopped; of these the last two are kept.
    with stopped_at(4, signal.SIGINT):
        assert train.main([*argv, "--config.keep=2", "--workdir", str(pieces)]) == 130
    assert on_disk(pieces) == [4, 5]
    assert train.main([*argv, "--workdir", str(pieces)]) == 0
    same_bits(read_state(pieces), read_state(whole))
    assert losses(pieces) == losses(whole)


def test_a_second_signal_leaves_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.got == 15
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_metrics_after_a_step_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s}) for s in (5, 10, 15)]
    path.write_text("\n".join([*lines[:2], "garbage", '"text"', lines[2], '{"step": 2']))
    cut_jsonl(path, 10)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10]
    assert list(tmp_path.iterdir()) == [path]
    cut_jsonl(tmp_path / "none.jsonl", 10)  # nothing there, nothing made
    assert list(tmp_path.iterdir()) == [path]
