"""Softmax attention: the form of the picture networks, and one that masks keys."""

import re

import jax
import jax.numpy as jnp

from diffjax.errors import choose

# What `attend_masked` may compute with; "auto" is one of the others.
IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn")
FUSED = ("xla", "cudnn")  # those that are told how many keys there are, not which


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


FEW = 8  # sequences: below, one call more costs more time than its arithmetic saves


def implementation_for(name: str, dtype, channels: int, batch: int = FEW) -> str:
    """Returns what "auto" is here: "cudnn" where there is one that takes it, else "einsum".

    Args:
      name: one of `IMPLEMENTATIONS`; all but "auto" are returned as they are.
      dtype: of the queries. cuDNN's attention wants half precision,
      channels: of a head; a multiple of 8 up to 128, and an Nvidia GPU from 2020 on.
      batch: of sequences; for less than `FEW` it is "einsum".

    Raises:
      UserError: a name that is none of `IMPLEMENTATIONS`.
    """
    choose(name, dict.fromkeys(IMPLEMENTATIONS), "attention")
    if name != "auto":
        return name
    able = jnp.dtype(dtype).itemsize == 2 and channels % 8 == 0 and channels <= 128
    if not able or batch < FEW or jax.default_backend() != "gpu":
        return "einsum"
    # "9.0" of an H200; AMD's GPUs have names such as "gfx90a".
    capability = re.fullmatch(r"(\d+)\.\d+", str(jax.devices()[0].compute_capability))
    return "cudnn" if capability and int(capability[1]) >= 8 else "einsum"


def attend_masked(q, k, v, mask=None, implementation: str = "einsum", dropout=None) -> jax.Array:
    """softmax(q k^T / sqrt(c)) v over the keys that the mask leaves; softmax in float32.

    Args:
      q: [B, N, heads, c].
      k, v: [B, S, heads, c], of q's dtype.
      mask: bool [B, S], True = attended to, or None for all. "xla" and "cudnn" know its number of
        True only and take the first so many keys: it must be True up to a length. A single key
        (S = 1) is never masked.
      implementation: "einsum"; "xla" or "cudnn" of jax.nn.dot_product_attention, whose results
        differ by rounding. "cudnn" wants a GPU, half precision, and N and S even, and is fast
        where they are multiples of 8.
      dropout: a function of the softmax's weights [B, heads, N, S], or None. It needs them as an
        array, which only "einsum" makes: it is taken then, whatever `implementation` says.

    Returns:
      [B, N, heads, c] in q's dtype.
    """
    if k.shape[1] == 1 and dropout is None:
        return jnp.broadcast_to(v, q.shape)  # the weight of the only key is 1
    if implementation in FUSED and dropout is None:
        lengths = None if mask is None else mask.sum(-1, dtype=jnp.int32)
        return jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=lengths, implementation=implementation
        )
    w = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32)
    w = w * q.shape[-1] ** -0.5
    if mask is not None and k.shape[1] > 1:
        w = jnp.where(mask[:, None, None], w, jnp.finfo(w.dtype).min)
    w = jax.nn.softmax(w, axis=-1)
    w = w if dropout is None else dropout(w)
    return jnp.einsum("bhqk,bkhc->bqhc", w.astype(q.dtype), v)
