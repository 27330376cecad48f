"""Inception-v3 of 2015-12-05, the network of the FID: from a weights file that the user gives.

Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", as in the graph
`classify_image_graph_def.pb` of TensorFlow, on whose pooled features the FID was defined (Heusel et
al. 2017). It is not the Inception-v3 that model libraries ship: 1008 classes; averages that leave
out the padding; a maximum instead of an average in the last block's pooling branch; and pictures
resized bilinearly without half-pixel centres.
"""

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffjax.errors import UserError
from diffjax.metrics.features import FeatureNet, spatial_features
from diffjax.weights import reading, trees

SIZE = 299
BATCH_NORM_EPS = 1e-3


class Outputs(NamedTuple):
    """Of n pictures, float32.

    Attributes:
      pool: [n, 2048], the features of the FID ("pool_3").
      logits: [n, 1008], bias included.
      unbiased: [n, 1008], logits without the bias, which the Inception score takes.
      spatial: [n, 17, 17, 192], the 1x1 branch of Mixed_6d ("mixed_6/conv").
    """

    pool: jax.Array
    logits: jax.Array
    unbiased: jax.Array
    spatial: jax.Array


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; the norm is folded into kernel and bias (`to_params`)."""

    features: int
    size: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x):
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        strides = (self.stride, self.stride)
        x = lax.conv_general_dilated(
            x, kernel, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(x + bias)


class InceptionV3(nn.Module):
    """x float32 [n, 299, 299, 3], (u - 128) / 128 of pictures u in 0..255, -> `Outputs`."""

    classes: int = 1008

    @nn.compact
    def __call__(self, x) -> Outputs:
        def conv(x, name, features, size=(1, 1), stride=1, valid=False):
            padding = "VALID" if stride == 2 or valid else "SAME"
            size = (size, size) if isinstance(size, int) else size
            return Conv(features, size, stride, padding, name=name)(x)

        def chain(x, name, *layers):
            for suffix, features, size in layers:
                x = conv(x, f"{name}_{suffix}", features, size)
            return x

        x = conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = conv(x, "Conv2d_2a_3x3", 32, 3, valid=True)
        x = conv(x, "Conv2d_2b_3x3", 64, 3)
        x = shrink(x)
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = conv(x, "Conv2d_4a_3x3", 192, 3, valid=True)
        x = shrink(x)

        for block, pooled in ("5b", 32), ("5c", 64), ("5d", 64):  # 35 x 35
            at = f"Mixed_{block}.branch"
            x = join(
                conv(x, f"{at}1x1", 64),
                chain(x, f"{at}5x5", (1, 48, 1), (2, 64, 5)),
                chain(x, f"{at}3x3dbl", (1, 64, 1), (2, 96, 3), (3, 96, 3)),
                conv(average(x), f"{at}_pool", pooled),
            )

        at = "Mixed_6a.branch3x3"
        double = chain(x, f"{at}dbl", (1, 64, 1), (2, 96, 3))
        x = join(
            conv(x, at, 384, 3, stride=2),
            conv(double, f"{at}dbl_3", 96, 3, stride=2),
            shrink(x),
        )

        row, column = (1, 7), (7, 1)
        for block, c in ("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192):  # 17 x 17
            at = f"Mixed_{block}.branch"
            one = conv(x, f"{at}1x1", 192)
            if block == "6d":
                spatial = one
            x = join(
                one,
                chain(x, f"{at}7x7", (1, c, 1), (2, c, row), (3, 192, column)),
                chain(
                    x, f"{at}7x7dbl",
                    (1, c, 1), (2, c, column), (3, c, row), (4, c, column), (5, 192, row),
                ),
                conv(average(x), f"{at}_pool", 192),
            )  # fmt: skip

        at = "Mixed_7a.branch"
        three = conv(x, f"{at}3x3_1", 192)
        seven = chain(x, f"{at}7x7x3", (1, 192, 1), (2, 192, row), (3, 192, column))
        x = join(
            conv(three, f"{at}3x3_2", 320, 3, stride=2),
            conv(seven, f"{at}7x7x3_4", 192, 3, stride=2),
            shrink(x),
        )

        row, column = (1, 3), (3, 1)
        for block, pool in ("7b", average), ("7c", widest):  # 8 x 8
            at = f"Mixed_{block}.branch"
            three = conv(x, f"{at}3x3_1", 384)
            double = chain(x, f"{at}3x3dbl", (1, 448, 1), (2, 384, 3))
            x = join(
                conv(x, f"{at}1x1", 320),
                conv(three, f"{at}3x3_2a", 384, row),
                conv(three, f"{at}3x3_2b", 384, column),
                conv(double, f"{at}3x3dbl_3a", 384, row),
                conv(double, f"{at}3x3dbl_3b", 384, column),
                conv(pool(x), f"{at}_pool", 192),
            )

        x = x.mean((1, 2))
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (2048, self.classes))
        bias = self.param("fc_bias", nn.initializers.zeros, (self.classes,))
        unbiased = x @ kernel
        return Outputs(x, unbiased + bias, unbiased, spatial)


def join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, -1)


def shrink(x: jax.Array) -> jax.Array:
    """The largest of 3x3, every other place."""
    return nn.max_pool(x, (3, 3), (2, 2))


def widest(x: jax.Array) -> jax.Array:
    """The largest of 3x3 at each place."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def average(x: jax.Array) -> jax.Array:
    """The mean of 3x3 at each place, of what lies in the picture."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _tf1_weights(n: int) -> np.ndarray:
    """[299, n]: bilinear, output i taken at i n / 299, as TensorFlow 1 did by default."""
    at = np.arange(SIZE) * n / SIZE
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n - 1)
    weights = np.zeros((SIZE, n))
    np.add.at(weights, (np.arange(SIZE), low), 1 - (at - low))
    np.add.at(weights, (np.arange(SIZE), high), at - low)
    return weights.astype(np.float32)


def prepared(images: jax.Array) -> jax.Array:
    """uint8 [n, H, W, 3] -> float32 [n, 299, 299, 3], resized as TensorFlow 1, (u - 128) / 128."""
    _, height, width, _ = images.shape
    x = (images.astype(jnp.float32) - 128) / 128
    return jnp.einsum("ih,nhwc,jw->nijc", _tf1_weights(height), x, _tf1_weights(width))


def to_params(state: dict[str, np.ndarray], where: str) -> dict:
    """Returns the parameters of `InceptionV3` from a state dict in pytorch-fid's names.

    Args:
      state: {"Conv2d_1a_3x3.conv.weight": [out, in, height, width], "....bn.running_mean", ...,
        "fc.weight": [1008, 2048], ...}; an auxiliary head and num_batches_tracked are ignored.
      where: the file, for messages.

    Raises:
      UserError: names or shapes of another network.
    """
    flat = {}
    for name, array in state.items():
        layer, _, part = name.rpartition(".conv.")
        if layer and part == "weight" and array.ndim == 4 and not name.startswith("AuxLogits"):
            norm = {}
            for key in ("weight", "bias", "running_mean", "running_var"):
                norm[key] = state.get(f"{layer}.bn.{key}")
                if norm[key] is None or norm[key].shape != array.shape[:1]:
                    raise UserError(f"{where}: no weights named '{layer}.bn.{key}' that fit")
            scale = norm["weight"] / np.sqrt(
                norm["running_var"].astype(np.float64) + BATCH_NORM_EPS
            )
            flat[f"{layer}/kernel"] = array.transpose(2, 3, 1, 0) * scale
            flat[f"{layer}/bias"] = norm["bias"] - norm["running_mean"] * scale
    for part in ("weight", "bias"):
        if f"fc.{part}" not in state:
            raise UserError(f"{where}: no weights named 'fc.{part}': not the Inception of the FID")
    flat["fc_kernel"], flat["fc_bias"] = state["fc.weight"].T, state["fc.bias"]
    wanted = jax.eval_shape(
        InceptionV3().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))
    )["params"]  # fmt: skip
    return trees.fit(flat, wanted, where)


def apply(params, images: jax.Array) -> Outputs:
    """Runs the network on uint8 [n, H, W, 3] of any size."""
    return InceptionV3().apply({"params": params}, prepared(images))


@functools.lru_cache(maxsize=2)
def inception(path: str | Path) -> FeatureNet:
    """Returns the net of the FID as a feature net (d = 2048), from its weights.

    Its Frechet distance is the FID, its Inception score (softmax without the bias) is that of the
    papers, its spatial features are those of the sFID.

    Args:
      path: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, or safetensors with those names.

    Raises:
      UserError: no such file, or weights of another network.
    """
    path = Path(path)
    state = reading.read_weights(path)
    params = to_params(state, str(path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FeatureNet(
        name="inception",
        dim=2048,
        apply=lambda params, images: apply(params, images).pool,
        probs=lambda params, images: jax.nn.softmax(apply(params, images).unbiased),
        spatial=lambda params, images: spatial_features(apply(params, images).spatial),
        weights=params,
        version=digest[:16],
        is_fid=True,
    )
