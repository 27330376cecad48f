"""Rotations of 3-D vectors as quaternions, matrices, 6D, axis-angle and Euler angles.

Quaternions are (w, x, y, z) on the last axis, matrices act on column vectors, angles are radians.
Every function broadcasts over leading axes and works alike on NumPy arrays, whose dtype it keeps,
and on JAX arrays, also inside jit.
"""

from itertools import permutations
from typing import Any

import numpy as np

Array = Any  # of NumPy or of JAX
ORDERS = tuple("".join(p) for p in permutations("xyz"))


def namespace(*arrays):
    """Returns jax.numpy if any of the arrays is JAX's, else numpy."""
    for array in arrays:
        if not isinstance(array, np.ndarray) and hasattr(array, "__array_namespace__"):
            return array.__array_namespace__()
    return np


def norm(x: Array) -> Array:
    """Returns the Euclidean length over the last axis, which is kept: [..., n] -> [..., 1]."""
    return namespace(x).sqrt((x * x).sum(-1, keepdims=True))


def unit(x: Array) -> Array:
    """Returns x / |x| over the last axis, and 0 for x = 0."""
    xp = namespace(x)
    square = (x * x).sum(-1, keepdims=True)
    empty = square == 0  # the inner `where` keeps the gradient finite
    return xp.where(empty, 0.0, x / xp.sqrt(xp.where(empty, 1.0, square))).astype(x.dtype)


def cross(a: Array, b: Array) -> Array:
    """Returns a x b, [..., 3]."""
    return namespace(a, b).cross(a, b)


def conjugate(q: Array) -> Array:
    """Returns the conjugate, which for a unit quaternion is the inverse rotation."""
    return q * np.array([1, -1, -1, -1], q.dtype)


def multiply(a: Array, b: Array) -> Array:
    """Returns the Hamilton product ab: first the rotation b, then a."""
    xp = namespace(a, b)
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    w = aw * bw - (av * bv).sum(-1, keepdims=True)
    return xp.concatenate([w, aw * bv + bw * av + cross(av, bv)], -1)


def rotate(q: Array, v: Array) -> Array:
    """Returns the vectors v [..., 3] rotated by the unit quaternions q [..., 4]."""
    xp = namespace(q, v)
    u = xp.broadcast_to(q[..., 1:], np.broadcast_shapes(q.shape[:-1] + (3,), v.shape))
    t = cross(u, v)
    return v + 2 * (q[..., :1] * t + cross(u, t))


def between(a: Array, b: Array) -> Array:
    """Returns the shortest rotation that turns the direction of a to that of b, [..., 4].

    It is [|a||b| + a.b, a x b], normalised. Exactly opposite vectors, which give the published
    extraction a NaN, are turned by pi about some axis perpendicular to a; a vector 0 gives the
    identity.
    """
    xp = namespace(a, b)
    a, b = xp.broadcast_arrays(a, b)
    length = norm(a) * norm(b)
    w = length + (a * b).sum(-1, keepdims=True)
    q = xp.concatenate([w, cross(a, b)], -1)
    least = np.finfo(q.dtype).eps ** 2 * length**2
    opposite = (q * q).sum(-1, keepdims=True) <= least
    # Perpendicular to a: its cross product with the axis that it is farthest from.
    axis = (abs(a) == abs(a).min(-1, keepdims=True)).astype(a.dtype)
    axis = axis * (xp.cumsum(axis, -1) == 1)
    turn = xp.concatenate([xp.zeros_like(w), unit(cross(a, axis))], -1)
    still = xp.concatenate([xp.ones_like(w), xp.zeros_like(a)], -1)
    return unit(xp.where(length == 0, still, xp.where(opposite, turn, q)))


def about(axis: str, angle: Array) -> Array:
    """Returns the rotation by `angle` [...] about "x", "y" or "z", [..., 4]."""
    xp = namespace(angle)
    parts = [xp.zeros_like(angle)] * 4
    parts[0], parts[1 + "xyz".index(axis)] = xp.cos(angle / 2), xp.sin(angle / 2)
    return xp.stack(parts, -1)


def slerp(a: Array, b: Array, share: Array) -> Array:
    """Returns the rotation `share` [...] of the shorter way from unit quaternions a to b.

    Shoemake 1985. At share 1/2 it is the normalised mean of the two.
    """
    xp = namespace(a, b)
    b = xp.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
    cosine = xp.clip((a * b).sum(-1, keepdims=True), -1.0, 1.0)
    angle, share = xp.arccos(cosine), share[..., None]
    near = angle < 1e-4  # linear there: sin(angle) would divide rounding by rounding
    sine = xp.where(near, 1.0, xp.sin(angle))
    left = xp.where(near, 1 - share, xp.sin((1 - share) * angle) / sine)
    right = xp.where(near, share, xp.sin(share * angle) / sine)
    return unit(left * a + right * b)


