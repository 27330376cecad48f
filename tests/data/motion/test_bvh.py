import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.data.motion import bvh
from diffjax.data.motion import rotations as rot
from diffjax.errors import UserError

ARM = """HIERARCHY
ROOT Hips
{
\tOFFSET 0 90 0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
\tJOINT Upper Arm
\t{
\t\tOFFSET 10 0 0
\t\tCHANNELS 3 Xrotation Yrotation Zrotation
\t\tJOINT Hand
\t\t{
\t\t\tOFFSET 5 0 0
\t\t\tCHANNELS 3 Yrotation Xrotation Zrotation
\t\t\tEnd Site
\t\t\t{
\t\t\t\tOFFSET 1 0 0
\t\t\t}
\t\t}
\t}
}
MOTION
Frames:\t2
Frame Time:\t0.05
1 2 3 0 0 90 0 0 90 0 0 0
0 0 0 0 0 0 0 0 0 0 0 0
"""


def test_forward_kinematics_of_a_file_by_hand():
    clip = bvh.parse(ARM)
    assert clip.hierarchy.names == ("Hips", "Upper Arm", "Hand")
    assert clip.hierarchy.ends == ((2, (1.0, 0.0, 0.0)),) and clip.frame_time == 0.05
    places, turns = bvh.forward(clip)
    # The root's position channels replace its OFFSET; +90 degrees about y take x to -z.
    np.testing.assert_allclose(places[0], [[1, 2, 3], [1, 2, -7], [1, 7, -7]], atol=1e-12)
    np.testing.assert_allclose(places[1], [[0, 0, 0], [10, 0, 0], [15, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(turns[1], np.eye(4)[[0, 0, 0]], atol=1e-12)


def test_line_ends_tabs_braces_and_case_do_not_matter():
    want = bvh.forward(bvh.parse(ARM))[0]
    packed = ARM.replace("\n{", " {").replace("\t", "  ")
    for text in (ARM.replace("\n", "\r\n"), ARM.replace("\t", " "), packed, "\n\n" + ARM + "\n\n"):
        np.testing.assert_array_equal(bvh.forward(bvh.parse(text))[0], want)
    spaced = ARM.replace("Frames:", "Frames :").replace("Frame Time", "frame\ttime")
    np.testing.assert_array_equal(bvh.forward(bvh.parse(spaced))[0], want)
    odd = ARM.replace("JOINT", "Joint").replace("Xposition", "XPOSITION").replace("Site", "site")
    np.testing.assert_array_equal(bvh.forward(bvh.parse(odd))[0], want)


def test_position_channels_of_an_inner_joint_are_its_whole_translation():
    text = ARM.replace(
        "CHANNELS 3 Xrotation Yrotation Zrotation",
        "CHANNELS 6 Zposition Xposition Yposition Xrotation Yrotation Zrotation",
    )
    text = text.replace("90 0 0 90 0 0 0", "0 7 0 0 0 0 0 0 0 0").replace(
        "\n0 0 0 0 0 0 0 0 0 0 0 0", "\n" + "0 " * 15
    )
    places, _ = bvh.forward(bvh.parse(text))
    np.testing.assert_allclose(places[0], [[1, 2, 3], [1, 2, 10], [6, 2, 10]], atol=1e-12)


BAD = {
    "line 1: expected HIERARCHY": lambda t: t.replace("HIERARCHY", "HIERARCH"),
    "line 2: ROOT has no name": lambda t: t.replace("ROOT Hips", "ROOT"),
    "line 4: OFFSET of Hips has 2 numbers": lambda t: t.replace("OFFSET 0 90 0", "OFFSET 0 90"),
    "line 4: OFFSET of Hips has a number that is not finite": lambda t: t.replace(
        "0 90 0", "0 nan 0"
    ),
    "line 4: OFFSET of Hips has something that is no number": lambda t: t.replace(
        "0 90 0", "0 x 0"
    ),
    "line 5: CHANNELS says 7 and lists 6": lambda t: t.replace("CHANNELS 6", "CHANNELS 7"),
    "line 5: unknown channel 'Xpos'": lambda t: t.replace("Xposition", "Xpos"),
    "line 5: a channel is listed twice": lambda t: t.replace("Xposition", "Yposition"),
    "line 9: a channel is listed twice": lambda t: t.replace(
        "Xrotation Yrotation Z", "Xrotation Xrotation Z"
    ),
    "line 10: two joints are named 'Hips'": lambda t: t.replace("JOINT Hand", "JOINT Hips"),
    "line 10: expected JOINT, End Site or }": lambda t: t.replace("JOINT Hand", "BONE Hand"),
    "line 22: Frames must be a number": lambda t: t.replace("Frames:\t2", "Frames: -2"),
    "line 23: Frame Time is 0 seconds": lambda t: t.replace("0.05", "0"),
    "line 25: frame 1 has 11 numbers, expected 12": lambda t: t.replace("0 0\n0 0", "0 0\n0"),
    "has 2 rows of motion, Frames says 3": lambda t: t.replace("Frames:\t2", "Frames: 3"),
    "line 25: more rows of motion than Frames says (1)": lambda t: t.replace(
        "Frames:\t2", "Frames: 1"
    ),
    "line 24: frame 0 has a number that is not finite": lambda t: t.replace("1 2 3", "1 2e99 3"),
    "ends where MOTION should be": lambda t: t[: t.index("MOTION")],
    "ends where JOINT": lambda t: t[: t.index("JOINT Hand")],
    "line 21: a second ROOT": lambda t: t.replace("MOTION", "ROOT Second\nMOTION"),
    "from 1 to 1048576, not '99999999'": lambda t: t.replace("Frames:\t2", "Frames: 99999999"),
}


@pytest.mark.parametrize("message", BAD, ids=str)
def test_bad_files_are_one_line(message):
    text = BAD[message](ARM)
    with pytest.raises(UserError) as error:
        bvh.parse(text, "arm.bvh")
    line = str(error.value)
    assert line.startswith("arm.bvh: ") and message in line and "\n" not in line


def test_hostile_sizes_are_refused_before_they_take_room(tmp_path, monkeypatch):
    deep = "HIERARCHY\nROOT a {\nOFFSET 0 0 0\n"
    deep += "".join(f"JOINT j{i} {{\nOFFSET 0 0 1\n" for i in range(1100))
    with pytest.raises(UserError, match="more than 1024 joints"):
        bvh.parse(deep)
    few = "HIERARCHY\nROOT a {\nOFFSET 0 0 0\nCHANNELS 1 Xrotation\n"
    few += "".join(f"JOINT j{i} {{\nOFFSET 0 0 1\n}}\n" for i in range(1000))
    with pytest.raises(UserError, match="16000 frames of 1001 joints, the limit is"):
        bvh.parse(few + "}\nMOTION\nFrames: 16000\nFrame Time: 0.1\n" + "0\n" * 16000)
    monkeypatch.setattr(bvh, "MAX_PLACES", 5)
    with pytest.raises(UserError, match="2 frames of 3 joints, the limit is 5"):
        bvh.parse(ARM)
    monkeypatch.setattr(bvh, "MAX_BYTES", 100)
    (tmp_path / "big.bvh").write_text(ARM)
    with pytest.raises(UserError, match="the limit is"):
        bvh.read(tmp_path / "big.bvh")


@st.composite
def clips(draw):
    """A random tree with random channels and a random motion of it."""
    n = draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parents, open_nodes = [-1], [0]
    for i in range(1, n):  # depth first: a parent is on the way down to the node before
        keep = int(random.integers(1, len(open_nodes) + 1))
        open_nodes = open_nodes[:keep]
        parents.append(open_nodes[-1])
        open_nodes.append(i)
    channels = []
    for i in range(n):
        order = rot.ORDERS[random.integers(6)]
        turn = tuple(f"{a.upper()}rotation" for a in order)
        place = bvh.CHANNELS[:3] if i == 0 or random.random() < 0.3 else ()
        channels.append((*place, *turn) if random.random() < 0.7 else (*turn, *place))
    offsets = random.uniform(-40, 40, (n, 3)).round(6)
    hierarchy = bvh.Hierarchy(
        tuple(f"joint {i}" for i in range(n)),
        tuple(parents),
        tuple(map(tuple, offsets.tolist())),
        tuple(channels),
        ((n - 1, (1.0, 2.0, 3.0)),),
    )
    frames = draw(st.integers(1, 5))
    positions = np.broadcast_to(offsets, (frames, n, 3)).copy()
    for i in range(n):
        if "Xposition" in channels[i]:
            positions[:, i] += random.uniform(-50, 50, (frames, 3))
    rotations = rot.unit(random.standard_normal((frames, n, 4)))
    return bvh.Clip(hierarchy, rotations, positions, 1 / 30)


@settings(max_examples=40, deadline=None)
@given(clips())
def test_what_is_written_reads_back(clip):
    again = bvh.parse(bvh.to_text(clip))
    assert again.hierarchy.names == clip.hierarchy.names
    assert again.hierarchy.parents == clip.hierarchy.parents
    assert again.hierarchy.channels == clip.hierarchy.channels
    assert again.frame_time == pytest.approx(clip.frame_time, abs=1e-7)
    want, found = bvh.forward(clip)[0], bvh.forward(again)[0]
    height = max(1.0, np.ptp(want, axis=(0, 1)).max())
    assert abs(found - want).max() < 1e-5 * height


def test_angles_are_written_without_jumps():
    turn = np.stack([rot.about("y", np.radians(a * 40.0)) for a in np.arange(30)])
    hierarchy = bvh.parse(ARM).hierarchy
    still = np.tile(np.eye(4)[0], (30, 2, 1))
    positions = np.broadcast_to(np.array(hierarchy.offsets), (30, 3, 3))
    clip = bvh.Clip(hierarchy, np.concatenate([turn[:, None], still], 1), positions, 0.05)
    rows = bvh.to_text(clip).split("Frame Time: 0.0500000\n")[1].splitlines()
    angles = np.array([float(row.split()[5]) for row in rows])
    assert abs(np.diff(angles)).max() < 41


def test_what_channels_cannot_say_is_refused():
    clip = bvh.parse(ARM)
    moved = clip.positions.copy()
    moved[1, 2] += 1
    with pytest.raises(UserError, match="'Hand' moves and has no position channels"):
        bvh.to_text(bvh.Clip(clip.hierarchy, clip.rotations, moved, 0.05))
    channels = (*clip.hierarchy.channels[:2], ("Yrotation",))
    hinge = dataclasses.replace(clip.hierarchy, channels=channels)
    turned = clip.rotations.copy()
    turned[:, 2] = rot.about("z", np.ones(2))
    with pytest.raises(UserError, match="'Hand' rotates and has no three rotation channels"):
        bvh.to_text(bvh.Clip(hinge, turned, clip.positions, 0.05))


def test_names_in_any_encoding_stay_apart(tmp_path):
    text = ARM.replace("Upper Arm", "\u5de6\u624b").replace("Hand", "\u53f3\u624b")
    for encoding in ("utf-8", "utf-8-sig", "shift_jis"):
        (tmp_path / "in.bvh").write_bytes(text.encode(encoding))
        clip = bvh.read(tmp_path / "in.bvh")
        assert len(set(clip.hierarchy.names)) == 3
        bvh.write(clip, tmp_path / "out.bvh")
        assert bvh.read(tmp_path / "out.bvh").hierarchy == clip.hierarchy
    assert "Frames: 2" in (tmp_path / "out.bvh").read_text("utf-8")
    for name in ("a\nb", "a}", " a"):
        names = (name, *clip.hierarchy.names[1:])
        bad = dataclasses.replace(clip, hierarchy=dataclasses.replace(clip.hierarchy, names=names))
        with pytest.raises(UserError, match="a name that a BVH file cannot hold"):
            bvh.to_text(bad)


def test_writing_replaces_a_file_whole(tmp_path):
    path = tmp_path / "a" / "arm.bvh"
    bvh.write(bvh.parse(ARM), path)
    assert [p.name for p in path.parent.iterdir()] == ["arm.bvh"]
    np.testing.assert_allclose(
        bvh.forward(bvh.read(path))[0], bvh.forward(bvh.parse(ARM))[0], atol=1e-5
    )


def test_resampling_keeps_bones_and_meets_every_second_frame():
    random = np.random.default_rng(0)
    hierarchy = bvh.parse(ARM).hierarchy
    angles = random.uniform(-1, 1, (31, 3, 3)).cumsum(0) * 0.1
    places = np.broadcast_to(np.array(hierarchy.offsets), (31, 3, 3)).copy()
    places[:, 0] += angles[:, 0]
    clip = bvh.Clip(hierarchy, rot.from_euler(angles, "xyz"), places, 0.0333333)
    slow = bvh.resample(clip, 20)
    assert len(slow) == 21 and slow.frame_time == 0.05
    want, found = bvh.forward(clip)[0], bvh.forward(slow)[0]
    np.testing.assert_allclose(found[::2], want[::3], atol=1e-9)
    for a, b in ((0, 1), (1, 2)):
        lengths = np.linalg.norm(found[:, a] - found[:, b], axis=-1)
        np.testing.assert_allclose(lengths, np.linalg.norm(hierarchy.offsets[b]), rtol=1e-12)
    # Odd frames: the normalised mean of the two neighbours.
    q = clip.rotations
    near = np.where((q[1] * q[2]).sum(-1, keepdims=True) < 0, -q[2], q[2])
    np.testing.assert_allclose(slow.rotations[1], rot.unit(q[1] + near), atol=1e-6)
    np.testing.assert_allclose(bvh.resample(clip, 1 / 0.0333333).rotations, q, atol=1e-12)
    with pytest.raises(UserError, match="positive number"):
        bvh.resample(clip, 0)
