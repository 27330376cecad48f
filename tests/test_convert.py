"""Published weights become a run that sample.py takes."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax import convert
from diffjax.errors import UserError
from diffjax.weights.reading import read_weights

FILES = Path(__file__).parent / "golden" / "weights"
CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({config!r})
"""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("convert") / "tiny.pkl"
    path.write_bytes(gzip.decompress((FILES / "persistence_tiny.pkl.gz").read_bytes()))
    return path


def refused(capsys, *argv: object) -> str:
    assert convert.main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_a_snapshot_becomes(snapshot):
    config, assets, params = convert.from_snapshot(snapshot)
    about = assets["data"]
    assert (config.system, config.network.kind, config.name) == ("edm", "song", "tiny")
    assert config.network.resample_filter == (1, 3, 3, 1)
    assert about["image_shape"] == [8, 8, 3]
    assert about["class_names"] == ["0", "1", "2", "3"]
    assert about["fingerprint"].startswith("weights ")
    assert params["enc/8x8_conv/kernel"].shape == (3, 3, 3, 4)
    assert params["map_noise/freqs"].shape == (4,)
    assert sum(a.size for a in params.values()) == 12_831
    json.dumps(config.to_dict())


@pytest.fixture
def state(snapshot):
    return {k: np.array(v) for k, v in read_weights(snapshot).items()}


@pytest.fixture
def config(snapshot, tmp_path):
    """A config file of the snapshot's network, and the config."""
    made = convert.from_snapshot(snapshot)[0]
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(config=made.to_dict()))
    return path, made


@pytest.mark.parametrize("prefix", ["", "state_dict.", "module."])
def test_a_state_dict_is_the_same(prefix, snapshot, state, config, tmp_path):
    save_file({prefix + k: v for k, v in state.items()}, tmp_path / "a.safetensors")
    _, assets, params = convert.from_state_dict(tmp_path / "a.safetensors", config[1], "")
    _, wanted_assets, wanted = convert.from_snapshot(snapshot)
    about, wanted_about = assets.pop("data"), wanted_assets.pop("data")
    assert {**about, "fingerprint": ""} == {**wanted_about, "fingerprint": ""}
    assert not assets and not wanted_assets
    assert sorted(params) == sorted(wanted)
    for path, array in wanted.items():
        np.testing.assert_array_equal(params[path], array)


def test_two_networks_in_one_file(state, config, tmp_path):
    path = tmp_path / "a.safetensors"
    both = {f"ema.{k}": v for k, v in state.items()} | {f"net.{k}": -v for k, v in state.items()}
    save_file(both, path)
    with pytest.raises(UserError, match="prefixes found: 'ema.model.', 'net.model.'"):
        convert.from_state_dict(path, config[1], "")
    _, _, params = convert.from_state_dict(path, config[1], "ema.")
    np.testing.assert_array_equal(
        params["map_layer0/bias"], state["model.map_layer0.bias"]
    )  # fmt: skip


def test_refusals(snapshot, config, tmp_path, capsys):
    out = tmp_path / "out"
    torch = FILES / "torch_zip.pt"
    assert "no such weights file" in refused(capsys, tmp_path / "no.pkl", "--out", out)
    assert "--out" in refused(capsys, snapshot)
    assert "is there already" in refused(capsys, snapshot, "--out", tmp_path)
    assert "unknown --system 'edn' (did you mean 'edm'?)" in refused(
        capsys, snapshot, "--out", out, "--system", "edn"
    )
    assert "leave out --config" in refused(capsys, snapshot, "--out", out, "--config", config[0])
    assert "give its architecture by --config" in refused(capsys, torch, "--out", out)
    assert "no name in it ends in map_layer0.weight" in refused(
        capsys, torch, "--out", out, "--config", config[0]
    )
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    assert "bad.pkl: the pickle in it asks for os.system" in refused(capsys, bad, "--out", out)
    bad.write_bytes(snapshot.read_bytes()[:-100])
    assert "cut short" in refused(capsys, bad, "--out", out)
    assert not out.exists()


