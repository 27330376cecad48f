"""Blocks one after the other: scanned in stretches that end where something looks at them.

A transformer's blocks are parameters "0", "1", ..., or with a scan stacked along a leading axis:
"stack" for all of them, "stack_K" for a stretch that begins with block K. A stretch ends at a tap,
whose output a scan over more than it would have to keep for every block.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp

from diffjax.errors import UserError


def stretches(
    depth: int, taps: tuple[int, ...] = (), cuts: tuple[int, ...] = ()
) -> list[tuple[int, int]]:
    """[(first, end), ...]: blocks first .. end - 1, up to the last of taps, or all without taps.

    Args:
      depth: how many blocks there are.
      taps: blocks, counted from 1, after which a stretch ends.
      cuts: where else one ends, as the blocks after differ; 0 and what is out of range are ignored.

    Raises:
      UserError: a tap that is none of the blocks.
    """
    if any(not 0 < tap <= depth for tap in taps):
        raise UserError(f"taps {tuple(taps)}: blocks are counted from 1 to {depth}")
    last = max(taps, default=depth)
    return list(pairwise(sorted({0, last, *taps, *(c for c in cuts if 0 < c < last)})))


def unstack(blocks: dict) -> dict:
    """Parameters of blocks in any form -> {"0": ..., "1": ...}."""
    flat = {}
    for name, tree in blocks.items():
        head, _, first = name.partition("_")
        if head != "stack":
            flat[name] = tree
            continue
        for i in range(len(jax.tree.leaves(tree)[0])):
            flat[str(int(first or 0) + i)] = jax.tree.map(lambda a, i=i: a[i], tree)
    return {name: flat[name] for name in sorted(flat, key=int)}


def like(blocks: dict, wanted: dict) -> dict:
    """Parameters of blocks in any form -> in the form of `wanted`, which may have fewer blocks.

    Args:
      blocks: of the whole net.
      wanted: of the net to fill, arrays or ShapeDtypeStructs. Parts of a block that it lacks are
        left out.

    Raises:
      UserError: `wanted` has a block or a part of one that `blocks` lacks.
    """
    flat, made = unstack(blocks), {}
    for name, shapes in wanted.items():
        head, _, first = name.partition("_")
        if head != "stack":
            made[name] = subset(_block(flat, name), shapes, f"block {name}")
            continue
        count = len(jax.tree.leaves(shapes)[0])
        names = [str(int(first or 0) + i) for i in range(count)]
        parts = [subset(_block(flat, n), shapes, f"block {n}") for n in names]
        made[name] = jax.tree.map(lambda *a: jnp.stack(a), *parts)
    return made


def _block(flat: dict, name: str) -> dict:
    if name not in flat:
        raise UserError(f"the network has {len(flat)} blocks, none numbered {name}")
    return flat[name]


def subset(tree: dict, wanted: dict, where: str) -> dict:
    """What `wanted` has of a tree of dicts. Raises `UserError` for what the tree lacks."""
    if missing := sorted(set(wanted) - set(tree)):
        raise UserError(f"{where}: no weights named {missing[0]!r}")
    inner = lambda name, w: (
        subset(tree[name], w, f"{where}/{name}") if isinstance(w, dict) else tree[name]
    )
    return {name: inner(name, w) for name, w in wanted.items()}


def backbone(params: dict, wanted: dict) -> dict:
    """A network's parameters -> those of the same network with `taps`, to begin a discriminator.

    What only the whole network has (its output, blocks after the last tap) is left out.

    Args:
      params: of the whole network, stacked or not; "blocks" among them.
      wanted: parameters of the tapped one, arrays or ShapeDtypeStructs.

    Raises:
      UserError: the tapped network has something that the whole one lacks.
    """
    rest = {name: tree for name, tree in wanted.items() if name != "blocks"}
    made = subset(params, rest, "backbone")
    return {**made, "blocks": like(params["blocks"], wanted["blocks"])}
