"""Scores of generated pictures against real ones, ready for JSON, each beside its floor."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffjax.errors import UserError, choose
from diffjax.metrics.features import FeatureNet, extract, feature_net
from diffjax.metrics.frechet import frechet_distance, moments
from diffjax.metrics.inception_score import inception_score
from diffjax.metrics.kid import kid
from diffjax.metrics.precision_recall import precision

NEIGHBOURS = 3


class Metric(NamedTuple):
    """How a metric is computed.

    Attributes:
      output: which output of the feature net it compares.
      least: the fewest samples a set may have.
      score: (real, fake, seed) -> {"value": ...} on those outputs.
    """

    output: str
    least: int
    score: Callable[[np.ndarray, np.ndarray, int], dict[str, float]]


def _frechet(real, fake, seed):
    return {"value": frechet_distance(moments(real), moments(fake))}


def _kid(real, fake, seed):
    return kid(real, fake, seed=seed)._asdict()


def _precision(real, fake, seed):
    return {"value": precision(real, fake, NEIGHBOURS)}


def _recall(real, fake, seed):
    return {"value": precision(fake, real, NEIGHBOURS)}


def _inception(real, fake, seed):
    return {"value": inception_score(fake)}


METRICS = {
    "fd": Metric("apply", 2, _frechet),
    "kid": Metric("apply", 2, _kid),
    "precision": Metric("apply", NEIGHBOURS + 1, _precision),
    "recall": Metric("apply", NEIGHBOURS + 1, _recall),
    "is": Metric("probs", 2, _inception),
    "sfd": Metric("spatial", 2, _frechet),
}
KNOWN = (*METRICS, "accuracy")


def class_accuracy(images: np.ndarray, labels, *, net: FeatureNet) -> float:
    """Returns the share of pictures that the net's classifier calls by their label, in [0, 1].

    Args:
      images: uint8 [n, H, W, C].
      labels: int [n], in the order of `net.classes`.
      net: a feature net with `probs`.

    Raises:
      UserError: labels of another shape or outside the classes, or a net that classifies nothing.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels must be integers [{len(images)}], one an image, "
            f"got {labels.dtype} {labels.shape}"
        )
    probs = extract(net, images, output="probs")
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise UserError(
            f"labels must be in 0..{probs.shape[1] - 1}, the classes of feature net {net.name!r}, "
            f"got {labels.min()}..{labels.max()}"
        )
    return float(np.mean(probs.argmax(1) == labels))


def _check(fake, real, net: FeatureNet, metrics, labels) -> None:
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
        for what, images in (("generated", fake), ("real", real)):
            if len(images) < metric.least:
                raise UserError(
                    f"metric {name!r} needs at least {metric.least} {what} images, "
                    f"got {len(images)}"
                )


def image_scores(
    fake: np.ndarray,
    real: np.ndarray,
    *,
    net: FeatureNet,
    metrics: Sequence[str] = ("fd", "kid", "precision", "recall"),
    labels=None,
    real_labels=None,
    seed: int = 0,
) -> dict:
    """Returns scores of generated pictures against real ones.

    Each score stands beside its floor, the same score of one random half of the real set against
    the other: about what samples as good as the data would get (for precision, recall, is and
    accuracy that is a height to reach). The halves are smaller than the sets, and fd and sfd fall
    with the sample count, so a perfect large set of samples may come out below their floor.

    Args:
      fake: generated pictures, uint8 [n, H, W, C].
      real: real ones, uint8 [m, H', W', C].
      net: the feature net; numbers on different nets do not compare.
      metrics: any of fd (Frechet distance), kid, precision, recall (k = 3), is (Inception-score
        formula on the net's own classes), sfd (spatial Frechet distance), accuracy.
      labels: int [n], the class each generated picture was made for; adds accuracy.
      real_labels: int [m]; accuracy's floor is the accuracy of the real pictures, None without.
      seed: of the halves and of kid's subsets.

    Returns:
      {"feature_net", "num_fake", "num_real", "floor_num": samples in each half, "seed", "scores":
      {metric: {"value", "floor", for kid also "stderr"}}}, plain Python numbers. A floor is None
      where the halves are too small for it.

    Raises:
      UserError: an unknown metric, one that the net cannot serve, pictures of a wrong dtype or
        shape, or fewer of them than the metric needs.
    """
    metrics = list(dict.fromkeys(metrics))
    if labels is not None and "accuracy" not in metrics:
        metrics.append("accuracy")
    _check(fake, real, net, metrics, labels)

    wanted = {METRICS[name].output for name in metrics if name != "accuracy"}
    outputs = {o: (extract(net, real, output=o), extract(net, fake, output=o)) for o in wanted}
    order, half = np.random.default_rng(seed).permutation(len(real)), len(real) // 2
    halves = order[:half], order[half : 2 * half]

    scores = {}
    for name in metrics:
        if name == "accuracy":
            scores[name] = {"value": class_accuracy(fake, labels, net=net), "floor": None}
            if real_labels is not None:
                scores[name]["floor"] = class_accuracy(real, real_labels, net=net)
            continue
        output, least, score = METRICS[name]
        real_out, fake_out = outputs[output]
        scores[name] = score(real_out, fake_out, seed)
        floor = score(*(real_out[h] for h in halves), seed)["value"] if half >= least else None
        scores[name]["floor"] = floor
    return {
        "feature_net": net.name,
        "num_fake": len(fake),
        "num_real": len(real),
        "floor_num": half,
        "seed": seed,
        "scores": scores,
    }


def scorer(source, metrics: Sequence[str], net: str, *, limit: int = 50_000) -> Callable:
    """Returns score(outputs, seed) -> a JSON-ready dict, for samples against a source's images.

    What cannot be scored is refused here, before any sample is made.

    Args:
      source: anything with `__len__`, `[i] -> {"image": uint8 [H, W, C], "label": int}` and
        `class_names`; more than `limit` images are thinned evenly.
      metrics: names as in `image_scores`.
      net: a feature net's name; where its classes are the source's, accuracy is added.

    Raises:
      UserError: an unknown net or metric, or one that the net cannot serve.
    """
    net = feature_net(net)
    if not metrics:
        raise UserError(f"--metrics is empty (known: {', '.join(KNOWN)})")
    for name in metrics:
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
        examples = [source[int(i)] for i in keep]
        return image_scores(
            outputs["image"],
            np.stack([example["image"] for example in examples]),
            net=net,
            metrics=metrics,
            labels=outputs["label"] if classified else None,
            real_labels=np.array([e["label"] for e in examples]) if classified else None,
            seed=seed,
        )

    return score