def test_other_wrappers_are_named(snapshot, tmp_path, capsys):
    bad = tmp_path / "a.pkl"
    # The same length, so that no frame in the pickle is wrong.
    bad.write_bytes(snapshot.read_bytes().replace(b"\x0aEDMPrecond", b"\x0aEDMprecond"))
    said = refused(capsys, bad, "--out", tmp_path / "out")
    assert "architecture 'EDMprecond' is not supported" in said


def test_a_run_that_samples(snapshot, tmp_path, capsys):
    pytest.importorskip("diffjax.nets.song_unet")
    import sample

    out = tmp_path / "runs" / "tiny"
    assert convert.main([str(snapshot), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "12,831 parameters, 8x8x3, 4 classes" in said and str(out) in said
    assert sorted(p.name for p in out.iterdir()) == ["assets", "config.json", "weights.safetensors"]
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]  # no temporary left
    stored = load_file(out / "weights.safetensors")
    np.testing.assert_array_equal(
        stored["enc/8x8_conv/kernel"].transpose(3, 2, 0, 1),
        read_weights(snapshot)["model.enc.8x8_conv.weight"],
    )
    argv = ["--workdir", str(out), "--num", "4", "--steps", "3", "--out", str(tmp_path / "a.npz")]
    assert sample.main(argv) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["image"].shape == (4, 8, 8, 3)
        assert arrays["label"].tolist() == [0, 1, 2, 3]
        assert arrays["image"].std() > 1
    assert "is there already" in refused(capsys, snapshot, "--out", out)


def test_weights_of_another_network_leave_nothing(snapshot, state, config, tmp_path, capsys):
    pytest.importorskip("diffjax.nets.song_unet")
    state["model.map_layer1.bias"] = np.zeros(3, np.float32)
    path, out = tmp_path / "a.safetensors", tmp_path / "out"
    save_file(state, path)
    said = refused(capsys, path, "--out", out, "--config", config[0])
    assert "'map_layer1/bias' has shape (3,), the network wants (16,)" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "tiny.py"]


def test_out_and_in_again(snapshot, state, config, tmp_path, capsys):
    """A snapshot, a run, a state dict, a run: the same arrays at every station."""
    run, out = tmp_path / "run", tmp_path / "new" / "weights.safetensors"
    assert convert.main([str(snapshot), "--out", str(run)]) == 0
    assert convert.main([str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"{out}: {len(state)} arrays under EDM's names" in said and "weights.safetensors" in said
    back = load_file(out)
    assert sorted(back) == sorted(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, strict=True)
    again = tmp_path / "again"
    assert convert.main([str(out), "--out", str(again), "--config", str(config[0])]) == 0
    first, second = (load_file(d / "weights.safetensors") for d in (run, again))
    assert sorted(first) == sorted(second)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, strict=True)


def test_out_of_another_network(trained, tmp_path, capsys):
    """Our names with dots; the raw weights and an earlier step too."""
    from diffjax import systems
    from diffjax.run import mesh, sampling
    from diffjax.weights import trees

    system, _ = systems.load(trained)
    for words, how in [
        ([], {}),
        (["--ema", "none"], {"ema": "none"}),
        (["--step", "3"], {"step": 3}),
    ]:
        out = tmp_path / f"weights{''.join(words)}.safetensors"
        assert convert.main([str(trained), "--out", str(out), *words]) == 0
        assert "under our names" in capsys.readouterr().out
        params, _ = sampling.load_params(system, trained, mesh.make_mesh(mesh.LOCAL), **how)
        wanted = {k.replace("/", "."): np.asarray(a) for k, a in trees.flatten(params).items()}
        found = load_file(out)
        assert sorted(found) == sorted(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


def test_what_does_not_go_out(snapshot, config, trained, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    assert "written as .safetensors" in refused(capsys, trained, "--out", tmp_path / "a.pt")
    assert "are of a file of weights" in refused(
        capsys, trained, "--out", out, "--config", config[0]
    )
    assert "unknown --ema 'emma'" in refused(capsys, trained, "--out", out, "--ema", "emma")
    assert "no checkpoint of step 5" in refused(capsys, trained, "--out", out, "--step", "5")
    assert "is no run directory" in refused(capsys, FILES, "--out", out)
    assert "--ema and --step are of a run" in refused(
        capsys, snapshot, "--out", tmp_path / "run", "--step", "3"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.py"]
