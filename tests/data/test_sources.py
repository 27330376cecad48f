from pathlib import Path

import numpy as np
import pytest

from diffjax.data import sources
from diffjax.data.base import ArraySource, LazySource
from diffjax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
COUNTS = {
    "face": 107,
    "cat": 10,
    "person": 168,
    "heart": 17,
    "clock": 24,
    "moon": 15,
    "flag": 261,
    "fruit": 20,
}


def test_embedded_counts_and_statistics(check_contract):
    source = sources.embedded()
    check_contract(source)
    assert source.image_shape == (24, 24, 3) and len(source) == 622 and source.num_classes == 8
    assert dict(zip(source.class_names, np.bincount(source.labels), strict=True)) == COUNTS
    # Measured when the recipe for this set was tried, on pictures cut from the font another way.
    x = source.images / 127.5 - 1
    assert x.mean() == pytest.approx(0.467, abs=6e-4)
    assert x.std() == pytest.approx(0.676, abs=6e-4)
    each = np.array([x[source.labels == k].mean() for k in range(8)])
    square = np.array([(x[source.labels == k] ** 2).mean() for k in range(8)])
    assert each.mean() == pytest.approx(0.564, abs=6e-4)
    assert np.sqrt(square.mean() - each.mean() ** 2) == pytest.approx(0.610, abs=6e-4)


def test_embedded_images_are_cut_at_their_borders():
    source = sources.embedded()
    # Every emoji sits on white, so a tile cut off by a pixel would show its neighbour in a corner.
    corners = source.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners[source.labels != 6] > 215).all()
    faces = source.images[source.labels == 0][:20].mean((0, 1, 2))
    assert faces[0] > faces[2] + 40, "faces are yellow"
    moons = source.images[source.labels == 5]
    assert moons[0].mean() < moons[4].mean(), "a new moon is darker than a full one"


def test_example_contract(make):
    source = ArraySource(make.image(4, 6, 5, 3), np.array([2, 0, 1, 2]))
    example = source[3]
    assert example["image"].dtype == np.uint8 and example["image"].shape == (6, 5, 3)
    assert example["label"] == 2 and example["label"].dtype == np.int32
    assert source.labels.dtype == np.int32 and source.class_names == ("0", "1", "2")
    bare = ArraySource(source.images)
    assert set(bare[0]) == {"image"} and bare.labels is None and bare.num_classes == 0


def test_fingerprint_tells_data_apart(make):
    images, labels = make.image(4, 6, 6, 3), np.array([0, 1, 0, 1])
    one = ArraySource(images, labels, ("a", "b"), name="here")
    same = ArraySource(images.copy(), labels.astype(np.int16), ("a", "b"), name="there")
    assert one.fingerprint == same.fingerprint and len(one.fingerprint) == 16
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    others = [
        ArraySource(changed, labels, ("a", "b")),
        ArraySource(images, labels[::-1], ("a", "b")),
        ArraySource(images, labels, ("a", "c")),
        ArraySource(images),
        ArraySource(images.reshape(4, 3, 12, 3), labels, ("a", "b")),
    ]
    assert len({one.fingerprint, *(s.fingerprint for s in others)}) == 6


def test_zip_meets_edm_reader():
    golden = np.load(GOLDEN / "dataset.npz")
    source = sources.open_source(GOLDEN / "dataset_tiny.zip")
    images = np.concatenate([source.images, source.images[:, :, ::-1]])
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2), golden["images"])
    one_hot = np.eye(source.num_classes, dtype=np.float32)[np.tile(source.labels, 2)]
    np.testing.assert_array_equal(one_hot, golden["labels"])


def test_zip_labels_follow_names_not_order(make):
    images = {f"{i}.png": make.image() for i in range(4)}
    table = {"labels": [[f"{i}.png", i % 3] for i in (2, 0, 3, 1)], "class_names": ["a", "b", "c"]}
    shuffled = dict(sorted(images.items(), reverse=True))
    source = sources.open_source(make.zip(shuffled, table, deflate=True))
    assert source.labels.tolist() == [0, 1, 2, 0] and source.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(source.images, np.stack(list(images.values())))


