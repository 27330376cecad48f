"""EDM's geometric augmentation: pictures are moved, and the network is told how.

Karras et al. 2020 ("ADA", arXiv 2006.06676, appendix B) as EDM uses it (Karras et al. 2022,
appendix F.2). Because the network sees the transformation as a label, and zeros when sampling, it
learns from moved pictures and draws unmoved ones: the augmentation does not leak.

Every shape is static: the original pads by what the batch's most extreme picture needs, here the
padding is always the largest one, which gives the same pictures. Padding, 2x upsampling and its
filter are one constant matrix an axis, and so are filter and downsampling: two matrix products, one
bilinear gather, two matrix products.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

TRANSLATE_INT_MAX = 0.125  # of the picture's side
TRANSLATE_FRAC_STD = 0.125
SCALE_STD = 0.2  # in octaves
ANISO_STD = 0.2
ANISO_ROTATE_PROBABILITY = 0.5

# The sym6 wavelet's low-pass filter, 12 taps of sum sqrt(2). Not symmetric: upsampling correlates
# with it reversed, downsampling with it as it is.
SYM6 = np.array(
    [0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633]
    + [0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263748782246252]
    + [-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148]
)
MARGIN = len(SYM6) // 2


@dataclasses.dataclass(frozen=True)
class Pipe:
    """Which operations, and how often: one acts on a picture with min(1, multiplier * probability).

    The defaults are EDM's, whose probability is 0.12 for CIFAR-10 and 0.15 for FFHQ and AFHQv2. The
    multiplier of xflip makes it a fair coin for every picture, whatever the probability. An
    operation with multiplier 0 is absent: it draws nothing and has no label.
    """

    probability: float = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    rotate_int: float = 0.0
    translate_int: float = 0.0
    scale: float = 1.0
    rotate_frac: float = 1.0
    aniso: float = 1.0
    translate_frac: float = 1.0

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of those present, in the order in which they act, draw and label."""
        return tuple(name for name in DRAWS if getattr(self, name) > 0)

    @property
    def label_dim(self) -> int:
        """Length of the label: 9 for EDM's."""
        return sum(LABELS[name] for name in self.operations)


# What one picture draws: ("coin" in {0, 1}, "quarter" in {0 .. 3}, "uniform" in [0, 1), "normal"),
# in the original's order. The last uniforms are the gates.
DRAWS = {
    "xflip": ("coin", "uniform"),
    "yflip": ("coin", "uniform"),
    "rotate_int": ("quarter", "uniform"),
    "translate_int": ("uniform", "uniform", "uniform"),
    "scale": ("normal", "uniform"),
    "rotate_frac": ("uniform", "uniform"),
    "aniso": ("normal", "uniform", "uniform", "uniform"),
    "translate_frac": ("normal", "normal", "uniform"),
}
LABELS = dict.fromkeys(DRAWS, 2) | dict.fromkeys(("xflip", "yflip", "scale"), 1)


def draw(key: jax.Array, pipe: Pipe) -> dict[str, tuple]:
    """What one picture's transformation is made of: {operation: its draws (`DRAWS`)}.

    key: one key; `jax.vmap(draw, (0, None))` draws for a batch, a key a row.
    """
    draws, count = {}, sum(len(DRAWS[name]) for name in pipe.operations)
    keys = iter(jax.random.split(key, max(count, 1)))
    kinds = {
        "coin": lambda k: jax.random.randint(k, (), 0, 2),
        "quarter": lambda k: jax.random.randint(k, (), 0, 4),
        "uniform": jax.random.uniform,
        "normal": jax.random.normal,
    }
    for name in pipe.operations:
        draws[name] = tuple(kinds[kind](next(keys)) for kind in DRAWS[name])
    return draws


def augment(keys: jax.Array, images: jax.Array, pipe: Pipe) -> tuple[jax.Array, jax.Array]:
    """Draws and transforms: (keys [B], images float32 [B, H, W, C]) -> (images, labels)."""
    return transform(images, jax.vmap(lambda key: draw(key, pipe))(keys), pipe)


