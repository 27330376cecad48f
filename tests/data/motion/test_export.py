import dataclasses

import numpy as np
import pytest

from diffjax.data.motion import bvh, export, features, rigs
from diffjax.data.motion import rotations as rot
from diffjax.data.motion.skeletons import HUMANML3D, KIT
from diffjax.errors import UserError


def generated(joints, skeleton, seed=0):
    """Joints of features that no body made: each bone turned a little by itself."""
    random = np.random.default_rng(seed)
    rows = features.extract(joints, skeleton).astype(np.float64)
    block = features.channels(len(skeleton))["rotations"]
    rows[:, block] += random.normal(0, 0.1, rows[:, block].shape)
    rows[:, :3] += random.normal(0, 0.3, (len(rows), 3)) * rows[:, :3].std(0)
    return features.recover_from_rotations(rows, skeleton)


def read_back(path, skeleton, unit=0.01):
    clip = bvh.read(path)
    nodes = [clip.hierarchy.names.index(name) for name in skeleton.names]
    return bvh.forward(clip)[0][:, nodes] * unit / skeleton.unit, clip


def test_a_recorded_clip_comes_back_from_its_own_skeleton(people, tmp_path):
    clips, skeleton, rig = people
    for i in (0, 5, 9, 13):
        joints = rigs.joints_of(clips[i], rig)
        for rigid in (False, True):
            export.save_bvh(joints, skeleton, tmp_path / "a.bvh", rig=rig, rigid=rigid)
            clip = bvh.read(tmp_path / "a.bvh")
            assert clip.hierarchy == dataclasses.replace(rig.hierarchy, ends=clip.hierarchy.ends)
            assert clip.hierarchy.ends == rig.hierarchy.ends
            found = rigs.joints_of(clip, rig)
            assert abs(found - joints).max() < 1e-6 * skeleton.height


def test_a_generated_clip_comes_back_exactly_and_keeps_its_names(people, tmp_path):
    clips, skeleton, rig = people
    joints = generated(rigs.joints_of(clips[2], rig), skeleton)
    export.save_bvh(joints, skeleton, tmp_path / "a.bvh", rig=rig, fps=30)
    clip = bvh.read(tmp_path / "a.bvh")
    assert clip.frame_time == pytest.approx(1 / 30, abs=1e-6)
    assert clip.hierarchy.names == rig.hierarchy.names
    assert clip.hierarchy.offsets == rig.hierarchy.offsets
    assert abs(rigs.joints_of(clip, rig) - joints).max() < 1e-4 * skeleton.height
    # Position channels only where several bones meet: below hips and chest.
    more = {
        clip.hierarchy.names[clip.hierarchy.parents[i]]
        for i, (a, b) in enumerate(zip(clip.hierarchy.channels, rig.hierarchy.channels))
        if a != b
    }
    assert more == {"Hips", "Chest"}


def test_rigid_export_keeps_every_channel_and_stays_near(people, tmp_path):
    clips, skeleton, rig = people
    joints = generated(rigs.joints_of(clips[2], rig), skeleton)
    export.save_bvh(joints, skeleton, tmp_path / "a.bvh", rig=rig, rigid=True)
    clip = bvh.read(tmp_path / "a.bvh")
    assert clip.hierarchy.channels == rig.hierarchy.channels
    off = np.linalg.norm(rigs.joints_of(clip, rig) - joints, axis=-1)
    assert off.mean() < 0.02 * skeleton.height and off.max() < 0.08 * skeleton.height
    found = rigs.joints_of(clip, rig)
    bones = np.linalg.norm(found[:, 1:] - found[:, list(skeleton.parents[1:])], axis=-1)
    np.testing.assert_allclose(bones, np.tile(skeleton.lengths[1:], (len(found), 1)), atol=1e-6)


def test_a_z_up_file_is_written_as_one(people):
    clips, skeleton, rig = people
    joints = rigs.joints_of(clips[1], rig)
    turned = dataclasses.replace(rig, up="z")
    clip = export.on_rig(joints, skeleton, turned)
    np.testing.assert_allclose(rigs.joints_of(clip, turned), joints, atol=1e-6)


