"""Whitening: unit covariance, cut tails, a kernel that then sees what a weak direction shows."""

import numpy as np

from diffjax.metrics import kid, whitening


def test_the_covariance_becomes_one_before_the_cut():
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 6)) @ random.normal(size=(6, 6)) * [1, 2, 4, 8, 16, 32] + 7
    white = whitening.measure(x)
    found = (x - white.mean) @ white.matrix
    values = np.linalg.eigvalsh(np.cov(x.T))
    ridge = whitening.RIDGE * values.mean()
    np.testing.assert_allclose(np.cov(found.T), np.diag(values / (values + ridge)), atol=1e-3)
    np.testing.assert_array_equal(white(x), found.clip(-whitening.LIMIT, whitening.LIMIT))


def test_a_direction_without_variance_stays_finite():
    x = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1, 0]
    assert np.isfinite(whitening.measure(x)(x)).all()
    assert np.isfinite(whitening.measure(np.ones((5, 3)))(np.ones((5, 3)))).all()


def test_a_kernel_sees_a_shift_of_a_weak_direction():
    # One direction varies a hundred times as much as the others; the sets differ in another, by
    # about its standard deviation.
    def drawn(seed, shift=0.0):
        x = np.random.default_rng(seed).standard_t(3, size=(300, 8)) * [100, *[1] * 7]
        return x + shift * np.eye(8)[1]

    real = drawn(0)
    white = whitening.measure(real)

    def gain(see):  # of KID by the shift, in standard deviations of KID between real sets
        floor = np.std([kid.mmd2(see(drawn(i)), see(real)).value for i in range(2, 12)])
        scores = [kid.mmd2(see(drawn(1, shift)), see(real)).value for shift in (0.0, 1.7)]
        return (scores[1] - scores[0]) / floor

    raw, seen = gain(lambda x: x), gain(white)
    assert raw < 1 < 20 < seen, (raw, seen)