def transform(images: jax.Array, draws: dict, pipe: Pipe) -> tuple[jax.Array, jax.Array]:
    """Applies the transformations that the draws stand for.

    Args:
      images: float32 [B, H, W, C]; H = W where rotate_int is present.
      draws: {operation: arrays [B]} as `draw` gives, for each of `pipe.operations`.
      pipe: which operations.

    Returns:
      The images, and labels float32 [B, pipe.label_dim]: zeros where nothing was done.
    """
    labels, g = [], jnp.eye(3)
    for name in pipe.operations:
        rate = getattr(pipe, name) * pipe.probability
        values, gate = _parameters(name, draws[name])
        values = [jnp.where(gate < rate, value, 0) for value in values]
        if name in RESAMPLING:
            matrix, label = RESAMPLING[name](images.shape, *values)
            g = jnp.matmul(g, matrix, precision="highest")
        else:
            images, label = WHOLE_PIXELS[name](images, *values)
        labels += label
    if RESAMPLING.keys() & set(pipe.operations):
        images = _resample(images, g)
    labels = [jnp.asarray(label, jnp.float32) for label in labels]
    return images, jnp.stack(labels, -1) if labels else jnp.zeros((len(images), 0))


def _parameters(name: str, draws: tuple) -> tuple[list, jax.Array]:
    """An operation's parameters for where its gate opens, and the gate."""
    angle = lambda u: (2 * u - 1) * jnp.pi
    if name == "aniso":  # its angle has a gate of its own, which the probability does not scale
        z, u, gate, rotates = draws
        return [z, jnp.where(rotates < ANISO_ROTATE_PROBABILITY, angle(u), 0)], gate
    *values, gate = draws
    if name == "rotate_frac":
        values = [angle(u) for u in values]
    if name == "translate_int":
        values = [2 * u - 1 for u in values]
    return values, gate


# ---- operations that move whole pixels: (images, parameters [B]) -> images, labels ---------------


def _xflip(images, i):
    return _where(i == 1, images[:, :, ::-1], images), [i]


def _yflip(images, i):
    return _where(i == 1, images[:, ::-1], images), [i]


def _rotate_int(images, i):
    images = _where((i == 1) | (i == 2), images[:, :, ::-1], images)
    images = _where(i >= 2, images[:, ::-1], images)
    images = _where(i % 2 == 1, images.swapaxes(1, 2), images)
    return images, [(i == 1) | (i == 2), i >= 2]


def _translate_int(images, *share):
    _, height, width, _ = images.shape
    most = width * TRANSLATE_INT_MAX, height * TRANSLATE_INT_MAX
    tx, ty = (jnp.round(a * m) for a, m in zip(share, most))
    return _shift(_shift(images, -tx, 2), ty, 1), [tx / most[0], ty / most[1]]


def _where(condition, a, b):
    return jnp.where(condition[:, None, None, None], a, b)


def _shift(images, by, axis):
    """out[x] = in[x + by], mirrored at the edges (the edge itself is not repeated)."""
    n = images.shape[axis]
    at = jnp.arange(n) + by.astype(jnp.int32)[:, None]
    at = n - 1 - jnp.abs(n - 1 - at % (2 * n - 2))
    at = at.reshape(len(images), *(n if a == axis else 1 for a in (1, 2, 3)))
    return jnp.take_along_axis(images, at, axis)


WHOLE_PIXELS = {
    "xflip": _xflip,
    "yflip": _yflip,
    "rotate_int": _rotate_int,
    "translate_int": _translate_int,
}

# ---- operations that resample: (shape, parameters [B]) -> factor of G [B, 3, 3], labels ----------


def _scale(shape, z):
    s = 2 ** (SCALE_STD * z)
    return _scaling(1 / s, 1 / s), [z]


def _rotate_frac(shape, w):
    return _rotation(w), [jnp.cos(w) - 1, jnp.sin(w)]


def _aniso(shape, z, r):
    s = 2 ** (ANISO_STD * z)
    exact = functools.partial(jnp.matmul, precision="highest")
    g = exact(exact(_rotation(-r), _scaling(1 / s, s)), _rotation(r))
    return g, [z * jnp.cos(r), z * jnp.sin(r)]