def test_hinges_and_chosen_joints(people):
    clips, _, _ = people
    keep = [n for n in clips[0].hierarchy.names if n not in ("Spine", "Neck")]
    skeleton, rig = rigs.derive(clips[:4], {"joints": keep}, fps=20)
    hinge = tuple(
        ("Xrotation",) if name == "LeftLowerLeg" else channels
        for name, channels in zip(rig.hierarchy.names, rig.hierarchy.channels)
    )
    rig = dataclasses.replace(rig, hierarchy=dataclasses.replace(rig.hierarchy, channels=hinge))
    joints = rigs.joints_of(clips[2], rig)
    clip = bvh.parse(bvh.to_text(export.on_rig(joints, skeleton, rig)))
    assert abs(rigs.joints_of(clip, rig) - joints).max() < 1e-4 * skeleton.height


def test_a_hinge_at_the_end_of_a_limb_is_written(people):
    clips, _, _ = people
    hand = clips[0].hierarchy.names.index("LeftHand")
    channels = list(clips[0].hierarchy.channels)
    channels[hand] = ("Xrotation",)
    hierarchy = dataclasses.replace(clips[0].hierarchy, channels=tuple(channels))
    turned = clips[0].rotations.copy()
    turned[:, hand] = rot.about("x", np.linspace(0.3, 0.6, len(turned)))
    clip = dataclasses.replace(clips[0], hierarchy=hierarchy, rotations=turned)
    skeleton, rig = rigs.derive([clip], fps=20)
    joints = rigs.joints_of(clip, rig)
    back = bvh.parse(bvh.to_text(export.on_rig(joints, skeleton, rig)))
    assert abs(rigs.joints_of(back, rig) - joints).max() < 1e-4 * skeleton.height


def test_a_rig_of_another_tree_is_refused(people):
    clips, skeleton, rig = people
    joints = rigs.joints_of(clips[0], rig)
    with pytest.raises(UserError, match="rig: .* is not below its parent's node"):
        export.on_rig(joints, skeleton, dataclasses.replace(rig, nodes=rig.nodes[::-1]))


@pytest.mark.parametrize("skeleton", [HUMANML3D, KIT], ids=["humanml3d", "kit"])
def test_published_skeletons_are_written_with_helpers(skeleton, tmp_path):
    random = np.random.default_rng(0)
    rows = random.normal(0, 1, (20, skeleton.size)) * 0.05
    rows[:, 3] = 0.9 / skeleton.unit
    block = features.channels(len(skeleton))["rotations"]
    rows[:, block] = np.tile([1, 0, 0, 0, 1, 0], len(skeleton) - 1) + random.normal(
        0, 0.5, (20, block.stop - block.start)
    )
    joints = features.recover_from_rotations(rows, skeleton)
    export.save_bvh(joints, skeleton, tmp_path / "a.bvh")
    found, clip = read_back(tmp_path / "a.bvh", skeleton)
    assert abs(found - joints).max() < 1e-5 * skeleton.height
    assert clip.frame_time == pytest.approx(1 / skeleton.fps)
    helpers = [n for n in clip.hierarchy.names if "_to_" in n]
    assert len(helpers) == 6 and len(clip.hierarchy) == len(skeleton) + 6
    assert all(
        clip.hierarchy.channels[i][:3] != bvh.CHANNELS[:3] for i in range(1, len(clip.hierarchy))
    )


def test_the_rest_pose_is_a_t(people):
    clips, skeleton, rig = people
    clip = export.with_helpers(rigs.joints_of(clips[0], rig), skeleton)
    count = len(clip.hierarchy)
    rest = bvh.Clip(
        clip.hierarchy,
        np.tile(np.eye(4)[0], (1, count, 1)),
        np.array(clip.hierarchy.offsets)[None],
        1,
    )
    places = bvh.forward(rest)[0][0]
    at = {name: places[i] for i, name in enumerate(clip.hierarchy.names)}
    assert at["LeftHand"][0] - at["LeftUpperArm"][0] == pytest.approx(53, abs=0.5)
    assert at["LeftHand"][1] == pytest.approx(at["LeftUpperArm"][1], abs=1e-9)
    assert at["Head"][1] > at["Hips"][1] > at["RightFoot"][1]
