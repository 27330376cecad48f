"""Segments of episodes, against the original's; draws against their probabilities."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.systems.diamond import segments


@pytest.fixture(scope="module")
def golden(root):
    return json.loads((root / "tests" / "golden" / "diamond_games" / "data.json").read_text())


def episode_of(number: int, length: int, final: bool = True) -> segments.Episode:
    """Frames of one colour, actions 1, 2, 3, ..., as in the golden file."""
    return segments.Episode(
        np.full((length, 2, 2, 3), 10 * (number + 1), np.uint8),
        np.arange(1, length + 1, dtype=np.int32),
        np.zeros(length, np.float32),
        np.arange(length) == (length - 1 if final else -1),
        np.zeros(length, bool),
        np.full((2, 2, 3), 200, np.uint8) if final else None,
    )


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10])
def test_probabilities_equal_the_original_s(golden, count):
    want = golden["episode_probabilities"][str(count)]
    # The file's lists of more than 7 episodes do not depend on lengths.
    lengths = (golden["lengths"] * 2)[:count]
    found = segments.probabilities(lengths, golden["sample_weights"])
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_segments_equal_the_original_s(golden):
    for want in golden["segments"]:
        number = want["episode"]
        length = golden["lengths"][number]
        episode = episode_of(number, length, want["has_final"])
        if 3.0 in want["rew"]:  # at one place of this episode
            at = want["rew"].index(3.0) + want["start"]
            episode.rew[at] = 3.0
        found = segments.segment(episode, want["start"], want["stop"])
        assert found["act"].tolist() == want["act"] and found["rew"].tolist() == want["rew"]
        assert found["mask"].tolist() == [bool(m) for m in want["mask"]]
        assert found["end"].astype(int).tolist() == want["end"]
        assert bool(found["has_final"]) == want["has_final"]
        seen = found["obs"][:, 0, 0, 0] / 100
        np.testing.assert_allclose(seen, want["obs_first_pixel"], atol=1e-6)
        low, high = max(want["start"], 0), min(want["stop"], length)
        assert want["id"] == [number, low, high]


def test_traversal_equals_the_original_s(golden):
    found = segments.traversal(golden["lengths"], 6)
    batches = [[list(piece) for piece in found[i : i + 3]] for i in range(0, len(found), 3)]
    assert batches == golden["traverser_chunk6_batch3"]
    assert len(batches) == golden["traverser_len"]


def test_padding_is_grey_and_pixels_are_exact():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    want = levels.astype(np.float32) / 255 * 2 - 1
    np.testing.assert_array_equal(segments.pixels(levels), want)
    under_jit = jax.jit(lambda x: segments.pixels(x, xp=jnp))(levels)
    np.testing.assert_array_equal(under_jit, want)
    found = segments.pixels(levels.repeat(2, 0), np.array([True, False]))
    np.testing.assert_array_equal(found[0], want[0])
    assert (found[1] == 0).all() and found.dtype == np.float32


def test_draws_follow_the_rules():
    lengths, span = np.array([3, 40, 7, 12, 1]), 6
    chances = segments.probabilities(lengths)
    words = {"seed": (0, 1), "step": 5}
    episode, start = segments.draw(lengths, chances, 40_000, span, **words)
    share = np.bincount(episode, minlength=5) / 40_000
    np.testing.assert_allclose(share, chances, atol=0.01)
    stop = start + span
    assert (stop <= lengths[episode]).all() and (stop >= 1).all()
    # Each step t is as likely as another, and as likely at each place where it fits; a place that
    # would lie beyond the end is moved back to it.
    t, offset = np.meshgrid(np.arange(40), np.arange(span))
    want = np.bincount(np.minimum(40, t + 1 + offset).ravel(), minlength=41) / (40 * span)
    found = np.bincount(stop[episode == 1], minlength=41) / (episode == 1).sum()
    np.testing.assert_allclose(found, want, atol=0.02)
    episode, start = segments.draw(lengths, chances, 40_000, span, both=True, **words)
    assert start.min() == -5 and (start < lengths[episode]).all() and (start + span >= 1).all()
    assert (start[episode == 4] + span).max() == 6  # beyond the end of the episode of one step
    want = np.bincount((t - offset).ravel() + 5) / (40 * span)
    found = np.bincount(start[episode == 1] + 5, minlength=45) / (episode == 1).sum()
    np.testing.assert_allclose(found, want, atol=0.02)


def test_a_batch_is_a_function_of_seed_and_step():
    lengths = [5, 9, 3, 12]
    episodes = [episode_of(i, n, i != 2) for i, n in enumerate(lengths)]
    chances = segments.probabilities(lengths)

    def batch(seed, step):
        return segments.batch_of(
            episodes, *segments.draw(lengths, chances, 8, 4, seed=seed, step=step), 4
        )

    found = batch((3, 0), 7)
    assert found["obs"].shape == (8, 4, 2, 2, 3) and found["obs"].dtype == np.uint8
    assert found["act"].dtype == np.int32 and found["mask"].shape == (8, 4)
    for name, value in batch((3, 0), 7).items():
        np.testing.assert_array_equal(value, found[name])
    for other in (batch((3, 0), 8), batch((3, 1), 7), batch((4, 0), 7)):
        assert (other["act"] != found["act"]).any()


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="at least one episode"):
        segments.probabilities([])
    with pytest.raises(UserError, match="sample weights"):
        segments.probabilities([1, 2, 3, 4], [0.5, -0.5, 0.5, 0.5])
    with pytest.raises(UserError, match="has no step"):
        segments.segment(episode_of(0, 3), 3, 5)
