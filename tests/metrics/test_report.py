import json

import numpy as np
import pytest

from diffjax.data.sources import embedded
from diffjax.errors import UserError
from diffjax.metrics.features import feature_net
from diffjax.metrics.report import class_accuracy, image_scores

ALL = ("fd", "kid", "precision", "recall", "is", "sfd")


@pytest.fixture(scope="module")
def emoji():
    return embedded()


@pytest.fixture(scope="module")
def net():
    return feature_net("emoji")


def blurred(images, passes):
    x = images.astype(np.float32)
    for _ in range(passes):
        for axis in (1, 2):
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return x.astype(np.uint8)


def noisy(images, sigma):
    noise = np.random.default_rng(0).normal(size=images.shape) * sigma * 127.5
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_report_is_json_with_all_that_a_number_needs(emoji, net):
    got = image_scores(
        emoji.images[:100],
        emoji.images,
        net=net,
        metrics=ALL,
        labels=emoji.labels[:100],
        real_labels=emoji.labels,
    )
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert (got["feature_net"], got["num_fake"], got["num_real"]) == ("emoji", 100, 622)
    assert got["floor_num"] == 311
    assert list(got["scores"]) == [*ALL, "accuracy"]
    for name, score in got["scores"].items():
        assert set(score) - {"stderr"} == {"value", "floor"}
        assert ("stderr" in score) == (name == "kid")
        assert isinstance(score["value"], float) and isinstance(score["floor"], float)
    assert "fid" not in json.dumps(got).lower()


def test_real_pictures_score_at_their_floor_and_worse_ones_worse(emoji, net):
    rng = np.random.default_rng(1)
    order = rng.permutation(len(emoji.images))
    real, other = emoji.images[order[:311]], emoji.images[order[311:]]
    good = image_scores(other, real, net=net, metrics=ALL)["scores"]
    assert good["precision"]["value"] > 0.75 and good["recall"]["value"] > 0.75
    assert abs(good["kid"]["value"]) < 4 * good["kid"]["stderr"]
    assert good["fd"]["value"] < 2 * good["fd"]["floor"]
    # A net taught to see through blur and noise would be of no use: more is worse.
    for worsen, amounts in ((blurred, (2, 8)), (noisy, (0.3, 0.8))):
        scores = [image_scores(worsen(other, a), real, net=net)["scores"] for a in amounts]
        for name, sign in (("fd", 1), ("kid", 1), ("precision", -1)):
            values = [sign * s[name]["value"] for s in (good, *scores)]
            assert values == sorted(values), (worsen.__name__, name, values)
        assert scores[-1]["fd"]["value"] > 2 * good["fd"]["value"]


def test_what_is_no_picture_of_the_kind_is_outside(emoji, net):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 24, 24, 3), np.uint8)
    blank = np.full_like(noise, 255)
    shuffled = rng.permuted(emoji.images[:50].reshape(50, -1, 3), axis=1).reshape(noise.shape)
    for broken in (noise, blank, shuffled):
        scores = image_scores(broken, emoji.images, net=net, metrics=("fd", "recall"))["scores"]
        assert scores["recall"]["value"] < 0.05
        assert scores["fd"]["value"] > 5 * scores["fd"]["floor"]


def test_lost_kinds_lower_recall_not_precision(emoji, net):
    flags = emoji.images[emoji.labels == emoji.class_names.index("flag")]
    scores = image_scores(flags, emoji.images, net=net, metrics=("precision", "recall"))["scores"]
    assert scores["precision"]["value"] > 0.9
    assert scores["recall"]["value"] < 0.6


def test_same_seed_same_report_and_pixels_serve_too(emoji):
    net = feature_net("pixels")
    a = image_scores(emoji.images[:40], emoji.images[40:100], net=net, seed=3)
    assert a == image_scores(emoji.images[:40], emoji.images[40:100], net=net, seed=3)
    assert a["feature_net"] == "pixels"
    assert list(a["scores"]) == ["fd", "kid", "precision", "recall"]
    b = image_scores(emoji.images[:40], emoji.images[40:100], net=net, seed=4)
    assert a["scores"]["fd"]["value"] == b["scores"]["fd"]["value"]
    assert a["scores"]["fd"]["floor"] != b["scores"]["fd"]["floor"]


def test_sizes_may_differ(emoji, net):
    large = emoji.images[:50].repeat(2, 1).repeat(2, 2)
    scores = image_scores(large, emoji.images[:50], net=net, metrics=("precision",))["scores"]
    assert scores["precision"]["value"] > 0.9


def test_floors_that_cannot_be_are_none(emoji, net):
    metrics = ("fd", "precision")
    got = image_scores(emoji.images[:5], emoji.images[:5], net=net, metrics=metrics)
    assert got["scores"]["precision"] == {"value": 1.0, "floor": None}
    assert got["scores"]["fd"]["floor"] is not None
    got = image_scores(emoji.images[:5], emoji.images, net=net, metrics=(), labels=emoji.labels[:5])
    assert got["scores"]["accuracy"]["floor"] is None


def test_class_accuracy_counts_what_the_classifier_calls_by_its_label(emoji, net):
    right = class_accuracy(emoji.images, emoji.labels, net=net)
    assert right > 0.95
    wrong = class_accuracy(emoji.images, (emoji.labels + 1) % 8, net=net)
    assert wrong <= 1 - right + 1e-9


def test_user_errors(emoji, net):
    few, many = emoji.images[:3], emoji.images[:20]
    cases = [
        ({"fake": few}, "'precision' needs at least 4 generated images, got 3"),
        ({"real": few}, "'precision' needs at least 4 real images, got 3"),
        ({"fake": few[:1], "metrics": ("fd",)}, "at least 2 generated images, got 1"),
        ({"metrics": ("fid",)}, "unknown metric 'fid'.*did you mean 'fd'"),
        ({"metrics": ("recal",)}, "did you mean 'recall'"),
        ({"metrics": ("accuracy",)}, "needs the labels"),
        ({"metrics": ("sfd",), "net": feature_net("pixels")}, "needs the spatial output"),
        ({"labels": np.full(20, 8)}, "labels must be in 0..7"),
        ({"labels": np.zeros(3, int)}, r"integers \[20\]"),
        ({"fake": many / 255}, "must be uint8"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message):
            image_scores(**{"fake": many, "real": many, "net": net, **wrong})
