"""The Frechet distance between two sets of features, each taken as a Gaussian.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6:

    d = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr (S_a S_b)^(1/2)

"FID" is this distance on the 2048 pooled features of the 2015 Inception-v3 and on nothing else; on
any other feature net it is a Frechet distance (FD), and only distances on one net compare. It is
biased upwards by about tr(S) / n, so only distances at equal sample counts compare.
"""

from typing import NamedTuple

import chex
import numpy as np

from diffjax.errors import UserError

_ROWS = 4096


class Moments(NamedTuple):
    """What the Frechet distance needs of a set of features, in float64.

    Attributes:
      n: number of samples.
      mean: [d].
      cov: [d, d], unbiased (divided by n - 1).
    """

    n: int
    mean: np.ndarray
    cov: np.ndarray


class Accumulator:
    """Moments of features that arrive in batches: `add` each, then `moments`.

    The sums are float64 on the host, and taken about the first batch's mean: raw second moments
    lose digits where the mean is large against the spread.
    """

    def __init__(self):
        self._n, self._shift, self._sum, self._outer = 0, None, None, None

    def add(self, features) -> None:
        """Adds a batch of features, [n, d] of any float dtype; n may differ between batches."""
        chex.assert_rank(features, 2)
        for start in range(0, len(features), _ROWS):
            rows = np.asarray(features[start : start + _ROWS], np.float64)
            if self._shift is None:
                self._shift = rows.mean(0)
                self._sum, self._outer = 0.0 * self._shift, np.zeros((rows.shape[1],) * 2)
            rows = rows - self._shift
            self._n += len(rows)
            self._sum += rows.sum(0)
            self._outer += rows.T @ rows

    def moments(self) -> Moments:
        """Returns the moments of all that was added.

        Raises:
          UserError: fewer than two samples, or a feature that is not finite.
        """
        if self._n < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {self._n}")
        mean = self._sum / self._n
        cov = (self._outer - self._n * np.outer(mean, mean)) / (self._n - 1)
        if not np.isfinite(cov).all():
            raise UserError("features have values that are not finite: no Frechet distance")
        return Moments(self._n, self._shift + mean, cov)


def moments(features) -> Moments:
    """Returns the `Moments` of features [n, d]; raises as `Accumulator.moments` does."""
    accumulator = Accumulator()
    accumulator.add(features)
    return accumulator.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the Frechet distance (squared 2-Wasserstein) of two Gaussians; at least 0.

    tr (S_a S_b)^(1/2) is computed as tr (S_a^(1/2) S_b S_a^(1/2))^(1/2): the same eigenvalues, of a
    symmetric matrix, so singular covariances (n <= d) need neither complex roots nor an epsilon.

    Args:
      a, b: moments of equal dimension, in either order.
    """
    chex.assert_equal_shape([a.mean, b.mean])
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root @ b.cov @ root
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap
    return float(max(squared, 0.0))
