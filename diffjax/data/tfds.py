"""TensorFlow Datasets without TensorFlow: sets that were prepared as array_record.

Only the prepared files are read (dataset_info.json, features.json, the records): no builder's code
is run and nothing is fetched.
"""

import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.data import images
from diffjax.data.base import check_labels, fingerprint
from diffjax.data.reading import read_file, reading
from diffjax.errors import UserError, did_you_mean

FORMAT = "array_record"


@dataclass(frozen=True, eq=False)
class TfdsSource:
    """A `Source` over a TFDS data source with random access; `labels` reads the set once.

    Attributes:
      records: index -> {image_key: bytes or array, label_key: int}.
      size: its length.
      image_key, label_key: names of the two features; label_key None for no labels.
      image_size: crop and scale to this, or None.
      image_shape, class_names, fingerprint, name: as in `Source`.
    """

    records: Any
    size: int
    image_key: str
    label_key: str | None
    image_size: int | None
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    fingerprint: str
    name: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        if self.label_key is None:
            return None
        labels = np.array([self.records[i][self.label_key] for i in range(self.size)])
        return check_labels(self.name, self.size, labels, self.class_names)[0]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        with reading(f"{self.name}: example {i}"):
            record = self.records[int(i)]
        image = _image(record[self.image_key], f"{self.name}: example {i}", self.image_size)
        if self.image_shape[2] == 3 and image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        if image.shape != self.image_shape:
            raise UserError(
                f"{self.name}: images of different sizes (example {i} is {image.shape}, the first"
                f" {self.image_shape}); set data.image_size to have them cropped and scaled"
            )
        example = {"image": image}
        if self.label_key is not None:
            label = record[self.label_key]
            if not 0 <= label < self.num_classes:  # -1 is TFDS's "not known"
                raise UserError(f"{self.name}: example {i} has label {label}, so none")
            example["label"] = np.int32(label)
        return example


def _image(value: bytes | np.ndarray, name: str, image_size: int | None) -> np.ndarray:
    """Returns uint8 [H, W, C] of encoded bytes or of an array."""
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3:
            raise UserError(f"{name}: images must be uint8 [H, W, C], not {value.dtype}")
        resize = image_size and value.shape[:2] != (image_size, image_size)
        return images.crop_resize(value, image_size) if resize else value
    image = images.decode(value, name)
    if image_size and image.size != (image_size, image_size):
        return images.crop_resize(image, image_size)
    return images.to_array(image)


def folder_of(name: str) -> Path:
    """Returns the newest prepared version of "NAME[:CONFIG]" under TFDS_DATA_DIR (by default
    ~/tensorflow_datasets); raises `UserError` if there is none."""
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    name, _, config = name.partition(":")
    if not re.fullmatch(r"\w+", name) or not re.fullmatch(r"[\w.+-]*", config):
        raise UserError(f"tfds:{name}: write tfds:NAME or tfds:NAME:CONFIG")
    base = root / name / config if config else root / name
    versions = [path.parent for path in base.glob("*/dataset_info.json")]
    if versions:
        return max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    configs = sorted({path.parent.parent.name for path in base.glob("*/*/dataset_info.json")})
    if configs:
        raise UserError(f"tfds:{name}: name one of its configs{did_you_mean(config, configs)}")
    near = did_you_mean(name, [p.name for p in root.iterdir()]) if root.is_dir() else ""
    raise UserError(
        f"tfds:{name}: not prepared under {root}{near}; prepare it with: tfds build {name}"
        f" --file_format={FORMAT} (TFDS_DATA_DIR names another place)"
    )


def _check_files(folder: Path) -> None:
    """Refuses files that would make TFDS import something of their choosing, and other formats."""
    with reading(folder / "dataset_info.json"):
        info = json.loads(read_file(folder / "dataset_info.json"))
        name, file_format = info.get("name", "NAME"), info.get("fileFormat", "tfrecord")
    if file_format != FORMAT:
        raise UserError(
            f"{folder}: prepared as {file_format}, which needs TensorFlow; prepare it again with:"
            f" tfds build {name} --file_format={FORMAT}"
        )
    if not (folder / "features.json").is_file():
        raise UserError(f"{folder}: no features.json beside dataset_info.json")
    text = read_file(folder / "features.json").decode(errors="replace")
    for kind in re.findall(r'"(?:pythonClassName|type)"\s*:\s*"([^"]*)"', text):
        if not re.fullmatch(r"tensorflow_datasets\.core\.features(\.\w+)+", kind):
            raise UserError(f"{folder}: features.json asks for {kind}, which is not part of TFDS")


def _one(features: dict, kind: type, preferred: str) -> str | None:
    """Returns the name of the only feature of a kind, or the one of the preferred name."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    if preferred in names or len(names) == 1:
        return preferred if preferred in names else names[0]
    return None


def open_tfds(folder: Path, split: str, image_size: int | None) -> TfdsSource:
    """Returns the split (TFDS's syntax, also "train[:90%]") of a set in its version folder.

    Its image is the only Image feature (or the one called "image", which may also be a uint8
    Tensor of rank 3), its label the only ClassLabel feature (or the one called "label"), if any.

    Args:
      folder: holds dataset_info.json.
      split: what to read.
      image_size: crop and scale to this; None if all images are of one size.

    Raises:
      UserError: another file format than array_record, no image feature, an unknown split, or
        damaged files.
    """
    import tensorflow_datasets as tfds

    _check_files(folder)
    with reading(folder):
        builder = tfds.builder_from_directory(folder)
        features = dict(builder.info.features)
    image_key = _one(features, tfds.features.Image, "image")
    if image_key is None and len(getattr(features.get("image"), "shape", None) or ()) == 3:
        image_key = "image"
    if image_key is None:
        raise UserError(f"{folder}: no feature is the image (found: {', '.join(features)})")
    label_key = _one(features, tfds.features.ClassLabel, "label")
    names = tuple(map(str, features[label_key].names)) if label_key else ()
    if split.split("[")[0] not in (*builder.info.splits, "all"):
        raise UserError(f"{folder}: no split {split!r}{did_you_mean(split, builder.info.splits)}")
    encoded = isinstance(features[image_key], tfds.features.Image)
    with reading(f"{folder}: split {split!r}"):
        decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None
        records = builder.as_data_source(split=split, decoders=decoders)
        size = len(records)
        first = records[0][image_key] if size else None
    if first is None:
        raise UserError(f"{folder}: split {split!r} is empty")
    shape = _image(first, f"{folder}: example 0", image_size).shape
    if features[image_key].shape[2] != 1:
        shape = (*shape[:2], 3)
    full_name = builder.info.full_name
    # The records' own sizes stand for their content, which may be too much to read.
    sizes = [(s.name, s.num_bytes, s.shard_lengths) for s in builder.info.splits.values()]
    mark = fingerprint(full_name, split, size, sizes, image_size, names)
    return TfdsSource(
        records, size, image_key, label_key, image_size, shape, names, mark, full_name
    )