def to_matrix(q: Array) -> Array:
    """Returns the rotation matrices of unit quaternions, [..., 4] -> [..., 3, 3]."""
    xp = namespace(q)
    w, x, y, z = (q[..., i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def from_matrix(m: Array) -> Array:
    """Returns the unit quaternions of rotation matrices, [..., 3, 3] -> [..., 4], w or the largest
    part positive.

    Of the four ways to write q times one of its parts, takes the one whose part is largest, so that
    nothing is divided by a small number.
    """
    xp = namespace(m)
    a = m
    rows = [
        [
            1 + a[..., 0, 0] + a[..., 1, 1] + a[..., 2, 2],
            a[..., 2, 1] - a[..., 1, 2],
            a[..., 0, 2] - a[..., 2, 0],
            a[..., 1, 0] - a[..., 0, 1],
        ],
        [
            a[..., 2, 1] - a[..., 1, 2],
            1 + a[..., 0, 0] - a[..., 1, 1] - a[..., 2, 2],
            a[..., 0, 1] + a[..., 1, 0],
            a[..., 0, 2] + a[..., 2, 0],
        ],
        [
            a[..., 0, 2] - a[..., 2, 0],
            a[..., 0, 1] + a[..., 1, 0],
            1 - a[..., 0, 0] + a[..., 1, 1] - a[..., 2, 2],
            a[..., 1, 2] + a[..., 2, 1],
        ],
        [
            a[..., 1, 0] - a[..., 0, 1],
            a[..., 0, 2] + a[..., 2, 0],
            a[..., 1, 2] + a[..., 2, 1],
            1 - a[..., 0, 0] - a[..., 1, 1] + a[..., 2, 2],
        ],
    ]
    table = xp.stack([xp.stack(row, -1) for row in rows], -2)
    size = xp.stack([rows[i][i] for i in range(4)], -1)
    best = (xp.argmax(size, -1)[..., None] == np.arange(4)).astype(m.dtype)
    return unit((table * best[..., None]).sum(-2))


def to_6d_columns(m: Array) -> Array:
    """Returns the first two columns of matrices, one after the other: [..., 3, 3] -> [..., 6].

    HumanML3D's 6D; not to be confused with `to_6d_rows`.
    """
    return namespace(m).concatenate([m[..., 0], m[..., 1]], -1)


def from_6d_columns(d: Array) -> Array:
    """Returns matrices from HumanML3D's 6D, [..., 6] -> [..., 3, 3]: x is the first vector, z is
    perpendicular to both, y completes them."""
    xp = namespace(d)
    x = unit(d[..., :3])
    z = unit(cross(x, d[..., 3:]))
    return xp.stack([x, cross(z, x), z], -1)


def to_6d_rows(m: Array) -> Array:
    """Returns the first two rows of matrices: [..., 3, 3] -> [..., 6].

    The 6D of PyTorch3D and of MDM's action models (Zhou et al. 2019 take columns).
    """
    return m[..., :2, :].reshape(*m.shape[:-2], 6)


def from_6d_rows(d: Array) -> Array:
    """Returns matrices from `to_6d_rows`' 6D by Gram-Schmidt, [..., 6] -> [..., 3, 3]."""
    xp = namespace(d)
    first, second = d[..., :3], d[..., 3:]
    x = unit(first)
    y = unit(second - (x * second).sum(-1, keepdims=True) * x)
    return xp.stack([x, y, cross(x, y)], -2)


def from_axis_angle(v: Array) -> Array:
    """Returns the quaternions of rotations by |v| about v, [..., 3] -> [..., 4]."""
    xp = namespace(v)
    square = (v * v).sum(-1, keepdims=True)
    small = square < 1e-12
    angle = xp.sqrt(xp.where(small, 1.0, square))
    scale = xp.where(small, 0.5 - square / 48, xp.sin(angle / 2) / angle)
    return xp.concatenate([xp.where(small, 1 - square / 8, xp.cos(angle / 2)), scale * v], -1)


def from_euler(angles: Array, order: str) -> Array:
    """Returns the quaternions of intrinsic rotations, [..., n] radians -> [..., 4].

    Args:
      angles: one a letter of `order`.
      order: up to three of "xyz" in any order: "zxy" is R = Rz Rx Ry, a BVH file's
        "Zrotation Xrotation Yrotation".
    """
    xp = namespace(angles)
    q = xp.stack([xp.ones_like(angles[..., 0]), *[xp.zeros_like(angles[..., 0])] * 3], -1)
    for i, axis in enumerate(order):
        q = multiply(q, about(axis, angles[..., i]))
    return q


def to_euler(m: Array, order: str) -> Array:
    """Returns the angles of `from_euler` for rotation matrices, [..., 3, 3] -> [..., 3] radians.

    The middle angle is in [-pi/2, pi/2]. Where it is pi/2 only the sum or difference of the others
    is known, and the last is 0.

    Args:
      m: rotation matrices.
      order: one of ORDERS.
    """
    xp = namespace(m)
    i, j, k = ("xyz".index(axis) for axis in order)
    sign = 1 if (j - i) % 3 == 1 else -1
    sine = xp.clip(sign * m[..., i, k], -1.0, 1.0)
    first = xp.arctan2(-sign * m[..., j, k], m[..., k, k])
    last = xp.arctan2(-sign * m[..., i, j], m[..., i, i])
    # arcsin is blunt near its ends; the cosine from the other entries is not.
    middle = xp.arctan2(sine, xp.hypot(m[..., i, i], m[..., i, j]))
    locked = xp.hypot(m[..., i, i], m[..., i, j]) < 1e-7
    first = xp.where(locked, xp.arctan2(sign * m[..., k, j], m[..., j, j]), first)
    return xp.stack([first, middle, xp.where(locked, 0.0, last)], -1)
