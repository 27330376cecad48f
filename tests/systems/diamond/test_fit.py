"""DIAMOND's outer loop: end to end, sampled and played, and what it refuses."""

import json
import shutil
import sys

import diamond_runs
import jax
import numpy as np
import pytest

import sample
import train
from diffjax import systems
from diffjax.run import play, run_directory, sampling
from diffjax.systems.diamond import episodes
from diffjax.systems.diamond.replay import Replay
from diffjax.weights import trees


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
