"""The networks: what computes. They know no process, no loss and no system."""

import jax.numpy as jnp

from diffjax.errors import UserError, choose
from diffjax.nets import unet_small

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make(network, *, channels: int, num_classes: int, shape: tuple[int, int, int]):
    """Returns the linen module that a config's `network` group describes.

    Args:
      network: kind and its fields; lists stand for tuples, as JSON has none.
      channels: output channels.
      num_classes: 0 for an unconditional net.
      shape: (height, width, channels) of the input, to refuse what the net cannot divide.
    """
    for name in ("kind", "widths", "patch", "embedding", "dtype"):
        if name not in network:
            raise UserError(f"config.network lacks the field {name!r}")
    choose(network.kind, {"unet_small": 0}, "config.network.kind")
    widths, patch = tuple(network.widths), network.patch
    whole = lambda n: isinstance(n, int) and n >= 1
    for name in ("patch", "embedding"):
        if not whole(network[name]):
            raise UserError(f"config.network.{name} {network[name]!r}: a whole number above 0")
    if not widths or not all(whole(w) and w % 8 == 0 for w in widths):
        raise UserError(f"config.network.widths {widths}: multiples of 8 (the norm has 8 groups)")
    divisor = patch * 2 ** (len(widths) - 1)
    if shape[0] % divisor or shape[1] % divisor:
        raise UserError(
            f"images of {shape[0]}x{shape[1]} do not divide by {divisor} "
            f"(config.network.patch {patch} and {len(widths)} levels): set config.data.image_size"
        )
    return unet_small.UNetSmall(
        channels=channels,
        widths=widths,
        num_classes=num_classes,
        patch=patch,
        embedding=network.embedding,
        dtype=choose(network.dtype, DTYPES, "config.network.dtype"),
    )


def sharding(network) -> tuple:
    """Returns the net's rules, (regular expression over a path, PartitionSpec), ...."""
    return unet_small.SHARDING
