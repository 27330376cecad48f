"""The room of motions: trained on BVH files, sampled, edited, without an end, and refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import mdm_runs
import numpy as np
import pytest

import sample
import train
from diffjax import systems
from diffjax.data.motion import bvh, features, rigs
from diffjax.errors import UserError
from diffjax.metrics import motion_judge
from diffjax.run import cli, sampling
from diffjax.run import mesh as meshes
from diffjax.systems.mdm import conditions, motions, scores
from diffjax.systems.mdm import request as requests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mdm_runs.folder_of(tmp_path_factory.mktemp("bvh"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, root, folder):
    """A finished run on texts; its data are gone by the time that it is sampled."""
    workdir = tmp_path_factory.mktemp("mdm") / "run"
    assert train.main([*mdm_runs.words(root, folder), "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def loaded(run):
    system, _ = systems.load(run)
    mesh = meshes.make_mesh(meshes.LOCAL)
    return system, sampling.load_params(system, run, mesh)[0]


def test_a_run_keeps_what_sampling_needs(run):
    names = {p.name for p in (run / "assets").iterdir()}
    wanted = {"data.json", "skeleton.json", "rig.json", "mean.npy", "std.npy", "vocabulary.json"}
    assert wanted <= names
    assert (run / "samples.gif").is_file() and (run / "loss.png").is_file()


def test_sampling_writes_bvh_and_joints(run, loaded, folder, capsys, tmp_path):
    system, _ = loaded
    out = tmp_path / "made"
    words = ["--workdir", run, "--cond", "walk, normal", "--num", 2, "--out", out]
    assert sample.main([str(word) for word in words]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        *("000000.bvh", "000000.npz", "000001.bvh", "000001.npz", "samples.gif")
    ]
    rig = rigs.rig_from_json(system.assets["rig"])
    with np.load(out / "000001.npz", allow_pickle=False) as arrays:
        joints, caption = arrays["joints"], str(arrays["caption"])
    assert joints.shape == (20, 19, 3) and caption == "walk, normal"
    back = rigs.joints_of(bvh.read(out / "000001.bvh"), rig)
    height = motions.described(system.assets).skeleton.height
    assert np.abs(back - joints).max() < 1e-4 * height
    source = bvh.read(next(folder.rglob("*.bvh")))
    assert bvh.read(out / "000001.bvh").hierarchy.names == source.hierarchy.names


def test_bones_keep_their_lengths(loaded):
    system, params = loaded
    found = mdm_runs.draw(system, params, dataclasses.replace(system.request, steps=2), 2)
    skeleton = motions.described(system.assets).skeleton
    bones = found["joints"][..., 1:, :] - found["joints"][..., list(skeleton.parents[1:]), :]
    lengths = np.linalg.norm(bones, axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(skeleton.lengths[1:], lengths.shape), 1e-4)
    loose = features.recover(found["motion"], skeleton)
    np.testing.assert_allclose(loose[:, :, 0], found["joints"][:, :, 0], atol=1e-5)


def test_a_grid_of_one_s_own_is_the_schedule_s_where_it_says_the_same(loaded):
    system, params = loaded
    named = dataclasses.replace(system.request, steps=3, frames=8)
    own = dataclasses.replace(named, grid="8,5,1", steps=0)  # with 0, what 3 of 8 steps visit
    assert requests.grid_of(named, 8).tolist() == [8, 5, 1, 0]
    want, got = (mdm_runs.draw(system, params, request, 2)["motion"] for request in (named, own))
    np.testing.assert_array_equal(want, got)
    other = mdm_runs.draw(system, params, dataclasses.replace(own, grid="8,6.5,1"), 2)["motion"]
    assert np.isfinite(other).all() and not np.allclose(other, want)


def test_a_sample_does_not_depend_on_its_batch(loaded):
    system, params = loaded
    request = dataclasses.replace(system.request, cond="walk, normal; squat, tired", steps=3)
    whole = mdm_runs.draw(system, params, request, 4)
    parts = mdm_runs.draw(system, params, request, 4, batch=1)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], atol=2e-5, err_msg=name)
    assert not np.allclose(whole["motion"][0], whole["motion"][2])
    assert motions.to_text(whole["caption"][1]) == "squat, tired"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "dpmpp", "dpmpp_sde", "unipc", "ancestral_large"])
def test_every_sampler_runs(loaded, name):
    system, params = loaded
    request = dataclasses.replace(system.request, sampler=name, steps=4, guidance=1.0, frames=8)
    assert np.isfinite(mdm_runs.draw(system, params, request, 1)["joints"]).all()


def test_guidance_is_the_two_passes(loaded):
    system, params = loaded
    given = system.condition(dataclasses.replace(system.request, frames=6), np.arange(3))
    given = jax.tree.map(jnp.asarray, {k: v for k, v in given.items() if k != "caption"})
    x, t = jax.random.normal(jax.random.key(0), (3, 6, len(system.assets["mean"]))), 5.0
    run = jax.jit(system.denoiser)
    estimate = lambda x, t, given: run(params, x, jnp.float32(t), given)
    got = requests.guided(estimate, given, 2.5)(x, t)
    cond = estimate(x, t, given)
    uncond = estimate(x, t, {**given, "drop": jnp.ones(3, bool)})
    np.testing.assert_allclose(got, uncond + 2.5 * (cond - uncond), atol=1e-4)
    assert np.abs(cond - uncond).max() > 1e-4
    once = requests.guided(estimate, given, 1)(x, t)
    np.testing.assert_allclose(once, cond, atol=1e-6)


def test_padding_behind_a_motion_changes_nothing(loaded):
    system, params = loaded
    size = len(system.assets["mean"])
    x = jax.random.normal(jax.random.key(1), (1, 12, size))
    given = {"text": jnp.ones((1, 32), int), "text_mask": jnp.arange(32)[None] < 3}
    given["mask"] = jnp.arange(12)[None] < 7
    run = jax.jit(system.denoiser)
    one = run(params, x, jnp.float32(3), given)
    two = run(params, x.at[:, 7:].set(9.0), jnp.float32(3), given)
    np.testing.assert_allclose(one[:, :7], two[:, :7], atol=1e-5)


@pytest.mark.parametrize("edit", ["in_between", "upper_body"])
def test_editing_keeps_what_it_is_told(loaded, folder, edit):
    system, params = loaded
    file = folder / "walk" / "normal" / "0.bvh"
    request = dataclasses.replace(
        system.request, edit=edit, motion=str(file), frames=0, steps=3, keep="0.3,0.8"
    )
    given = system.condition(request, np.arange(2))
    found = mdm_runs.draw(system, params, request, 2)
    body = motions.described(system.assets)
    x = np.asarray(motions.normalised(found["motion"], body))
    kept = given["kept"]
    np.testing.assert_allclose(x[kept], given["known"][kept], atol=1e-4)
    assert np.abs(x[~kept] - given["known"][~kept]).max() > 0.1
    assert found["given"].any() == (edit == "in_between")
    # Without a text the edited part is made without a condition.
    assert given["drop"].all()
    told = dataclasses.replace(request, cond="walk, normal")
    assert not system.condition(told, np.arange(2))["drop"].any()


def test_the_mask_of_in_betweening(loaded, folder):
    system, _ = loaded
    file = folder / "squat" / "tired" / "1.bvh"
    request = dataclasses.replace(system.request, edit="in_between", motion=str(file))
    given = system.condition(request, np.arange(1))
    count = given["mask"].shape[1]
    rows = given["kept"][0].all(1)
    np.testing.assert_array_equal(rows, given["kept"][0].any(1))
    assert not rows[int(0.25 * count) : int(0.75 * count)].any()
    assert rows[: int(0.25 * count)].all() and rows[int(0.75 * count) :].all()


def test_conditions_of_folders_without_captions(loaded):
    system, _ = loaded
    texts = conditions.captions_of(system.data("train").source)
    assert {some[0] for some in texts} == {"walk, normal", "walk, tired"} | {
        "squat, normal",
        "squat, tired",
    }


def test_batches_take_a_caption_of_the_clip(loaded):
    source = loaded[0].data("train")
    arrays = jax.tree.map(jnp.asarray, source.arrays())
    index = jnp.arange(len(source), dtype=jnp.uint32)
    batch = source.gather(arrays, index, jax.random.split(jax.random.key(0), len(source)))
    texts = conditions.captions_of(source.source)
    want = source.conditioner.encode([some[0] for some in texts])
    np.testing.assert_array_equal(batch["text"], want["text"])
    np.testing.assert_array_equal(batch["motion"][3], source.source[3]["motion"])


def test_shuffled_frames_are_the_same_frames_in_another_order(root):
    config = cli.load_config(str(root / "configs" / "mdm_tiny.py"))
    plain = motions.opener(config)("walker", "val")
    config.data.shuffle_frames = True
    mixed = motions.opener(config)("walker", "val")
    again = motions.opener(config)("walker", "val")
    for i in range(len(plain)):
        a, b = plain.features(i), mixed.features(i)
        assert not np.array_equal(a, b)
        by_first = lambda x: x[np.lexsort(x.T)]
        np.testing.assert_array_equal(by_first(a), by_first(b))
        np.testing.assert_array_equal(b, again.features(i))
    np.testing.assert_array_equal(plain.statistics.mean, mixed.statistics.mean)


def test_a_step_depends_on_the_rows_number_alone(root, folder, loaded):
    config = mdm_runs.config_of(root, folder, network__dropout=0.0, network__attention_dropout=0.0)
    system, params = systems.make(config), loaded[1]
    source = system.data("train")
    some = source.gather(
        jax.tree.map(jnp.asarray, source.arrays()),
        jnp.arange(4),
        jax.random.split(jax.random.key(1), 4),
    )
    row = {"row": jnp.arange(4)}
    loss = jax.jit(system.loss)
    whole = loss(params, {**some, **row}, jax.random.key(2))[0]
    halves = [
        loss(params, jax.tree.map(lambda a: a[i : i + 2], {**some, **row}), jax.random.key(2))[0]  # noqa: B023
        for i in (0, 2)
    ]
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)
    assert abs(loss(params, {**some, **row}, jax.random.key(3))[0] - whole) > 1e-4


def test_wrong_flags_are_one_line(run, capsys, folder, tmp_path):
    def said(*words):
        return mdm_runs.refused(capsys, sample.main, "--workdir", run, *words)

    assert "did you mean 'ddim'" in said("--sampler", "ddin")
    assert "did you mean 'ddim'" in said("--grid", "ddin")
    assert "--grid: from time 9; the network knows those up to 8" in said("--grid", "9,2")
    assert "--steps 9: must be from 0 to 8" in said("--steps", 9)
    assert "1.6 seconds" in said("--seconds", 30)
    assert "give --motion FILE too" in said("--edit", "upper_body")
    assert "give --edit in_between or upper_body too" in said("--motion", "x.bvh")
    assert "did you mean 'upper_body'" in said("--edit", "uper_body", "--motion", "x.bvh")
    assert "--keep 0.8,0.2" in said("--keep", "0.8,0.2")
    assert "no text in it" in said("--cond", ";")
    assert "--text_folder" in said("--text_folder", "somewhere")
    assert "ends in .gif or .mp4" in said("--out", "x.png")
    (tmp_path / "bad.bvh").write_text("HIERARCHY\nROOT a\n")
    bad = ["--edit", "in_between", "--motion", tmp_path / "bad.bvh"]
    assert "bad.bvh" in said(*bad)
    other = tmp_path / "other.bvh"
    text = next(folder.rglob("*.bvh")).read_text()
    other.write_text(text.replace("LeftHand", "LeftPaw"))
    assert "its joints are not those" in said("--edit", "in_between", "--motion", other)
    assert "no such file" in said("--edit", "in_between", "--motion", tmp_path / "none.bvh").lower()


def test_evaluation(loaded, tmp_path):
    system, params = loaded
    source = system.data("train")
    names = ["fd", "kid", "precision", "recall", "skate", "speed"]
    score = system.evaluate(source, names, "kinematics")
    request = dataclasses.replace(system.request, steps=2)
    found = sampling.collect(
        system, params, request, num=8, seed=0, batch=8, mesh=meshes.make_mesh(meshes.LOCAL),
        condition=lambda index: system.condition_like(request, source, index),
    )  # fmt: skip
    result = score(found, 0)
    assert result["num_fake"] == 8 and list(result["scores"]) == names
    assert result["scores"]["fd"]["value"] > result["scores"]["fd"]["floor"] > 0
    assert result["scores"]["speed"]["real"] > 0.1
    json.dumps(result)
    # The reference scored against itself.
    clips, lengths, _ = scores.examples(source, motions.described(system.assets))
    same = score({"motion": clips, "length": lengths}, 0)["scores"]
    assert same["fd"]["value"] < 1e-6 and same["precision"]["value"] == 1
    assert same["skate"]["value"] == same["skate"]["real"]
    judge = system.judge(source, "kid", "kinematics")
    assert judge.sign == -1 and np.isfinite(judge.score(found)(np.ones(8, int)))


@pytest.mark.slow
def test_a_judge_of_ones_own(loaded, tmp_path):
    system, _ = loaded
    source, body = system.data("train"), motions.described(system.assets)
    clips, lengths, some = scores.examples(source, body)
    labels = {"content": source.labels[some]}
    made = motion_judge.train(
        clips, lengths, labels, {"content": body.class_names}, steps=2, batch=4, width=8, features=8
    )
    motion_judge.save(made, tmp_path / "judge.safetensors")
    net = f"judge:{tmp_path / 'judge.safetensors'}"
    score = system.evaluate(source, ["fd", "accuracy"], net)
    found = score({"motion": clips, "length": lengths, "label": labels["content"]}, 0)
    assert found["feature_net"] == "judge judge.safetensors"
    assert found["scores"]["accuracy"]["value"] == found["scores"]["accuracy"]["real"]


def test_scores_that_are_refused(loaded, tmp_path):
    system, _ = loaded
    source = system.data("train")
    for metrics, net, message in (
        (["skat"], "kinematics", "did you mean 'skate'"),
        (["fd"], "emoji", "--net emoji"),
        (["accuracy"], "kinematics", "needs a judge"),
        (["fd"], f"judge:{tmp_path / 'none.safetensors'}", "none.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            system.evaluate(source, metrics, net)
    with pytest.raises(UserError, match="--cond"):
        request = dataclasses.replace(system.request, cond="walk, normal")
        system.condition_like(request, source, np.arange(2))
