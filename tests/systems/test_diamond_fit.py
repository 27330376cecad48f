"""DIAMOND's outer loop: end to end, interrupted anywhere, on recordings, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import diamond_runs
import jax
import numpy as np
import pytest

import sample
import train
from diffjax import systems
from diffjax.run import play, run_directory, sampling
from diffjax.run.checkpoints import Checkpoints
from diffjax.systems.diamond import episodes, learning
from diffjax.systems.diamond import session as sessions
from diffjax.systems.diamond.replay import Replay
from diffjax.weights import trees


@pytest.fixture(scope="module")
def words(root):
    return lambda **more: diamond_runs.words(root, **more)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """A run of all three networks that was never interrupted."""
    workdir = tmp_path_factory.mktemp("diamond") / "run"
    assert train.main([*words(), "--workdir", str(workdir), "--debug"]) == 0
    return workdir


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


def test_a_run_leaves_what_is_promised(finished):
    for name in ("config.json", "metrics.jsonl", "log.jsonl", "loss.png", "samples.gif"):
        assert (finished / name).is_file(), name
    assert (finished / sampling.WEIGHTS).is_file()
    replay = Replay(finished / "replay", 2, writable=False)
    assert replay.steps == 30 and replay.lengths.sum() == 60
    records = diamond_runs.metrics(finished)
    # 4 updates of each network in the first epoch, 3 in the second.
    assert max(record["step"] for record in records) == 3 * 7
    for name in ("denoiser_loss", "reward_end_rew_accuracy", "actor_critic_policy_entropy"):
        assert any(name in record for record in records), name
    last = [record for record in records if "final" in record]
    assert len(last) == 1 and last[0]["games"] == 2 and -3 <= last[0]["score_mean"] <= 0
    assert last[0]["test_denoiser_loss"] > 0


def test_a_finished_run_is_left_as_it_is(finished, words):
    before = trees.load(finished / sampling.WEIGHTS), diamond_runs.metrics(finished)
    assert train.main([*words(), "--workdir", str(finished)]) == 0
    after = trees.load(finished / sampling.WEIGHTS), diamond_runs.metrics(finished)
    jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
    assert before[1] == after[1]


def test_a_run_from_before_the_limits_goes_on(finished, words, tmp_path):
    """Its config has none of the fields that came later."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    config = json.loads((workdir / "config.json").read_text())
    for name in ("collection", "evaluation"):
        del config[name]["limit"]
    (workdir / "config.json").write_text(json.dumps(config))
    assert train.main([*words(), "--workdir", str(workdir)]) == 0


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


# ---- other ways to train -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(words, tmp_path_factory):
    """A denoiser alone, trained on recordings: (run directory, folder)."""
    place = tmp_path_factory.mktemp("diamond_recorded")
    folder = diamond_runs.recordings(place / "mine")
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1)
    assert train.main([*flags, "--workdir", str(place / "run"), "--debug"]) == 0
    return place / "run", folder


@pytest.mark.slow
def test_recordings_are_trained_on_and_some_held_out(recorded):
    workdir, folder = recorded
    assert not (workdir / "replay").exists()
    with np.load(folder / "003.npz") as arrays:  # the last is held out, and begun from
        obs = np.load(workdir / "assets" / "starts_obs.npy")
        frames = np.concatenate([arrays["obs"], arrays["final"][None]])
        assert any((frames[: len(obs[0])] == one).all() for one in obs)
    names = {path.split("/")[0] for path in trees.load(workdir / sampling.WEIGHTS)}
    assert names == {"denoiser"}


@pytest.mark.slow
def test_a_world_without_rewards_is_sampled_and_played(recorded, tmp_path):
    workdir, _ = recorded
    out = tmp_path / "out.npz"
    assert sample.main(["--workdir", str(workdir), "--out", str(out), "--horizon", "3"]) == 0
    with np.load(out) as arrays:
        assert arrays["imagined"].shape == (3, 7, 8, 8, 3) and "rew" not in arrays
        np.testing.assert_array_equal(arrays["imagined"][:, :4], arrays["real"][:, :4])
    system, _ = systems.load(workdir)
    params = system.init(jax.random.key(0))
    opened = system.play(params, system.request, 0)
    played, frame = opened["start"]()
    played, frame = opened["step"](played, 1)
    assert frame.dtype == np.uint8 and played.steps == 1 and opened["keys"]["Digit2"] == 2