@pytest.mark.parametrize("labels", [[0, 1, 1], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
def test_zip_labels_of_either_form(make, labels):
    images = {f"{i}.png": make.image(5, 5) for i in range(3)}
    table = {"labels": [[f"{i}.png", label] for i, label in enumerate(labels)]}
    source = sources.open_source(make.zip(images, table))
    assert source.labels.tolist() == [0, 1, 1] and source.class_names == ("0", "1")
    assert source.image_shape == (5, 5, 1), "grey stays grey, as EDM reads it"


@pytest.mark.parametrize("table", [None, {"labels": None}])
def test_zip_without_labels(make, table):
    source = sources.open_source(make.zip({"a.png": make.image()}, table))
    assert source.labels is None and source.num_classes == 0


@pytest.mark.parametrize("key", ["images", "arr_0"])
def test_npz(make, key):
    images = make.image(5, 4, 6, 1)
    labels, names = np.array([1, 0, 1, 1, 0]), np.array(["x", "yé"])
    source = sources.open_source(make.npz(**{key: images}, labels=labels, class_names=names))
    np.testing.assert_array_equal(source.images, images)
    assert source.labels.tolist() == labels.tolist() and source.class_names == ("x", "yé")


def test_npz_in_fortran_order(make):
    images = np.asfortranarray(make.image(5, 4, 6, 3))
    np.testing.assert_array_equal(sources.open_source(make.npz(images=images)).images, images)


def test_folder_labels_from_first_level(make):
    names = ["dog/b.png", "dog/deep/a.png", "cat/z.PNG", "cat/.hidden.png", "cat/notes.txt"]
    folder = make.folder({n: b"text" if n.endswith("txt") else make.image() for n in names})
    source = sources.open_source(folder)
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1, 1]
    flat = sources.open_source(make.folder({"only/a.png": make.image()}, "flat"))
    assert flat.labels is None


def test_folder_in_edm_format_takes_labels_from_the_table(make):
    files = {"00000/img00000000.png": make.image(), "00001/img00001000.png": make.image()}
    table = b'{"labels": [["00000/img00000000.png", 0], ["00001/img00001000.png", 0]]}'
    source = sources.open_source(make.folder({**files, "dataset.json": table}))
    assert source.labels.tolist() == [0, 0]


def test_folder_with_splits(make):
    files = {f"{split}/{c}/{i}.png": make.image() for split in ("train", "test") for c in "ab"
             for i in range(2 if split == "train" else 1)}  # fmt: skip
    folder = make.folder(files)
    assert len(sources.open_source(folder)) == 4
    test = sources.open_source(folder, "test")
    assert len(test) == 2 and test.class_names == ("a", "b")
    # Here train is a kind of vehicle.
    vehicles = make.folder({"train/1.png": make.image(), "bus/1.png": make.image()}, "vehicles")
    assert sources.open_source(vehicles).class_names == ("bus", "train")


def test_folder_scaled_on_reading(make):
    folder = make.folder({"a.png": make.image(12, 9, 3), "b.png": make.image(8, 8)})
    source = sources.open_source(folder, image_size=8)
    assert source.image_shape == (8, 8, 3) and len(source) == 2


def test_beyond_memory_is_read_one_by_one(make, check_contract):
    files = {f"{c}/{i}.png": make.image() for c in "ab" for i in range(3)}
    folder, limit = make.folder(files), 6 * 6 * 6 * 3
    here = sources.open_source(folder, max_bytes=limit)
    lazy = sources.open_source(folder, max_bytes=limit - 1)
    assert isinstance(here, ArraySource) and isinstance(lazy, LazySource)
    check_contract(lazy)
    assert len(lazy) == 6
    np.testing.assert_array_equal(np.stack([e["image"] for e in lazy]), here.images)
    assert [int(lazy[i]["label"]) for i in range(6)] == here.labels.tolist()
    moved = folder.rename(folder.with_name("elsewhere"))
    assert sources.open_source(moved, max_bytes=1).fingerprint == lazy.fingerprint
    (moved / "a/0.png").write_bytes(make.png(make.image(), compress_level=0))
    assert sources.open_source(moved, max_bytes=1).fingerprint != lazy.fingerprint


def test_arrays_reduced_by_a_whole_number():
    large, small = sources.embedded(), sources.open_source("emoji", image_size=8)
    assert small.image_shape == (8, 8, 3) and small.class_names == large.class_names
    blocks = large.images.astype(float).reshape(-1, 8, 3, 8, 3, 3).mean((2, 4))
    assert np.abs(small.images - blocks).max() <= 0.5
    assert small.fingerprint != large.fingerprint


def test_emoji_is_the_embedded_set():
    assert sources.open_source("emoji").fingerprint == sources.embedded().fingerprint
    with pytest.raises(UserError, match="24x24 and image_size is 32"):
        sources.open_source("emoji", image_size=32)
    with pytest.raises(UserError, match="no split 'test', it has 'train' only"):
        sources.open_source("emoji", "test")
