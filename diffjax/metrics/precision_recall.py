"""Precision, recall and realism from k-nearest-neighbour balls.

Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
equations 1-3. A set's manifold is the union of balls about its points, each reaching the point's
k-th neighbour in that set. Precision is the share of generated points inside the real manifold,
recall the share of real points inside the generated one. Both grow with k and fall as the sets
shrink: only values at equal k and equal sample counts compare.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError

_ROWS = 512


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


def _distances(u: jax.Array, v: jax.Array) -> jax.Array:
    """Squared distances, [n, d] and [m, d] -> [n, m]."""
    inner = jnp.dot(u, v.T, precision="highest")
    return jnp.maximum(jnp.sum(u**2, -1)[:, None] - 2 * inner + jnp.sum(v**2, -1), 0)


@functools.partial(jax.jit, static_argnames="k")
def _kth(points, centres, k):
    return -jax.lax.top_k(-_distances(points, centres), k + 1)[0][:, k]


@jax.jit
def _covered(points, centres, radii):
    return jnp.any(_distances(points, centres) <= radii, -1)


@jax.jit
def _realism(points, centres, radii):
    return jnp.max(radii / (_distances(points, centres) + 1e-5), -1)


def _by_rows(function, points: np.ndarray, *rest) -> np.ndarray:
    """Applies `function` to blocks of points, the last one padded: one compilation a set size."""
    rest, out = jax.device_put(rest), []
    for start in range(0, len(points), _ROWS):
        block = points[start : start + _ROWS]
        padded = np.pad(block, ((0, _ROWS - len(block)), (0, 0)))
        out.append(np.asarray(function(padded, *rest))[: len(block)])
    return np.concatenate(out)


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    return _by_rows(functools.partial(_kth, k=k), points, points)


def _centred(*sets) -> list[np.ndarray]:
    """The sets in float32, less the first one's mean: no distance changes, but |u|^2 - 2uv + |v|^2
    cancels less."""
    chex.assert_rank(sets, 2)
    chex.assert_equal_shape_suffix(sets, 1)
    mean = np.mean(sets[0], 0, dtype=np.float64)
    return [np.asarray(s - mean, np.float32) for s in sets]


def _enough(n: int, k: int) -> None:
    if k < 1:
        raise UserError(f"precision and recall need k of at least 1, got {k}")
    if n <= k:
        raise UserError(f"a set of {n} samples has no {k}-th neighbours: use more than {k} samples")


def radii(features, k: int = 3) -> np.ndarray:
    """Returns each point's squared distance to its k-th neighbour in its own set.

    Args:
      features: [n, d], n > k.
      k: neighbours, not counting the point itself.

    Returns:
      [n] float32.

    Raises:
      UserError: n <= k or k < 1.
    """
    _enough(len(features), k)
    return _radii(_centred(features)[0], k)


def precision(real, fake, k: int = 3) -> float:
    """Returns the share of fake points within the radius of some real point, in [0, 1].

    `precision(fake, real)` is the recall.

    Args:
      real: features [n, d], n > k; fake: features [m, d], m >= 1.
      k: neighbours.

    Raises:
      UserError: n <= k, k < 1 or m = 0.
    """
    _enough(len(real), k)
    if not len(fake):
        raise UserError("no points to look for: the set is empty")
    real, fake = _centred(real, fake)
    return float(np.mean(_by_rows(_covered, fake, real, _radii(real, k))))


def precision_recall(real, fake, k: int = 3) -> PrecisionRecall:
    """Returns precision and recall of fake features [m, d] against real ones [n, d]; n, m > k.

    Raises:
      UserError: a set has k samples or fewer.
    """
    return PrecisionRecall(precision(real, fake, k), precision(fake, real, k))


def realism(real, fake, k: int = 3) -> np.ndarray:
    """Returns a score for each fake point: above 1 about where it lies in the real manifold.

    max over real points of squared radius / (squared distance + 1e-5): equation 4, in the form of
    the public evaluator of guided-diffusion (squared, and no balls dropped).

    Args:
      real: features [n, d], n > k; fake: features [m, d].

    Returns:
      [m] float32.
    """
    _enough(len(real), k)
    real, fake = _centred(real, fake)
    return _by_rows(_realism, fake, real, _radii(real, k))
