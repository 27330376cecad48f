"""Relay diffusion's published files become runs: networks in a checkpoint, or a state dict."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import relay_checkpoint
from safetensors.numpy import load_file, save_file

import sample
from diffjax import convert, systems
from diffjax.errors import UserError
from diffjax.run import cli
from diffjax.weights import edm_pickles

GOLDEN = Path(__file__).parent / "golden" / "relay"
MANIFEST = json.loads((GOLDEN / "manifest_tiny.json").read_text())
# As the training script passes them: what is left out has its default.
ARGUMENTS = {"img_resolution": 16, "img_channels": 3, "label_dim": 4, "augment_dim": 9}
ARGUMENTS |= {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1}
ARGUMENTS |= {"attn_resolutions": [8], "dropout": 0.0, "sigma_data": np.float64(0.5).item()}


@pytest.fixture(scope="module")
def state():
    """The tiny net's state dict by the golden's rule."""
    found = {}
    for name, (shape, _) in MANIFEST.items():
        seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
        w = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002
        if name.endswith("resample_filter"):
            w = np.full(shape, 0.25, np.float32)
        elif len(shape) > 1:
            w = w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
        else:
            w = 1 + np.float32(0.1) * w if name.endswith("weight") else np.float32(0.1) * w
        found[name] = w
    return found


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("relay") / "celebahq256.pt"
    net = {name: -array for name, array in state.items()}
    tree = {
        "ema": relay_checkpoint.network(state, ARGUMENTS, 0.2),
        "net": relay_checkpoint.network(net, ARGUMENTS),
        "optimizer_state": {"state": {0: relay_checkpoint.Tensor(np.zeros(3))}},
        "step": 47_000_000,
    }
    relay_checkpoint.write(path, tree)
    return path


@pytest.fixture
def config(root, tmp_path):
    """A config file: CelebA-HQ's, with the tiny network."""
    path = tmp_path / "relay_small.py"
    path.write_text(
        "from diffjax.run.cli import load_config\n"
        "def get_config():\n"
        f"    config = load_config({str(root / 'configs' / 'relay_celebahq256.py')!r})\n"
        "    config.network.update(model_channels=32, channel_mult=(1, 2), num_blocks=1)\n"
        "    config.network.update(attn_resolutions=(8,), dtype='float32')\n"
        "    return config\n"
    )
    return path


def test_a_checkpoint_is_read_as_data(checkpoint, state):
    assert edm_pickles.holds_networks(checkpoint)
    about, found = edm_pickles.read_checkpoint(checkpoint)
    assert (about.wrapper, about.inner) == ("EDMPrecond", "DhariwalUNet")
    assert about.inner_arguments["channel_mult"] == [1, 2]
    assert about.inner_attributes["label_dropout"] == 0.2
    assert sorted(found) == sorted(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)
    _, net = edm_pickles.read_checkpoint(checkpoint, "net")
    np.testing.assert_array_equal(net["model.out_conv.bias"], -state["model.out_conv.bias"])
    with pytest.raises(UserError, match="no 'emma' in it"):
        edm_pickles.read_checkpoint(checkpoint, "emma")


def test_a_checkpoint_becomes_a_run(checkpoint, config, state, tmp_path, capsys):
    out = tmp_path / "runs" / "second"
    argv = [str(checkpoint), "--system", "relay", "--config", str(config), "--out", str(out)]
    assert convert.main(argv) == 0
    said = capsys.readouterr().out
    # The manifest's numbers but for the resampling filters.
    count = sum(a.size for n, a in state.items() if not n.endswith("resample_filter"))
    assert f"{count:,} parameters, 16x16x3, 4 classes" in said
    system, made = systems.load(out)
    assert (made.system, made.diffusion.blur_max, made.diffusion.label_dropout) == ("relay", 2, 0.2)
    assert system.request.quantile == 1.05 and system.request.truncation == 0.95

    from PIL import Image

    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(tmp_path / "small.png")
    argv = ["--workdir", str(out), "--start", str(tmp_path / "small.png"), "--steps", "6"]
    assert sample.main([*argv, "--cond", "2", "--out", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["image"].shape == (1, 16, 16, 3)


def test_a_run_s_weights_go_back_under_the_released_names(checkpoint, config, state, tmp_path):
    run, file = tmp_path / "run", tmp_path / "out.safetensors"
    assert convert.main([str(checkpoint), "--config", str(config), "--out", str(run)]) == 0
    assert convert.main([str(run), "--out", str(file)]) == 0
    found = load_file(file)
    assert sorted(found) == sorted(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_first_stage_s_checkpoint_is_a_run_of_edm(checkpoint, config, tmp_path):
    text = config.read_text().replace("relay_celebahq256", "relay_celebahq64")
    config.write_text(text.replace("    return", "    config.diffusion.precond = 've'\n    return"))
    run = tmp_path / "run"
    assert convert.main([str(checkpoint), "--config", str(config), "--out", str(run)]) == 0
    system, made = systems.load(run)
    assert (made.system, made.diffusion.precond) == ("edm", "edm")  # the file says it
    assert (system.request.sampler, system.request.churn) == ("relay", 0.0)


@pytest.mark.parametrize("augmented", [True, False])
def test_a_state_dict_with_and_without_augmentation_labels(
    augmented, state, config, tmp_path, capsys
):
    if not augmented:
        state = {k: v for k, v in state.items() if "map_augment" not in k}
    file, out = tmp_path / "a.safetensors", tmp_path / "out"
    save_file({f"ema.{k}": v for k, v in state.items()}, file)
    assert convert.main([str(file), "--config", str(config), "--out", str(out)]) == 0
    made = cli.read_config(out)
    assert made.network.augment_dim == (9 if augmented else 0)
    assert made.system == "relay"


def test_refusals(checkpoint, config, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(*argv):
        assert convert.main([*map(str, argv), "--out", str(out)]) == 2
        return capsys.readouterr().err

    assert "give its architecture by --config" in refused(checkpoint)
    assert "--system edm: " in refused(checkpoint, "--config", config, "--system", "edm")
    wide = ["--config.network.model_channels=64"]
    assert "has shape" in refused(checkpoint, "--config", config, *wide)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:-200])
    assert "not a zip file" in refused(cut, "--config", config)
    assert not out.exists()