@pytest.mark.slow
def test_other_recordings_are_refused(recorded, words, tmp_path, capsys):
    workdir, _ = recorded
    folder = diamond_runs.recordings(tmp_path / "other", count=5)
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1)
    assert train.main([*flags, "--workdir", str(workdir)]) == 2
    assert "give these data another --workdir" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_not_finite_stops_the_run(recorded, words, tmp_path, capsys):
    folder = recorded[1]
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1, denoiser__clip=1e30)
    flags += ["--config.denoiser.learning_rate=1e30", "--config.denoiser.first_steps=8"]
    assert train.main([*flags, "--workdir", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "was not finite at step" in line and "Lower config.denoiser.learning_rate" in line


@pytest.mark.slow
def test_longer_roll_outs_are_recorded_anew(recorded, words, tmp_path):
    workdir, folder = tmp_path / "run", recorded[1]
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1)
    for horizon, epochs in ((4, 1), (6, 2)):
        more = [f"--config.evaluation.horizon={horizon}", f"--config.epochs={epochs}"]
        assert train.main([*flags, *more, "--workdir", str(workdir), "--debug"]) == 0
        assert np.load(workdir / "assets" / "starts_obs.npy").shape[1] == 4 + horizon


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


@pytest.mark.slow
def test_another_run_s_weights_are_begun_with(recorded, words, tmp_path):
    workdir, folder = recorded
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1, denoiser__warmup_steps=99)
    flags += ["--config.denoiser.first_steps=1", "--init_from", str(workdir)]
    assert train.main([*flags, "--workdir", str(tmp_path / "run"), "--debug"]) == 0
    # The first update has the learning rate 0: the weights are those of the other run.
    one, other = (trees.load(w / sampling.WEIGHTS) for w in (workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ---- what is refused -----------------------------------------------------------------------------

REFUSED = {
    "unknown game 'Breakuot' (did you mean 'Breakout'?)": {"game": "Breakuot"},
    "config.game is empty": {"game": ""},
    "no such folder of episodes": {"data__path": "nowhere"},
    "unknown config.learn 'agnet' (did you mean 'agent'?)": {"learn": "agnet"},
    "a multiple of twice config.past_frames": {"denoiser__cond_channels": 12},
    "does not divide over": {"denoiser__batch_size": 9},
    "config.denoiser.depths is not one value a level": {"denoiser__depths": "(1, 1)"},
    "these sizes are of no network": {"denoiser__channels": "(100,)"},
    "unknown start of DIAMOND's sampler: 'unti'": {"imagination__start": "unti"},
    "unknown config.denoiser.quantise": {"denoiser__quantise": "ceil"},
    "config.reward_end.learning_rate must be above 0": {"reward_end__learning_rate": 0.0},
    "config.frame_size 4": {"frame_size": 4},
    "config.epochs 0": {"epochs": 0},
    "config.imagination.steps 100000000": {"imagination__steps": 10**8},
    "config.imagination.rho 0.0": {"imagination__rho": 0.0},
    "config.actor_critic.rollout 0": {"actor_critic__rollout": 0},
    "config.evaluation.limit 0": {"evaluation__limit": 0},
    "config.denoiser.depths 1000000": {"denoiser__depths": "(1000000,)"},
    "config.sample_weights ()": {"sample_weights": "()"},
    "config.collection.first_most is below": {"collection__first_most": 10},
    "config has no field 'collection.seat'": {"collection__seat": 1},
    "pip install 'diffjax[atari]'": {"game": "Pong"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_anything_is_written(message, words, tmp_path, capsys, monkeypatch):
    if "atari" in message:
        monkeypatch.setitem(sys.modules, "ale_py", None)
    assert train.main([*words(**REFUSED[message]), "--workdir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_replay_of_another_game_is_refused(finished, words, tmp_path, capsys):
    """As in a run directory that somebody else made."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    file = workdir / "replay" / episodes.episode_path(0)
    episode, where = episodes.read_episode(file)
    for other in (
        episode._replace(act=episode.act + 3),
        episode._replace(obs=episode.obs[:, :4], final=None),
    ):
        episodes.write_episode(file, other, where)
        assert train.main([*words(epochs=3), "--workdir", str(workdir)]) == 2
        assert "of another game, or of other frames" in capsys.readouterr().err


def test_a_game_that_a_run_names_is_not_opened(finished, tmp_path):
    """Only training calls it, with a name from the command line."""
    workdir = tmp_path / "theirs"
    workdir.mkdir()
    text = (finished / "config.json").read_text().replace('"ball"', '"os:getcwd"')
    (workdir / "config.json").write_text(text)
    for name in ("assets", sampling.WEIGHTS):
        (workdir / name).symlink_to(finished / name)
    assert systems.load(workdir)[0].fit is None
    assert run_directory.holds_checkpoint(workdir) is False
    out = str(tmp_path / "out.npz")
    assert sample.main(["--workdir", str(workdir), "--horizon", "2", "--out", out]) == 0


SAMPLE = {
    "--horizon 9: the run keeps recordings of 4 steps": ["--horizon", "9"],
    "unknown --start 'unti'": ["--start", "unti"],
    "unknown --policy 'agnet'": ["--policy", "agnet"],
    "unknown --sampler": ["--sampler", "rk4"],
    "--s_noise -1.0": ["--s_noise", "-1"],
    "ends in .gif or .mp4": ["--out", "x.png"],
    "--seed 100000000000000000000: must be from 0": ["--play", "--seed", str(10**20)],
}


@pytest.mark.parametrize("message", SAMPLE)
def test_requests_that_are_refused(message, finished, capsys):
    assert sample.main(["--workdir", str(finished), *SAMPLE[message]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("out", ["x.gif", "x.mp4", "folder", None])
def test_clips_that_are_too_long_are_refused_before_they_are_made(
    out, finished, tmp_path, capsys, monkeypatch
):
    def late(*_, **__):
        raise AssertionError("it has begun")

    for name in ("load_params", "collect"):
        monkeypatch.setattr(sampling, name, late)
    words = ["--workdir", str(finished), "--policy", "agent", "--horizon", "19997"]
    words += [] if out is None else ["--out", str(tmp_path / out)]
    assert sample.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--horizon 19997: a clip has at most 20000 frames" in line and ".npz" in line
    with pytest.raises(AssertionError, match="it has begun"):  # arrays are as long as they are
        sample.main([*words, "--out", str(tmp_path / "x.npz")])
    words[-1 if out is None else -3] = "19996"
    with pytest.raises(AssertionError, match="it has begun"):
        sample.main(words)


@pytest.mark.slow
def test_policy_of_a_run_without_one(recorded, capsys):
    assert sample.main(["--workdir", str(recorded[0]), "--policy", "agent"]) == 2
    assert "this run has none" in capsys.readouterr().err


def test_the_agent_acts(finished, tmp_path):
    out = tmp_path / "agent.npz"
    flags = ["--policy", "agent", "--horizon", "6", "--num", "2", "--start", "sigma_max"]
    assert sample.main(["--workdir", str(finished), "--out", str(out), *flags]) == 0
    with np.load(out) as arrays:
        assert arrays["imagined"].shape == (2, 10, 8, 8, 3) and "real" not in arrays
        assert arrays["act"].shape == (2, 9) and arrays["rew"].shape == (2, 6)


def test_a_run_is_played_in_a_browser(finished, monkeypatch):
    """What sample.py hands to `run.play.serve`, which has tests of its own."""
    called = {}
    monkeypatch.setattr(play, "serve", lambda start, step, keys, **more: called.update(
        more, keys=keys, frame=step(start()[0], 2)[1]
    ))  # fmt: skip
    words = ["--workdir", str(finished), "--play", "--port", "0", "--fps", "7", "--horizon", "999"]
    assert sample.main(words) == 0
    assert called["keys"] == {"": 0, "ArrowLeft": 1, "ArrowRight": 2}
    assert (called["fps"], called["port"], called["title"]) == (7.0, 0, "ball, imagined")
    assert called["frame"].shape == (14 + 128, 128, 3)


def test_a_run_without_worlds_is_not_played(trained, capsys):
    assert sample.main(["--workdir", str(trained), "--play"]) == 2
    assert "makes no worlds" in capsys.readouterr().err


@pytest.mark.slow
def test_costs_are_told_without_a_run(words, tmp_path, capsys):
    flags = [*words(), "--workdir", str(tmp_path / "run"), "--dry_run"]
    assert train.main(flags) == 0
    out = capsys.readouterr().out
    for network in ("denoiser", "rew_end_model", "actor_critic"):
        assert f"{network} " in out
    assert not (tmp_path / "run").exists()
