"""A score as a function of which samples are kept: what intervals over samples need.

Features are taken once; a part of the samples is then scored without running a network again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from diffjax.errors import UserError, choose
from diffjax.metrics import frechet, kid, report
from diffjax.metrics.features import extract, feature_net
from diffjax.metrics.intervals import Statistic

SPLITS = 20
# -1 where a lower score is the better one.
SIGN = {"fd": -1, "kid": -1, "sfd": -1, "precision": 1, "recall": 1, "is": 1, "accuracy": 1}
SIGN |= {"kid_frames": -1, "kid_motion": -1}  # of films, see `film_scores`


class Judge(NamedTuple):
    """One metric against one set of real examples.

    Attributes:
      name: of the feature net or evaluator; scores of different ones do not compare.
      version: what tells it from others of the same name; "" where it has no weights.
      sign: -1 where a lower score is the better one, 1 where a higher is.
      score: outputs of a system's `sample` -> a `Statistic` of them.
      floor: n -> s_floor, the score's standard deviation between disjoint sets of n real examples.
    """

    name: str
    version: str
    sign: int
    score: Callable[[dict], Statistic]
    floor: Callable[[int], float]


def of_images(source, metric: str, net: str, *, limit: int = 50_000, sharding=None) -> Judge:
    """Returns a `Judge` of systems of pictures, whose outputs have "image" and "label".

    The same metrics as `report.image_scores`, with kid on all pairs, whatever the counts.

    Args:
      source, net, limit, sharding: as in `report.scorer`.
      metric: one of `report.KNOWN`.

    Raises:
      UserError: what `report.scorer` refuses.
    """
    report.scorer(source, [metric], net)
    made = feature_net(net)
    sign = choose(metric, SIGN, "metric")
    at = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))
    images = np.stack([source[int(i)]["image"] for i in at])
    see = lambda pictures, output: extract(made, pictures, output=output, sharding=sharding)
    if metric == "accuracy":
        labels = np.asarray(source.labels)[at]
        right = lambda pictures, labels: see(pictures, "probs").argmax(1) == np.asarray(labels)
        real = right(images, labels)
        parts = lambda n: [real[o] for o in _orders(len(real), min(n, len(real) // 2))]
        floor = lambda n: float(np.std([part.mean() for part in parts(n)], ddof=1))
        return Judge(made.name, made.version, sign, lambda o: _share(right(**_named(o))), floor)
    output = report.METRICS[metric].output
    real, seen = see(images, output), lambda outputs: see(outputs["image"], output)
    return of_features(metric, real, seen, made.name, made.version)


def of_features(metric: str, real, see: Callable, name: str, version: str = "") -> Judge:
    """Returns a `Judge` that compares features, whatever they are of.

    Args:
      metric: one of `report.METRICS`.
      real: features of the real examples [m, d].
      see: outputs of a system's `sample` -> their features [n, d].
      name, version: of what made the features.

    Raises:
      UserError: another metric.
    """
    choose(metric, report.METRICS, "metric")

    def score(outputs) -> Statistic:
        x = see(outputs)
        return kid.Kernels(x, real) if metric == "kid" else _parts(metric, real, x)

    def floor(n: int) -> float:
        if metric == "kid":
            return kid.floor_spread(real, n)
        n = min(n, len(real) // 2)
        orders = _orders(len(real), 2 * n)
        return float(np.std([_score(metric, real[o[:n]], real[o[n:]]) for o in orders], ddof=1))

    return Judge(name, version, SIGN[metric], score, floor)


def of_scorer(score: Callable, metric: str, net: str) -> Judge:
    """Returns a `Judge` of any system, from what its `evaluate` gave: each part is scored anew.

    Its floor is 0: nothing is known of it.

    Args:
      score: (outputs, seed) -> {"scores": {metric: {"value": float}}}.
      metric: one of those scores.
      net: the name of what they are taken on.
    """
    sign = choose(metric, SIGN, "metric")

    def statistic(outputs) -> Statistic:
        def of(keep) -> float:
            part = jax.tree.map(lambda a: a[: len(keep)][keep], outputs)
            scores = score(part, 0)["scores"]
            if metric not in scores:
                raise UserError(f"metric {metric!r}: it was scored {', '.join(scores)}")
            return float(scores[metric]["value"])

        return of

    return Judge(net, "", sign, statistic, lambda n: 0.0)


def _named(outputs: dict) -> dict:
    return {"pictures": outputs["image"], "labels": outputs["label"]}


def _share(right: np.ndarray) -> Statistic:
    return lambda keep: float(np.mean(right[: len(keep)][keep]))


def _parts(metric: str, real: np.ndarray, x: np.ndarray) -> Statistic:
    return lambda keep: _score(metric, real, x[: len(keep)][keep])


def _score(metric: str, real: np.ndarray, x: np.ndarray) -> float:
    """A metric of `report.METRICS` on features, real [m, d] and x [n, d]."""
    about = report.METRICS[metric]
    sets = (real, x) if about.whole else (frechet.moments(real), frechet.moments(x))
    return float(about.score(*sets, 0)["value"])


def _orders(count: int, n: int) -> list[np.ndarray]:
    """Of `count` examples, SPLITS random choices of n of them, or of all."""
    random = np.random.default_rng(0)
    return [random.permutation(count)[:n] for _ in range(SPLITS)]
