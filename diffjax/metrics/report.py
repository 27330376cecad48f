"""Scores of generated pictures against real ones, ready for JSON, each beside its floor."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax.errors import UserError, choose
from diffjax.metrics.features import FeatureNet, extract, feature_net
from diffjax.metrics.frechet import frechet_distance
from diffjax.metrics.inception_score import inception_score
from diffjax.metrics.kid import kid
from diffjax.metrics.precision_recall import precision
from diffjax.metrics.reference import Cache, Statistics, gather

NEIGHBOURS = 3
CACHED = 1  # what is kept of a reference set; raise it where a metric or a floor changes


class Metric(NamedTuple):
    """How a metric is computed.

    Attributes:
      output: which output of the feature net it compares.
      least: the fewest samples a set may have.
      whole: whether it takes all outputs; else their `Moments`.
      score: (real, fake, seed) -> {"value": ...} on those.
    """

    output: str
    least: int
    whole: bool
    score: Callable[..., dict[str, float]]

    def of(self, statistics: Statistics):
        """What `score` takes of a set's statistics."""
        return (statistics.features if self.whole else statistics.moments)[self.output]


def _frechet(real, fake, seed):
    return {"value": frechet_distance(real, fake)}


def _kid(real, fake, seed):
    return kid(real, fake, seed=seed)._asdict()


def _precision(real, fake, seed):
    return {"value": precision(real, fake, NEIGHBOURS)}


def _recall(real, fake, seed):
    return {"value": precision(fake, real, NEIGHBOURS)}


def _inception(real, fake, seed):
    return {"value": inception_score(fake)}


METRICS = {
    "fd": Metric("apply", 2, False, _frechet),
    "kid": Metric("apply", 2, True, _kid),
    "precision": Metric("apply", NEIGHBOURS + 1, True, _precision),
    "recall": Metric("apply", NEIGHBOURS + 1, True, _recall),
    "is": Metric("probs", 2, True, _inception),
    "sfd": Metric("spatial", 2, False, _frechet),
}
KNOWN = (*METRICS, "accuracy")


