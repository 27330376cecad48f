import dataclasses
import json

import numpy as np
import pytest

from diffjax.data.motion import bvh, features, naming, rigs, skeletons, walker
from diffjax.data.motion import rotations as rot
from diffjax.data.motion.skeletons import HUMANML3D, KIT, SMPL
from diffjax.errors import UserError

# How tools call the walker's 19 joints: trunk, arm, leg; {} is the side.
TOOLS = {
    "mixamo": (
        "mixamorig:Hips,mixamorig:Spine,mixamorig:Spine1,mixamorig:Neck,mixamorig:Head",
        "mixamorig:{}Arm,mixamorig:{}ForeArm,mixamorig:{}Hand",
        "mixamorig:{}UpLeg,mixamorig:{}Leg,mixamorig:{}Foot,mixamorig:{}ToeBase",
        ("Left", "Right"),
    ),
    "blender": (
        "hips,spine,chest,neck,head",
        "upper_arm.{},forearm.{},hand.{}",
        "thigh.{},shin.{},foot.{},toe.{}",
        ("L", "R"),
    ),
    "smpl": (
        "pelvis,spine1,spine2,neck,head",
        "{}_shoulder,{}_elbow,{}_wrist",
        "{}_hip,{}_knee,{}_ankle,{}_foot",
        ("left", "right"),
    ),
    "asf": (
        "hip,lowerback,thorax,upperneck,head",
        "{}humerus,{}radius,{}wrist",
        "{}femur,{}tibia,{}foot,{}toes",
        ("l", "r"),
    ),
    "biped": (
        "Bip01,Bip01 Spine,Bip01 Spine1,Bip01 Neck,Bip01 Head",
        "Bip01 {} UpperArm,Bip01 {} Forearm,Bip01 {} Hand",
        "Bip01 {} Thigh,Bip01 {} Calf,Bip01 {} Foot,Bip01 {} Toe0",
        ("L", "R"),
    ),
    "motive": (
        "Hip,Ab,Chest,Neck,Head",
        "{}UArm,{}FArm,{}Hand",
        "{}Thigh,{}Shin,{}Foot,{}Toe",
        ("L", "R"),
    ),
    "lower": (
        "hips,spine,chest,neck,head",
        "{}arm,{}forearm,{}hand",
        "{}upleg,{}leg,{}foot,{}toes",
        ("left", "right"),
    ),
    "upper": (
        "HIPS,SPINE,CHEST,NECK,HEAD",
        "{}ARM,{}FOREARM,{}HAND",
        "{}UPLEG,{}LEG,{}FOOT,{}TOES",
        ("LEFT", "RIGHT"),
    ),
    "suffix": (
        "Hips,Spine,Chest,Neck,Head",
        "UpperArm_{},LowerArm_{},Hand_{}",
        "UpperLeg_{},LowerLeg_{},Foot_{},Toes_{}",
        ("L", "R"),
    ),
}


def names_of(tool):
    trunk, *limbs, sides = TOOLS[tool]
    return [trunk, *(limb.replace("{}", side) for limb in limbs for side in sides)]


