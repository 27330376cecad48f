"""DIAMOND's outer loop, stopped anywhere: nothing is lost, repeated or changed."""

import os
import signal
import subprocess
import sys
import time

import diamond_runs
import jax
import numpy as np
import pytest

import train
from diffjax.run import sampling
from diffjax.run.checkpoints import Checkpoints
from diffjax.systems.diamond import learning
from diffjax.systems.diamond import session as sessions
from diffjax.systems.diamond.replay import Replay
from diffjax.weights import trees


class Killed(BaseException):
    """Stands for kill -9: nothing of the process' own is written after it."""


def stopped(monkeypatch, at: int, how):
    """Lets the at-th question "is it time to stop?" do `how(session)` first."""
    asked, original = iter(range(10**9)), sessions.Session.stopping

    def stopping(session):
        if next(asked) == at:
            how(session)
        return original(session)

    monkeypatch.setattr(sessions.Session, "stopping", stopping)


def terminate(session):
    session.signals.got = signal.SIGTERM


def kill(session):
    session.checkpoints.wait()
    raise Killed


def same(one, other):
    """Weights, replay, assets and logged numbers of two runs are equal bit for bit."""
    flat = [trees.load(workdir / sampling.WEIGHTS) for workdir in (one, other)]
    assert flat[0].keys() == flat[1].keys()
    for name, array in flat[0].items():
        np.testing.assert_array_equal(array, flat[1][name], name)
    replays = [Replay(workdir / "replay", 2, writable=False) for workdir in (one, other)]
    assert replays[0].entries == replays[1].entries
    for a, b in zip(*replays, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    obs = [np.load(workdir / "assets" / "starts_obs.npy") for workdir in (one, other)]
    np.testing.assert_array_equal(*obs)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 11, 24])
def test_a_signal_anywhere_changes_nothing(finished, words, tmp_path, monkeypatch, at):
    """In play, in each network's updates; and a signal again in what follows."""
    flags = [*words(), "--workdir", str(tmp_path / "run"), "--debug"]
    with monkeypatch.context() as patch:
        stopped(patch, at, terminate)
        assert train.main(flags) == 128 + signal.SIGTERM
    assert train.main(flags) == 0
    same(finished, tmp_path / "run")


@pytest.mark.slow
def test_several_updates_in_a_call_are_as_many_calls(words, tmp_path, monkeypatch):
    """As on an accelerator: calls of three updates, the last of one; the same up to rounding."""
    made = []
    for count in (1, 3):
        monkeypatch.setattr(learning, "per_call", lambda config, count=count: count)
        flags = words(epochs=1, updates_per_call=count)
        workdir = tmp_path / str(count)
        assert train.main([*flags, "--workdir", str(workdir), "--debug"]) == 0
        made.append(trees.load(workdir / sampling.WEIGHTS))
    for name, array in made[0].items():
        if not name.startswith("actor_critic"):  # whose actions are drawn: rounding may flip one
            np.testing.assert_allclose(made[1][name], array, atol=1e-4, err_msg=name)
    steps = [r["step"] for r in diamond_runs.metrics(tmp_path / "3") if "final" not in r]
    assert steps == sorted(steps) and steps[-1] == 12


@pytest.mark.slow
def test_long_phases_are_saved_in_their_middle(finished, words, tmp_path, monkeypatch):
    flags = [*words(), "--workdir", str(tmp_path / "run"), "--debug"]
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "SAVE_AFTER", 0.0)
        stopped(patch, 13, kill)
        with pytest.raises(Killed):
            train.main(flags)
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    position = sessions.Position.of(checkpoints.meta(checkpoints.newest()))
    assert position.epoch == 0 and position.phase > 1 and position.done > 0
    assert train.main(flags) == 0
    same(finished, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 9, 19, 27])
def test_a_kill_anywhere_changes_nothing(finished, words, tmp_path, monkeypatch, at):
    """What was not saved is made again, the same; what was played is there once."""
    flags = [*words(), "--workdir", str(tmp_path / "run"), "--debug"]
    with monkeypatch.context() as patch:
        stopped(patch, at, kill)
        with pytest.raises(Killed):
            train.main(flags)
    assert train.main(flags) == 0
    same(finished, tmp_path / "run")
    assert [r for r in diamond_runs.metrics(tmp_path / "run") if "final" in r] == [
        r for r in diamond_runs.metrics(finished) if "final" in r
    ]


@pytest.mark.slow
def test_a_kill_epochs_after_the_last_checkpoint_changes_nothing(
    finished, words, tmp_path, monkeypatch
):
    """The replay is then ahead of the networks, which do not learn from what is yet to come."""
    flags = [*words(checkpoint_every=9), "--workdir", str(tmp_path / "run"), "--debug"]
    with monkeypatch.context() as patch:
        stopped(patch, 27, kill)
        with pytest.raises(Killed):
            train.main(flags)
    assert Replay(tmp_path / "run" / "replay", 2, writable=False).steps == 30
    assert Checkpoints(tmp_path / "run", read_only=True).newest() is None
    assert train.main(flags) == 0
    same(finished, tmp_path / "run")


@pytest.mark.slow
def test_processes_that_are_killed_lose_and_repeat_nothing(words, root, tmp_path):
    """The command itself, killed at random moments, until it is done."""
    workdir, random = tmp_path / "run", np.random.default_rng(0)
    more = {"epochs": 6, "collection__steps": 200, "collection__first_least": 100}
    flags = words(**more, collection__first_most=100, mesh__data=1)
    command = [sys.executable, str(root / "train.py"), *flags, "--workdir", str(workdir)]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    steps, kills = [0], 0
    while True:
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
            try:
                process.wait(random.uniform(8, 25) if kills < 6 else 500)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            said = process.stderr.read().decode()
        if (workdir / "replay" / "seats.npz").is_file():
            replay = Replay(workdir / "replay", 2, writable=False)
            assert replay.steps >= steps[-1]
            assert replay.lengths.sum() == 2 * replay.steps
            steps.append(replay.steps)
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, said
    assert steps[-1] == 100 and kills >= 3
    places = [(e.where.seat, e.where.first, e.length) for e in replay.entries]
    for seat in range(2):
        mine = sorted((first, length) for where, first, length in places if where == seat)
        assert [first for first, _ in mine] == np.cumsum([0, *(n for _, n in mine)])[:-1].tolist()


@pytest.mark.slow
def test_time_that_is_up_ends_a_run_anywhere(words, tmp_path):
    """A budget of the run and one of a network's phase."""
    long = {f"{group}__first_steps": 10**6 for group in ("denoiser", "reward_end")}
    flags = words(**long, learn="world", denoiser__time_budget=3.0, time_budget=30.0)
    begun = time.monotonic()
    assert train.main([*flags, "--workdir", str(tmp_path / "run"), "--debug"]) == 0
    assert time.monotonic() - begun < 120
    records = diamond_runs.metrics(tmp_path / "run")
    assert any("reward_end_loss" in record for record in records)
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    position = sessions.Position.of(checkpoints.meta(checkpoints.newest()))
    assert (position.epoch, position.phase) == (0, 2) and position.elapsed >= 30
