"""Several processes, as on a pod: two of four devices each equal one of eight."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import train
from diffjax.run.logs import read_metrics
from diffjax.weights import trees

pytestmark = pytest.mark.slow

# Reads pictures one by one however small the set is, so that each process reads its own rows.
STREAMED = """
import functools, sys
import train
from diffjax.data import sources
sources.open_source = functools.partial(sources.open_source, max_bytes=0)
sys.exit(train.main())
"""
SMOOTH = ["--config.network.widths=(16,)", "--config.network.patch=1"]
SMOOTH += ["--config.optimizer.eps=1e-2", "--config.data.balanced=False"]


@pytest.fixture
def pair(root, tmp_path):
    """pair(argv, streamed=False) -> two started processes, joined over gloo."""
    started = []

    def start(argv, streamed=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"])
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
        script = ["-c", STREAMED] if streamed else [str(root / "train.py")]
        for i in range(2):
            words = [sys.executable, *script, *argv, f"--distributed=127.0.0.1:{port},2,{i}"]
            log = (tmp_path / f"process_{len(started)}.log").open("w+")
            started.append((subprocess.Popen(words, env=environment, stdout=log, stderr=log), log))
        return [process for process, _ in started[-2:]]

    yield start
    for process, log in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        log.seek(0)
        print(log.read())


def close(one, other):
    a, b = (trees.load(workdir / "weights.safetensors") for workdir in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)
    losses = [[r["loss"] for r in read_metrics(workdir)] for workdir in (one, other)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert [r["step"] for r in read_metrics(other)] == [1, 2, 3, 4, 5, 6]


def back_to_three(run, copy):
    """A copy of a finished run as it was after its checkpoint of step 3."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "6")
    (copy / "weights.safetensors").unlink()
    shutil.rmtree(copy / "samples")
    return copy


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_config):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert train.main([*tiny_config, *SMOOTH, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.mark.parametrize(
    "mesh",
    [{"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=["data", "fsdp", "all"],
)
def test_two_processes_equal_one(pair, alone, tiny_config, tmp_path, mesh):
    argv = [*tiny_config, *SMOOTH, *(f"--config.mesh.{k}={v}" for k, v in mesh.items())]
    together = tmp_path / "together"
    assert [p.wait() for p in pair([*argv, "--workdir", str(together)])] == [0, 0]
    close(alone, together)
    if mesh != {"data": 8}:
        return
    # Each goes on where the other was.
    handed = back_to_three(alone, tmp_path / "handed")
    assert [p.wait() for p in pair([*argv, "--workdir", str(handed)])] == [0, 0]
    close(alone, handed)
    returned = back_to_three(together, tmp_path / "returned")
    assert train.main([*argv, "--workdir", str(returned)]) == 0
    close(alone, returned)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, tiny_arrays):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(tiny_arrays["images"]):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


def test_each_process_reads_its_rows(pair, root, tiny_config, tmp_path, pictures):
    argv = [*tiny_config, *SMOOTH, f"--config.data.path={pictures}", "--workdir"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert [p.wait() for p in pair([*argv, str(two)], streamed=True)] == [0, 0]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    words = [sys.executable, "-c", STREAMED, *argv, str(one)]
    assert subprocess.run(words, env=environment).returncode == 0
    close(one, two)


def test_rows_that_processes_share(pair, tiny_config, tmp_path, pictures):
    # All devices hold every row: no process has rows of its own to read.
    argv = [*tiny_config, *SMOOTH, f"--config.data.path={pictures}", "--config.mesh.data=1"]
    argv += ["--config.mesh.tensor=8", "--workdir", str(tmp_path / "new")]
    assert [p.wait() for p in pair(argv, streamed=True)] == [2, 2]
    for log in tmp_path.glob("*.log"):
        wanted = r"^error: config.mesh data x fsdp = 1 .* 2 processes"
        assert re.search(wanted, log.read_text(), re.M)
    assert not (tmp_path / "new").exists()


def test_sigterm_stops_both_at_one_step(pair, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    argv = [*tiny_config, *SMOOTH, "--config.steps=100000", "--config.checkpoint_every=90000"]
    processes = pair([*argv, "--workdir", str(workdir)])
    while not (workdir / "metrics.jsonl").is_file() or len(read_metrics(workdir)) < 3:
        assert all(p.poll() is None for p in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)  # one of them is enough
    assert [p.wait() for p in processes] == [143, 143]
    (saved,) = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    assert 0 <= saved - read_metrics(workdir)[-1]["step"] <= 1


def test_a_mistake_ends_both(pair, tiny_config, tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    argv = [*tiny_config, "--config.seed=3", "--workdir", str(run)]
    assert [p.wait() for p in pair(argv)] == [2, 2]
    # Only the first reads the run directory.
    first, second = ((tmp_path / f"process_{i}.log").read_text() for i in range(2))
    assert re.search(r"^error: .*seed 0 -> 3", first, re.M)
    assert re.search(r"^error: process 0 cannot use .*run", second, re.M)
