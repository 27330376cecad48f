from pathlib import Path

import numpy as np
import pytest

from diffjax.data.motion import features, statistics
from diffjax.data.motion.skeletons import HUMANML3D, KIT
from diffjax.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden" / "motion"


def test_blocks_share_a_deviation():
    random = np.random.default_rng(0)
    scale = random.uniform(0.5, 2, 263)
    clips = [random.normal(3, 1, (n, 263)) * scale for n in (30, 50)]
    found = statistics.measure(clips)
    rows = np.concatenate(clips)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-5)
    for block in features.channels(22).values():
        np.testing.assert_allclose(found.std[block], rows.std(0)[block].mean(), rtol=1e-5)
    x = statistics.normalise(rows, found)
    assert abs(x.mean(0)).max() < 1e-4
    np.testing.assert_allclose(statistics.denormalise(x, found), rows, atol=1e-5)
    with pytest.raises(UserError, match="no motion"):
        statistics.measure([])


def test_a_channel_that_never_varies_is_only_shifted():
    found = statistics.measure([np.full((9, 263), 2.0)])
    np.testing.assert_array_equal(found.std, 1)
    np.testing.assert_array_equal(statistics.normalise(np.full(263, 2.0), found), 0)


def test_the_published_statistics_have_our_blocks():
    stats = np.load(GOLDEN / "norm_stats.npz")
    std = stats["humanml3d_std"]
    for name, block in features.channels(22).items():
        assert np.ptp(std[block]) < 1e-6 * std[block].max(), name
    np.testing.assert_allclose(stats["humanml3d_bone_lengths"], HUMANML3D.lengths, atol=1e-6)
    mean = stats["humanml3d_mean"][None].repeat(2, 0)
    joints = features.recover_from_rotations(mean, HUMANML3D)[0]
    assert 1.3 < joints[:, 1].max() < 1.8, "the mean pose stands"
    assert (
        statistics.check_statistics(stats["humanml3d_mean"], std, 263, "x").std.dtype == np.float32
    )


def test_masks_are_those_of_mdm():
    lower = statistics.body_mask(HUMANML3D, "lower_body")
    upper = statistics.body_mask(HUMANML3D, "upper_body")
    assert lower.sum() == 107 and upper.sum() == 156 and not (lower & upper).any()
    blocks = features.channels(22)
    inner = [1, 2, 4, 5, 7, 8, 10, 11]
    positions = lower[blocks["positions"]].reshape(21, 3)
    assert [j + 1 for j in range(21) if positions[j].all()] == inner
    assert positions.sum() == 24 and lower[blocks["rotations"]].sum() == 48
    assert lower[blocks["velocities"]].sum() == 27 and lower[:4].all() and lower[-4:].all()
    root = statistics.body_mask(HUMANML3D, "root")
    assert np.flatnonzero(root).tolist() == [0, 1, 2, 3, 193, 194, 195]
    assert np.flatnonzero(statistics.body_mask(HUMANML3D, "root_horizontal")).tolist() == [0, 1, 2]
    assert statistics.body_mask(KIT, "lower_body").sum() == 4 + 30 + 60 + 33 + 4
    with pytest.raises(UserError, match="unknown part of the body 'arms'"):
        statistics.body_mask(HUMANML3D, "arms")


@pytest.mark.parametrize(
    "mean, std, message",
    [
        (np.zeros(4), np.ones(5), r"mean is float64 \(4,\)"),
        (np.zeros(5), np.zeros(5), "std has a number"),
        (np.full(5, np.nan), np.ones(5), "mean has a number"),
        (np.zeros(5, int), np.ones(5), "mean is int64"),
    ],
)
def test_bad_statistics_are_refused(mean, std, message):
    with pytest.raises(UserError, match=message):
        statistics.check_statistics(mean, std, 5, "here")
