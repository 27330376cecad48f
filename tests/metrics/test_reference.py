"""Statistics gathered in one pass, on any number of devices, and kept on disk."""

import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.data.sources import ArraySource, embedded
from diffjax.metrics import report
from diffjax.metrics.features import FeatureNet, extract, feature_net
from diffjax.metrics.frechet import moments
from diffjax.metrics.reference import Cache, gather

METRICS = ("fd", "kid", "precision")


@pytest.fixture(scope="module")
def images():
    return embedded().images[:90]


@pytest.fixture(scope="module")
def net():
    return feature_net("pixels")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", "data", 60)


def test_gather_is_the_statistics_of_each_part(images, net):
    parts = np.arange(0, 90, 2), np.arange(50)
    found = gather(net, images, ["apply"], ["apply"], parts=parts, batch_size=16)
    features = extract(net, images)
    for statistics, part in zip(found, (np.arange(90), *parts), strict=True):
        np.testing.assert_array_equal(statistics.features["apply"], features[part])
        wanted = moments(features[part])
        assert statistics.moments["apply"].n == len(part)
        np.testing.assert_allclose(statistics.moments["apply"].mean, wanted.mean, atol=1e-12)
        np.testing.assert_allclose(statistics.moments["apply"].cov, wanted.cov, atol=1e-12)
    assert gather(net, images, ["apply"])[0].features == {}  # moments alone keep no features


def test_all_devices_at_once(images):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    assert mesh.size == 8
    net, seen = feature_net("emoji"), []
    on_all = extract(net, images, batch_size=20, sharding=sharding)
    np.testing.assert_allclose(on_all, extract(net, images), atol=1e-5)

    def spy(weights, images):
        seen.append(images.shape)
        return images.astype(jnp.float32).mean((1, 2)) * weights

    spied = FeatureNet("spy", 3, spy, weights=jnp.float32(2))
    got = extract(spied, images, batch_size=20, sharding=sharding)
    assert seen[0][0] == 24  # a multiple of the devices
    np.testing.assert_allclose(got, 2 * images.mean((1, 2)), rtol=1e-6)


def scores(images, net, cache, **changes):
    def load():
        calls.append(1)
        return images[30:]

    calls = []
    options = {"num_real": 60, "net": net, "metrics": METRICS, "cache": cache, **changes}
    return report.image_scores(images[:30], load, **options), len(calls)


def test_the_second_time_nothing_is_loaded(images, net, cache):
    first = scores(images, net, cache)
    again = scores(images, net, cache)
    assert (first[1], again[1]) == (1, 0)
    assert again[0] == first[0] == report.image_scores(
        images[:30], images[30:], net=net, metrics=METRICS
    )  # fmt: skip
    assert scores(images, net, cache, metrics=("fd",))[1] == 0  # less than is there
    assert scores(images, net, cache, seed=1)[1] == 1  # other halves, another floor
    assert scores(images, net, cache, seed=1)[1] == 0
    assert scores(images, net, cache)[1] == 0  # the first floors are still there
    assert scores(images, net, cache, metrics=("recall",))[1] == 1  # a floor that was not asked for


def test_moments_alone_are_kept_small(images, net, cache, tmp_path):
    scores(images, net, cache, metrics=("fd",))
    with np.load(next((tmp_path / "cache").glob("*.npz"))) as arrays:
        assert set(arrays) == {"n", "mean", "cov"}
    assert scores(images, net, cache)[1] == 1


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def damage_objects(path):
    with path.open("wb") as file:
        np.savez(file, n=np.array([{}], object), mean=np.array([print], object))


def damage_pickle(path):
    path.write_bytes(pickle.dumps({"n": 1}))


def damage_shape(path):
    np.savez(path, n=60, mean=np.zeros(3), cov=np.zeros((3, 4)), features=np.zeros(3, np.float32))


@pytest.mark.parametrize("damage", [damage_cut, damage_objects, damage_pickle, damage_shape])
def test_a_broken_file_is_made_again(damage, images, net, cache, tmp_path):
    first, _ = scores(images, net, cache)
    damage(next((tmp_path / "cache").glob("*.npz")))
    assert scores(images, net, cache) == (first, 1)
    assert scores(images, net, cache) == (first, 0)


@pytest.mark.parametrize("text", ["", "[1]", '{"fd/0": "x"}', "[" * 100_000, '{"fd/0": null}'])
def test_broken_floors_are_made_again(text, images, net, cache, tmp_path):
    first, _ = scores(images, net, cache)
    next((tmp_path / "cache").glob("*.json")).write_text(text)
    assert scores(images, net, cache) == (first, 1)
    assert scores(images, net, cache) == (first, 0)


def test_no_temporary_is_left_and_a_folder_that_cannot_be_written_does_no_harm(
    images, net, cache, tmp_path
):
    wanted, _ = scores(images, net, cache)
    names = sorted(path.name.split("-")[1] for path in (tmp_path / "cache").iterdir())
    assert names == ["apply.npz", "floors.json"]
    (tmp_path / "file").write_text("")
    assert scores(images, net, Cache(tmp_path / "file", "key")) == (wanted, 1)


def test_the_key_is_of_the_data_the_count_and_the_net(images, net, tmp_path):
    def files(source, name="pixels", **options):
        score = report.scorer(source, ("fd",), name, cache=tmp_path, **options)
        score({"image": images[:30]}, 0)
        return len(list(tmp_path.glob("*.npz")))

    source = ArraySource(images, None, (), "a")
    assert files(source) == 1
    assert files(ArraySource(images.copy(), None, (), "b")) == 1
    assert files(ArraySource(images[::-1].copy(), None, (), "a")) == 2
    assert files(source, limit=50) == 3
    assert files(source, "emoji") == 4


def test_only_on_the_net_of_the_fid_is_it_called_so(images, net):
    fid = dataclasses.replace(net, is_fid=True)
    got = report.image_scores(images[:30], images[30:], net=fid, metrics=("fid", "fd", "kid"))
    other = report.image_scores(images[:30], images[30:], net=net, metrics=("fd", "kid"))
    assert list(got["scores"]) == ["fid", "kid"] and list(other["scores"]) == ["fd", "kid"]
    assert got["scores"]["fid"] == other["scores"]["fd"]
    json.dumps(got)
