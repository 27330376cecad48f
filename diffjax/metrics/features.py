"""Feature nets: what turns pictures into the vectors that the metrics compare."""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open

from diffjax.errors import UserError, choose
from diffjax.nets.classifier_small import ClassifierSmall

EMOJI_SIZE = 24
LARGEST = 4096  # of a classifier's widths; a file could ask for any


@dataclass(frozen=True, eq=False)
class FeatureNet:
    """Pure functions of uint8 pictures [n, H, W, 3] of any size; each may be jitted.

    With `weights` they take these first, for a large net: as constants of a compiled program they
    would be kept and hashed with it.

    Attributes:
      name: how scores name the net: scores compare only where the net is the same.
      dim: length d of a feature.
      apply: -> features, float32 [n, d].
      probs: -> class probabilities, float32 [n, classes]; None if the net classifies nothing.
      spatial: -> a flattened map, float32 [n, e] (`spatial_features`); None if it has no map.
      classes: names of the classes, in the order of `probs`.
      weights: a tree of arrays, or None: the functions take pictures alone.
      version: what tells these weights from others of the same name, for caches.
      is_fid: whether the Frechet distance on this net is what is called FID.
    """

    name: str
    dim: int
    apply: Callable[..., jax.Array]
    probs: Callable[..., jax.Array] | None = None
    spatial: Callable[..., jax.Array] | None = None
    classes: tuple[str, ...] = ()
    weights: Any = None
    version: str = ""
    is_fid: bool = False


def spatial_features(feature_map: jax.Array, channels: int = 7) -> jax.Array:
    """Flattens a map [n, h, w, c] to [n, h * w * channels], the first channels at each place.

    The Frechet distance of these is the spatial one (Nash et al. 2021, "Generating Images with
    Sparse Representations", appendix), which sees where things are and not only whether. Seven
    channels of Inception's 17 x 17 map give a vector about as long as its pooled features.
    """
    return feature_map[..., :channels].reshape(len(feature_map), -1)


def resized(images: jax.Array, height: int, width: int) -> jax.Array:
    """uint8 [n, H, W, C] -> float32 [n, height, width, C] in [-1, 1], antialiased linear."""
    n, h, w, c = images.shape
    x = images.astype(jnp.float32) / 127.5 - 1
    if (h, w) == (height, width):
        return x
    return jax.image.resize(x, (n, height, width, c), "linear", antialias=True)


def _area_weights(n_in: int, n_out: int) -> np.ndarray:
    """[n_out, n_in] weights, each row the share of every input pixel in one output pixel."""
    edges = np.arange(n_out + 1) * n_in / n_out
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(n_in)
    overlap = np.minimum(right, pixel + 1) - np.maximum(left, pixel)
    return (np.clip(overlap, 0, None) / (right - left)).astype(np.float32)


def _box_pixels(images: jax.Array) -> jax.Array:
    _, h, w, _ = images.shape
    x = images.astype(jnp.float32) / 255
    x = jnp.einsum("ih,nhwc,jw->nijc", _area_weights(h, 8), x, _area_weights(w, 8))
    return x.reshape(len(images), -1)


@functools.cache
def pixels() -> FeatureNet:
    """Returns the feature net with nothing learned: 8 x 8 box-averaged pixels in [0, 1], d = 192.

    It sees colour and layout only. Use it where no trained net fits the pictures.
    """
    return FeatureNet("pixels", 192, _box_pixels)


