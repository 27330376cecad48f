"""A published agent becomes a run that is sampled and played, and goes out again."""

import diamond_runs
import numpy as np
import pytest
from diamond_original import manifest, state_of
from relay_checkpoint import Tensor, write

import sample
from diffjax import convert, systems
from diffjax.run import mesh as meshes
from diffjax.run import sampling
from diffjax.systems.diamond import published
from diffjax.weights import trees

PARTS = {
    "denoiser": "denoiser_tiny",
    "rew_end_model": "rew_end_tiny",
    "actor_critic": "actor_critic_tiny",
}


def state():
    """A whole agent with the golden weights of the tiny networks: frames of 16 x 16."""
    return {
        f"{network}.{name}": array
        for network, file in PARTS.items()
        for name, array in state_of(manifest(file)).items()
    }


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """(the .pt as PyTorch writes it, its arrays)."""
    path = tmp_path_factory.mktemp("agents") / "ball.pt"
    arrays = state()
    write(path, {name: Tensor(array) for name, array in arrays.items()})
    return path, arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return diamond_runs.recordings(tmp_path_factory.mktemp("recordings"), size=16)


def flags(root, folder, *more):
    fields = {"game": "", "data.path": folder, "frame_size": 16, "evaluation.horizon": 4}
    fields |= {"evaluation.starts": 3}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", str(root / "configs" / "diamond.py"), *words, *more]


@pytest.fixture(scope="module")
def run(agent, folder, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "run"
    assert convert.main([str(agent[0]), "--out", str(out), *flags(root, folder)]) == 0
    return out


def test_an_agent_becomes_a_run(run, agent, tmp_path):
    system, config = systems.load(run)
    assert (config.learn, config.past_frames) == ("agent", 4)
    assert tuple(config.denoiser.channels) == (32, 64)
    params, _ = sampling.load_params(system, run, meshes.make_mesh(meshes.LOCAL))
    found = published.state_dict(sampling.fetch(params))
    assert found.keys() == agent[1].keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, agent[1][name], name)


@pytest.mark.slow
def test_it_is_sampled_by_record_and_by_itself(run, tmp_path):
    for policy in ("recorded", "agent"):
        out = tmp_path / f"{policy}.npz"
        words = ["--workdir", str(run), "--out", str(out), "--policy", policy]
        assert sample.main([*words, "--num", "2", "--horizon", "3"]) == 0
        with np.load(out) as arrays:
            assert arrays["imagined"].shape == (2, 7, 16, 16, 3)
            assert np.ptp(arrays["imagined"][:, 4:]) > 0


def test_out_and_in_again(run, agent, folder, root, tmp_path):
    file, again = tmp_path / "agent.safetensors", tmp_path / "again"
    assert convert.main([str(run), "--out", str(file)]) == 0
    written = trees.load(file)
    for name, array in agent[1].items():
        np.testing.assert_array_equal(written[name], array, name)
    assert convert.main([str(file), "--out", str(again), *flags(root, folder)]) == 0
    one, other = (trees.load(workdir / sampling.WEIGHTS) for workdir in (run, again))
    assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


REFUSED = {
    "this agent knows 5 actions, ball has 3": ["--config.game=ball", "--config.data.path="],
    "config.game is empty": ["--config.data.path="],
    "frames of [16, 16, 3], config.frame_size is 32": ["--config.frame_size=32"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message, agent, folder, root, tmp_path, capsys):
    words = flags(root, folder, *REFUSED[message])
    assert convert.main([str(agent[0]), "--out", str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out").exists()


def test_a_config_from_before_the_limits_will_do(agent, folder, root, tmp_path):
    words = flags(root, folder)
    config = tmp_path / "older.py"
    config.write_text(
        f"from diffjax.run.cli import load_config\n"
        f"def get_config():\n"
        f"    config = load_config({words[1]!r})\n"
        f"    del config.collection.limit, config.evaluation.limit\n"
        f"    return config\n"
    )
    out = str(tmp_path / "out")
    assert convert.main([str(agent[0]), "--out", out, "--config", str(config), *words[2:]]) == 0
    assert systems.load(tmp_path / "out")[1].evaluation.limit == 27_000


def test_files_that_are_no_agents(root, folder, tmp_path, capsys):
    some = {name: array for name, array in state().items() if not name.startswith("rew_end")}
    for name, arrays, message in (
        ("half.safetensors", some, "a run has no such networks"),
        ("other.safetensors", {"a.b": np.zeros(2, np.float32)}, "is no weight of an agent's"),
    ):
        trees.save(arrays, tmp_path / name)
        words = [str(tmp_path / name), "--out", str(tmp_path / "out"), *flags(root, folder)]
        assert convert.main(words) == 2
        assert message in capsys.readouterr().err
