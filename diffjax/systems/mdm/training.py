"""One training example of MDM: the part of a clip that a step sees, its mask and its prefix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.data.motion.base import crop
from diffjax.systems.mdm.motions import mask_of


class Example(NamedTuple):
    """x0 [B, N, D], mask bool [B, N], and prefix [B, C, D] or None."""

    x0: jax.Array
    mask: jax.Array
    prefix: jax.Array | None


def examples(motion, length, keys, *, context: int, predict: int, unit: int) -> Example:
    """Returns what is trained on of padded clips.

    Args:
      motion: [B, max_frames, D], 0 behind each clip.
      length: int32 [B].
      keys: [B], of the draws.
      context, predict: above 0, C frames that are known and P that follow, cut out at random (DiP,
        Tevet et al. 2025); clips are at least as long.
      unit: above 0, a clip is cut at random to a multiple of it, as HumanML3D is trained on
        (`data.motion.base.crop`).
    """
    if predict:
        whole = context + predict

        def window(one, count, key):
            start = jax.random.randint(key, (), 0, jnp.maximum(count - whole, 0) + 1)
            return jax.lax.dynamic_slice_in_dim(one, start, whole)

        cut = jax.vmap(window)(motion, length, keys)
        return Example(cut[:, context:], jnp.ones((len(cut), predict), bool), cut[:, :context])
    if unit:
        motion, length = jax.vmap(lambda m, n, k: crop(m, n, k, unit))(motion, length, keys)
    return Example(motion, mask_of(length, motion.shape[1]), None)
