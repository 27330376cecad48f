import json
import os
import shutil

import jax
import numpy as np
import pytest

from diffjax.data.motion import base, bvh, bvh_folder, features, rigs, sources, walker
from diffjax.data.motion import rotations as rot
from diffjax.data.motion.npz import write_npz
from diffjax.data.motion.skeletons import HUMANML3D
from diffjax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve BVH files of two classes, three seconds each at 30 frames a second, with captions."""
    root = tmp_path_factory.mktemp("motion") / "mine"
    lines = ["file,caption,start,end"]
    for action in ("walk", "wave_left"):
        for k in range(6):
            clip = walker.clip(action, seed=k, seconds=3, fps=30)
            bvh.write(clip, root / action / f"{k}.bvh")
            lines.append(f'{action}/{k}.bvh,"someone, {action}",,')
            lines.append(f"{action}/{k},with the left hand,,")
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "mine")


def check(source):
    assert isinstance(source.name, str) and len(source.fingerprint) == 16
    assert source.num_classes == len(source.class_names)
    assert len(source) == len(source.names) == len(source.captions) == len(source.lengths)
    arrays = source.arrays()
    for i in (0, len(source) - 1):
        example = source[i]
        motion, length = example["motion"], example["length"]
        assert motion.shape == source.motion_shape and motion.dtype == np.float32
        assert (motion[length:] == 0).all() and 2 <= length <= source.max_frames
        assert example["index"] == i and example["index"].dtype == length.dtype == np.int32
        assert ("label" in example) == (source.labels is not None)
        for key, value in example.items():
            np.testing.assert_array_equal(arrays[key][i], value)
            assert arrays[key].dtype == np.asarray(value).dtype
        assert source.joints(i).shape == (length, len(source.skeleton), 3)
    with pytest.raises(IndexError):
        source[len(source)]


def test_a_folder_of_bvh_files(folder):
    source = sources.open_motion(str(folder))
    check(source)
    assert source.class_names == ("walk", "wave_left") and source.rig is not None
    # 90 frames at 30 are 60 at 20, the last a whole step before the end, and so 59 features.
    assert set(source.lengths) == {59}
    assert source.captions[0] == ("someone, walk", "with the left hand")
    name = source.names[0]
    clip = bvh.resample(bvh.read(folder / name), 20)
    want = features.canonical(rigs.joints_of(clip, source.rig), source.skeleton)[:-1]
    np.testing.assert_allclose(source.joints(0), want, atol=1e-5)


def test_splits_are_disjoint_whole_and_the_same_anywhere(folder, copied):
    found = {s: sources.open_motion(str(folder), s).names for s in base.SPLITS}
    assert sorted(n for names in found.values() for n in names) == sorted(
        f"{a}/{k}.bvh" for a in ("walk", "wave_left") for k in range(6)
    )
    assert [len(found[s]) for s in base.SPLITS] == [9, 1, 2]
    assert {n.split("/")[0] for n in found["test"]} == {"walk", "wave_left"}
    assert sources.open_motion(str(copied), "test").names == found["test"]
    one, other = (sources.open_motion(str(folder), s) for s in ("train", "test"))
    np.testing.assert_array_equal(one.statistics.mean, other.statistics.mean)


def test_many_takes_split_by_their_share():
    names = [f"take {i}" for i in range(200)]
    split = base.split_takes(names, ["a"] * 100 + ["b"] * 100)
    count = {s: list(split.values()).count(s) for s in base.SPLITS}
    assert count == {"train": 170, "val": 10, "test": 20}
    assert sum(split[n] == "test" for n in names[:100]) == 10
    assert set(base.split_takes(["a", "b"], [None, None]).values()) == {"train"}
    assert sorted(base.split_takes(["a", "b", "c"], [None] * 3).values()) == [
        "test",
        "train",
        "val",
    ]


def test_split_files_decide(copied):
    (copied / "train.txt").write_text("walk/0\nwalk/1.bvh\nwave_left/2\n\n")
    (copied / "test.txt").write_text("walk/5\n")
    assert len(sources.open_motion(str(copied))) == 3
    assert sources.open_motion(str(copied), "test").names == ("walk/5.bvh",)
    with pytest.raises(UserError, match="the split 'val' is empty"):
        sources.open_motion(str(copied), "val")
    (copied / "test.txt").write_text("walk/0\n")
    with pytest.raises(UserError, match="test.txt: line 1: also in train.txt"):
        sources.open_motion(str(copied))


def test_mirrored_copies_are_told_so(folder):
    plain, source = (sources.open_motion(str(folder), mirror=m) for m in (False, True))
    check(source)
    assert len(source) == 2 * len(plain)
    i = next(i for i, n in enumerate(source.names) if n.startswith("mirror of"))
    assert source.captions[i] == ("someone, walk", "with the right hand")
    one, seen = source.features(i - 1), source.features(i)
    np.testing.assert_allclose(seen[:, 0], -one[:, 0], atol=1e-6)
    assert len(sources.open_motion(str(folder), "test", mirror=True)) == 2


def test_a_mirrored_class_is_the_other_one():
    source = sources.open_motion("walker", max_frames=40, mirror=True)
    for i, name in enumerate(source.names):
        action = name.removeprefix("mirror of ").split("/")[0]
        if name.startswith("mirror of") and action == "wave_left":
            assert source.class_names[source.labels[i]] == "wave_right"
            assert "right" in source.captions[i][0]
            break
    else:
        raise AssertionError


def test_captions_of_parts_are_clips_of_their_own(copied):
    (copied / "captions.csv").write_text(
        "caption,file,end,start\nwhole,walk/0,,\npart,walk/0.bvh,2.5,1\nonly a part,walk/1,1.5,0\n"
    )
    (copied / "train.txt").write_text("walk/0\nwalk/1\nwalk/2\n")
    source = sources.open_motion(str(copied))
    assert source.captions == (("whole",), ("part",), ("only a part",), ())
    assert source.lengths.tolist() == [59, 30, 30, 59]
    np.testing.assert_array_equal(source.features(1), source.features(0)[20:50])
    # The part is in the whole already; an end behind the clip's is the clip's.
    (copied / "captions.csv").write_text(
        "caption,file,end,start\nwhole,walk/0,,\npart,walk/0,99,1\nonly a part,walk/1,1.5,0\n"
    )
    late = sources.open_motion(str(copied))
    assert late.lengths.tolist() == [59, 39, 30, 59]
    np.testing.assert_array_equal(late.statistics.mean, source.statistics.mean)
    frames = np.concatenate([source.features(i) for i in (0, 2, 3)])
    np.testing.assert_allclose(source.statistics.mean, frames.mean(0), atol=1e-6)


def test_long_clips_are_cut_into_parts_that_cover_them(folder):
    assert base.windows(30, 40) == [(0, 30)]
    for length, size in ((41, 40), (100, 40), (61, 60), (1000, 196), (7, 3)):
        parts = base.windows(length, size)
        assert parts[0][0] == 0 and parts[-1][1] == length
        assert all(b - a == size for a, b in parts)
        assert all(b[0] - a[0] <= (size + 1) // 2 for a, b in zip(parts, parts[1:]))
    source = sources.open_motion(str(folder), "test", max_frames=40)
    check(source)
    assert len(source) == 4 and set(source.lengths) == {40}


def test_statistics_count_each_frame_once(folder):
    whole, cut = (sources.open_motion(str(folder), max_frames=n) for n in (100, 25))
    assert len(cut) > 3 * len(whole)
    np.testing.assert_allclose(cut.statistics.mean, whole.statistics.mean, atol=1e-6)
    np.testing.assert_allclose(cut.statistics.std, whole.statistics.std, atol=1e-6)


def test_the_skeleton_of_long_files_is_told_from_some_of_their_frames(folder, monkeypatch):
    want = sources.open_motion(str(folder), "val").skeleton
    monkeypatch.setattr(bvh_folder, "SKELETON_PLACES", 19 * 30)
    read, given = rigs.derive, []
    monkeypatch.setattr(
        rigs, "derive", lambda some, *a, **k: given.extend(some) or read(some, *a, **k)
    )
    found = sources.open_motion(str(folder), "val").skeleton
    assert [len(clip) for clip in given] == [30] * 12
    assert given[0].frame_time == pytest.approx(0.1, rel=1e-5)
    np.testing.assert_allclose(found.lengths, want.lengths, atol=1e-6)
    assert found.directions == want.directions and found.chains == want.chains


def test_the_walker_is_a_set():
    source = sources.open_motion("walker", "val", max_frames=60)
    check(source)
    assert source.class_names == walker.ACTIONS and len(source) >= 32
    assert source.fingerprint == sources.open_motion("walker", "val", max_frames=60).fingerprint


def test_npz_gives_what_was_written(folder, tmp_path):
    want = sources.open_motion(str(folder))
    clips = [want.joints(i) for i in range(len(want))]
    names = [f"clip {i}" for i in range(len(want))]
    splits = ["test"] + ["train"] * (len(want) - 1)
    write_npz(
        tmp_path / "m.npz",
        clips,
        want.skeleton,
        labels=want.labels,
        class_names=want.class_names[::-1],
        captions=want.captions,
        names=names,
        splits=splits,
        rig=want.rig,
    )
    source = sources.open_motion(str(tmp_path / "m.npz"))
    check(source)
    assert source.skeleton == want.skeleton and source.rig == want.rig
    assert source.class_names == want.class_names[::-1] and source.names == tuple(names[1:])
    np.testing.assert_array_equal(source.labels, want.labels[1:])
    assert source.captions == want.captions[1:]
    np.testing.assert_allclose(source.joints(0)[:, 0, 1], clips[1][:-1, 0, 1], atol=1e-5)
    with pytest.raises(UserError, match="20 frames a second and 30"):
        sources.open_motion(str(tmp_path / "m.npz"), fps=30)
    write_npz(tmp_path / "bare.npz", clips, want.skeleton)
    bare = sources.open_motion(str(tmp_path / "bare.npz"), skeleton=want.skeleton)
    check(bare)
    assert bare.labels is None and bare.captions[0] == ()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"joints": None}, "needs the arrays"),
        ({"joints": np.zeros((10, 5, 3), np.float32)}, r"expected \(frames, 22, 3\)"),
        ({"lengths": np.array([4, 5])}, "add up to other than the 40 frames"),
        ({"lengths": np.array([2**62, 2**62, 40])}, "add up to other than"),
        ({"labels": np.array([0, 7])}, "labels must be 0 to 1"),
        ({"labels": np.array([0.5, 1])}, "dtype"),
        ({"labels": np.array([0, 2**62]), "class_names": None}, "labels must be 0 to 65535"),
        ({"labels": np.array([0, 1]), "class_names": np.array(["a", "a"])}, "two classes have one"),
        ({"names": np.array(["\ud800", "x"])}, "no Unicode"),
        ({"captions": np.array(["x"])}, "captions and caption_of do not fit"),
        ({"names": np.array(["x", "x"])}, "two clips have one name"),
        ({"skeleton": np.array("{")}, "skeleton: cannot be read"),
        ({"skeleton": np.array(json.dumps({}))}, "skeleton: no field"),
        ({"joints": np.full((40, 22, 3), np.nan, np.float32)}, "finite"),
        ({"names": np.array([{}, {}])}, "dtype object"),
    ],
)
def test_bad_npz_files_are_one_line(tmp_path, change, message):
    arrays = {
        "joints": np.zeros((40, 22, 3), np.float32),
        "lengths": np.array([20, 20]),
        "skeleton": np.array(json.dumps(HUMANML3D.to_json())),
        "class_names": np.array(["a", "b"]),
    } | change
    path = tmp_path / "m.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(UserError, match=message) as error:
        sources.open_motion(str(path), min_frames=8)
    assert "\n" not in str(error.value) and "m.npz" in str(error.value)


def humanml(root, size=263):
    """A folder in the published format, of random numbers."""
    random = np.random.default_rng(0)
    (root / "new_joint_vecs").mkdir(parents=True)
    (root / "texts").mkdir()
    lengths = {"000001": 100, "M000001": 100, "000002": 39, "000003": 199, "000004": 200}
    for name, n in lengths.items():
        rows = random.normal(size=(n, size)).astype(np.float32)
        np.save(root / "new_joint_vecs" / f"{name}.npy", rows)
        (root / "texts" / f"{name}.txt").write_text(
            f"caption one of {name}#caption/NOUN one/NUM#0.0#0.0\nthe other#the/DET#nan#nan\n"
            "a part#a/DET#1.0#4.05\ntoo short#x/NOUN#1.0#2.0\n"
        )
    (root / "train.txt").write_text("\n".join(lengths) + "\n")
    np.save(root / "Mean.npy", np.ones(size, np.float32))
    np.save(root / "Std.npy", np.full(size, 2, np.float32))
    return root


def test_humanml3d_loads_as_it_is(tmp_path):
    root = humanml(tmp_path / "HumanML3D")
    source = sources.open_motion(str(root))
    check(source)
    assert source.skeleton is HUMANML3D and source.labels is None
    # 39 and 200 frames are out; 1 to 4.05 s are frames 20 to 81.
    assert source.lengths.tolist() == [61, 100, 61, 100, 61, 196]
    assert source.captions[1] == ("caption one of 000001", "the other")
    assert source.captions[0] == ("a part",)
    rows = np.load(root / "new_joint_vecs" / "000001.npy")
    np.testing.assert_array_equal(source.features(0), rows[20:81])
    np.testing.assert_allclose(source[1]["motion"][:100], (rows - 1) / 2, atol=1e-6)
    kit = sources.open_motion(str(humanml(tmp_path / "KIT", 251)))
    assert kit.skeleton.fps == 12.5 and len(kit) == 7


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda r: (r / "Mean.npy").unlink(), "Mean.npy: no such file"),
        (lambda r: np.save(r / "Std.npy", np.zeros(263, np.float32)), "std has a number"),
        (lambda r: np.save(r / "Mean.npy", np.zeros(7, np.float32)), r"expected float \(263,\)"),
        (lambda r: (r / "train.txt").write_text("../secret"), "'../secret' is no name of a clip"),
        (lambda r: (r / "train.txt").write_text("000009"), "000009.npy: no such file"),
        (lambda r: (r / "train.txt").write_text("000002"), "no clips of 40 to 199 frames"),
        (lambda r: (r / "train.txt").unlink(), "there is no split 'train'"),
        (lambda r: (r / "texts/000001.txt").write_text("no parts"), "line 1: expected caption#"),
        (lambda r: (r / "texts/000001.txt").write_text("a#b#-1#2"), "must be seconds"),
        (lambda r: (r / "texts/000001.txt").unlink(), "000001.txt: no such file"),
        (
            lambda r: np.save(r / "new_joint_vecs/000001.npy", np.array([{}]), allow_pickle=True),
            "does not hold as much|expected float",
        ),
        (
            lambda r: np.save(r / "new_joint_vecs/000001.npy", np.zeros((60, 5), np.float32)),
            r"expected float \[frames, 263\]",
        ),
        (
            lambda r: (r / "new_joint_vecs/000001.npy").write_bytes(
                (r / "new_joint_vecs/000001.npy").read_bytes()[:500]
            ),
            "does not hold as much",
        ),
    ],
)
def test_damaged_published_folders_are_one_line(tmp_path, break_it, message):
    root = humanml(tmp_path / "HumanML3D")
    break_it(root)
    with pytest.raises(UserError, match=message) as error:
        sources.open_motion(str(root))
    assert "\n" not in str(error.value)


def test_a_clip_with_nan_is_named_when_it_is_read(tmp_path):
    root = humanml(tmp_path / "HumanML3D")
    np.save(root / "new_joint_vecs/000001.npy", np.full((100, 263), np.nan, np.float32))
    with pytest.raises(UserError, match="000001.npy: has numbers that are not finite"):
        sources.open_motion(str(root))[0]


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda r: (r / "captions.csv").write_text("file;caption\n"), "must name the columns"),
        (lambda r: (r / "captions.csv").write_text("file,caption\nwalk/9,x\n"), "line 2: no file"),
        (
            lambda r: (r / "captions.csv").write_text("file,caption\nwalk/1,\n"),
            "line 2: no caption",
        ),
        (
            lambda r: (r / "captions.csv").write_text("file,caption,start\nwalk/1,x,nan\n"),
            "line 2: start must be seconds",
        ),
        (
            lambda r: (r / "captions.csv").write_text("file,caption,start,end\nwalk/1,x,3,2\n"),
            "start 3 must be before end 2",
        ),
        (lambda r: (r / "captions.csv").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda r: (r / "captions.csv").write_text("file,caption," + "x" * 200_000), "field limit"),
        (
            lambda r: (r / "captions.csv").write_text("file,caption,start,end\nwalk/1,x,99,100\n"),
            "walk/1.bvh: caption 'x' starts at 99 s, behind the end",
        ),
        (
            lambda r: (r / "walk/0.bvh").rename(r / "walk" / os.fsdecode(b"caf\xe9.bvh")),
            "is no name in UTF-8",
        ),
        (lambda r: (r / "captions.csv").write_text("file,caption\n../x,y\n"), "no file '../x'"),
        (lambda r: (r / "walk/0.bvh").write_text("HIERARCHY\n"), "0.bvh: ends where ROOT"),
        (lambda r: shutil.copy(r / "walk/0.bvh", r / "stray.bvh"), "files beside its subfolders"),
        (lambda r: (r / "skeleton.json").write_text("{"), "skeleton.json: cannot be read"),
        (lambda r: (r / "skeleton.json").write_text('{"feet": ["a"]}'), "no joint 'a'"),
        (lambda r: (r / "train.txt").write_text("walk/77"), "train.txt: line 1: no file 'walk/77'"),
        (
            lambda r: (r / "walk/1.bvh").write_text(
                (r / "walk/1.bvh").read_text().replace("LeftHand", "LeftPaw")
            ),
            "joints are not those of",
        ),
    ],
)
def test_damaged_folders_are_one_line(copied, break_it, message):
    break_it(copied)
    with pytest.raises(UserError, match=message) as error:
        for split in base.SPLITS:
            sources.open_motion(str(copied), split)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_refused(tmp_path, folder):
    for path, message in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path, "no .bvh files in it"),
    ):
        with pytest.raises(UserError, match=message):
            sources.open_motion(str(path))
    with pytest.raises(UserError, match="no split 'trian'.*did you mean 'train'"):
        sources.open_motion("walker", "trian")
    with pytest.raises(UserError, match="none of its 9 takes has 101 frames"):
        sources.open_motion(str(folder), min_frames=100)
    with pytest.raises(UserError, match="min_frames 9 and max_frames 4"):
        sources.open_motion("walker", min_frames=9, max_frames=4)
    with pytest.raises(UserError, match="not those that the run was trained on"):
        sources.open_motion(str(folder), skeleton=HUMANML3D)
    (tmp_path / "humanact12poses.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="is a pickle: opening one runs what is in it"):
        sources.open_motion(str(tmp_path))
    with pytest.raises(UserError, match="humanact12poses.pkl is a pickle"):
        sources.open_motion(str(tmp_path / "humanact12poses.pkl"))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="motions are a folder"):
        sources.open_motion(str(tmp_path / "a.txt"))


def test_crop_is_as_the_published_loader():
    motion = np.zeros((60, 2), np.float32)
    motion[:47] = np.arange(1, 48)[:, None]
    keys = jax.random.split(jax.random.key(0), 400)
    cropped, lengths = jax.jit(jax.vmap(lambda k: base.crop(motion, np.int32(47), k)))(keys)
    cropped, lengths = np.asarray(cropped), np.asarray(lengths)
    assert set(lengths) == {40, 44} and abs((lengths == 40).mean() - 1 / 3) < 0.08
    starts = cropped[:, 0, 0]
    assert set(starts[lengths == 44]) == {1, 2, 3, 4} and set(starts[lengths == 40]) == set(
        range(1, 9)
    )
    for row, n, start in zip(cropped[:20], lengths, starts):
        np.testing.assert_array_equal(row[:n, 0], start + np.arange(n))
        assert (row[n:] == 0).all()
    for n in (2, 3, 4):  # too short to be less
        _, kept = base.crop(motion, np.int32(n), keys[0])
        assert kept == n


def test_caption_table():
    texts, rows, counts = base.caption_table([("a", "b"), (), ("b",), ("c", "a", "b")])
    assert texts == ["a", "b", "", "c"] and counts.tolist() == [2, 1, 1, 3]
    assert rows.tolist() == [[0, 1, 0], [2, 2, 2], [1, 1, 1], [3, 0, 1]] and rows.dtype == np.int32


def test_humanact12_as_npz(tmp_path):
    random = np.random.default_rng(0)
    lengths = np.array([30, 60, 100])
    poses = random.normal(0, 0.7, (190, 72)).astype(np.float32)
    joints = random.normal(0, 1, (190, 24, 3)).astype(np.float32)
    arrays = {"poses": poses, "joints3D": joints, "lengths": lengths, "y": np.array([0, 11, 3])}
    np.savez(tmp_path / "h.npz", **arrays)
    source = sources.open_motion(str(tmp_path / "h.npz"), max_frames=60)
    assert source.kind == "rot6d" and source.motion_shape == (60, 150)
    assert source.num_classes == 12 and source.class_names[11] == "throw"
    # The third clip is longer than a window: three overlapping ones cover it.
    assert source.labels.tolist() == [0, 11, 3, 3, 3] and set(source.lengths) == {60}
    motion = source[0]["motion"]
    np.testing.assert_array_equal(motion[30:], np.tile(motion[29], (30, 1)))
    rows = motion.reshape(60, 25, 6)
    want = rot.to_6d_rows(rot.to_matrix(rot.from_axis_angle(poses[:30].reshape(30, 24, 3))))
    np.testing.assert_allclose(rows[:30, :24], want, atol=1e-6)
    np.testing.assert_allclose(rows[:30, 24, :3], joints[:30, 0] - joints[0, 0], atol=1e-6)
    assert (rows[:, 24, 3:] == 0).all() and (
        source[2]["motion"].reshape(60, 25, 6)[0, 24] == 0
    ).all()
    with pytest.raises(UserError, match="need the SMPL body model"):
        source.joints(0)
    for change, message in (
        ({"y": np.array([0, 12, 3])}, "y must be 0 to 11"),
        ({"lengths": np.array([30, 60])}, "add up to other than the 190 frames"),
        ({"joints3D": joints[:5]}, "joints3D is"),
        ({"poses": poses[:, :70]}, "poses is"),
        ({"poses": np.full_like(poses, np.nan)}, "not finite"),
    ):
        np.savez(tmp_path / "h.npz", **arrays | change)
        with pytest.raises(UserError, match=message):
            sources.open_motion(str(tmp_path / "h.npz"))
