import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics.frechet import Accumulator, Moments, frechet_distance, moments


def gaussian(mean, cov):
    return Moments(1000, np.asarray(mean, float), np.asarray(cov, float))


def test_moments_meet_the_golden(golden):
    for name in ("ref", "gen"):
        got = moments(golden[f"feats_{name}"])
        np.testing.assert_allclose(got.mean, golden[f"mu_{name}"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.cov, golden[f"sigma_{name}"], rtol=0, atol=1e-12)
        assert got.n == len(golden[f"feats_{name}"])


@pytest.mark.parametrize(
    ("key", "rtol"),
    [
        ("fid_edm", 1e-6),
        ("fid_guided", 1e-6),
        ("fid_kdiff", 1e-6),
        ("fid_guided_from_feats", 1e-5),
    ],
)
def test_distance_meets_the_golden(golden, key, rtol):
    got = frechet_distance(moments(golden["feats_ref"]), moments(golden["feats_gen"]))
    np.testing.assert_allclose(got, golden[key], rtol=rtol)


def test_distance_of_singular_covariances_meets_the_golden(golden):
    a, b = moments(golden["feats_ref"][:10]), moments(golden["feats_gen"][:9])
    for key in ("fid_edm_rankdef", "fid_guided_rankdef"):
        np.testing.assert_allclose(frechet_distance(a, b), golden[key], rtol=1e-5)
        np.testing.assert_allclose(frechet_distance(b, a), golden[key], rtol=1e-5)


def test_closed_form_of_two_gaussians_with_common_axes():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0])
    got = frechet_distance(
        gaussian([1, 0, 0], rotation @ np.diag(a) @ rotation.T),
        gaussian([0, 2, 0], rotation @ np.diag(b) @ rotation.T),
    )
    # |mu_a - mu_b|^2 = 5, and sum (sqrt a - sqrt b)^2 = 1 + 1 + 9.
    np.testing.assert_allclose(got, 16, rtol=1e-7)


def test_closed_form_where_the_covariances_do_not_commute():
    a, b = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 3.0]])
    # In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    m = a @ b
    overlap = np.sqrt(np.trace(m) + 2 * np.sqrt(np.linalg.det(m)))
    want = np.trace(a) + np.trace(b) - 2 * overlap
    np.testing.assert_allclose(
        frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)), want, rtol=1e-9
    )


def test_distance_is_zero_to_itself_and_unmoved_by_rigid_motion():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 6)), 1 + rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    plain = frechet_distance(moments(x), moments(y))
    moved = frechet_distance(moments(x @ rotation + 5), moments(y @ rotation + 5))
    np.testing.assert_allclose(moved, plain, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(moments(y), moments(x)), plain, rtol=1e-9)
    assert frechet_distance(moments(x), moments(x)) < 1e-9


def test_streaming_equals_the_whole_whatever_the_batches_and_the_offset():
    x = (1e4 + np.random.default_rng(2).normal(size=(5000, 3))).astype(np.float32)
    accumulator = Accumulator()
    for part in np.split(x, [1, 7, 4500]):
        accumulator.add(part)
    for got in (accumulator.moments(), moments(x)):
        np.testing.assert_allclose(got.mean, x.mean(0, dtype=np.float64), rtol=1e-14)
        np.testing.assert_allclose(got.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10)
        assert got.n == 5000


def test_too_few_or_broken_features_are_a_user_error():
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        moments(np.zeros((1, 4)))
    with pytest.raises(UserError, match="not finite"):
        moments(np.array([[0.0, np.nan], [1.0, 1.0]]))
