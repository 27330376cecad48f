"""Features on one scale in every direction, for kernels that compare sets of them.

A classifier's features vary most by what a picture or a motion is of, and hardly by how sharp or
smooth it is. A polynomial kernel on them as they are sees the former only, and of that mostly a few
outliers: the standard deviation of KID between two sets of real examples then hides what samples
do wrong.
"""

from typing import NamedTuple

import numpy as np

LIMIT = 3.0  # standard deviations that a whitened feature is cut at
RIDGE = 1e-3  # of the mean variance, added to each: directions without variance say nothing


class Whitening(NamedTuple):
    """x -> clip((x - mean) @ matrix, -LIMIT, LIMIT).

    Attributes:
      mean: float32 [D]. matrix: float32 [D, D].
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, features):
        """[..., D] -> [..., D]; NumPy or jax arrays."""
        white = (features - self.mean) @ self.matrix
        return white.clip(-LIMIT, LIMIT)


def measure(features: np.ndarray) -> Whitening:
    """Returns the whitening by the mean and covariance of features [n, D], n at least 2."""
    features = np.asarray(features, np.float64)
    covariance = np.cov(features.T)
    ridge = RIDGE * np.trace(covariance) / len(covariance) + 1e-12
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    matrix = vectors / np.sqrt(values)
    return Whitening(features.mean(0).astype(np.float32), matrix.astype(np.float32))
