"""What relay diffusion's two reproduction scripts do to pictures before they are scored.

The published numbers presumably include it: ImageNet's pictures are made 6 % brighter; CelebA-HQ's
lose a tenth of their contrast and become 5 % brighter and 1 % greyer. Comparisons of samplers leave
it off.

Each operation is trunc(clip(d + f (x - d), 0, 255)) in float32 on 8 bits: d is 0 for brightness,
the mean grey of the picture for contrast, the pixel's grey for colour. The result depends on two
numbers of 8 bits, so it is a table, made on the host: on an accelerator a fused multiply-add would
now and then truncate to the level below.
"""

import jax
import jax.numpy as jnp
import numpy as np

RECIPES = {
    "imagenet": (("brightness", 1.06),),
    "celebahq": (("contrast", 0.9), ("brightness", 1.05), ("colour", 0.99)),
}


def apply(image: jax.Array, recipe: str) -> jax.Array:
    """Pictures uint8 [B, H, W, 3] after a recipe of `RECIPES`, uint8 of the same shape.

    One channel is its own grey, as three equal ones would be.
    """
    for operation, factor in RECIPES[recipe]:
        grey = _grey(image)
        if operation == "brightness":
            towards = jnp.zeros_like(image)
        elif operation == "contrast":
            n = grey[0].size
            # The mean of the picture, rounded half up, in whole numbers.
            mean = (2 * jnp.sum(grey, (1, 2), keepdims=True) + n) // (2 * n)
            towards = jnp.broadcast_to(mean[..., None], image.shape)
        else:
            towards = jnp.broadcast_to(grey[..., None], image.shape)
        image = jnp.asarray(_table(factor))[towards.astype(jnp.int32), image.astype(jnp.int32)]
    return image


def _grey(image: jax.Array) -> jax.Array:
    """int32 [B, H, W]: luma in 16-bit fixed point, as Pillow has it."""
    weights = np.array([19595, 38470, 7471] if image.shape[-1] == 3 else [65536])
    return (jnp.sum(image.astype(jnp.int32) * weights, -1) + 32768) >> 16


def _table(factor: float) -> np.ndarray:
    """uint8 [256, 256]: (d, x) -> trunc(clip(d + f (x - d)))."""
    d, x = np.arange(256, dtype=np.float32)[:, None], np.arange(256, dtype=np.float32)
    return np.clip(d + np.float32(factor) * (x - d), 0, 255).astype(np.uint8)
