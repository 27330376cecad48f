"""What a network's blocks return, of any network: the backbone of a discriminator.

    blocks(net, unit, inputs)         ->  their names, in the order in which they run
    tapped(net, unit, taps, inputs)   ->  features(params, ...) and which parameters it needs

A network with `taps` of its own (`DiT`, `MMDiT`) returns tokens itself. Of any other, modules of a
kind are its blocks (residual blocks of a U-Net: encoder, middle, decoder), what they return is kept
(`discriminator.captured`), and all axes between the batch and the channels become tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.nets import stacking
from diffjax.nets.discriminator import captured


class Tapped(NamedTuple):
    """A network up to its last tap.

    Attributes:
      features: (params, *inputs, **named) -> [tokens [B, N_k, d_k], ...], one for each tap.
      select: the whole network's parameters -> those that `features` takes: what comes after the
        last tap is left out.
    """

    features: Callable
    select: Callable


def blocks(net: nn.Module, unit: type | None, inputs: tuple) -> tuple[str, ...]:
    """The names of a network's blocks, in the order in which they run.

    Args:
      net: called as net.apply({"params": params}, *inputs).
      unit: the class of its blocks, each of which runs once; not looked at where the network has
        `taps` of its own, whose blocks are "1", "2", ....
      inputs: ShapeDtypeStructs, or what stands for itself (None).

    Raises:
      UserError: a network without blocks, or whose blocks are scanned.
    """
    if hasattr(net, "taps"):
        return tuple(str(i + 1) for i in range(net.depth))
    if unit is None:
        raise UserError(f"{type(net).__name__}: no blocks that a discriminator could look behind")
    seen = []

    def watch(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, unit) and context.method_name == "__call__":
            seen.append("/".join(context.module.path))
        return out

    params = _shapes(net, inputs)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda p, i: net.apply({"params": p}, *i), params, inputs)
    if not seen or len(set(seen)) < len(seen):
        raise UserError(f"{type(net).__name__}: no blocks that a discriminator could look behind")
    return tuple(seen)


def tapped(net: nn.Module, unit: type | None, taps: tuple[int, ...], inputs: tuple) -> Tapped:
    """Returns the network up to its last tap.

    Args:
      taps: blocks, counted from 1, ascending.
      net, unit, inputs: as `blocks`.

    Raises:
      UserError: a tap that is none of the blocks.
    """
    names = blocks(net, unit, inputs)
    if not taps or any(not 0 < tap <= len(names) for tap in taps) or sorted(set(taps)) != [*taps]:
        raise UserError(f"taps {taps}: blocks are counted from 1 to {len(names)}, ascending")
    if hasattr(net, "taps"):
        short = net.clone(taps=tuple(taps))
        wanted = _shapes(short, inputs)
        features = lambda params, *inputs, **named: short.apply(
            {"params": params}, *inputs, **named
        )
        return Tapped(features, lambda params: stacking.backbone(params, wanted))
    whole = _shapes(net, inputs)
    look = captured(net, tuple(names[tap - 1] for tap in taps))
    needed = _needed(look, whole, inputs)
    # flax wants all parameters to be there: what nothing depends on is filled with zeros, which
    # the compiler leaves out with whatever would use them.
    features = lambda params, *inputs, **named: look(_filled(params, whole), *inputs, **named)
    return Tapped(features, lambda params: _picked(params, needed))


def _shapes(net: nn.Module, inputs: tuple):
    of = lambda key: net.lazy_init(key, *inputs)
    return jax.eval_shape(of, jax.random.key(0))["params"]


def _needed(look: Callable, whole, inputs: tuple):
    """A tree of bool like `whole`: whether any feature depends on a parameter."""
    program = jax.make_jaxpr(lambda params, inputs: look(params, *inputs))(whole, inputs).jaxpr
    # Backwards through the traced program: what an operation reads is needed if its result is.
    # An inner program (of a scan, a jitted function) needs all that it is given.
    wanted = {id(v) for v in program.outvars}
    for equation in reversed(program.eqns):
        if any(id(v) in wanted for v in equation.outvars):
            wanted |= {id(v) for v in equation.invars}
    leaves, tree = jax.tree.flatten(whole)
    return jax.tree.unflatten(tree, [id(v) in wanted for v in program.invars[: len(leaves)]])


def _picked(params: dict, needed: dict) -> dict:
    made = {}
    for name, wanted in needed.items():
        if isinstance(wanted, dict):
            if inner := _picked(params[name], wanted):
                made[name] = inner
        elif wanted:
            made[name] = params[name]
    return made


def _filled(params: dict, whole: dict) -> dict:
    made = {}
    for name, shape in whole.items():
        if isinstance(shape, dict):
            made[name] = _filled(params.get(name, {}), shape)
        else:
            made[name] = params[name] if name in params else jnp.zeros(shape.shape, shape.dtype)
    return made
