"""A judge of motion that a project trains on clips of its own: features to compare sets of clips.

It is not the evaluator of published text-to-motion numbers, and no number on it compares with them:
only numbers on one file, whose hash `MotionJudge.version` tells, compare with each other.

A classifier of contents and styles that is trained on clean clips becomes blind to how generated
motion goes wrong: too smooth, or trembling. So half of the clips it learns from are smoothed in
time, half carry noise, and linear heads, dropped after training, ask its features how much of each.
Features are whitened on the clips that it was trained on (`whitening`).
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from diffjax.errors import UserError
from diffjax.metrics import judging, kid
from diffjax.metrics.whitening import Whitening, measure
from diffjax.nets.motion_classifier import MotionClassifier
from diffjax.weights import trees

MAX_BLUR = 4.0  # frames, standard deviation
MAX_NOISE = 1.0  # of each number's change from frame to frame, in standard deviations
SPOILED = 2.0  # frames: how much smoothing the judge must see
KEY = "motion_judge"  # in the file's metadata
LARGEST = 4096  # of what a file may ask for


class MotionJudge(NamedTuple):
    """A trained judge.

    Attributes:
      module: the network. params: its weights.
      mean: float32 [D], std: float32 [3, D]: of the numbers, and of their first and second
        differences in time: what clips are standardised with.
      heads: {what is classified: names of its classes}, in the network's order.
      white: what its features go through last.
      version: the first 16 digits of its file's SHA-256; "" before it is saved.
    """

    module: MotionClassifier
    params: Any
    mean: np.ndarray
    std: np.ndarray
    heads: dict[str, tuple[str, ...]]
    white: Whitening
    version: str = ""


class Seen(NamedTuple):
    """What a judge makes of n clips.

    Attributes:
      features: float32 [n, d].
      logits: {head: float32 [n, classes]}.
    """

    features: np.ndarray
    logits: dict[str, np.ndarray]


def masks(lengths, frames: int) -> np.ndarray:
    """bool [n, frames]: True in the first `lengths` frames of each clip."""
    return np.arange(frames) < np.asarray(lengths)[:, None]


def smoothed(x: jax.Array, mask: jax.Array, sigma) -> jax.Array:
    """A clip [N, D] under a Gaussian over time of `sigma` frames; what is outside counts nothing.

    mask: bool [N]. sigma: a scalar; 0 leaves the clip as it is.
    """
    t = jnp.arange(len(x))
    near = -((t[:, None] - t) ** 2) / (2 * sigma**2 + 1e-4)
    kernel = jax.nn.softmax(jnp.where(mask, near, -jnp.inf), axis=-1)
    return kernel @ x * mask[:, None]


def inputs(x: jax.Array, mask: jax.Array, std: jax.Array) -> jax.Array:
    """What the network is given of a clip [N, D]: [N, 3 D], about unit variance, 0 outside.

    The numbers, and their first and second differences: how smooth a clip is can hardly be seen in
    positions, which differ far more from pose to pose.

    Args:
      x: less the mean; mask: bool [N]; std: [3, D].
    """
    parts, inside, x = [x / std[0]], mask, x
    for scale in std[1:]:
        inside = inside & jnp.roll(inside, 1).at[0].set(False)
        x = (x - jnp.roll(x, 1, 0)) * inside[:, None]
        parts.append(x / scale)
    return jnp.concatenate(parts, -1) * mask[:, None]


def augment(key: jax.Array, x: jax.Array, mask: jax.Array, std: jax.Array, exponent: float = 2.0):
    """One clip [N, D] less its mean -> (spoiled or not, its blur and noise in [0, 1], float32 [2]).

    std: [3, D]. exponent: above 1, small amounts are frequent, and reported as if they were not.
    """
    keys = jax.random.split(key, 3)
    amount = jax.random.uniform(keys[0], (2,)) * jax.random.bernoulli(keys[1], 0.5, (2,))
    blur, noise = amount**exponent * jnp.array([MAX_BLUR, MAX_NOISE])
    x = smoothed(x, mask, blur) + noise * std[1] * jax.random.normal(keys[2], x.shape)
    return x * mask[:, None], amount


def train(
    clips,
    lengths,
    labels: dict[str, np.ndarray],
    heads: dict[str, tuple[str, ...]],
    *,
    steps: int = 3000,
    batch: int = 64,
    seed: int = 0,
    exponent: float = 2.0,
    amounts_weight: float = 4.0,
    width: int = 96,
    features: int = 64,
    progress: bool = False,
) -> MotionJudge:
    """Trains a judge: cross-entropies + weighted squared error of the amounts.

    AdamW with a cosine; batches and noise depend on the seed and the step alone.

    Args:
      clips: float [n, N, D], in the units of the data; lengths: int [n], frames that count.
      labels: {head: int [n]}. heads: {head: names of its classes}.
      exponent: as in `augment`.
      amounts_weight: of how much a clip was spoiled, beside 1 for each head. Try it with `trial`.
      width, features: of the network.
      progress: whether to show a bar.

    Raises:
      UserError: labels without classes, clips without frames or with values that are not finite.
    """
    clips, lengths = np.asarray(clips, np.float32), np.asarray(lengths)
    _check(clips, lengths, labels, heads)
    mask = masks(lengths, clips.shape[1])
    mean, std = _moments(clips, mask)
    module = MotionClassifier(tuple(len(names) for names in heads.values()), width, features)
    x = jnp.asarray(np.where(mask[..., None], clips - mean, 0))  # padding may be anything
    mask = jnp.asarray(mask)
    wanted = [jnp.asarray(labels[name], jnp.int32) for name in heads]
    init_key, head_key, step_key = jax.random.split(jax.random.key(seed), 3)
    params = {
        "net": module.init(init_key, jnp.zeros((1, 1, std.size)), mask[:1, :1])["params"],
        "amounts": jax.random.normal(head_key, (features, 2)) / features**0.5,
        "bias": jnp.zeros(2),
    }
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, max(1, steps // 20), steps)
    optimiser = optax.adamw(schedule, weight_decay=0.05)
    entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss(params, x, mask, wanted, amounts):
        out = module.apply({"params": params["net"]}, x, mask)
        classes = sum(entropy(a, b) for a, b in zip(out.logits, wanted, strict=True))
        told = out.features @ params["amounts"] + params["bias"]
        return jnp.mean(classes + amounts_weight * jnp.mean((told - amounts) ** 2, -1))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, i):
        pick, change = jax.random.split(jax.random.fold_in(step_key, i))
        rows = jax.random.randint(pick, (batch,), 0, len(x))
        keys = jax.random.split(change, batch)
        spoil = jax.vmap(functools.partial(augment, std=std, exponent=exponent))
        given, amounts = spoil(keys, x[rows], mask[rows])
        given = jax.vmap(functools.partial(inputs, std=std))(given, mask[rows])
        value, grads = jax.value_and_grad(loss)(
            params, given, mask[rows], [w[rows] for w in wanted], amounts
        )
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    with tqdm(range(steps), desc="motion judge", disable=None if progress else True) as bar:
        for i in bar:
            params, state, value = step(params, state, i)
            if i % 50 == 0:
                bar.set_postfix(loss=f"{value:.3f}")
    nothing = Whitening(np.zeros(features, np.float32), np.eye(features, dtype=np.float32))
    judge = MotionJudge(module, jax.device_get(params["net"]), mean, std, dict(heads), nothing)
    return judge._replace(white=measure(_seen(judge, clips, lengths).features))


def _moments(clips, mask) -> tuple[np.ndarray, np.ndarray]:
    """(mean [D], std [3, D]) over the clips' own frames."""
    found, x, inside = [], clips, mask
    for _ in range(3):
        std = x[inside].std(0) if inside.any() else np.zeros(x.shape[-1])
        found.append(np.where(std > 1e-6, std, 1))
        x, inside = np.diff(x, axis=1), inside[:, 1:] & inside[:, :-1]
    return clips[mask].mean(0), np.stack(found).astype(np.float32)