def renamed(clip, names):
    return dataclasses.replace(
        clip, hierarchy=dataclasses.replace(clip.hierarchy, names=tuple(names))
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_names_of_many_tools_are_understood(people, tool):
    clips, want, _ = people
    names = ",".join(names_of(tool)).split(",")
    found, _ = rigs.derive([renamed(c, names) for c in clips[:2]], fps=20)
    assert found.names == tuple(names)
    for field in ("parents", "face", "feet", "leg", "pairs", "lower", "chains"):
        assert getattr(found, field) == getattr(want, field), field


def test_an_upper_arm_in_two_pieces_begins_at_the_first():
    names = ["root", "upper_arm.L", "upper_arm.L.001", "forearm.L", "forearm.L.001", "hand.L"]
    assert naming.find_shoulder([1, 2, 3, 4, 5], names, (-1, 0, 1, 2, 3, 4)) == 1
    assert naming.find_shoulder([1], ["root", "wing.L"], (-1, 0)) is None


def test_the_walker_s_skeleton(people):
    _, s, rig = people
    name = dict(enumerate(s.names))
    assert [name[j] for j in s.face] == [
        "RightUpperLeg",
        "LeftUpperLeg",
        "RightUpperArm",
        "LeftUpperArm",
    ]
    assert [name[j] for j in s.feet] == ["LeftFoot", "LeftToes", "RightFoot", "RightToes"]
    assert [name[j] for j in s.leg] == ["RightLowerLeg", "RightFoot"]
    assert rig.unit == 0.01 and rig.up == "y" and s.contact == 0.002
    assert s.lengths[s.leg[1]] == pytest.approx(walker.SHANK) and 1.5 < s.height < 2.5
    directions = np.array(s.directions)
    assert (abs(directions[1:]).sum(-1) == 1).all() and (directions[0] == 0).all()
    for left, right in s.pairs:
        np.testing.assert_array_equal(directions[left], directions[right] * [-1, 1, 1])
    assert len(s.chains) == 5 and s.size == 12 * 19 - 1


def test_units_and_axes_are_told_from_the_body(people):
    clips, want, rig = people
    clip, joints = clips[0], rigs.joints_of(clips[0], rig)
    for scale, unit in ((0.01, 1.0), (10.0, 0.001)):
        h = clip.hierarchy
        offsets = tuple(tuple(scale * v for v in o) for o in h.offsets)
        big = bvh.Clip(
            dataclasses.replace(h, offsets=offsets),
            clip.rotations,
            clip.positions * scale,
            clip.frame_time,
        )
        skeleton, other = rigs.derive([big], fps=20)
        assert other.unit == unit
        np.testing.assert_allclose(skeleton.lengths, want.lengths, atol=1e-9)
        np.testing.assert_allclose(rigs.joints_of(big, other), joints, atol=1e-9)
    # z up: the same world, lying on its back.
    lying = clip.rotations.copy()
    lying[:, 0] = rot.multiply(rot.about("x", np.full(len(clip), np.pi / 2)), lying[:, 0])
    places = clip.positions.copy()
    places[:, 0] = places[:, 0][:, [0, 2, 1]] * [1, -1, 1]
    turned = dataclasses.replace(clip, rotations=lying, positions=places)
    skeleton, other = rigs.derive([turned], fps=20)
    assert other.up == "z"
    np.testing.assert_allclose(rigs.joints_of(turned, other), joints, atol=1e-9)


def test_a_node_above_the_hips_and_nodes_in_one_place_are_no_joints(people):
    clips, want, rig = people
    clip = clips[3]
    h, n = clip.hierarchy, len(clip.hierarchy)
    # A node that carries the body, and a second node at the left hip.
    hip = h.names.index("LeftUpperLeg")
    order = [*range(hip), "extra", *range(hip, n)]
    names, parents, offsets, channels, rows, moves = (
        ["Root"],
        [-1],
        [(0.0, 0, 0)],
        [h.channels[0]],
        [],
        [],
    )
    still, zero = np.tile(np.eye(4)[0], (len(clip), 1)), np.zeros((len(clip), 3))
    rows.append(rot.about("y", np.full(len(clip), 0.3)))
    moves.append(zero + [5, 0, 0])
    for node in order:
        if node == "extra":
            names.append("LeftHipJoint")
            parents.append(1)
            offsets.append((0.0, 0, 0))
            channels.append(h.channels[1])
            rows.append(still)
            moves.append(zero)
            continue
        names.append(h.names[node])
        place = h.parents[node] + 1 + (h.parents[node] >= hip)
        parents.append(len(names) - 2 if node == hip else place)
        offsets.append(h.offsets[node])
        channels.append(h.channels[node])
        rows.append(clip.rotations[:, node])
        moves.append(clip.positions[:, node])
    tree = bvh.Hierarchy(tuple(names), tuple(parents), tuple(offsets), tuple(channels))
    more = bvh.Clip(tree, np.stack(rows, 1), np.stack(moves, 1), clip.frame_time)
    skeleton, other = rigs.derive([more], fps=20)
    assert skeleton.names == want.names and skeleton.parents == want.parents
    found = features.extract(rigs.joints_of(more, other), skeleton)
    np.testing.assert_allclose(
        found, features.extract(rigs.joints_of(clip, rig), skeleton), atol=1e-6
    )


def test_joints_can_be_chosen_and_named(people):
    clips, _, _ = people
    strange = renamed(clips[0], [f"bone{i}" for i in range(19)])
    with pytest.raises(UserError, match="cannot tell which joints are the feet.*skeleton.json"):
        rigs.derive([strange], fps=20)
    given = {
        "face": ["bone15", "bone11", "bone8", "bone5"],
        "feet": ["bone13", "bone14", "bone17", "bone18"],
        "joints": [f"bone{i}" for i in range(19) if i not in (1, 4)],
    }
    skeleton, rig = rigs.derive([strange], given, fps=30)
    assert len(skeleton) == 17 and skeleton.parents[1] == 0 and skeleton.pairs == ()
    assert skeleton.contact == pytest.approx(0.002 * 4 / 9)
    bad = {
        "unknown field 'feets'": {"feets": []},
        "feet: no joint 'toe'": {**given, "feet": ["toe"] * 4},
        "'feet' must be four names": {**given, "feet": ["bone13"]},
        "'unit' must be a positive number": {**given, "unit": "cm"},
        '"up" must be': {**given, "up": "x"},
        "'joints' must be a list": {**given, "joints": 3},
        "joints: they must lie below": {**given, "joints": ["bone5", "bone11"]},
        "expected an object": [1],
    }
    for message, value in bad.items():
        with pytest.raises(UserError, match=message):
            rigs.derive([strange], value, fps=20)


def test_other_joints_are_refused(people):
    clips, _, rig = people
    with pytest.raises(UserError, match="not those of the other files: 'Hip2'"):
        rigs.joints_of(renamed(clips[0], ["Hip2", *clips[0].hierarchy.names[1:]]), rig)


def test_skeletons_and_rigs_survive_json(people):
    _, skeleton, rig = people
    for s in (skeleton, HUMANML3D, KIT, SMPL):
        assert skeletons.from_json(json.loads(json.dumps(s.to_json()))) == s
    assert rigs.rig_from_json(json.loads(json.dumps(rig.to_json()))) == rig


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": ["a"]}, "names must be"),
        ({"names": 3}, "cannot be read"),
        ({"parents": [0] * 22}, "parents must begin with -1"),
        ({"parents": [-1, 2, 1, *HUMANML3D.parents[3:]]}, "parents go in a circle"),
        ({"parents": [-1] + [99] * 21}, "has no joint 99"),
        ({"parents": [-1.5] * 22}, "must be an integer"),
        ({"chains": [[0, 2, 5]]}, "chains must lead to every joint"),
        ({"lengths": [float("nan")] * 22}, "not a finite number"),
        ({"lengths": [1.0]}, "lengths has 1 entries for 22 joints"),
        ({"fps": 0}, "must be positive"),
        ({"face": [1, 2, 3]}, "face must be 4 joints"),
        ({"pairs": [[1, 2], [1, 3]]}, "pairs must be pairs"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"directions": "up"}, "cannot be read"),
    ],
)
def test_bad_skeletons_are_one_line(change, message):
    with pytest.raises(UserError, match=message):
        skeletons.from_json({**HUMANML3D.to_json(), **change}, "s.json")
    value = HUMANML3D.to_json()
    del value["chains"]
    with pytest.raises(UserError, match="no field 'chains'"):
        skeletons.from_json(value)


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": [99]},
        {"up": "x"},
        {"rest": [[1, 0, 0, 0]]},
        {"places": None},
        {"hierarchy": {}},
    ],
)
def test_bad_rigs_are_one_line(people, change):
    with pytest.raises(UserError, match="^rig"):
        rigs.rig_from_json({**json.loads(json.dumps(people[2].to_json())), **change})
    with pytest.raises(UserError, match="expected an object"):
        rigs.rig_from_json([])


def test_mirrored_texts():
    text = "steps LEFT, then turns clockwise with the right-hand up; leftover bright"
    seen = "steps RIGHT, then turns counterclockwise with the left-hand up; leftover bright"
    assert naming.mirror_text(text) == seen and naming.mirror_text(seen) == text
    assert naming.mirror_text("walk_left") == "walk_right"
    assert naming.mirror_text("turns anti-clockwise") == "turns clockwise"
    assert naming.mirror_text("turns counter clockwise") == "turns clockwise"
    assert naming.mirror_text("the leftmost") == "the rightmost"
    for name, other in (("TurnLeft", "TurnRight"), ("rightKick", "leftKick"), ("Left2", "Right2")):
        assert naming.mirror_text(name) == other
    assert naming.mirror_text("Cleft Leftover uprightly") == "Cleft Leftover uprightly"
