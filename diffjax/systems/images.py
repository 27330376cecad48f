"""What systems of pictures share: their data, assets, classes, requests, augmentation, 8 bits."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import nets
from diffjax.data import augment, sources
from diffjax.errors import UserError, choose, did_you_mean
from diffjax.run import cli

ASIDE = 2**32 - 1  # a stream of randomness above every row and every split


def field(default, help: str):
    """A field of a request: its default, and the help of its flag."""
    return dataclasses.field(default=default, metadata={"help": help})


def default_request(kind: type, config):
    """Returns a request of a frozen dataclass, with the config's `sampling` for defaults.

    Raises:
      UserError: a field that it does not have, or a value of another type.
    """
    known = {f.name: type(f.default) for f in dataclasses.fields(kind)}
    given = config.get("sampling", {})
    for name in given:
        choose(name, known, "field of config.sampling:")
    cli.require(given, {name: known[name] for name in given}, "config.sampling")
    return kind(**{name: known[name](given[name]) for name in given})


def in_range(request, ranges: dict[str, tuple[float, float]]) -> None:
    """Raises `UserError` for the first field of the request outside its (low, high); NaN is."""
    for name, (low, high) in ranges.items():
        value = getattr(request, name)
        if not low <= value <= high:
            raise UserError(f"--{name} {value}: must be from {low:g} to {high:g}")


def opener(config) -> Callable:
    """Returns split -> the source of config.data, each opened once and when it is asked for.

    Raises:
      UserError: no path, or a size below 0.
    """
    if not config.data.path:
        raise UserError(
            "config.data.path is empty: give a folder, a .npz, an EDM .zip, tfds:NAME, or emoji"
        )
    if config.data.image_size < 0:
        raise UserError(f"config.data.image_size {config.data.image_size}: pixels, 0: as they are")

    @functools.cache
    def data(split: str):
        return sources.open_source(config.data.path, split, config.data.image_size or None)

    return data


def describe(source) -> dict:
    """Returns what sampling needs to know of a data set: `assets/data.json`."""
    return {
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
    }


def by_sides(shape) -> str:
    """A shape as people write it: 64x64x3."""
    return "x".join(map(str, shape))


def described(assets: dict, frames: int = 0) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns (image shape, class names) of the assets; `UserError` where they are not such.

    frames: of films, whose shape is [frames, height, width, channels]; 0: of pictures.
    """
    about = assets.get("data")
    if not isinstance(about, dict) or not {"image_shape", "class_names"} <= set(about):
        raise UserError("the run directory lacks assets/data.json (image_shape, class_names)")
    shape, names = about["image_shape"], about["class_names"]
    whole = lambda n: isinstance(n, int) and 0 < n <= 8192
    axes = ("frames", "height", "width", "channels")[0 if frames else 1 :]
    if not (isinstance(shape, list) and len(shape) == len(axes) and all(map(whole, shape))):
        raise UserError(f"assets/data.json: image_shape {shape} is no [{', '.join(axes)}]")
    if frames and shape[0] != frames:
        raise UserError(f"config.data.frames {frames}: the run's films have {shape[0]}")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError("assets/data.json: class_names is no list of names")
    return tuple(shape), tuple(names)


def labels_of(cond: str, names: tuple[str, ...]) -> np.ndarray:
    """The labels that `--cond` asks for, by name or number; all of them where it is empty."""
    if not names:
        if cond:
            raise UserError(f"--cond {cond}: this model has no classes")
        return np.zeros(1, np.int32)
    if not cond:
        return np.arange(len(names), dtype=np.int32)
    labels = []
    for word in cond.split(","):
        word = word.strip()
        if word in names:
            labels.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            labels.append(int(word))
        else:
            raise UserError(f"--cond: no class {word!r}{did_you_mean(word, names)}")
    return np.asarray(labels, np.int32)


def labels_like(source, names: tuple[str, ...], index: np.ndarray) -> np.ndarray:
    """Labels as often as the source's examples have them, int32 [len(index)], in a fixed order."""
    if not names:
        return np.zeros(len(index), np.int32)
    if tuple(source.class_names) != names:
        raise UserError(f"{source.name} has other classes than the model: {', '.join(names)}")
    order = np.random.default_rng(0).permutation(len(source))
    return np.asarray(source.labels, np.int32)[order[index % len(source)]]


def pipe(config) -> augment.Pipe | None:
    """The augmentation that config.augment asks for; None where its probability is 0."""
    made = augment.Pipe(config.augment.probability)
    if not 0 <= made.probability <= 1:
        raise UserError(f"config.augment.probability {made.probability}: must be in [0, 1]")
    if not made.probability:
        return None
    # A network that cannot be told of the transformation learns to draw transformed pictures.
    able = [kind for kind, row in nets.KINDS.items() if "augment_dim" in row.fields]
    if config.network.kind not in able:
        raise UserError(
            f"config.augment.probability {made.probability}: a network of kind "
            f"{config.network.kind} cannot be told how its pictures were moved, and would draw "
            f"moved ones ({', '.join(able)} can)"
        )
    if config.network.augment_dim != made.label_dim:
        raise UserError(
            f"config.network.augment_dim {config.network.augment_dim}: must be {made.label_dim} "
            "where config.augment.probability is above 0"
        )
    return made


def training_inputs(batch, key, rows, undrawn, *, null: int, dropout: float, pipe, read=None):
    """What a network of pictures is trained on, but for times and noise.

    Args:
      batch: "image" uint8 [B, H, W, C], or of films [B, T, H, W, C], "row" int32 [B], and "label"
        int32 [B] where there are classes.
      key: the step's. rows: [B], it folded with each row's number. undrawn: [B], a key of each row
        that nothing has drawn from: whether its label is dropped.
      null: the label that means "no class"; 0 where there are no classes.
      dropout: of labels, their share.
      pipe: the augmentation, or None.
      read: a batch's "image" -> x0; None: `to_float`.

    Returns:
      (x0 float32 of the images' shape in [-1, 1], label int32 [B], {keyword: value} for
      `net.apply`).
    """
    label = batch.get("label", jnp.zeros_like(batch["row"]))
    if null:
        label = jnp.where(jax.vmap(jax.random.uniform)(undrawn) < dropout, null, label)
    x0, moved = (read or to_float)(batch["image"]), None
    if pipe:
        x0, moved = augment.augment(
            jax.vmap(lambda k: jax.random.fold_in(k, ASIDE))(rows), x0, pipe
        )
    # One key for all rows, as masks of one draw are cheapest; it differs between the slices of
    # config.accumulate, whose first rows differ.
    masks = jax.random.fold_in(jax.random.fold_in(key, ASIDE), batch["row"][0])
    return x0, label, {"augment": moved, "train": True, "rngs": {"dropout": masks}}


def initialiser(net, shape: tuple[int, ...]) -> Callable:
    """Returns key -> parameters of a net that takes (pictures or films of a shape, noise level,
    label)."""

    def init(key):
        struct = jax.ShapeDtypeStruct
        inputs = ((1, *shape), jnp.float32), ((1,), jnp.float32), ((1,), jnp.int32)
        return net.lazy_init(key, *(struct(*i) for i in inputs))["params"]

    return init


def to_float(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]: x / 127.5 - 1."""
    return image.astype(jnp.float32) / 127.5 - 1


def to_uint8(x: jax.Array) -> jax.Array:
    """The nearest of 256 levels, clipped: `to_float` undone."""
    return jnp.clip(127.5 * x + 128, 0, 255).astype(jnp.uint8)