def class_accuracy(images: np.ndarray, labels, *, net: FeatureNet, sharding=None) -> float:
    """Returns the share of pictures that the net's classifier calls by their label, in [0, 1].

    Args:
      images: uint8 [n, H, W, C].
      labels: int [n], in the order of `net.classes`.
      net: a feature net with `probs`.
      sharding: as in `features.batches`.

    Raises:
      UserError: labels of another shape or outside the classes, or a net that classifies nothing.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels must be integers [{len(images)}], one an image, "
            f"got {labels.dtype} {labels.shape}"
        )
    probs = extract(net, images, output="probs", sharding=sharding)
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise UserError(
            f"labels must be in 0..{probs.shape[1] - 1}, the classes of feature net {net.name!r}, "
            f"got {labels.min()}..{labels.max()}"
        )
    return float(np.mean(probs.argmax(1) == labels))


def _asked(metrics: Sequence[str], net: FeatureNet) -> list[str]:
    """The metrics without repetition; on the net of the FID "fid" is another name for "fd"."""
    names = ["fd" if name == "fid" and net.is_fid else name for name in metrics]
    return list(dict.fromkeys(names))


def _check(num_fake: int, num_real: int, net: FeatureNet, metrics, labels) -> None:
    for name in metrics:
        choose(name, dict.fromkeys(KNOWN), "metric")
        if name == "accuracy":
            if labels is None:
                raise UserError("metric 'accuracy' needs the labels of the generated images")
            continue
        metric = METRICS[name]
        if getattr(net, metric.output) is None:
            raise UserError(
                f"metric {name!r} needs the {metric.output} output of a feature net, "
                f"which {net.name!r} does not have"
            )
        for what, count in (("generated", num_fake), ("real", num_real)):
            if count < metric.least:
                raise UserError(
                    f"metric {name!r} needs at least {metric.least} {what} images, got {count}"
                )


def image_scores(
    fake: np.ndarray,
    real: np.ndarray | Callable[[], np.ndarray],
    *,
    net: FeatureNet,
    metrics: Sequence[str] = ("fd", "kid", "precision", "recall"),
    labels=None,
    real_labels=None,
    seed: int = 0,
    num_real: int | None = None,
    sharding=None,
    cache: Cache | None = None,
) -> dict:
    """Returns scores of generated pictures against real ones.

    Each score stands beside its floor, the same score of one random half of the real set against
    the other: about what samples as good as the data would get (for precision, recall, is and
    accuracy that is a height to reach). The halves are smaller than the sets, and fd and sfd fall
    with the sample count, so a perfect large set of samples may come out below their floor.

    Args:
      fake: generated pictures, uint8 [n, H, W, C].
      real: real ones, uint8 [m, H', W', C]; or a function that returns them, called if the cache
        does not have what is needed of them.
      net: the feature net; numbers on different nets do not compare.
      metrics: any of fd (Frechet distance), kid, precision, recall (k = 3), is (Inception-score
        formula on the net's own classes), sfd (spatial Frechet distance), accuracy. The Frechet
        distance on the net of the FID is reported as "fid", and on no other.
      labels: int [n], the class each generated picture was made for; adds accuracy.
      real_labels: int [m]; accuracy's floor is the accuracy of the real pictures, None without.
      seed: of the halves and of kid's subsets.
      num_real: m, where `real` is a function.
      sharding: of a batch over devices, as in `features.batches`.
      cache: where the real set's statistics are kept; its key must name set, count and net.

    Returns:
      {"feature_net", "num_fake", "num_real", "floor_num": samples in each half, "seed", "scores":
      {metric: {"value", "floor", for kid also "stderr"}}}, plain Python numbers. A floor is None
      where the halves are too small for it.

    Raises:
      UserError: an unknown metric, one that the net cannot serve, pictures of a wrong dtype or
        shape, or fewer of them than the metric needs.
    """
    metrics = _asked(metrics, net)
    if labels is not None and "accuracy" not in metrics:
        metrics.append("accuracy")
    load = real if callable(real) else lambda: real
    num_real = num_real if callable(real) else len(real)
    _check(len(fake), num_real, net, metrics, labels)

    compared = {name: METRICS[name] for name in metrics if name != "accuracy"}
    outputs = {
        "moments": {m.output for m in compared.values() if not m.whole},
        "features": {m.output for m in compared.values() if m.whole},
    }
    known, floors = _reference(
        net, load, num_real, compared, outputs, real_labels, seed, sharding, cache
    )
    made = gather(net, fake, **outputs, sharding=sharding)[0]
    scores = {}
    for name in metrics:
        if name == "accuracy":
            value = class_accuracy(fake, labels, net=net, sharding=sharding)
            scores[name] = {"value": value, "floor": floors.get(name)}
            continue
        metric = METRICS[name]
        shown = "fid" if name == "fd" and net.is_fid else name
        scores[shown] = metric.score(metric.of(known), metric.of(made), seed)
        scores[shown]["floor"] = floors.get(name)
    return {
        "feature_net": net.name,
        "num_fake": len(fake),
        "num_real": num_real,
        "floor_num": num_real // 2,
        "seed": seed,
        "scores": scores,
    }


def _reference(net, load, count, compared, outputs, labels, seed, sharding, cache):
    """The real set's statistics and {metric: floor}, from the cache or made and put there."""
    half = count // 2
    wanted = {name for name, metric in compared.items() if half >= metric.least}
    wanted |= {"accuracy"} if labels is not None else set()
    if cache is not None:
        floors = cache.floors()
        floors = {name: floors[f"{name}/{seed}"] for name in wanted if f"{name}/{seed}" in floors}
        known = cache.load(**outputs)
        if known is not None and set(floors) == wanted:
            return known, floors
    images = load()
    order = np.random.default_rng(seed).permutation(count)
    # Halves of fewer than two have no moments; no metric has a floor on them.
    halves = (order[:half], order[half : 2 * half]) if half >= 2 else ()
    known, *parts = gather(net, images, **outputs, parts=halves, sharding=sharding)
    floors = {}
    for name in wanted - {"accuracy"}:
        metric = compared[name]
        floors[name] = metric.score(*map(metric.of, parts), seed)["value"]
    if labels is not None:
        floors["accuracy"] = class_accuracy(images, labels, net=net, sharding=sharding)
    if cache is not None:
        cache.save(known)
        cache.save_floors({f"{name}/{seed}": value for name, value in floors.items()})
    return known, floors


def scorer(
    source,
    metrics: Sequence[str],
    net: str,
    *,
    limit: int = 50_000,
    sharding=None,
    cache: Path | None = None,
) -> Callable:
    """Returns score(outputs, seed) -> a JSON-ready dict, for samples against a source's images.

    What cannot be scored is refused here, before any sample is made.

    Args:
      source: anything with `__len__`, `[i] -> {"image": uint8 [H, W, C], "label": int}`,
        `class_names` and `fingerprint`; more than `limit` images are thinned evenly.
      metrics: names as in `image_scores`.
      net: a feature net's name; where its classes are the source's, accuracy is added.
      sharding: of a batch over devices, as in `features.batches`.
      cache: a folder where the source's statistics are kept from one call to the next.

    Raises:
      UserError: an unknown net or metric, or one that the net cannot serve.
    """
    net = feature_net(net)
    if not metrics:
        raise UserError(f"--metrics is empty (known: {', '.join(KNOWN)})")
    for name in _asked(metrics, net):
        metric = choose(name, {**METRICS, "accuracy": None}, "metric")
        if metric is None:
            if tuple(source.class_names) != net.classes:
                raise UserError(f"metric 'accuracy' needs the classes of feature net {net.name!r}")
        elif getattr(net, metric.output) is None:
            raise UserError(f"metric {name!r} is not served by feature net {net.name!r}")
        elif len(source) < metric.least:
            raise UserError(
                f"metric {name!r} needs at least {metric.least} images, "
                f"{source.name} has {len(source)}"
            )
    classified = bool(net.classes) and tuple(source.class_names) == net.classes

    def score(outputs: dict, seed: int) -> dict:
        keep = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))
        kept = None
        if cache is not None:
            kept = Cache(cache, CACHED, source.fingerprint, len(keep), net.name, net.version)
        return image_scores(
            outputs["image"],
            lambda: np.stack([source[int(i)]["image"] for i in keep]),
            num_real=len(keep),
            net=net,
            metrics=metrics,
            labels=outputs["label"] if classified else None,
            real_labels=np.asarray(source.labels)[keep] if classified else None,
            seed=seed,
            sharding=sharding,
            cache=kept,
        )

    return score
