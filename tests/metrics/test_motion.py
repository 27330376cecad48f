"""Metrics of motion: against the published code's numbers, and bodies whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics import frechet, motion

GOLDEN = Path(__file__).parents[1] / "golden" / "motion_metrics" / "metrics.npz"


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN, allow_pickle=False) as found:
        return dict(found)


def test_published_code_gives_the_same(arrays):
    close = lambda got, want, atol=1e-5: np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    text, clips = arrays["text"], arrays["motion"]
    close(motion.matching_score(text, clips), arrays["matching_score"])
    close(motion.r_precision(text, clips), arrays["r_precision"])
    close(motion.r_precision(text, clips, batch=96), arrays["r_precision_one_batch96"])
    close(motion.diversity(arrays["gen"], arrays["div_idx"]), arrays["diversity"])
    close(motion.multimodality(arrays["mm"], arrays["mm_idx"]), arrays["multimodality"])
    close(motion.replications(arrays["ci_values"]), arrays["ci"])
    moments = (frechet.moments(arrays[name]) for name in ("gt", "gen"))
    close(frechet.frechet_distance(*moments), arrays["fid"], 1e-4)


def test_r_precision_of_known_ranks():
    # Motion i lies at i on a line; text i at its motion, but the first text at the second motion.
    clips = np.arange(4.0)[:, None]
    text = clips.copy()
    text[0] = 1.1
    assert motion.r_precision(text, clips).tolist() == [0.75, 0.75, 1.0]
    assert motion.r_precision(text, clips, batch=1).tolist() == [1, 1, 1]
    # A batch that is not full, and a draw of both at one place: the first index wins.
    assert motion.r_precision(np.zeros((3, 1)), np.zeros((3, 1)), top=2, batch=2).tolist() == [
        2 / 3,
        1,
    ]
    tied = motion.r_precision(np.zeros((64, 1)), np.zeros((64, 1)))
    assert tied.tolist() == [1 / 32, 2 / 32, 3 / 32]


def test_diversity_of_a_gaussian():
    # The distance of two draws from N(0, I) in d dimensions: sqrt 2 times a chi variable.
    features = np.random.default_rng(0).normal(size=(40_000, 3))
    want = np.sqrt(2) * 2 * np.sqrt(2 / np.pi)
    assert motion.diversity(features, 40_000, seed=1) == pytest.approx(want, rel=0.01)
    assert motion.diversity(features, 10, seed=1) == motion.diversity(features, 10, seed=1)
    assert motion.diversity(features, 10, seed=1) != motion.diversity(features, 10, seed=2)
    conditions = features.reshape(4, 10_000, 3) + 100 * np.arange(4)[:, None, None]
    assert motion.multimodality(conditions, 10_000) == pytest.approx(want, rel=0.01)
    pairs = motion.draw_pairs(10, 10)
    assert [sorted(row) for row in pairs] == [list(range(10))] * 2


def test_accuracy():
    assert motion.accuracy(np.array([[0, 1], [2, 1], [0, 3]]), np.array([1, 0, 0])) == 2 / 3


def walker(slip: float, frames: int = 11):
    """A body of three joints at 10 frames a second: a head that goes at 1 m/s along x, a left foot
    that stands but slips along z by `slip` a frame, a right foot in the air."""
    joints = np.zeros((1, frames, 3, 3))
    joints[0, :, 0, 0] = 0.1 * np.arange(frames)
    joints[0, :, 0, 1] = 1.7
    joints[0, :, 1, 2] = slip * np.arange(frames)
    joints[0, :, 2, 1] = 0.3
    joints[0, :, 2, 0] = 0.5 * np.arange(frames)
    return joints


def test_feet_that_slip():
    still = motion.foot_skate(walker(0.0), [1, 2], 10)
    assert still == (0, 0, 0, 1)
    slow = motion.foot_skate(walker(0.02), [1, 2], 10)
    assert slow[:2] == (0, 0) and slow.speed == pytest.approx(0.2)
    fast = motion.foot_skate(walker(0.03), [1, 2], 10)
    assert fast[:2] == (1, 1) and fast.speed == pytest.approx(0.3)
    # Half the time in the air: of all frames a half slides, of those in contact all.
    jumping = walker(0.03)
    jumping[0, 6:, 1, 1] = 1.0
    found = motion.foot_skate(jumping, [1], 10)
    assert found[:2] == (0.5, 1) and found.contact == 0.5
    # Up may be another axis, and frames outside the mask do not count.
    turned = jumping[..., [2, 0, 1]]
    assert motion.foot_skate(turned, [1], 10, up=2) == found
    mask = np.arange(11)[None] < 6
    assert motion.foot_skate(jumping, [1], 10, mask)[:2] == (1, 1)
    assert np.isnan(motion.foot_skate(walker(0.0), [2], 10).speed)
    assert motion.foot_skate(walker(0.0), [2], 10).ratio == 0


def test_a_foot_stands_in_both_frames_and_two_that_slip_are_one_frame():
    joints = np.zeros((1, 3, 2, 3))
    joints[0, :, :, 2] = 0.04 * np.arange(3)[:, None]
    assert motion.foot_skate(joints, [0, 1], 10)[:2] == (1, 1)
    joints[0, 0, :, 1] = 0.2  # comes down
    found = motion.foot_skate(joints, [0, 1], 10)
    assert (found.ratio, found.contact) == (0.5, 0.5)
    joints[0, :, :, 1] = [[0], [0], [0.2]]  # goes up
    assert motion.foot_skate(joints, [0, 1], 10).contact == 0.5


def test_what_is_behind_the_end_may_be_anything():
    joints, mask = walker(0.03), np.arange(11)[None] < 6
    want = motion.foot_skate(joints[:, :6], [1, 2], 10), motion.joint_speed(joints[:, :6], 10)
    joints[:, 6:] = np.nan
    got = motion.foot_skate(joints, [1, 2], 10, mask), motion.joint_speed(joints, 10, mask)
    assert got[0] == pytest.approx(want[0]) and got[1] == pytest.approx(want[1])


def test_speed():
    joints = np.concatenate([walker(0.03), np.zeros((1, 11, 3, 3))])
    speed = motion.joint_speed(joints, 10)
    np.testing.assert_allclose(speed, [(1 + 0.3 + 5) / 3, 0], atol=1e-12)
    joints[0, 4:] = 1e6  # outside the clip
    mask = np.array([[True] * 4 + [False] * 7, [True] + [False] * 10])
    speed = motion.joint_speed(joints, 10, mask)
    assert speed[0] == pytest.approx((1 + 0.3 + 5) / 3) and np.isnan(speed[1])


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: motion.r_precision(np.zeros((0, 2)), np.zeros((0, 2))), "at least one pair"),
        (lambda: motion.r_precision(np.zeros((2, 2)), np.zeros((2, 2)), batch=0), "got 3 and 0"),
        (lambda: motion.diversity(np.zeros((5, 2))), "300 pairs of 5"),
        (lambda: motion.accuracy(np.zeros((0, 2)), np.zeros(0, int)), "at least one clip"),
        (lambda: motion.replications([]), "at least one"),
        (lambda: motion.joint_speed(np.zeros((1, 1, 2, 3)), 20), "frames >= 2"),
        (lambda: motion.joint_speed(walker(0), 20, np.ones((1, 3))), "the mask is (1, 3)"),
        (lambda: motion.foot_skate(walker(0), [3], 20), "feet [3]: joints are 0 .. 2"),
        (lambda: motion.foot_skate(walker(0), [1], 20, slide=0), "slide 0 must be above 0"),
    ],
)
def test_refusals(call, fragment):
    with pytest.raises(UserError) as refused:
        call()
    assert fragment in str(refused.value)
