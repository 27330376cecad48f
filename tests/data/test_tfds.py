import itertools
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from diffjax.data.loader import batches
from diffjax.data.sources import open_source
from diffjax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
FEATURES = tfds.features


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """Returns a function that prepares a TFDS set of the given examples and returns its folder."""

    def write(features: dict, examples: dict[str, list[dict]], name="tiny_set"):
        class TinySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.2.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in examples}

            def _generate_examples(self, split):
                yield from enumerate(examples[split])

        TinySet.name = name
        root = tmp_path_factory.mktemp("tfds")
        tfds.disable_progress_bar()
        builder = TinySet(data_dir=root, file_format="array_record")
        builder.download_and_prepare()
        return root / name / "1.2.0"

    logging.getLogger("absl").setLevel(logging.ERROR)
    return write


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def labelled(prepare, png, pictures):
    rows = [{"image": png(x), "label": i % 2, "id": i} for i, x in enumerate(pictures)]
    features = {
        "image": FEATURES.Image(shape=(None, None, 3)),
        "label": FEATURES.ClassLabel(names=["cat", "dog"]),
        "id": np.int64,
    }
    return prepare(features, {"train": rows, "test": rows[:2]})


def test_round_trip(labelled, pictures, check_contract):
    source = open_source(labelled)
    check_contract(source)
    assert source.name == "tiny_set/1.2.0"
    assert len(source) == 7 and source.image_shape == (6, 5, 3)
    assert source.class_names == ("cat", "dog") and source.num_classes == 2
    np.testing.assert_array_equal(np.stack([source[i]["image"] for i in range(7)]), pictures)
    assert source.labels.tolist() == [i % 2 for i in range(7)]
    assert source[3]["label"] == 1 and source[3]["label"].dtype == np.int32


def test_splits(labelled):
    assert len(open_source(labelled, "test")) == 2
    assert len(open_source(labelled, "train[:3]")) == 3
    prints = {open_source(labelled, s).fingerprint for s in ("train", "test", "train[:3]")}
    assert len(prints) == 3
    with pytest.raises(UserError, match="no split 'tets' .did you mean 'test'"):
        open_source(labelled, "tets")
    with pytest.raises(UserError, match="split 'train.oops.': cannot be read"):
        open_source(labelled, "train[oops]")


def test_scaled_on_reading(labelled):
    source = open_source(labelled, image_size=4)
    assert source.image_shape == (4, 4, 3) and source[6]["image"].shape == (4, 4, 3)


def test_through_the_loader(labelled, pictures):
    source = open_source(labelled)
    for balanced in (False, True):
        for batch in itertools.islice(batches(source, seed=0, batch_size=4, balanced=balanced), 3):
            same = (batch["image"][:, None] == pictures).all((2, 3, 4))
            assert (same.sum(1) == 1).all()
            np.testing.assert_array_equal(same.argmax(1) % 2, batch["label"])


def test_by_name(labelled, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(labelled.parents[1]))
    assert open_source("tfds:tiny_set").fingerprint == open_source(labelled).fingerprint
    with pytest.raises(UserError, match="tfds:tiny_sets: not prepared .*did you mean 'tiny_set'"):
        open_source("tfds:tiny_sets")
    with pytest.raises(UserError, match="tfds build mnist --file_format=array_record"):
        open_source("tfds:mnist")
    with pytest.raises(UserError, match="write tfds:NAME"):
        open_source("tfds:../../etc")


def test_newest_version_and_configs(labelled, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("1.2.0", "1.10.0", "1.9.0"):
        folder = tmp_path / "set" / "big" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text('{"name": "set", "fileFormat": "tfrecord"}')
    with pytest.raises(UserError, match="set/big/1.10.0: prepared as tfrecord"):
        open_source("tfds:set:big")
    with pytest.raises(UserError, match="name one of its configs .known: big"):
        open_source("tfds:set")


def test_grey_tensor_and_unlabelled(prepare):
    arrays = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    features = {"image": FEATURES.Tensor(shape=(4, 4, 1), dtype=np.uint8)}
    source = open_source(prepare(features, {"train": [{"image": a} for a in arrays]}, "grey"))
    assert source.labels is None and source.num_classes == 0 and set(source[0]) == {"image"}
    np.testing.assert_array_equal(np.stack([source[i]["image"] for i in range(3)]), arrays)


def test_other_names_and_grey_files(prepare, png):
    array = np.arange(16, dtype=np.uint8).reshape(4, 4)
    features = {
        "picture": FEATURES.Image(shape=(None, None, 1)),
        "kind": FEATURES.ClassLabel(num_classes=3),
    }
    rows = [{"picture": png(array), "kind": 2}]
    source = open_source(prepare(features, {"train": rows}, "named"))
    assert source.image_shape == (4, 4, 1) and source.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(source[0]["image"][..., 0], array)


def test_bad_sets(prepare, png, labelled, tmp_path):
    image = {"image": FEATURES.Image(shape=(None, None, 3))}
    sizes = [{"image": png(np.zeros((4, 4 + i, 3), np.uint8))} for i in range(2)]
    source = open_source(prepare(image, {"train": sizes}, "sizes"))
    with pytest.raises(UserError, match=r"example 1 is \(4, 5, 3\).*set data.image_size"):
        source[1]
    with pytest.raises(UserError, match="no feature is the image .found: id"):
        open_source(prepare({"id": np.int64}, {"train": [{"id": 1}]}, "bare"))
    source = open_source(prepare(image, {"train": [*sizes[:1], {"image": b"text"}]}, "text"))
    with pytest.raises(UserError, match="example 1: not a picture"):
        source[1]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dataset_info.json", lambda t: t.replace("array_record", "tfrecord"),
         "prepared as tfrecord, .*tfds build tiny_set --file_format=array_record"),
        ("dataset_info.json", lambda t: t[:-20], "dataset_info.json: cannot be read"),
        ("dataset_info.json", lambda t: "[]", "dataset_info.json: cannot be read"),
        ("features.json", lambda t: t.replace("tensorflow_datasets.core.features.image", "os.x"),
         "asks for os.x_feature.Image, which is not part of TFDS"),
        ("features.json", lambda t: "{}", "cannot be read"),
        ("features.json", None, "no features.json"),
        ("tiny_set-train.array_record-00000-of-00001", lambda t: "x", "cannot be read"),
        ("tiny_set-train.array_record-00000-of-00001", None, "cannot be read"),
    ],
)  # fmt: skip
def test_damaged_files(labelled, tmp_path, file, change, message):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in labelled.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if change:
        (folder / file).write_text(change((folder / file).read_text(errors="replace")))
    else:
        (folder / file).unlink()
    with pytest.raises(UserError, match=message) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)


def test_no_tensorflow_and_no_tfds_before_it_is_needed(labelled):
    code = (
        "import sys; from diffjax.data.sources import open_source; from diffjax.data import loader;"
        "lazy = 'tensorflow_datasets' in sys.modules, 'grain' in sys.modules;"
        f"len(open_source({str(labelled)!r})); print(lazy, 'tensorflow' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[-2] == "(False, False) False"


def test_info_is_json(labelled):
    assert json.loads((labelled / "dataset_info.json").read_text())["fileFormat"] == "array_record"
