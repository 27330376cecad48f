"""Trains a small classifier for the metrics to use as a feature net, and writes its weights.

    python benchmarks/train_feature_net.py --out FILE [--steps N] [--seed S]
    python benchmarks/train_feature_net.py --data cifar10.npz --width 32 --out judge.safetensors

The first makes the shipped one, of the embedded emoji; the second one of own pictures, which
`evaluate --net classifier:judge.safetensors` takes. Trains on four fifths of the pictures
(class-balanced batches, heavy augmentation) and measures accuracy on the other fifth; the weights
written are the ones measured.

A classifier of a few easy kinds may forget all that tells two faces apart, one that is made robust
to blur and noise is blind to how samples go wrong, and one that has seen only emoji may place
anything else among them. So linear heads, dropped after training, ask the penultimate features also
which picture it was, of sets of up to 5,000 (Dosovitskiy et al. 2014, "Discriminative Unsupervised
Feature Learning with Exemplar Convolutional Neural Networks"), or that it was none (Hendrycks et
al. 2019, "Deep Anomaly Detection with Outlier Exposure"), and how much blur and noise was added.
"""

import functools
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from tqdm import tqdm

from diffjax.data.base import ArraySource
from diffjax.data.sources import open_source
from diffjax.errors import UserError, command
from diffjax.nets.classifier_small import ClassifierSmall
from diffjax.run import cli

