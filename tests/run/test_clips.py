"""Clips: what is written can be read again."""

import numpy as np
import pytest
from PIL import Image

from diffjax.errors import UserError
from diffjax.run import clips, video


def frames(count=6, height=5, width=8):
    """A red square on grey that moves, and one frame late in the clip with a colour of its own."""
    made = np.full((count, height, width, 3), 90, np.uint8)
    for t in range(count):
        made[t, 1:3, t : t + 2] = (220, 30, 30)
    made[-1, 4] = (10, 200, 40)
    return made


def test_a_gif_has_every_frame_and_colour(tmp_path):
    clips.save_clip(frames(), tmp_path / "deep" / "a.gif", fps=10, scale=3)
    with Image.open(tmp_path / "deep" / "a.gif") as found:
        assert found.n_frames == 6 and found.size == (24, 15) and found.info["duration"] == 100
        for t in range(6):
            found.seek(t)
            picture = np.asarray(found.convert("RGB"))[1::3, 1::3]
            np.testing.assert_array_equal(picture, frames()[t])
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["a.gif"]


def test_two_beside_each_other(tmp_path):
    both = clips.beside(frames(), 255 - frames(), scale=4)
    assert both.dtype == np.uint8 and both.shape == (6, 5 * 4 + 22, 2 * 8 * 4 + 8, 3)
    np.testing.assert_array_equal(both[:, 22::4, : 8 * 4 : 4], frames())
    np.testing.assert_array_equal(both[:, 22::4, 8 * 4 + 8 :: 4], 255 - frames())
    assert (both[0, :22, :32] < 128).any() and (both[0, :22, 40:] < 128).any()  # titles
    with pytest.raises(UserError, match="should be alike"):
        clips.beside(frames(5), frames(6))


def test_rows_below_each_other():
    real = np.stack([frames(), 255 - frames()])
    sheet = clips.stacked({"real": real, "imagined": real[::-1]}, scale=2)
    assert sheet.dtype == np.uint8 and sheet.shape == (6, 2 * (22 + 5 * 2), 2 * 8 * 2 + 4, 3)
    rows = sheet[:, 22:32:2], sheet[:, 54::2]
    for found, want in zip(rows, (real, real[::-1]), strict=True):
        np.testing.assert_array_equal(found[:, :, :16:2], want[0])
        np.testing.assert_array_equal(found[:, :, 20::2], want[1])
    assert (sheet[0, :22] < 128).any() and (sheet[0, 32:54] < 128).any()  # titles
    with pytest.raises(UserError, match="all alike"):
        clips.stacked({"real": real, "imagined": real[:1]})


def test_an_mp4_where_ffmpeg_is_there(tmp_path):
    try:
        video.ffmpeg()
    except UserError:
        with pytest.raises(UserError, match="an MP4 needs ffmpeg"):
            clips.save_clip(frames(), tmp_path / "a.mp4")
        assert not list(tmp_path.iterdir())
    else:
        clips.save_clip(frames(20, 16, 32), tmp_path / "a.mp4")
        assert (tmp_path / "a.mp4").stat().st_size > 500


@pytest.mark.parametrize(
    "given, name, words",
    [
        (frames(), "a.png", "must end in .gif or .mp4"),
        (frames().astype(float), "a.gif", "uint8"),
        (frames()[0], "a.gif", "uint8"),
        (frames()[:0], "a.gif", "uint8"),
        (np.zeros((20_001, 1, 1, 3), np.uint8), "a.gif", "up to 20000"),
    ],
)
def test_bad_clips(tmp_path, given, name, words):
    with pytest.raises(UserError, match=words):
        clips.save_clip(given, tmp_path / name)
    with pytest.raises(UserError, match="fps"):
        clips.save_clip(frames(), tmp_path / "a.gif", fps=0)
