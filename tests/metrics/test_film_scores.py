"""Scores of films: by hand, and on films whose frames or whose motion alone are wrong."""

import numpy as np
import pytest

from diffjax.data import films
from diffjax.errors import UserError
from diffjax.metrics import film_scores


@pytest.fixture(scope="module")
def dots():
    return films.dots(6)


@pytest.fixture(scope="module")
def scores(dots):
    """scores(films) -> {metric: (value, floor)} against the first half of the dots' films."""
    some = films.FilmSource(dots.images[::2])
    score = film_scores.scorer(some, list(film_scores.METRICS), "pixels")

    def of(made):
        found = score({"image": made}, 0)["scores"]
        return {name: (row["value"], row["floor"]) for name, row in found.items()}

    return of


def by_hand(x, y):
    """The unbiased squared MMD of kernel (x.y/d + 1)^3, in loops."""
    kernel = lambda a, b: (float(a @ b) / len(a) + 1) ** 3
    within = lambda z: np.mean(
        [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    )
    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_of_frames_is_the_mean_of_kid_at_each_frame():
    random = np.random.default_rng(0)
    made, real = random.normal(size=(5, 3, 4)), random.normal(0.5, 1, (6, 3, 4))
    wanted = np.mean([by_hand(made[:, t], real[:, t]) for t in range(3)])
    assert film_scores.of_frames(made, real) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(UserError, match="films of 2 frames against films of 3"):
        film_scores.of_frames(made[:, :2], real)


def test_the_size_of_motion_by_hand():
    features = np.array([[[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]])
    moved = film_scores.motion(features)
    assert moved.tolist() == [[[3, 4], [0, 1]]]
    assert film_scores.typical(moved) == (25 / 2 + 1 / 2) / 2
    wanted = np.array([[[3, 4], [0, 1]]]) / np.sqrt([[[12.5 + 6.5]], [[0.5 + 6.5]]]).reshape(
        1, 2, 1
    )
    np.testing.assert_allclose(film_scores.bounded(moved, 6.5), wanted)
    # Films that stand still have no size, and no division by it.
    still = np.zeros((2, 3, 4))
    assert not film_scores.bounded(still, film_scores.typical(still)).any()


def test_pixels_of_every_frame_by_hand(dots):
    from diffjax.metrics.features import pixels

    found = film_scores.features_of(pixels(), dots.images[:3])
    blocks = dots.images[:3].reshape(3, 6, 8, 2, 8, 2, 3).mean((3, 5)) / 255
    np.testing.assert_allclose(found, blocks.reshape(3, 6, -1), atol=1e-6)


def test_other_films_of_the_same_kind_are_at_the_floor(dots, scores):
    found = scores(dots.images[1::2])
    assert max(map(abs, found["kid_frames"])) < 0.02
    assert max(map(abs, found["kid_motion"])) < 0.01  # see what is wrong below


def test_frames_in_a_wrong_order_are_bad_motion_alone():
    smooth = films.dots(12).images  # of small steps
    random = np.random.default_rng(0)
    shuffled = np.stack([film[random.permutation(12)] for film in smooth[1::2]])
    score = film_scores.scorer(films.FilmSource(smooth[::2]), list(film_scores.METRICS), "pixels")
    of = lambda made: {k: v["value"] for k, v in score({"image": made}, 0)["scores"].items()}
    good, bad = of(smooth[1::2]), of(shuffled)
    assert abs(good["kid_frames"]) < 0.02 and abs(bad["kid_frames"]) < 0.02
    assert abs(good["kid_motion"]) < 0.01 and bad["kid_motion"] > 0.02


def test_films_that_stand_still_are_bad_motion_alone(dots, scores):
    still = np.repeat(dots.images[1::2, :1], 6, 1)
    found = scores(still)
    assert abs(found["kid_frames"][0]) < 0.02
    assert found["kid_motion"][0] > 0.02


def test_other_colours_are_bad_frames(dots, scores):
    assert scores(255 - dots.images[1::2])["kid_frames"][0] > 0.5


def test_refused(dots):
    with pytest.raises(UserError, match="unknown metric of films: 'fd'"):
        film_scores.scorer(dots, ["fd"], "pixels")
    with pytest.raises(UserError, match="--metrics is empty"):
        film_scores.scorer(dots, [], "pixels")
    with pytest.raises(UserError, match="feature net"):
        film_scores.scorer(dots, ["kid_frames"], "pixel")
    with pytest.raises(UserError, match="at least 2 of them"):
        film_scores.scorer(films.FilmSource(dots.images[:1]), ["kid_frames"], "pixels")
    score = film_scores.scorer(dots, ["kid_frames"], "pixels")
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        score({"image": dots.images[:1]}, 0)
