import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics.features import (
    FeatureNet,
    classifier_net,
    emoji_classifier,
    extract,
    feature_net,
    load_classifier,
    own_classifier,
    resized,
    spatial_features,
)


def pictures(n, h=24, w=24, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), np.uint8)


def test_pixels_are_box_means():
    images = pictures(3, 16, 24)
    want = images.reshape(3, 8, 2, 8, 3, 3).mean((2, 4)) / 255
    net = feature_net("pixels")
    got = extract(net, images)
    assert got.dtype == np.float32 and got.shape == (3, net.dim)
    np.testing.assert_allclose(got, want.reshape(3, -1), atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(5, 20), (8, 8), (13, 7)])
def test_pixels_of_any_size_keep_the_mean(h, w):
    images = pictures(2, h, w)
    got = extract(feature_net("pixels"), images).reshape(2, 64, 3).mean(1)
    np.testing.assert_allclose(got, images.mean((1, 2)) / 255, atol=1e-6)


def test_spatial_features_flatten_the_first_channels():
    got = spatial_features(jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5), channels=2)
    assert got.shape == (2, 24)
    assert got[0, :4].tolist() == [0, 1, 5, 6]
    assert spatial_features(jnp.zeros((1, 17, 17, 192))).shape == (1, 2023)


def test_resizing_is_antialiased_and_leaves_its_own_size_alone():
    images = pictures(1, 24, 24)
    np.testing.assert_array_equal(resized(images, 24, 24), images.astype(np.float32) / 127.5 - 1)
    # One row in four is white: point sampling between the others would see none of it.
    stripes = np.zeros((1, 96, 96, 1), np.uint8)
    stripes[:, ::4] = 255
    small = resized(stripes, 24, 24)
    assert small.shape == (1, 24, 24, 1)
    np.testing.assert_allclose(small[:, 2:-2], -0.5, atol=0.02)


def test_extract_compiles_once_and_pads_the_last_batch():
    traces = []

    def apply(images):
        traces.append(images.shape)
        return images.astype(jnp.float32).mean((1, 2))

    net = FeatureNet("means", 3, apply)
    images = pictures(10, 6, 5)
    got = extract(net, images, batch_size=4)
    np.testing.assert_allclose(got, images.mean((1, 2)), rtol=1e-6)
    extract(net, images[:1], batch_size=4)
    assert traces == [(4, 6, 5, 3)]


def test_one_channel_is_repeated_to_three():
    grey = pictures(4, 24, 24, 1)
    for name in ("pixels", "emoji"):
        net = feature_net(name)
        np.testing.assert_array_equal(extract(net, grey), extract(net, np.repeat(grey, 3, -1)))


def test_emoji_net_has_the_shapes_that_it_says():
    net = feature_net("emoji")
    assert net is emoji_classifier()
    for h, w in ((24, 24), (40, 17)):
        images = pictures(5, h, w)
        features = extract(net, images, batch_size=8)
        probs = extract(net, images, batch_size=8, output="probs")
        assert features.shape == (5, net.dim) and features.dtype == np.float32
        assert probs.shape == (5, len(net.classes)) and probs.min() >= 0
        np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-6)
        assert extract(net, images, batch_size=8, output="spatial").shape == (5, 6 * 6 * 7)


def test_features_of_a_picture_do_not_depend_on_its_batch():
    net, images = feature_net("emoji"), pictures(5)
    alone = np.concatenate([extract(net, images[i : i + 1], batch_size=8) for i in range(5)])
    np.testing.assert_allclose(extract(net, images, batch_size=8), alone, atol=1e-5)


def test_shipped_weights_reach_the_accuracy_that_they_claim():
    from importlib.resources import files

    from diffjax.data.sources import embedded

    path = files("diffjax.metrics") / "emoji_classifier.safetensors"
    assert path.stat().st_size < 1_000_000
    module, params, metadata = load_classifier(path)
    data, held = embedded(), json.loads(metadata["held_out"])
    fingerprint = hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest()
    assert fingerprint == metadata["data_sha256"]
    net = classifier_net("emoji", module, params, json.loads(metadata["class_names"]))
    assert net.classes == tuple(data.class_names) == emoji_classifier().classes
    right = extract(net, data.images[held], output="probs").argmax(1) == data.labels[held]
    assert right.mean() > 0.9
    assert abs(right.mean() - float(metadata["held_out_accuracy"])) < 0.02
    assert str(round(100 * float(metadata["held_out_accuracy"]), 1)) in (
        files("diffjax.metrics") / "emoji_classifier.md"
    ).read_text(encoding="utf-8")


def test_own_classifiers(tmp_path):
    from importlib.resources import files

    from safetensors import safe_open
    from safetensors.numpy import save_file

    shipped = files("diffjax.metrics") / "emoji_classifier.safetensors"
    with safe_open(shipped, framework="np") as file:
        metadata, names = file.metadata(), file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    path = tmp_path / "own.safetensors"

    def write(changes=(), weights=tensors):
        save_file(weights, path, {**metadata, **dict(changes)})
        own_classifier.cache_clear()
        return feature_net(f"classifier:{path}")

    images = pictures(2, 24, 24)
    same = write()
    assert same.name == "classifier:own.safetensors" and same.version
    np.testing.assert_array_equal(extract(same, images), extract(emoji_classifier(), images))
    large = write({"size": "48"})  # pictures are brought to the size of its own training
    twice = images.repeat(2, 1).repeat(2, 2)
    module, params, _ = load_classifier(path)
    want = module.apply({"params": params}, twice.astype(np.float32) / 127.5 - 1).features
    np.testing.assert_allclose(extract(large, twice), want, atol=1e-4)

    hidden = tensors["hidden/kernel"]
    for changes, weights in (
        ({"size": "0"}, tensors),
        ({"size": "x"}, tensors),
        ({"class_names": '["a"]'}, tensors),
        ({"class_names": "8"}, tensors),
        ({"class_names": "[1, 2, 3, 4, 5, 6, 7, 8]"}, tensors),
        ({"module": '{"width": 1000000000}'}, tensors),
        ({"module": '{"path": 1}'}, tensors),
        ({}, {**tensors, "hidden/kernel": hidden[:-1]}),
        ({}, {k: v for k, v in tensors.items() if k != "hidden/kernel"}),
    ):
        with pytest.raises(UserError, match="own.safetensors: ") as caught:
            write(changes, weights)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\x80\x04no safetensors")
    own_classifier.cache_clear()
    with pytest.raises(UserError, match="own.safetensors: not a classifier"):
        feature_net(f"classifier:{path}")
    with pytest.raises(UserError, match="classifier:FILE"):
        feature_net("classifier")


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="did you mean 'emoji'"):
        feature_net("emojis")
    net = feature_net("pixels")
    for wrong in (pictures(2).astype(np.float32), pictures(2)[0], pictures(2, c=4)):
        with pytest.raises(UserError, match="must be uint8"):
            extract(net, wrong)
    with pytest.raises(UserError, match="no features of images"):
        extract(net, pictures(2)[:0])
    with pytest.raises(UserError, match="'pixels' has no probs"):
        extract(net, pictures(2), output="probs")
    (tmp_path / "x.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a classifier's weights"):
        load_classifier(tmp_path / "x.safetensors")


def test_extract_runs_in_full_float32():
    seen = []

    def apply(images):
        seen.append(jax.config.jax_default_matmul_precision)
        return images.astype(jnp.float32).mean((1, 2))

    extract(FeatureNet("spy", 3, apply), pictures(2, 2, 2))
    assert seen == ["highest"]