def _check(clips, lengths, labels, heads) -> None:
    chex.assert_rank([clips, lengths], [3, 1])
    if len(clips) < 2:
        raise UserError(f"a judge cannot learn from {len(clips)} clips")
    if lengths.min() < 1 or lengths.max() > clips.shape[1]:
        raise UserError(f"clips {clips.shape}: each needs from 1 to {clips.shape[1]} frames")
    if not np.isfinite(clips[masks(lengths, clips.shape[1])]).all():
        raise UserError("clips have values that are not finite")
    if not heads or set(heads) != set(labels):
        raise UserError(f"labels {sorted(labels)} and heads {sorted(heads)} must be the same")
    for name, classes in heads.items():
        found = np.asarray(labels[name])
        if found.shape != lengths.shape or found.min() < 0 or found.max() >= len(classes):
            raise UserError(f"labels of {name}: one a clip, from 0 to {len(classes) - 1}")


def see(judge: MotionJudge, clips, lengths, batch: int = 256) -> Seen:
    """Returns features and logits of clips, in fixed batches in float32.

    Args:
      clips: float [n, N, D], in the units of the data; lengths: int [n], frames that count.
    """
    seen = _seen(judge, clips, lengths, batch)
    return seen._replace(features=judge.white(seen.features))


def _seen(judge: MotionJudge, clips, lengths, batch: int = 256) -> Seen:
    """`see` before the features are whitened."""
    clips, lengths = np.asarray(clips, np.float32), np.asarray(lengths)
    chex.assert_rank([clips, lengths], [3, 1])
    run, parts = _compiled(judge.module), []
    for start in range(0, len(clips), batch):
        part, size = clips[start : start + batch], lengths[start : start + batch]
        short = batch - len(part)
        part = np.pad(part - judge.mean, ((0, short), (0, 0), (0, 0)))
        mask = masks(np.pad(size, (0, short)), clips.shape[1])
        part = np.where(mask[..., None], part, 0)
        with jax.default_matmul_precision("highest"):
            found = jax.device_get(run(judge.params, part, mask, judge.std))
        parts.append(jax.tree.map(lambda a, n=len(size): a[:n], found))
    logits, features = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    return Seen(features, dict(zip(judge.heads, logits, strict=True)))


