import shutil
import stat
import weakref

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffjax.data.motion import rigs, walker
from diffjax.errors import UserError
from diffjax.run import films, video


@pytest.fixture(scope="module")
def motions():
    clips = [walker.clip(a, seconds=s) for a, s in (("walk", 1.0), ("wave_left", 0.5))]
    skeleton, rig = rigs.derive(clips, fps=20)
    return [rigs.joints_of(c, rig) for c in clips], skeleton


def colours(image, colour):
    return (abs(np.asarray(image.convert("RGB"), int) - colour).max(-1) < 24).sum()


def test_a_gif_has_all_frames_and_both_sides_in_colour(motions, tmp_path):
    joints, skeleton = motions
    path = tmp_path / "deep" / "a.gif"
    films.save_film(joints, skeleton, path, captions=["walks", "waves " * 40], size=120)
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
    with Image.open(path) as film:
        assert film.n_frames == 20 and film.info["duration"] == 50 and film.info["loop"] == 0
        assert film.width == 240 and film.height > 120
        frames = [f.convert("RGB") for f in ImageSequence.Iterator(film)]
    films.save_film(joints, skeleton, path, size=20, fps=15)
    with Image.open(path) as film:
        assert film.info["duration"] == 70  # whole hundredths, to the nearest
    for colour in (films.LEFT, films.RIGHT, films.STANDING):
        assert colours(frames[0], colour) > 20
    assert np.asarray(frames[0], int).std() > 5
    left = [np.asarray(f)[:, :120] for f in frames]
    assert all((a != b).any() for a, b in zip(left, left[1:])), "it walks"
    # The shorter one holds its last frame.
    np.testing.assert_array_equal(np.asarray(frames[12])[:, 120:], np.asarray(frames[19])[:, 120:])


def test_the_camera_follows(motions):
    joints, skeleton = motions
    near = list(films.film(joints[:1], skeleton, size=80))
    far = list(films.film([joints[0] + [100.0, 0, -50.0]], skeleton, size=80))
    for a, b in zip(near[::5], far[::5]):
        assert abs(colours(a, films.LEFT) - colours(b, films.LEFT)) < 10
        assert colours(a, films.LEFT) > 10


def test_given_frames_are_pale(motions):
    joints, skeleton = motions
    given = [np.arange(20) < 10]
    frames = list(films.film(joints[:1], skeleton, size=80, given=given))
    assert colours(frames[2], films.LEFT) == 0 < colours(frames[15], films.LEFT)


def test_a_gif_has_the_colours_of_every_frame(motions, tmp_path):
    joints, skeleton = motions
    given = [np.arange(20) < 10]
    films.save_film(joints[:1], skeleton, tmp_path / "a.gif", size=120, given=given)
    want = list(films.film(joints[:1], skeleton, size=120, given=given))
    with Image.open(tmp_path / "a.gif") as film:
        frames = [f.convert("RGB") for f in ImageSequence.Iterator(film)]
    for colour in (films.LEFT, films.RIGHT, films.MIDDLE, films.STANDING):
        for k in (0, 15):
            assert colours(frames[k], colour) == pytest.approx(colours(want[k], colour), abs=12)


def test_a_body_that_flew_apart_is_drawn_at_once(motions):
    joints, skeleton = motions
    next(films.film([joints[0] * 1e9], skeleton, size=40))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "a.webm"}, "must end in .gif or .mp4"),
        ({"motions": []}, "no motions"),
        ({"motions": [np.zeros((4, 3, 3))]}, r"a motion is \[frames, 19, 3\], not \(4, 3, 3\)"),
        ({"motions": [np.full((4, 19, 3), np.inf)]}, "not finite"),
        ({"motions": [np.zeros((30000, 19, 3))]}, "up to 20000"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(motions, tmp_path, change, message):
    given = {"motions": motions[0], "skeleton": motions[1], "path": "a.gif"} | change
    given["path"] = tmp_path / given["path"]
    with pytest.raises(UserError, match=message):
        films.save_film(**given)
    assert not list(tmp_path.iterdir())


def test_an_mp4_without_ffmpeg_says_what_to_do(motions, tmp_path, monkeypatch):
    monkeypatch.setattr(video.shutil, "which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="an MP4 needs ffmpeg: install it, or"):
        films.save_film(motions[0], motions[1], tmp_path / "a.mp4", size=60)
    assert not list(tmp_path.iterdir())


def test_an_mp4_is_fed_to_ffmpeg_frame_by_frame(motions, tmp_path, monkeypatch):
    """With a stand-in that keeps its arguments and what it is fed."""
    tool = tmp_path / "ffmpeg"
    tool.write_text('#!/bin/sh\nfor last; do :; done\n{ echo "$@"; wc -c; } > "$last"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(video.shutil, "which", lambda name: str(tool))
    alive, drawn = [], films.film

    def watched(*args):
        for frame in drawn(*args):
            alive.append(weakref.ref(frame))
            assert sum(ref() is not None for ref in alive) < 5, "frames are not kept"
            yield frame

    monkeypatch.setattr(films, "film", watched)
    films.save_film(motions[0], motions[1], tmp_path / "a.mp4", size=61)
    said, count = (tmp_path / "a.mp4").read_text().splitlines()
    assert "-s 122x60" in said and "-r 20" in said
    assert int(count) == 20 * 122 * 60 * 3
    tool.write_text("#!/bin/sh\ncat > /dev/null\necho no codec >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"ffmpeg failed \(no codec\)"):
        films.save_film(motions[0], motions[1], tmp_path / "b.mp4", size=60)
    assert not list(tmp_path.glob("b*"))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here")
def test_an_mp4_is_one(motions, tmp_path):
    films.save_film(motions[0], motions[1], tmp_path / "a.mp4", size=60)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
