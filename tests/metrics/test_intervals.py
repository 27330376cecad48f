"""Intervals: how often they cover on simulated data, and verdicts on constructed numbers."""

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics import intervals, kid


def constant(value: float):
    """A statistic that does not depend on the samples."""
    return lambda keep: value


def test_of_a_mean_it_is_student_s_t():
    # With as many blocks as samples the jackknife's error of a mean is s/sqrt(n).
    x = np.random.default_rng(0).normal(size=32)
    got = intervals.jackknife(lambda keep: x[keep].mean(), 32)
    reach = 2.0395 * x.std(ddof=1) / np.sqrt(32)
    want = {"value": x.mean(), "low": x.mean() - reach, "high": x.mean() + reach}
    assert got == pytest.approx(want, rel=1e-4)
    got = intervals.over_runs([1.0, 2.0, 3.0])
    assert got == pytest.approx(
        {"value": 2, "low": 2 - 4.303 / 3**0.5, "high": 2 + 4.303 / 3**0.5}, rel=1e-3
    )


def test_coverage():
    # A difference of KIDs on shared noise, against the mean over many draws.
    random, n = np.random.default_rng(0), 64
    real = random.normal(size=(400, 3))

    def draw():
        x = random.normal(size=(n, 3))
        a = kid.Kernels(1.3 * x + 0.1 * random.normal(size=x.shape), real)
        b = kid.Kernels(1.1 * x, real)
        return lambda keep: a(keep) - b(keep)

    every = np.ones(n, bool)
    truth = np.mean([draw()(every) for _ in range(300)])
    found = [intervals.jackknife(draw(), n) for _ in range(120)]
    covered = np.mean([one["low"] < truth < one["high"] for one in found])
    assert 0.87 < covered <= 1, covered


def test_coverage_over_runs():
    random = np.random.default_rng(1)
    found = [intervals.over_runs(random.normal(2, 5, 3)) for _ in range(2000)]
    covered = np.mean([one["low"] < 2 < one["high"] for one in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_a_share_of_samples_is_kid_of_them():
    random = np.random.default_rng(2)
    x, real = random.normal(size=(40, 4)), random.normal(size=(50, 4)) + 1
    keep = random.uniform(size=40) < 0.5
    assert kid.Kernels(x, real)(keep) == pytest.approx(kid.mmd2(x[keep], real).value, rel=1e-9)
    assert kid.Kernels(x, real).n == 40
    spread = kid.floor_spread(real, 1000)  # as many as there are
    assert spread == kid.floor_spread(real, 25) and spread > 0


@pytest.mark.parametrize(
    "low, high, sign, word",
    [
        (1, 2, 1, "holds"),
        (1, 2, -1, "does not hold"),
        (-1, 2, 1, "undecided"),
        (-2, -1, -1, "holds"),
        (0, 1, 1, "undecided"),
    ],
)
def test_verdicts(low, high, sign, word):
    assert intervals.verdict({"value": 0, "low": low, "high": high}, sign)["verdict"] == word


def test_no_worse_on_constructed_numbers():
    no_worse = lambda a, b, **how: intervals.no_worse(
        [constant(v) for v in np.atleast_1d(a)], [constant(v) for v in np.atleast_1d(b)], 64,
        **{"share": 0.1, **how},
    )  # fmt: skip
    # One network: 1.05 against 1 is within 10 %, 1.2 is not, and is if the judge sees no 0.3.
    assert no_worse(1.05, 1.0)["verdict"] == "holds"
    assert no_worse(1.2, 1.0)["verdict"] == "does not hold"
    found = no_worse(1.2, 1.0, s_floor=0.15)
    assert (found["verdict"], found["margin"]) == ("holds", 0.3)
    assert found["loss"]["value"] == pytest.approx(0.2)
    # A negative KID is at the floor: its tenth is no margin.
    assert no_worse(0.001, -0.01)["verdict"] == "does not hold"
    # Higher is better: of precision 0.8 a tenth is 0.08.
    assert no_worse(0.75, 0.8, sign=1)["verdict"] == "holds"
    assert no_worse(0.70, 0.8, sign=1)["verdict"] == "does not hold"
    # Two networks must agree; three are a mean with Student's t.
    assert no_worse([1.05, 1.05], [1, 1])["verdict"] == "holds"
    assert no_worse([1.05, 1.2], [1, 1])["verdict"] == "undecided"
    found = no_worse([1.0, 1.05], [1, 1])  # each alone, though an interval over two is too wide
    assert found["verdict"] == "holds" and found["high"] > 0
    # M is each one's own of two, and that of the mean of three.
    assert no_worse([0.51, 1.55], [0.5, 1.5])["verdict"] == "holds"
    assert no_worse([0.58, 1.58], [0.5, 1.5])["verdict"] == "undecided"
    assert no_worse([0.58, 1.08, 1.58], [0.5, 1, 1.5])["value"] == pytest.approx(-0.02)
    assert no_worse([0.58, 1.08, 1.58], [0.5, 1, 1.5])["verdict"] == "holds"
    found = no_worse([1.0, 1.02, 1.04], [1, 1, 1])
    assert (found["value"], found["margin"]) == (pytest.approx(-0.08), pytest.approx(0.1))
    assert found["high"] == pytest.approx(-0.08 + 4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert found["verdict"] == "holds"
    assert no_worse([1.0, 1.1, 1.2], [1, 1, 1])["verdict"] == "undecided"
    assert no_worse([1.30, 1.31, 1.32], [1, 1, 1])["verdict"] == "does not hold"


def test_the_margin_of_one_network_varies_with_its_samples():
    # Loss 0.05 of every part; the reference's tenth, and so M, differs from part to part.
    x = np.random.default_rng(3).normal(1, 0.2, 64)
    found = intervals.no_worse(
        [lambda keep: x[keep].mean() + 0.05], [lambda keep: x[keep].mean()], 64, share=0.1
    )
    mean = intervals.jackknife(lambda keep: x[keep].mean(), 64)
    assert found["loss"]["high"] - found["loss"]["low"] == pytest.approx(0)
    assert found["high"] == pytest.approx(0.05 - 0.1 * mean["low"])


def test_better_on_constructed_numbers():
    better = lambda a, b, **how: intervals.better([constant(a)], [constant(b)], 64, **how)
    assert better(1.0, 1.1)["verdict"] == "holds"
    assert better(1.0, 1.1)["value"] == pytest.approx(0.1)
    assert better(1.0, 1.1, sign=1)["verdict"] == "does not hold"
    assert better(1.0, 1.0)["verdict"] == "undecided"


def test_the_smallest_count_is_found_from_above():
    holds, fails, open_ = "holds", "does not hold", "undecided"
    assert intervals.smallest({100: holds, 50: holds, 20: holds, 10: fails}) == 20
    assert intervals.smallest({100: holds, 50: open_, 20: holds}) == 100  # 50 was not passed
    assert intervals.smallest({100: fails, 50: holds}) is None
    assert intervals.smallest({}) is None


def test_refusals():
    with pytest.raises(UserError, match="at least 3 of them, got 2"):
        intervals.jackknife(constant(0), 2)
    with pytest.raises(UserError, match="at least 2 of them, got 1"):
        intervals.over_runs([1.0])