@functools.lru_cache(maxsize=8)
def _compiled(module: MotionClassifier) -> Callable:
    def run(params, x, mask, std):
        x = jax.vmap(inputs, (0, 0, None))(x, mask, std)
        return module.apply({"params": params}, x, mask)

    return jax.jit(run)


def scored(judge: MotionJudge, metric: str, clips, lengths, arrays: Callable) -> judging.Judge:
    """Returns a `judging.Judge` against real clips, for a system's `judge`.

    Args:
      metric: fd, kid, precision or recall, on the judge's features.
      clips, lengths: the real ones, as in `see`.
      arrays: outputs of the system's `sample` -> (clips, lengths), as in `see`.

    Raises:
      UserError: another metric.
    """
    real = see(judge, clips, lengths).features
    features = lambda outputs: see(judge, *arrays(outputs)).features
    return judging.of_features(metric, real, features, "motion judge", judge.version)


def trial(judge: MotionJudge, clips, lengths, labels: dict[str, np.ndarray]) -> dict:
    """Whether a judge sees what it must, on held-out clips: smoothing by `SPOILED` frames.

    Over 20 random splits in halves: `s_floor` is the standard deviation of KID between them,
    `kid_spoiled` the mean where the first half is smoothed, and `sees` whether that is above five
    times `s_floor`. Also the accuracy of each head. Ready for JSON.
    """
    clips, lengths = np.asarray(clips, np.float32), np.asarray(lengths)
    mask = masks(lengths, clips.shape[1])
    spoil = jax.jit(jax.vmap(functools.partial(smoothed, sigma=SPOILED)))
    clean = see(judge, clips, lengths)
    clips = np.where(mask[..., None], clips, 0)
    spoiled = see(judge, np.asarray(spoil(clips, mask)), lengths).features
    random, half, floors, seen = np.random.default_rng(0), len(clips) // 2, [], []
    for _ in range(20):
        one, other = np.split(random.permutation(len(clips))[: 2 * half], 2)
        floors.append(kid.mmd2(clean.features[one], clean.features[other]).value)
        seen.append(kid.mmd2(spoiled[one], clean.features[other]).value)
    floor, found = float(np.std(floors, ddof=1)), float(np.mean(seen))
    right = {
        name: float(np.mean(logits.argmax(-1) == np.asarray(labels[name])))
        for name, logits in clean.logits.items()
    }
    about = {"s_floor": floor, "kid_spoiled": found, "sees": found > 5 * floor}
    return {**about, "accuracy": right, "version": judge.version}


# ---- files ---------------------------------------------------------------------------------------


def save(judge: MotionJudge, path: Path) -> MotionJudge:
    """Writes a judge as safetensors; returns it with the file's hash for a version."""
    about = {"heads": judge.heads, "numbers": len(judge.mean)}
    about |= {"width": judge.module.width, "features": judge.module.features}
    tree = {
        "net": judge.params,
        "mean": judge.mean,
        "std": judge.std,
        "white": judge.white._asdict(),
    }
    trees.save(tree, Path(path), {KEY: json.dumps(about)})
    return judge._replace(version=_hash(Path(path)))


def load(path: Path) -> MotionJudge:
    """Reads what `save` wrote.

    Raises:
      UserError: the file is no such file.
    """
    path = Path(path)
    flat, metadata = trees.load(path), trees.metadata(path)
    try:
        about = json.loads(metadata[KEY])
        heads = {str(k): tuple(map(str, v)) for k, v in about["heads"].items()}
        width, features, numbers = (about[k] for k in ("width", "features", "numbers"))
        sizes = [width, features, numbers, *map(len, heads.values())]
        if not all(type(n) is int and 0 < n <= LARGEST for n in sizes) or not heads:
            raise ValueError(f"sizes {sizes}")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a judge of motion ({error!r})") from error
    module = MotionClassifier(tuple(map(len, heads.values())), width, features)
    empty = jnp.zeros((1, 1, 3 * numbers)), jnp.ones((1, 1), bool)
    net = jax.eval_shape(module.init, jax.random.key(0), *empty)["params"]
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    white = {"mean": array(features), "matrix": array(features, features)}
    like = {"net": net, "mean": array(numbers), "std": array(3, numbers), "white": white}
    tree = trees.fit(flat, like, str(path))
    white = Whitening(**tree.pop("white"))
    return MotionJudge(module, tree["net"], tree["mean"], tree["std"], heads, white, _hash(path))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
