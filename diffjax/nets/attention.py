"""Softmax attention, the one form that every network here uses."""

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(c)) v, with products and softmax in float32. Vaswani et al. 2017, eq. 1.

    Args:
      q, k, v: [B, N, heads, c], all of one dtype.

    Returns:
      [B, N, heads, c] in that dtype. The division is done in it too, as EDM's networks do.
    """
    k = k / k.shape[-1] ** 0.5
    w = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32)
    w = jax.nn.softmax(w, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", w, v)
