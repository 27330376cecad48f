import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics import precision_recall as module
from diffjax.metrics.precision_recall import precision, precision_recall, radii, realism


def test_meets_the_golden(golden):
    ref, gen = golden["feats_ref"], golden["feats_gen"]
    np.testing.assert_allclose(radii(ref), golden["radii_ref"][:, 0], rtol=1e-5)
    np.testing.assert_allclose(radii(gen), golden["radii_gen"][:, 0], rtol=1e-5)
    got = precision_recall(ref, gen)
    assert got == (golden["precision"], golden["recall"])
    assert got.precision == golden["precision_evaluate"]
    np.testing.assert_allclose(realism(ref, gen), golden["realism"], rtol=1e-5)


def test_radii_on_a_line():
    # 0 1 3 7: the second neighbours are 3, 2, 3 and 6 away.
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(radii(line, k=2), [9, 4, 9, 36], rtol=1e-6)


def test_shares_on_a_line():
    real, fake = np.array([[0.0], [1.0], [2.0]]), np.array([[0.5], [2.9], [3.1], [50.0]])
    # Real balls of radius 1 reach from -1 to 3: two of four fakes are inside. Fake balls (k = 1)
    # reach 2.4, 0.2, 0.2 and 46.9: from 0.5 that holds every real point.
    assert precision_recall(real, fake, k=1) == (0.5, 1.0)
    assert precision(fake, real, k=1) == 1.0


def test_is_one_for_a_set_against_itself_and_zero_for_far_sets():
    x = np.random.default_rng(0).normal(size=(40, 5))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1e3) == (0, 0)


def test_is_unmoved_by_order_scale_offset_and_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 3)), 0.7 * rng.normal(size=(37, 3))
    plain = precision_recall(x, y)
    assert 0 < plain.recall < plain.precision
    assert precision_recall(x[::-1], y[::-1]) == plain
    # In float32 the raw expansion of |u - v|^2 at an offset of 1e4 has errors of about 10.
    assert precision_recall(1e4 + 3 * x, 1e4 + 3 * y) == plain
    monkeypatch.setattr(module, "_ROWS", 8)
    assert precision_recall(x, y) == plain


def test_more_neighbours_cover_more():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    shares = [precision(x, y, k) for k in (1, 3, 6)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_too_few_samples_are_a_user_error():
    x = np.zeros((5, 2))
    with pytest.raises(UserError, match="more than 3 samples"):
        precision_recall(x, x[:3])
    with pytest.raises(UserError, match="at least 1, got 0"):
        radii(x, k=0)
    with pytest.raises(UserError, match="empty"):
        precision(x, x[:0])
