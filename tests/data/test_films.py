"""Films: frames keep their order and times, and what is no film is refused in one line."""

import io
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax.data import films, loader
from diffjax.errors import UserError
from diffjax.run import clips


def marked(n=5, frames=4, size=6, channels=3):
    """Films whose pixels say which film (10 i) and which frame (t) they are of."""
    number = 10 * np.arange(n)[:, None] + np.arange(frames)
    return np.broadcast_to(number[..., None, None, None], (n, frames, size, size, channels)).astype(
        np.uint8
    )


def gif(frames, durations=50, **options) -> bytes:
    """A GIF of greys and primary colours, which lose nothing in a palette."""
    data, images = io.BytesIO(), [Image.fromarray(f) for f in frames]
    images[0].save(
        data, "GIF", save_all=True, append_images=images[1:], duration=durations, **options
    )
    return data.getvalue()


def greys(count, size=6):
    """Frames of one grey each, 20 t, with a corner of another, so that no two are alike."""
    made = np.stack([np.full((size, size, 3), 20 * t, np.uint8) for t in range(count)])
    made[:, 0, 0] = 255
    return made


# ---- frames and times ----------------------------------------------------------------------------


@pytest.mark.parametrize("have", [2, 3, 7, 16, 45])
@pytest.mark.parametrize("frames", [2, 8, 16])
def test_of_equal_frames_the_one_is_shown_whose_turn_it_is(have, frames):
    for duration in (1, 40):
        found = films.shown([duration] * have, frames)
        assert found.tolist() == [have * t // frames for t in range(frames)]


def test_a_frame_that_lasts_is_shown_as_long():
    # 30 ms of frame 0, 10 of 1, 40 of 2: at 0, 10, .. 70 ms.
    assert films.shown([30, 10, 40], 8).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


def test_a_written_film_is_read_back(tmp_path):
    # Pillow writes neighbours that are alike as one frame of twice the time.
    made = greys(8)[[0, 1, 1, 1, 2, 3, 4, 4]]
    clips.save_clip(made, tmp_path / "set" / "a.gif", fps=10, scale=1)
    with Image.open(tmp_path / "set" / "a.gif") as file:
        assert file.n_frames == 5
    source = films.open_films(str(tmp_path / "set"), 8)
    assert isinstance(source, films.FilmSource) and source.image_shape == (8, 6, 6, 3)
    np.testing.assert_array_equal(source[0]["image"], made)
    every_second = films.open_films(str(tmp_path / "set"), 4)
    np.testing.assert_array_equal(every_second[0]["image"], made[::2])


def test_webp_and_transparency(make):
    data, clear = io.BytesIO(), greys(3)
    images = [Image.fromarray(f) for f in clear]
    images[0].save(
        data, "WEBP", save_all=True, append_images=images[1:], lossless=True, duration=40
    )
    half = np.dstack([np.zeros((6, 6, 3), np.uint8), np.full((6, 6), 255, np.uint8)])
    half[:, 3:, 3] = 0
    other = half.copy()
    other[0, 0, :3] = 255
    folder = make.folder({"a.webp": data.getvalue(), "b.gif": gif([half, other], disposal=2)})
    source = films.open_films(str(folder), 3)
    np.testing.assert_array_equal(source[0]["image"], clear)
    assert (source[1]["image"][:, :, 3:] == 255).all() and not source[1]["image"][:, 1:, :3].any()


def test_an_archive_is_sampled_in_time_and_reduced(make):
    given = make.rng.integers(0, 256, (3, 6, 8, 8, 3), dtype=np.uint8)
    path = str(make.npz(films=given, labels=[1, 0, 1], class_names=["a", "b"]))
    whole = films.open_films(path, 6)
    np.testing.assert_array_equal(whole.images, given)
    assert whole.class_names == ("a", "b") and whole[2]["label"] == 1
    assert films.open_films(path, 6).fingerprint == whole.fingerprint
    thinned = films.open_films(path, 3, image_size=4)
    wanted = given[:, ::2].astype(float)
    wanted = sum(wanted[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    np.testing.assert_array_equal(thinned.images, np.round(wanted))
    assert thinned.fingerprint != whole.fingerprint


def test_what_does_not_fit_in_memory_is_read_in_time(make):
    files = {f"{kind}/{i}.gif": gif(greys(4 + i)) for i in range(2) for kind in ("down", "up")}
    folder = str(make.folder(files))
    held, read = films.open_films(folder, 4), films.open_films(folder, 4, max_bytes=100)
    assert isinstance(held, films.FilmSource) and not isinstance(read, films.FilmSource)
    assert held.class_names == read.class_names == ("down", "up")
    for i in range(4):
        np.testing.assert_array_equal(held[i]["image"], read[i]["image"])
        assert held[i]["label"] == read[i]["label"] == i // 2
    batch = next(loader.batches(read, seed=0, batch_size=4))
    assert batch["image"].shape == (4, 4, 6, 6, 3)


def test_no_frame_changes_its_place_on_the_way_to_the_step():
    source = films.FilmSource(marked(), [0, 1, 0, 1, 0])
    memory = loader.InMemory.of(source)
    for step in range(3):
        batch = memory.take(memory.arrays, jax.random.key(1), step, 7)
        pixels = np.asarray(batch["image"])
        assert pixels.shape == (7, 4, 6, 6, 3)
        assert (pixels == pixels[:, :, :1, :1, :1]).all()
        film, frame = np.divmod(pixels[:, :, 0, 0, 0], 10)
        assert (frame == np.arange(4)).all() and (film == film[:, :1]).all()
        np.testing.assert_array_equal(batch["label"], film[:, 0] % 2)


def test_dots_go_where_their_class_says():
    source = films.dots(8)
    assert source.image_shape == (8, 16, 16, 3) and len(source) == 256
    dark = 255 - source.images.astype(float).mean(-1)
    for label, (down, right) in enumerate(films.DIRECTIONS.values()):
        for film in dark[source.labels == label][:5]:
            moved = np.roll(film[:-1], (2 * down, 2 * right), (1, 2))  # 16/8 pixels a frame
            np.testing.assert_allclose(moved, film[1:], atol=1)


# ---- what is refused -----------------------------------------------------------------------------


def huge_gif(width, height) -> bytes:
    data = bytearray(gif(greys(2)))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def frame_outside() -> bytes:
    """A GIF whose second frame says it is wider than the screen."""
    data = bytearray(gif(greys(2)))
    second = data.index(b"\x2c", data.index(b"\x2c") + 1)
    data[second + 5 : second + 7] = struct.pack("<H", 500)
    return bytes(data)


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(greys(1)[0]).save(data, "PNG")
    return data.getvalue()


REFUSED = {
    "none": (lambda m: m.root / "none", 4, "no such file or folder"),
    "near": (lambda m: "dosts", 4, "did you mean 'dots'"),
    "pictures": (lambda m: m.folder({"a.png": png()}), 4, "a.png is no film, .*data.frames"),
    "beside": (lambda m: m.folder({"a.gif": gif(greys(3)), "b.png": png()}), 4, "b.png is no film"),
    "a picture's content": (lambda m: m.folder({"a.gif": png()}), 4, "a.gif: not a film"),
    "text": (lambda m: m.folder({"a.gif": b"GIF89a"}), 4, "a.gif: (not a film|cannot be read)"),
    "one frame": (lambda m: m.folder({"a.gif": gif(greys(1))}), 4, "a.gif: a single picture"),
    "truncated": (lambda m: m.folder({"a.gif": gif(greys(9, 60))[:-300]}), 4, "a.gif: cannot be r"),
    "pixels": (lambda m: m.folder({"a.gif": huge_gif(60000, 60000)}), 4, "a.gif: "),
    "many pixels": (lambda m: m.folder({"a.gif": huge_gif(9000, 9000)}), 4, "9000x9000 pixels"),
    "another size": (lambda m: m.folder({"a.gif": frame_outside()}), 4, "a.gif: "),
    "sizes": (
        lambda m: m.folder({"a.gif": gif(greys(3)), "b.gif": gif(greys(3, 8))}),
        4,
        "different sizes .a.gif and b.gif are 6x6 and 8x8.; set config.data.image_size",
    ),
    "stray": (lambda m: m.folder({"a.gif": gif(greys(3)), "x/b.gif": gif(greys(3))}), 4, "beside"),
    "frames": (lambda m: "dots", 1, "config.data.frames 1: from 2"),
    "pictures in an archive": (lambda m: m.npz(images=marked()[:, 0]), 4, "no array 'films'"),
    "four axes": (lambda m: m.npz(films=marked()[:, 0]), 4, r"films must be uint8 \[n, T, H, W, C"),
    "floats": (lambda m: m.npz(films=marked().astype(np.float32)), 4, "dtype float32"),
    "objects": (lambda m: m.npz(films=np.array([{}, {}], object)), 4, "dtype object"),
    "channels": (lambda m: m.npz(films=marked(channels=4)), 4, "films of 4 channels"),
    "labels": (lambda m: m.npz(films=marked(), labels=[0, 1]), 4, "labels must be integers"),
}


@pytest.mark.parametrize("build, frames, fragment", REFUSED.values(), ids=list(REFUSED))
def test_refused(make, build, frames, fragment):
    with pytest.raises(UserError, match=fragment) as caught:
        films.open_films(str(build(make)), frames)
    assert "\n" not in str(caught.value)


def test_too_many_frames_are_not_decoded(make, monkeypatch):
    monkeypatch.setattr(films, "MAX_FRAMES", 5)
    folder = str(make.folder({"a.gif": gif(greys(6))}))
    with pytest.raises(UserError, match="a.gif: more than 5 frames of 6x6"):
        films.open_films(folder, 2)
    monkeypatch.setattr(films, "MAX_FRAMES", 100)
    monkeypatch.setattr(films, "MAX_FILM", 6 * 6 * 4)
    with pytest.raises(UserError, match="a.gif: more than 4 frames of 6x6"):
        films.open_films(folder, 2)


def test_a_large_archive_is_refused_by_its_header(make):
    path = str(make.npz(films=marked()))
    with pytest.raises(UserError, match="the limit is 0.0 MiB; keep so many films as a folder"):
        films.open_films(path, 4, max_bytes=1000)
    with pytest.raises(UserError, match="no split 'test', films have 'train' only"):
        films.open_films(path, 4, "test")
    with pytest.raises(UserError, match="films are 6x6 and image_size is 4"):
        films.open_films(path, 4, image_size=4)


def test_random_bytes_in_a_film_are_refused_or_read(make):
    # Whatever is changed in a file: one line, or a film of the right shape.
    good = gif(greys(5, 8))
    for seed in range(60):
        random = np.random.default_rng(seed)
        data = bytearray(good)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(0, 256)
        try:
            film = films.read_film(bytes(data), f"{zlib.crc32(data)}.gif", 4, 8)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            assert film.shape == (4, 8, 8, 3) and film.dtype == np.uint8
