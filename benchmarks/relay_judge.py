"""A feature net for large pictures: a classifier that also tells blur and noise, trained here.

The shipped one sees 24x24 pixels, where a second stage has nothing to show. This one takes pictures
of any size, averages what each of its resolutions sees, and has 64 features. They are whitened on
the pictures that it was trained on and cut at three standard deviations: as they are, what a
drawing is of outweighs by far how sharp it is, and a cubic kernel hears a few outliers only.
"""

import functools
import hashlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from diffjax.metrics import kid, whitening
from diffjax.metrics.features import FeatureNet, extract
from diffjax.weights import trees

WIDTHS = (16, 32, 64, 96, 128)
FEATURES = 64
MAX_BLUR, MAX_NOISE = 2.0, 0.15  # pixels; of pictures in [-1, 1]


class Judge(nn.Module):
    """uint8-scaled float [B, H, W, 3] -> (features [B, 64], logits, blur and noise [B, 2], map)."""

    classes: int

    @nn.compact
    def __call__(self, x):
        seen = []
        for i, width in enumerate(WIDTHS):
            for j, stride in enumerate((2 if i else 1, 1)):
                x = nn.Conv(width, (3, 3), stride, name=f"conv_{i}_{j}")(x)
                x = nn.silu(nn.GroupNorm(8, name=f"norm_{i}_{j}")(x))
            seen.append(x.mean((1, 2)))
        features = nn.silu(nn.Dense(FEATURES, name="features")(jnp.concatenate(seen, -1)))
        heads = nn.Dense(2, name="amounts")(features)
        return features, nn.Dense(self.classes, name="classes")(features), heads, x


def spoilt(key, x):
    """A picture shifted, its colours changed, blurred and noised: (picture, the two amounts)."""
    keys = jax.random.split(key, 6)
    shift = jax.random.randint(keys[0], (2,), -x.shape[0] // 16, x.shape[0] // 16 + 1)
    x = jnp.roll(x, shift, (0, 1))
    x = x * jax.random.uniform(keys[1], (3,), minval=0.7) + 0.1 * jax.random.normal(keys[2], (3,))
    amount = jax.random.uniform(keys[3], (2,)) * jax.random.bernoulli(keys[4], 0.5, (2,))
    away = jnp.arange(x.shape[0])[:, None] - jnp.arange(x.shape[0])
    kernel = jax.nn.softmax(-(away**2) / (2 * (MAX_BLUR * amount[0]) ** 2 + 1e-4))
    x = jnp.einsum("ih,hwc,jw->ijc", kernel, x, kernel)
    x = x + MAX_NOISE * amount[1] * jax.random.normal(keys[5], x.shape)
    return jnp.clip(x, -1, 1), amount


def train(source, path: Path, steps: int, batch: int = 64) -> None:
    """Trains on a source's pictures and writes the weights."""
    module = Judge(source.num_classes)
    images, labels = jnp.asarray(source.images), jnp.asarray(source.labels)
    first = jnp.zeros((1, *source.image_shape))
    params = module.init(jax.random.key(0), first)["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, max(1, steps // 20), steps)
    optimiser = optax.adamw(schedule, weight_decay=0.05)

    def loss(params, x, label, amount):
        _, logits, heads, _ = module.apply({"params": params}, x)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return jnp.mean(entropy) + 4 * jnp.mean((heads - amount) ** 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, i):
        pick, change = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
        rows = jax.random.randint(pick, (batch,), 0, len(images))
        x, amount = jax.vmap(spoilt)(
            jax.random.split(change, batch), images[rows].astype(jnp.float32) / 127.5 - 1
        )
        value, grads = jax.value_and_grad(loss)(params, x, labels[rows], amount)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    for i in tqdm(range(steps), desc="judge"):
        params, state, value = step(params, state, i)
    features = jax.jit(
        lambda x: module.apply({"params": params}, x.astype(jnp.float32) / 127.5 - 1)[0]
    )
    seen = np.concatenate([features(x) for x in np.array_split(source.images, len(images) // 16)])
    white = whitening.measure(seen)
    arrays = {"net": params, "mean": white.mean, "white": white.matrix}
    trees.save(arrays, path, {"loss": f"{float(value):.4f}", "classes": str(source.num_classes)})


def load(path: Path, classes: int, shape) -> FeatureNet:
    """The trained judge as a feature net; its map has 4x4 places and 4 channels, 64 numbers."""
    module = Judge(classes)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    like = {
        "net": jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"],
        "mean": array(FEATURES),
        "white": array(FEATURES, FEATURES),
    }
    params = trees.fit(trees.load(path), like, str(path))
    run = lambda params, images: module.apply(
        {"params": params["net"]}, images.astype(jnp.float32) / 127.5 - 1
    )

    def features(params, images):
        white = whitening.Whitening(params["mean"], params["white"])
        return white(run(params, images)[0])

    def spatial(params, images):
        found = run(params, images)[3][..., :4]
        return jax.image.resize(found, (len(found), 4, 4, 4), "linear").reshape(len(found), -1)

    version = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return FeatureNet(
        "judge", FEATURES, apply=features, spatial=spatial, weights=params,
        version=version, probs=lambda p, x: jax.nn.softmax(run(p, x)[1]),
    )  # fmt: skip


def trial(net: FeatureNet, real: np.ndarray, labels) -> dict:
    """Whether the judge sees what it must: halved and enlarged pictures against other real ones.

    Over 20 random splits of the real set in halves: `s_floor` is the standard deviation of KID
    between them, `kid_spoiled` the mean of it where the first half is spoiled.
    """
    n, height, width, c = real.shape
    small = real.reshape(n, height // 2, 2, width // 2, 2, c).mean((2, 4))
    blurred = np.round(small.repeat(2, 1).repeat(2, 2)).astype(np.uint8)
    features, spoilt_ones = extract(net, real), extract(net, blurred)
    random, floors, seen, half = np.random.default_rng(0), [], [], n // 2
    for _ in range(20):
        one, other = np.split(random.permutation(n)[: 2 * half], 2)
        floors.append(kid.mmd2(features[one], features[other]).value)
        seen.append(kid.mmd2(spoilt_ones[one], features[other]).value)
    floor, spoiled = float(np.std(floors, ddof=1)), float(np.mean(seen))
    called = extract(net, real, output="probs").argmax(-1) == labels
    return {
        "s_floor": floor,
        "kid_spoiled": spoiled,
        "sees": spoiled > 5 * floor,
        "accuracy": float(np.mean(called)),
        "version": net.version,
    }
