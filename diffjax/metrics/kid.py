"""Kernel Inception distance: the unbiased squared MMD with a cubic polynomial kernel.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4: k(x, y) = (x.y / d + 1)^3. Unlike the
Frechet distance it has no bias in the sample count, so it may be negative near equality. Values are
as they are, not times 1000. On features other than Inception's it is a kernel distance by the same
formula, and only values on one feature net compare.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

from diffjax.errors import UserError

FULL_LIMIT = 5000
_ROWS = 1024


class KID(NamedTuple):
    """An estimate of the squared MMD and its standard error, both float64 arithmetic."""

    value: float
    stderr: float


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel matrix [n, m] over y, [n], and over x, [m], a block of rows at a time."""
    over_y, over_x = np.empty(len(x)), np.zeros(len(y))
    for start in range(0, len(x), _ROWS):
        kernel = (x[start : start + _ROWS] @ y.T / x.shape[1] + 1) ** 3
        over_y[start : start + _ROWS] = kernel.sum(1)
        over_x += kernel.sum(0)
    return over_y, over_x


def mmd2(x, y) -> KID:
    """Returns the unbiased squared MMD on all pairs, with its standard error.

    The value is Gretton et al. 2012, "A Kernel Two-Sample Test", equation 3 (lemma 6). The error is
    that of a U-statistic to first order: each sample's own contribution h to the value has variance
    v, and the value 4 v_x / n + 4 v_y / m. At equal distributions it is of the right size only.

    Args:
      x: features [n, d]; y: features [m, d]; n, m >= 2. Which is which does not matter.

    Raises:
      UserError: a set has fewer than two samples.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape_suffix([x, y], 1)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise UserError(f"KID needs at least 2 samples in each set, got {n} and {m}")

    def within(z):
        itself = (np.sum(z * z, 1) / z.shape[1] + 1) ** 3
        return (_kernel_sums(z, z)[0] - itself) / (len(z) - 1)

    within_x, within_y = within(x), within(y)
    across_x, across_y = _kernel_sums(x, y)
    h_x, h_y = within_x - across_x / m, within_y - across_y / n
    value = within_x.mean() + within_y.mean() - 2 * across_x.mean() / m
    return KID(float(value), float(2 * np.sqrt(h_x.var(ddof=1) / n + h_y.var(ddof=1) / m)))


class Kernels:
    """KID of any part of x against all of y, from sums that are taken once: for a jackknife.

    Holds the n x n kernel matrix of x in float64.

    Args:
      x: features [n, d]; y: features [m, d]; n, m >= 2.
    """

    def __init__(self, x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        cubed = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
        self.xx = cubed(x, x)
        np.fill_diagonal(self.xx, 0)
        self.xy = cubed(x, y).mean(1)
        yy = sum(cubed(y[i : i + _ROWS], y).sum() for i in range(0, len(y), _ROWS))
        n = len(y)
        self.yy = (yy - np.sum((np.sum(y**2, 1) / y.shape[1] + 1) ** 3)) / (n * (n - 1))

    @property
    def n(self) -> int:
        """How many samples x has."""
        return len(self.xy)

    def __call__(self, keep) -> float:
        """KID of the x whose number is True in keep, bool [at most n]; at least two of them."""
        keep = np.flatnonzero(keep)
        n = len(keep)
        xx = self.xx[np.ix_(keep, keep)].sum() / (n * (n - 1))
        return float(xx + self.yy - 2 * self.xy[keep].mean())


def floor_spread(real, n: int, splits: int = 20) -> float:
    """s_floor: the standard deviation of KID over random pairs of disjoint sets of n real features.

    What the judge cannot tell apart at this size. Of fewer than 2n features, halves.

    Args:
      real: features [m, d].
    """
    real, random = np.asarray(real), np.random.default_rng(0)
    n = min(n, len(real) // 2)
    orders = [random.permutation(len(real)) for _ in range(splits)]
    return float(np.std([mmd2(real[o[:n]], real[o[n : 2 * n]]).value for o in orders], ddof=1))


def kid_subsets(x, y, x_subsets: Sequence, y_subsets: Sequence) -> KID:
    """Returns the mean of `mmd2` over given pairs of subsets, and the standard error of that mean.

    The error counts the subsets as independent: it says how far more subsets would move the mean,
    not how far other samples would. It is 0 for one subset.

    Args:
      x: features [n, d]; y: features [m, d].
      x_subsets, y_subsets: index arrays or slices into x and y, one pair a subset.
    """
    pairs = list(zip(x_subsets, y_subsets, strict=True))
    values = np.array([mmd2(x[i], y[j]).value for i, j in pairs])
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return KID(float(values.mean()), float(spread / np.sqrt(len(values))))


def kid(x, y, *, subset_size: int | None = None, subsets: int = 100, seed: int = 0) -> KID:
    """Returns the kernel Inception distance between two sets of features, with a standard error.

    Without `subset_size`, sets of at most `FULL_LIMIT` samples use all pairs (`mmd2`, nothing
    random) and larger ones subsets of 1000; both estimate the same number without bias. With it,
    the mean over random subsets without replacement, as the paper and clean-fid do
    (`kid_subsets`).

    Args:
      x: features [n, d]; y: features [m, d].
      subset_size: samples a subset, at most min(n, m).
      subsets: number of subsets.
      seed: of the subsets' draw; the same seed gives the same number.

    Raises:
      UserError: a set has fewer than two samples, or fewer than a subset.
    """
    n, m = len(x), len(y)
    if subset_size is None:
        if max(n, m) <= FULL_LIMIT:
            return mmd2(x, y)
        subset_size = min(n, m, 1000)
    if subset_size > min(n, m):
        raise UserError(f"subset_size {subset_size} is above the smaller set's {min(n, m)} samples")
    if subsets < 1:
        raise UserError(f"KID needs at least one subset, got subsets={subsets}")
    rng = np.random.default_rng(seed)
    draw = lambda count: [rng.choice(count, subset_size, replace=False) for _ in range(subsets)]
    return kid_subsets(np.asarray(x), np.asarray(y), draw(n), draw(m))