EXEMPLARS = 5_000  # a larger set is not told apart picture by picture
MAX_BLUR, MAX_NOISE = 1.2, 0.4


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and held-out examples; a fifth of each class, rounded, is held out."""
    rng, held_out = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out.extend(members[: round(len(members) / 5)])
    held_out = np.sort(held_out)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def augment(key: jax.Array, x: jax.Array, exponent: float) -> tuple[jax.Array, jax.Array]:
    """One picture [H, W, 3] in [-1, 1] -> (augmented, its blur and noise in [0, 1]).

    exponent: above 1, small amounts of blur and noise are frequent, and reported as if they were
    not small: for a net that must see a little of them.
    """
    keys = iter(jax.random.split(key, 12))
    uniform = jax.random.uniform
    size = x.shape[0]

    x = jnp.where(jax.random.bernoulli(next(keys)), x[:, ::-1], x)
    scale = jnp.exp(uniform(next(keys), (2,), minval=-0.25, maxval=0.25))
    shift = uniform(next(keys), (2,), minval=-3, maxval=3) + (1 - scale) * size / 2
    # What comes in from outside is 0, so the white background is moved there and back.
    x = 1 + jax.image.scale_and_translate(x - 1, x.shape, (0, 1), scale, shift, "linear")

    gain = jnp.exp(0.15 * jax.random.normal(next(keys), (3,)))
    offset = 0.1 * jax.random.normal(next(keys))
    colourfulness = uniform(next(keys), minval=0.5, maxval=1.3)
    grey = x.mean(-1, keepdims=True)
    x = jnp.clip((grey + colourfulness * (x - grey)) * gain + offset, -1, 1)

    amount = uniform(next(keys), (2,)) * jax.random.bernoulli(next(keys), 0.5, (2,))
    blur, noise = amount**exponent * jnp.array([MAX_BLUR, MAX_NOISE])
    distance = jnp.arange(size)[:, None] - jnp.arange(size)
    kernel = jax.nn.softmax(-(distance**2) / (2 * blur**2 + 1e-4))
    x = jnp.einsum("ih,hwc,jw->ijc", kernel, x, kernel)
    x = jnp.clip(x + noise * jax.random.normal(next(keys), x.shape), -1, 1)
    return x, amount


def spoil(key: jax.Array, x: jax.Array, other: jax.Array) -> jax.Array:
    """What is no emoji: shuffled patches or pixels, one colour, noise, or two emoji in one."""
    size = x.shape[0]

    def shuffled(key, x, patch):
        n = size // patch
        tiles = x.reshape(n, patch, n, patch, 3).swapaxes(1, 2).reshape(n * n, patch, patch, 3)
        tiles = jax.random.permutation(key, tiles).reshape(n, n, patch, patch, 3)
        return tiles.swapaxes(1, 2).reshape(x.shape)

    kind_key, key, noise_key, white_key = jax.random.split(key, 4)
    colour = jax.random.uniform(key, (1, 1, 3), minval=-1, maxval=1)
    flat = jnp.where(jax.random.bernoulli(white_key), colour, 1) + 0 * x
    noise = jnp.clip(colour / 2 + 0.5 * jax.random.normal(noise_key, x.shape), -1, 1)
    choices = [shuffled(key, x, size // 4), shuffled(key, x, 1), flat, noise, (x + other) / 2]
    return jnp.stack(choices)[jax.random.randint(kind_key, (), 0, len(choices))]


def loss(module, params, images, labels, members, amounts):
    """Mean loss of a batch: class + 0.3 which picture + 4 squared error of the amounts.

    The last member is "none": such pictures have no class and no amounts.
    """
    out = module.apply({"params": params["net"]}, images)
    heads = out.features @ params["heads"]["kernel"] + params["heads"]["bias"]
    entropy = optax.softmax_cross_entropy_with_integer_labels
    which = entropy(heads[:, 2:], members)
    amount = jnp.mean((heads[:, :2] - amounts) ** 2, -1)
    real = members < heads.shape[1] - 3
    return jnp.mean(real * (entropy(out.logits, labels) + 4 * amount) + 0.3 * which)


def train(module, images, labels, *, steps: int, batch: int, seed: int, exponent: float):
    """Trains on uint8 images [n, H, W, 3]; returns the classifier's parameters.

    Each batch draws its kinds evenly; a quarter of it is spoiled.
    """
    counts = np.bincount(labels)
    order = jnp.asarray(np.argsort(labels, kind="stable"))
    first = jnp.asarray(np.cumsum(counts) - counts)
    counts, images, labels = jnp.asarray(counts), jnp.asarray(images), jnp.asarray(labels)
    spoiled = batch // 4
    exemplars = len(images) if len(images) <= EXEMPLARS else 1

    init_key, head_key, step_key = jax.random.split(jax.random.key(seed), 3)
    dim = module.features
    params = {
        "net": module.init(init_key, to_float(images[:1]))["params"],
        "heads": {
            "kernel": jax.random.normal(head_key, (dim, 3 + exemplars)) / dim**0.5,
            "bias": jnp.zeros(3 + exemplars),
        },
    }
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    optimiser = optax.adamw(schedule, weight_decay=0.1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, i):
        kind_key, member_key, augment_key, spoil_key = jax.random.split(
            jax.random.fold_in(step_key, i), 4
        )
        kinds = jax.random.randint(kind_key, (batch,), 0, len(counts))
        place = jax.random.randint(member_key, (batch,), 0, counts[kinds])
        members = order[first[kinds] + place]
        keys = jax.random.split(augment_key, batch)
        x, amounts = jax.vmap(augment, (0, 0, None))(keys, to_float(images[members]), exponent)
        junk = jax.vmap(spoil)(jax.random.split(spoil_key, spoiled), x[:spoiled], x[-spoiled:])
        x = x.at[:spoiled].set(junk)
        members = jnp.minimum(members, exemplars - 1).at[:spoiled].set(exemplars)
        value, grads = jax.value_and_grad(functools.partial(loss, module))(
            params, x, kinds, members, amounts
        )
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    with tqdm(range(steps), desc="classifier") as bar:
        for i in bar:
            params, state, value = step(params, state, i)
            if i % 20 == 0:
                bar.set_postfix(loss=f"{value:.3f}")
    return params["net"]


def to_float(images):
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def accuracy(module, params, images, labels, seed=None, exponent: float = 1.0) -> float:
    """Share called right, of the pictures as they are or, with a seed, augmented."""

    @jax.jit
    def right(images, labels, keys):
        x = to_float(images)
        x = x if seed is None else jax.vmap(augment, (0, 0, None))(keys, x, exponent)[0]
        return jnp.sum(jnp.argmax(module.apply({"params": params}, x).logits, -1) == labels)

    keys = jax.random.split(jax.random.key(seed or 0), len(images))
    parts = [slice(i, i + 512) for i in range(0, len(images), 512)]
    return sum(int(right(images[p], labels[p], keys[p])) for p in parts) / len(images)


def opened(path: str):
    """The pictures and labels of a set that this can learn from.

    Raises:
      UserError: a set that `open_source` refuses, without labels, too large for memory, or of
        pictures that `spoil` cannot shuffle.
    """
    data = open_source(path, "train")
    height, width, channels = data.image_shape
    if not isinstance(data, ArraySource):
        raise UserError(f"--data {path}: too large to be read into memory")
    if data.labels is None or data.num_classes < 2:
        raise UserError(f"--data {path}: needs labels of at least two classes")
    if height != width or channels != 3 or height % 4 or not 8 <= height <= 1024:
        raise UserError(
            f"--data {path}: pictures of {height}x{width}x{channels}; they must be square, RGB, "
            "and of a side from 8 to 1024 that 4 divides"
        )
    return data


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="train_feature_net.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--data", default="emoji", help="what config.data.path takes; square, RGB")
    parser.add_argument("--steps", type=cli.positive, default=1000)
    parser.add_argument("--batch", type=cli.positive, default=64)
    parser.add_argument(
        "--width", type=cli.positive, default=24, help="channels of the first layers"
    )
    parser.add_argument("--exponent", type=float, default=1.0, help="of added blur and noise")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse(argv)
    if args.width % 8:
        raise UserError(f"--width {args.width}: a multiple of 8, the groups of its norms")
    if not args.out.parent.is_dir() or args.out.is_dir():
        raise UserError(f"--out {args.out}: a file in a folder that exists")

    data = opened(args.data)
    images, labels = np.asarray(data.images), np.asarray(data.labels, np.int32)
    fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    fields = {"classes": len(data.class_names), "width": args.width, "features": 64}
    module = ClassifierSmall(**fields)
    trained, held = split(labels, args.seed)
    begun = time.monotonic()
    params = train(
        module,
        images[trained],
        labels[trained],
        steps=args.steps,
        batch=args.batch,
        seed=args.seed,
        exponent=args.exponent,
    )
    seconds = time.monotonic() - begun
    held_out, harder = (images[held], labels[held]), (args.seed, args.exponent)
    metadata = {
        "module": json.dumps(fields),
        "size": str(images.shape[1]),
        "class_names": json.dumps(list(data.class_names)),
        "trained_on": f"{len(trained)} of {len(images)}: four fifths of each class",
        "held_out": json.dumps(held.tolist()),
        "held_out_accuracy": f"{accuracy(module, params, *held_out):.4f}",
        "held_out_accuracy_augmented": f"{accuracy(module, params, *held_out, *harder):.4f}",
        "steps": str(args.steps),
        "batch": str(args.batch),
        "seed": str(args.seed),
        "exponent": str(args.exponent),
        "data_sha256": fingerprint,
    }
    if args.data == "emoji":
        metadata["licence"] = "made from Noto Color Emoji, SIL Open Font License 1.1"
    tensors = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    temporary = args.out.with_name(args.out.name + ".tmp")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, args.out)
    shown = {k: v for k, v in metadata.items() if k != "held_out"}
    size = args.out.stat().st_size
    print(json.dumps({**shown, "seconds": round(seconds), "bytes": size}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
