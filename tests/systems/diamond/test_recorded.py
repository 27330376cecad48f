"""DIAMOND's outer loop on recordings instead of a game."""

import diamond_runs
import jax
import numpy as np
import pytest

import sample
import train
from diffjax import systems
from diffjax.run import sampling
from diffjax.weights import trees


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
def test_another_run_s_weights_are_begun_with(recorded, words, tmp_path):
    workdir, folder = recorded
    flags = words(game="", data__path=folder, learn="denoiser", epochs=1, denoiser__warmup_steps=99)
    flags += ["--config.denoiser.first_steps=1", "--init_from", str(workdir)]
    assert train.main([*flags, "--workdir", str(tmp_path / "run"), "--debug"]) == 0
    # The first update has the learning rate 0: the weights are those of the other run.
    one, other = (trees.load(w / sampling.WEIGHTS) for w in (workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_policy_of_a_run_without_one(recorded, capsys):
    assert sample.main(["--workdir", str(recorded[0]), "--policy", "agent"]) == 2
    assert "this run has none" in capsys.readouterr().err