def load_classifier(path) -> tuple[ClassifierSmall, dict, dict[str, str]]:
    """Reads a classifier's weights: (module, params, metadata).

    Args:
      path: a safetensors file whose names are parameter paths joined with "/", and whose metadata
        has `module` (the module's attributes as JSON), `class_names` (a JSON list) and, where it is
        not 24, `size`: pixels a side that pictures are resized to.

    Raises:
      UserError: the file is no such file.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata, names = file.metadata() or {}, file.keys()
            tensors = {tuple(k.split("/")): jnp.asarray(file.get_tensor(k)) for k in names}
        fields = json.loads(metadata["module"])
        if not all(type(n) is int and 0 < n <= LARGEST for n in fields.values()):
            raise ValueError(f"module {fields}")
        module, params = ClassifierSmall(**fields), unflatten_dict(tensors)
        picture = jax.ShapeDtypeStruct((1, EMOJI_SIZE, EMOJI_SIZE, 3), jnp.float32)
        wanted = jax.eval_shape(module.init, jax.random.key(0), picture)["params"]
        chex.assert_trees_all_equal_shapes_and_dtypes(params, wanted)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{path}: not a classifier's weights: {type(error).__name__}: {reason}"
        ) from error
    return module, params, metadata


def classifier_net(
    name: str, module: ClassifierSmall, params, classes, size: int = EMOJI_SIZE
) -> FeatureNet:
    """Returns the `FeatureNet` of a classifier: its penultimate layer, softmax, and spatial map.

    size: what pictures are resized to, pixels a side.
    """

    def outputs(images):
        return module.apply({"params": params}, resized(images, size, size))

    return FeatureNet(
        name=name,
        dim=module.features,
        apply=lambda images: outputs(images).features,
        probs=lambda images: jax.nn.softmax(outputs(images).logits),
        spatial=lambda images: spatial_features(outputs(images).spatial),
        classes=tuple(classes),
    )


@functools.cache
def emoji_classifier() -> FeatureNet:
    """Returns the shipped classifier of 24 x 24 emoji (d = 64, 8 classes) as a feature net.

    Its weights lie in the package (`emoji_classifier.md` says how they were made); it is meant for
    small pictures of single things, and no number on it is an FID.
    """
    weights = importlib.resources.files("diffjax.metrics") / "emoji_classifier.safetensors"
    with importlib.resources.as_file(weights) as path:
        return dataclasses.replace(own_classifier(str(path)), name="emoji")


@functools.cache
def own_classifier(path: str) -> FeatureNet:
    """Returns the classifier in a file of `benchmarks/train_feature_net.py` as a feature net.

    Raises:
      UserError: the file is no such file.
    """
    module, params, metadata = load_classifier(path)
    try:
        classes, size = json.loads(metadata["class_names"]), int(metadata.get("size", EMOJI_SIZE))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its metadata lack class_names or size") from error
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or len(classes) != module.classes or not 8 <= size <= 1024:
        raise UserError(
            f"{path}: its metadata must have {module.classes} class_names and a size from 8 to 1024"
        )
    net = classifier_net(f"classifier:{Path(path).name}", module, params, classes, size)
    version = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return dataclasses.replace(net, version=version)


def _inception(path: str) -> FeatureNet:
    from diffjax.metrics.inception import inception  # which imports this module

    if not path:
        raise UserError("feature net 'inception' needs its weights: inception:FILE")
    return inception(path)


def _classifier(path: str) -> FeatureNet:
    if not path:
        raise UserError("feature net 'classifier' needs its weights: classifier:FILE")
    return own_classifier(path)


FEATURE_NETS = {
    "emoji": emoji_classifier,
    "pixels": pixels,
    "inception": _inception,
    "classifier": _classifier,
}


def feature_net(name: str) -> FeatureNet:
    """Returns a feature net by name: "emoji", "pixels", "classifier:FILE" or "inception:FILE".

    Raises:
      UserError: another name (with the nearest), or a file that is not that net's weights.
    """
    word, _, path = name.partition(":")
    make = choose(word, FEATURE_NETS, "feature net")
    if word in ("inception", "classifier"):
        return make(path)
    if path:
        raise UserError(f"feature net {word!r} takes no file, got {name!r}")
    return make()


@functools.lru_cache(maxsize=16)
def _compiled(net: FeatureNet, outputs: tuple[str, ...]) -> Callable:
    """Jitted (weights, images) -> {output: [n, ...]}; what outputs share is computed once."""

    def run(weights, images):
        first = () if weights is None else (weights,)
        return {name: getattr(net, name)(*first, images) for name in outputs}

    return jax.jit(run)


def batches(
    net: FeatureNet,
    images: np.ndarray,
    outputs: Sequence[str] = ("apply",),
    batch_size: int = 128,
    sharding: NamedSharding | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs a feature net over pictures in fixed batches: one compilation a picture size.

    In float32 on every device, not in the device's default precision, so that scores from different
    machines compare.

    Args:
      net: the feature net.
      images: uint8 [n, H, W, C], C = 3, or 1 which is repeated to 3; n >= 1.
      outputs: which of the net's functions: "apply", "probs", "spatial".
      batch_size: pictures a batch, made a multiple of the devices; the last is padded to it.
      sharding: of a batch, its first dimension over devices; None: one device. With several
        processes, all must hold the same images.

    Yields:
      {output: float32 [b, ...]} on the host, b <= batch_size.

    Raises:
      UserError: images of another dtype, shape or channel count, none at all, or a net without
        that output.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"images must be uint8 [n, H, W, C] with C 1 or 3, got {images.dtype} {images.shape}"
        )
    if not images.size or batch_size < 1:
        raise UserError(f"no features of images {images.shape} in batches of {batch_size}")
    for output in outputs:
        if getattr(net, output) is None:
            raise UserError(f"feature net {net.name!r} has no {output} output")
    weights, size = net.weights, batch_size
    if sharding is not None:
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        weights = jax.device_put(weights, everywhere)
        shape = (sharding.mesh.size, *images.shape[1:])
        size += -size % (shape[0] // sharding.shard_shape(shape)[0])
    run = _compiled(net, tuple(outputs))
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        count = len(batch)
        if images.shape[-1] == 1:
            batch = np.repeat(batch, 3, -1)
        batch = np.pad(batch, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        with jax.default_matmul_precision("highest"):
            found = run(weights, _place(batch, sharding))
        yield {name: _fetch(array)[:count] for name, array in found.items()}


def _place(batch: np.ndarray, sharding) -> jax.Array:
    if sharding is None:
        return jax.device_put(batch)
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def _fetch(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def extract(
    net: FeatureNet,
    images: np.ndarray,
    batch_size: int = 128,
    output: str = "apply",
    sharding: NamedSharding | None = None,
) -> np.ndarray:
    """Returns one output of a feature net for all pictures, float32 [n, d] on the host.

    Arguments, and what it raises, as in `batches`.
    """
    found = batches(net, images, (output,), batch_size, sharding)
    return np.concatenate([part[output] for part in found])
