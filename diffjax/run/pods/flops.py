"""How many floating-point operations a traced program needs: counted, not compiled.

Only matrix products and convolutions count, a multiply-add as two. Products with what padding adds
or with the holes of a dilated input do not: a convolution's two gradients then cost what it costs
itself, strided or not. (Papers count the padding too: a 3x3 convolution of 32x32 pixels is 4 %
cheaper here.)
"""

import dataclasses
import functools
import math

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program multiplies.

    Attributes:
      flops: of all devices together.
      unknown: what could not be counted, in words: loops whose length only the run knows (their
        body counts once), kernels that are opaque.
    """

    flops: int
    unknown: tuple[str, ...] = ()


def count(function, *args) -> Count:
    """Counts function(*args); the arguments may be ShapeDtypeStructs, nothing is computed."""
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr) -> Count:
    """Counts a jaxpr, loops by their length; of a `cond`, the dearest branch."""
    unknown: list[str] = []
    return Count(_total(jaxpr, unknown), tuple(dict.fromkeys(unknown)))


def _total(jaxpr, unknown: list[str]) -> int:
    return sum(_one(equation, unknown) for equation in jaxpr.eqns)


def _one(equation, unknown: list[str]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return of_dot(equation.invars[0].aval.shape, equation.outvars[0].aval.shape, params)
    if name == "conv_general_dilated":
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        return of_convolution(*shapes, params)
    inner = [_total(jaxpr, unknown) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner, default=0)
    total = sum(inner)
    if name == "scan":
        return params["length"] * total
    if name == "while" and total:
        unknown.append("a while loop")
    if name == "shard_map":  # its inside is one device's share, along the axes that it names
        axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
        return total * math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        unknown.append("a Pallas kernel")
        return 0
    return total


def _inside(params):
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def of_dot(left: tuple[int, ...], out: tuple[int, ...], params) -> int:
    """FLOPs of a `dot_general`: two for each element of the result and each contracted index."""
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def of_convolution(left, kernel, out, params) -> int:
    """FLOPs of a `conv_general_dilated`, of the shapes of its input, kernel and result."""
    spec = params["dimension_numbers"]
    _, channels, *kernel_axes = spec.rhs_spec
    batch, features, *out_axes = spec.out_spec
    taps = 1
    for i, (axis, size, result) in enumerate(zip(spec.lhs_spec[2:], kernel_axes, out_axes)):
        taps *= positions(
            left[axis],
            kernel[size],
            out[result],
            params["window_strides"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
            params["rhs_dilation"][i],
        )
    return 2 * out[batch] * out[features] * kernel[channels] * taps


@functools.lru_cache(maxsize=4096)
def positions(
    size: int, kernel: int, out: int, stride: int, low: int, dilation: int, spread: int
) -> int:
    """Pairs (place in the result, tap of the kernel) that meet an element of the input.

    Args:
      size, kernel, out: lengths along one axis.
      stride: of the window. low: the padding before the input.
      dilation: of the input, 1 for none. spread: of the kernel.
    """
    place = stride * np.arange(out)[:, None] + spread * np.arange(kernel) - low
    inside = (place >= 0) & (place <= (size - 1) * dilation)
    return int(np.sum(inside & (place % dilation == 0)))