def _translate_frac(shape, zx, zy):
    _, height, width, _ = shape
    x, y = zx * TRANSLATE_FRAC_STD * width, zy * TRANSLATE_FRAC_STD * height
    return _matrix([[1, 0, -x], [0, 1, -y], [0, 0, 1]]), [zx, zy]


def _rotation(a):
    c, s = jnp.cos(a), jnp.sin(a)
    return _matrix([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _scaling(x, y):
    return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def _matrix(rows):
    """3 x 3 numbers or arrays [B] -> [B, 3, 3] float32."""
    entries = jnp.broadcast_arrays(*(jnp.asarray(e, jnp.float32) for row in rows for e in row))
    return jnp.stack(entries, -1).reshape(-1, 3, 3)


RESAMPLING = {
    "scale": _scale,
    "rotate_frac": _rotate_frac,
    "aniso": _aniso,
    "translate_frac": _translate_frac,
}


def _resample(images, g):
    """Each picture seen through G, which maps a place in the output to one in the input.

    Places are (x right, y down, 1) in pixels from the picture's centre. The input is mirrored at
    its edges once, and zero beyond.

    images: float32 [B, H, W, C]; g: float32 [B, 3, 3].
    """
    batch, height, width, channels = images.shape
    exact = functools.partial(jnp.einsum, precision="highest")  # TF32 would show in 8 bits
    up = exact("yh,bhwc->bywc", _upsampling(height), images)
    up = exact("xw,bywc->byxc", _upsampling(width), up)
    tall, wide = up.shape[1:3]

    # Where each pixel of the output, at twice its size and with a margin, is in `up`.
    out = [2 * (n + MARGIN) for n in (height, width)]
    y, x = (np.arange(n) + 0.5 - n / 2 for n in out)
    y, x = np.meshgrid((y + 0.5) / 2, (x + 0.5) / 2, indexing="ij")
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)
    x, y = jnp.moveaxis(exact("bij,jn->bin", g[:, :2], places), 1, 0)
    x, y = 2 * x - 0.5 + wide / 2 - 0.5, 2 * y - 0.5 + tall / 2 - 0.5

    flat = up.reshape(batch, tall * wide, channels)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    total = 0.0
    for dx in (0, 1):
        for dy in (0, 1):
            xi, yi = x0 + dx, y0 + dy
            weight = (1 - jnp.abs(x - xi)) * (1 - jnp.abs(y - yi))
            inside = (xi >= 0) & (xi < wide) & (yi >= 0) & (yi < tall)
            at = jnp.clip(yi, 0, tall - 1) * wide + jnp.clip(xi, 0, wide - 1)
            value = jnp.take_along_axis(flat, at.astype(jnp.int32)[..., None], 1)
            total += jnp.where(inside, weight, 0.0)[..., None] * value
    total = total.reshape(batch, *out, channels)
    total = exact("wx,byxc->bywc", _downsampling(width), total)
    return exact("hy,bywc->bhwc", _downsampling(height), total)


@functools.cache
def _upsampling(n: int) -> np.ndarray:
    """[2 (3n - 2), n]: mirrored by n - 1 on both sides, zeros between, then SYM6 reversed."""
    padded = np.pad(np.eye(n), [(n - 1, n - 1), (0, 0)], mode="reflect")
    spaced = np.zeros((2 * len(padded) - 1 + 2 * MARGIN, n))
    spaced[MARGIN:-MARGIN:2] = padded
    windows = np.lib.stride_tricks.sliding_window_view(spaced, len(SYM6), axis=0)
    return (windows @ SYM6[::-1]).astype(np.float32)


@functools.cache
def _downsampling(n: int) -> np.ndarray:
    """[n, 2 (n + 6)]: SYM6, every second value, the margin cropped."""
    matrix = np.zeros((n, 2 * (n + MARGIN)))
    for i in range(n):
        start = 2 * i + 1  # 2 (i + 3) - 5: three rows are cropped, five zeros stood before
        matrix[i, start : start + len(SYM6)] = SYM6
    return matrix.astype(np.float32)
