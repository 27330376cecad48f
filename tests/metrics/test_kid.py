import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics import kid as module
from diffjax.metrics.kid import kid, kid_subsets, mmd2


def test_given_subsets_meet_the_golden(golden):
    got = kid_subsets(
        golden["feats_gen"],
        golden["feats_ref"],
        golden["kid_idx_x_from_gen"],
        golden["kid_idx_y_from_ref"],
    )
    np.testing.assert_allclose(got.value, golden["kid_clean_seed123_s10_m64"], rtol=1e-5)


def test_hundred_subsets_meet_the_golden(golden):
    gen, ref = golden["feats_gen"], golden["feats_ref"]
    rng = np.random.RandomState(5)  # noqa: NPY002  the golden was drawn with it
    draws = [
        (rng.choice(len(gen), 200, replace=False), rng.choice(len(ref), 200, replace=False))
        for _ in range(100)
    ]
    got = kid_subsets(gen, ref, *zip(*draws, strict=True))
    np.testing.assert_allclose(got.value, golden["kid_clean_seed5_s100_m1000"], rtol=1e-5)


def test_all_pairs_and_contiguous_parts_meet_the_golden(golden):
    gen, ref = golden["feats_gen"], golden["feats_ref"]
    for key in ("mmd2_unbiased", "kid_kdiff_full"):
        np.testing.assert_allclose(kid(gen, ref).value, golden[key], rtol=1e-10)
    parts = -(-max(len(gen), len(ref)) // 60)

    def slices(n):
        edges = [round(i * n / parts) for i in range(parts + 1)]
        return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    got = kid_subsets(gen, ref, slices(len(gen)), slices(len(ref)))
    np.testing.assert_allclose(got.value, golden["kid_kdiff_max60"], rtol=1e-10)


def test_value_is_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(3, 2)) + 1
    k = lambda u, v: (u @ v / 2 + 1) ** 3
    xx = np.mean([k(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(3) for j in range(3) if i != j])
    xy = np.mean([k(u, v) for u in x for v in y])
    np.testing.assert_allclose(mmd2(x, y).value, xx + yy - 2 * xy, rtol=1e-12)


def test_is_symmetric_and_independent_of_order_and_of_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(70, 4))
    got = mmd2(x, y)
    monkeypatch.setattr(module, "_ROWS", 7)
    np.testing.assert_allclose(mmd2(x, y), got, rtol=1e-10)
    np.testing.assert_allclose(mmd2(y, x[::-1]), got, rtol=1e-10)


def test_is_zero_in_the_mean_at_equal_distributions():
    rng = np.random.default_rng(2)
    values = [mmd2(rng.normal(size=(30, 4)), rng.normal(size=(20, 4))).value for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_closed_form_expectation_and_the_standard_error():
    # In one dimension, N(0, 1) against N(a, 1): E k = sum_j C(3, j) E[x^j] E[y^j], so the squared
    # MMD is 3 a^2 + 3 (m2 - 1)^2 + m3^2 with m2 = 1 + a^2, m3 = a^3 + 3 a.
    rng, a = np.random.default_rng(3), 1.0
    want = 3 * a**2 + 3 * (a**2) ** 2 + (a**3 + 3 * a) ** 2
    runs = [mmd2(rng.normal(size=(200, 1)), a + rng.normal(size=(150, 1))) for _ in range(300)]
    values, errors = np.array(runs).T
    assert abs(values.mean() - want) < 4 * values.std() / 300**0.5
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), values.std(), rtol=0.15)


def test_subsets_repeat_by_seed_and_estimate_the_same_number():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(300, 3)), 0.5 + rng.normal(size=(200, 3))
    a = kid(x, y, subset_size=50, subsets=60, seed=1)
    assert a == kid(x, y, subset_size=50, subsets=60, seed=1)
    assert a != kid(x, y, subset_size=50, subsets=60, seed=2)
    assert abs(a.value - kid(x, y).value) < 5 * a.stderr
    assert kid(x, y, subset_size=50, subsets=1).stderr == 0


def test_large_sets_take_subsets(monkeypatch):
    monkeypatch.setattr(module, "FULL_LIMIT", 20)
    x = np.random.default_rng(5).normal(size=(30, 2))
    same = [kid(x, x + 1, seed=s, subsets=3).value for s in (0, 1)]
    # One subset of all 30 is the set itself, in another order.
    np.testing.assert_allclose(same, mmd2(x, x + 1).value, rtol=1e-10)


def test_too_few_samples_are_a_user_error():
    x = np.zeros((5, 2))
    with pytest.raises(UserError, match="at least 2 samples in each set, got 1 and 5"):
        kid(x[:1], x)
    with pytest.raises(UserError, match="subset_size 6"):
        kid(x, x, subset_size=6)
    with pytest.raises(UserError, match="subsets=0"):
        kid(x, x, subset_size=3, subsets=0)
