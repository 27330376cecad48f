"""The room of motions: its other kinds of networks and data, resuming, and what it refuses."""

import dataclasses
import shutil

import jax
import mdm_runs
import numpy as np
import pytest

import sample
import train
from diffjax import systems
from diffjax.data.motion import bvh
from diffjax.errors import UserError
from diffjax.systems.mdm import motions
from diffjax.systems.mdm import request as requests
from diffjax.systems.mdm.request import Request
from diffjax.weights import trees


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mdm_runs.folder_of(tmp_path_factory.mktemp("bvh"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["action", "none", "dip", "decoder", "gru", "geometric"])
def test_the_other_kinds_train_and_sample(kind, root, folder, tmp_path):
    more = {
        "action": {"conditioning": "action", "data__balanced": True},
        "none": {"conditioning": "none"},
        "dip": {"diffusion__context": 4, "diffusion__predict": 8, "sampling__seconds": 2.0},
        "decoder": {},
        "gru": {},
        "geometric": dict.fromkeys(("loss__positions", "loss__contact", "loss__velocity"), 1.0),
    }[kind]
    out, workdir = tmp_path / "out.npz", tmp_path / "run"
    words = mdm_runs.words(root, folder, **more)
    if kind in ("dip", "decoder", "gru"):
        # Another network has other fields, so that the config is a file.
        file = tmp_path / "other.py"
        kept = "motion_gru" if kind == "gru" else "trans_dec"
        file.write_text(
            "from diffjax.run.cli import load_config\ndef get_config():\n"
            f"    config = load_config({words[1]!r})\n"
            f"    config.network.update(kind={kept!r}, emb_trans_dec=True, emb_policy='add')\n"
            "    return config\n"
        )
        words[1] = str(file)
    assert train.main([*words, "--workdir", str(workdir)]) == 0
    flags = ["--cond", "walk"] if kind == "action" else []
    flags = ["--cond", "walk, normal; squat, normal"] if kind == "dip" else flags
    flags += ["--num", "2", "--out", str(out), "--workdir", str(workdir)]
    assert sample.main(flags) == 0
    with np.load(out) as arrays:
        assert np.isfinite(arrays["joints"]).all()
        assert arrays["joints"].shape[:2] == (2, 40 if kind == "dip" else 20)
    if kind == "action":
        assert sample.main(["--workdir", str(workdir), "--out", str(tmp_path / "some")]) == 0
        assert len(list((tmp_path / "some").glob("*.bvh"))) == 2  # a sample of each class


def test_wrong_conditions_are_one_line(root, folder):
    for more, wrong, message in (
        ({"conditioning": "action"}, {"cond": "wlak"}, "did you mean 'walk'"),
        ({"conditioning": "action"}, {"cond": "7"}, "no class '7'"),
        ({"conditioning": "none"}, {"cond": "walk"}, "no conditions"),
        ({"conditioning": "none"}, {"guidance": 3.0}, "no conditions"),
        ({"condition_dropout": 0.0}, {"guidance": 3.0}, "never trained without"),
    ):
        system = systems.make(mdm_runs.config_of(root, folder, **more))
        with pytest.raises(UserError, match=message):
            system.condition(dataclasses.replace(system.request, **wrong), np.arange(2))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"conditioning": "txt"}, "did you mean 'text'"),
        ({"data__path": ""}, "config.data.path is empty"),
        ({"data__fps": 0.0}, "config.data.fps"),
        ({"data__min_frames": 40}, "config.data.min_frames 40"),
        ({"data__crop": -1}, "config.data.crop"),
        ({"diffusion__steps": 1}, "config.diffusion.steps 1"),
        ({"diffusion__schedule": "cosin"}, "did you mean 'cosine'"),
        ({"diffusion__context": 4}, "both above 0"),
        ({"diffusion__context": 20, "diffusion__predict": 20}, "which an example must have"),
        ({"condition_dropout": 1.0}, "config.condition_dropout"),
        ({"loss__velocity": -1.0}, "config.loss.velocity"),
        ({"text__encoder": "clip"}, "config.text.encoder"),
        ({"text__encoder": "folder"}, "config.text.folder is empty"),
        ({"text__width": 15}, "config.text.width"),
        ({"network__kind": "trans"}, "config.network.kind"),
        ({"sampling__seconds": 9.0}, "config.sampling|knows up to"),
    ],
)
def test_wrong_configs_are_one_line(root, folder, field, message):
    config = mdm_runs.config_of(root, **{"folder": folder, **field})
    with pytest.raises(UserError, match=message):
        system = systems.make(config)
        system.condition(system.request, np.arange(2))


