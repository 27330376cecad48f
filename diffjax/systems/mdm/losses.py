"""What MDM is trained by: masked squared errors of motions and, where asked for, of their geometry.

Tevet et al. 2023, equations 2 to 5. A loss is one number a motion, [B]; frames that the mask leaves
out do not count.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

STANDING = 0.01  # of a foot joint a frame, in the unit of the joints: below, it stands


class Weights(NamedTuple):
    """Of the geometric terms: lambda_rcxyz, lambda_fc and lambda_vel of the released code."""

    positions: float = 0.0
    contact: float = 0.0
    velocity: float = 0.0


def masked(a, b, mask) -> jax.Array:
    """Mean squared difference over the frames of the mask: [B, N, ...] twice -> float32 [B].

    The sum over the frames divided by their number and the size of one; 0 where there are none.

    Args:
      mask: bool [B, N].
    """
    error = ((a - b) ** 2).reshape(*a.shape[:2], -1).astype(jnp.float32)
    count = mask.sum(1) * error.shape[-1]
    return jnp.where(mask[..., None], error, 0).sum((1, 2)) / (count + 1e-8)


def terms(
    estimate,
    x0,
    mask,
    weights: Weights = Weights(),  # noqa: B008
    *,
    joints_of: Callable | None = None,
    feet: tuple[int, ...] = (),
    before=None,
    rows: int = 0,
    standing: float = STANDING,
) -> dict[str, jax.Array]:
    """Returns {name: float32 [B]} of the terms that weigh anything, and their weighted sum "loss".

    "x0" is the squared error of the motion; "positions" that of the joints; "contact" the squared
    velocity of feet of the estimate in those steps in which x0's feet stand; "velocity" the squared
    error of the differences between frames of the motion, but for its last `rows` numbers.

    Args:
      estimate, x0: [B, N, D], as the network sees motions.
      mask: bool [B, N].
      weights: of the terms after the first.
      joints_of: [B, N, D] -> joints [B, N, J, 3] without the body's way over the floor, for the
        first two of them.
      feet: the joints that may stand.
      before: [B, C, D], known frames that these follow, or None: the velocity of the step from the
        last of them counts too.
      rows: numbers at a frame's end that are not compared as velocities: 6 of `rot6d`, where they
        are the root's place.
      standing: the largest distance a frame of a foot that stands.
    """
    found = {"x0": masked(estimate, x0, mask)}
    if weights.positions or weights.contact:
        theirs, ours = joints_of(x0), joints_of(estimate)
    if weights.positions:
        found["positions"] = masked(ours, theirs, mask)
    if weights.contact:
        feet = list(feet)
        step = jnp.diff(theirs[:, :, feet], axis=1)
        stands = (step**2).sum(-1) <= standing**2
        moved = jnp.where(stands[..., None], jnp.diff(ours[:, :, feet], axis=1), 0)
        found["contact"] = masked(moved, jnp.zeros_like(moved), mask[:, 1:])
    if weights.velocity:
        kept = slice(None, x0.shape[-1] - rows)
        last = None if before is None else before[:, -1:, kept].astype(x0.dtype)
        change = lambda x: jnp.diff(x[..., kept], axis=1, prepend=last)
        steps = mask[:, 1:] if before is None else mask
        found["velocity"] = masked(change(estimate), change(x0), steps)
    scales = {"x0": 1.0, **weights._asdict()}
    return {**found, "loss": sum(scales[name] * value for name, value in found.items())}