def test_assets_that_are_not_such(root):
    config = mdm_runs.config_of(root)
    good = mdm_runs.assets_of(config)
    systems.make(config, good)
    for change, message in (
        ({"data": {}}, "assets/data.json"),
        ({"data": {**good["data"], "max_frames": "many"}}, "max_frames"),
        ({"data": {**good["data"], "kind": "video"}}, "kind"),
        ({"data": {**good["data"], "captions": [1]}}, "captions"),
        ({"skeleton": {"names": []}}, "assets/skeleton.json"),
        ({"mean": np.zeros(3, np.float32)}, "mean"),
        ({"std": np.zeros(263, np.float32)}, "std"),
        ({"vocabulary": []}, "vocabulary"),
        ({"rig": {"nodes": 3}}, "assets/rig.json"),
    ):
        with pytest.raises(UserError, match=message):
            systems.make(config, {**good, **change})


def test_prompts():
    assert requests.prompts_of("walk, proud;  wave ;") == ["walk, proud", "wave"]
    assert requests.prompts_of("") == []
    assert motions.to_text(motions.to_bytes(["läuft" * 60])[0]).startswith("läuftläuft")
    assert requests.frames_of(Request(seconds=2.0), 20.0, 60, 196) == 40


def test_rotations_of_smpl_stand_on_a_body(root, tmp_path):
    config = mdm_runs.config_of(root, conditioning="action")
    body = motions.described(mdm_runs.assets_of(config))
    rows = np.zeros((1, 4, 25, 6), np.float32)
    rows[..., :24, [0, 4]] = 1  # no rotation, by rows
    rows[..., 0, 4] = -1  # but for the root: these clips' y points down
    rows[..., 24, :3] = [0.5, -1.0, 0.25]
    joints = motions.joints_of(rows.reshape(1, 4, 150), body)
    index = body.skeleton.names.index
    place = lambda name: joints[0, 0, index(name)]
    np.testing.assert_allclose(place("pelvis"), [0.5, 1.0, -0.25])
    assert place("head")[1] > place("neck")[1] > 1.0 > place("left_knee")[1]
    assert place("left_hand")[0] > place("left_shoulder")[0] > place("right_hand")[0]
    np.testing.assert_allclose(place("left_hand")[1], place("left_shoulder")[1], atol=1e-6)
    inside = jax.jit(lambda m: motions.joints_of(m, body))(rows.reshape(1, 4, 150))
    np.testing.assert_allclose(inside, joints, atol=1e-6)
    output = {"joints": joints[0], "motion": rows.reshape(4, 150), "length": 4, "label": 1}
    motions.write({k: np.asarray(v) for k, v in output.items()}, tmp_path / "one.bvh", body)
    with np.load(tmp_path / "one.npz") as arrays:
        assert str(arrays["caption"]) == "walk"
    assert len(bvh.read(tmp_path / "one.bvh").positions) == 4
    with pytest.raises(UserError, match="SMPL"):
        config.unlock()
        config.loss.contact = 1.0
        systems.make(config, mdm_runs.assets_of(config))


@pytest.mark.slow
def test_humanact12_trains_and_samples(root, tmp_path):
    random, lengths = np.random.default_rng(0), np.full(4, 40)
    file = tmp_path / "set.npz"
    np.savez(
        file,
        poses=random.normal(0, 0.3, (160, 72)).astype(np.float32),
        joints3D=random.normal(0, 0.3, (160, 24, 3)).astype(np.float32),
        lengths=lengths,
        y=np.array([0, 1, 5, 11]),
    )
    more = {"conditioning": "action", "loss__velocity": 1.0}
    words = [*mdm_runs.words(root, file, **more), "--workdir", str(tmp_path / "run")]
    assert train.main(words) == 0
    flags = ["--workdir", str(tmp_path / "run"), "--cond", "throw", "--out", str(tmp_path / "o")]
    assert sample.main(flags) == 0
    assert (tmp_path / "o" / "000000.bvh").is_file()


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(root, folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = mdm_runs.words(root, folder, steps=6, checkpoint_every=3, keep=3)
    assert train.main([*words, "--workdir", str(whole)]) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "6")  # as if it had been killed after step 3
    (parts / "weights.safetensors").unlink()
    assert train.main([*words, "--workdir", str(parts)]) == 0
    runs = [trees.load(place / "weights.safetensors") for place in (whole, parts)]
    for path, value in trees.flatten(runs[0]).items():
        np.testing.assert_array_equal(value, trees.flatten(runs[1])[path], err_msg=path)
