"""A config's training step, compiled for devices that may not be there: from shapes alone."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.run import mesh as meshes
from diffjax.run import update
from diffjax.run.feed import make_feed
from diffjax.run.loop import check_config
from diffjax.run.pods import flops


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step as it is written, for devices that may not be there.

    Attributes:
      mesh: of these devices.
      held: {kind: bytes a device} of what the step is given: parameters, optimizer, averages, ....
      parameters: how many numbers are trained.
      traced: as JAX gives it.
    """

    mesh: jax.sharding.Mesh
    held: dict[str, int]
    parameters: int
    traced: Any

    @property
    def count(self) -> flops.Count:
        """The FLOPs of all devices."""
        return flops.of_jaxpr(self.traced.jaxpr.jaxpr)


@dataclasses.dataclass(frozen=True)
class Program:
    """A step, compiled.

    Attributes:
      mesh, held, parameters, count: of the `Step`.
      compiled: as JAX gives it; None where it does not fit.
      refused: the compiler's words in that case.
      seconds: that compiling took.
    """

    mesh: jax.sharding.Mesh
    held: dict[str, int]
    parameters: int
    count: flops.Count
    compiled: Any
    refused: str
    seconds: float


def trace_step(system, config, devices) -> Step:
    """Traces the step of `run.loop` for devices, from shapes alone.

    Raises:
      UserError: a config, mesh or batch that training would refuse too.
    """
    check_config(config)
    mesh = meshes.make_mesh(config.mesh, devices)
    update.check_batch(config, mesh)
    state, shardings = update.state_shapes(system, config, mesh)
    feed = make_feed(system, config, mesh)
    beside = [] if system.beside is None else [shapes_beside(system, mesh)]
    share = jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))
    held = {
        "parameters": a_device(state.params),
        "optimizer": a_device(state.opt_state),
        "averages": a_device(state.ema),
        "data": a_device(feed.shapes),
        **({"weights beside": a_device(beside)} if beside else {}),
    }
    step = update.jitted_step(system, config, feed, mesh, shardings)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Step(mesh, held, count, step.trace(state, feed.shapes, share, *beside))


def compile_step(system, config, devices) -> Program:
    """Compiles the same; raises as `trace_step`."""
    step = trace_step(system, config, devices)
    begin, compiled, refused = time.monotonic(), None, ""
    try:
        compiled = step.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = str(error)
    seconds = time.monotonic() - begin
    return Program(step.mesh, step.held, step.parameters, step.count, compiled, refused, seconds)


def without_data(config):
    """Returns (config, what stands in for its data, in words or ""): pictures of config's size.

    Only where the config names no data and says how large its pictures are.
    """
    data = config.get("data", {})
    size = data.get("image_size", 0)
    if data.get("path") != "" or not isinstance(size, int) or size < 1 or data.get("frames", 0):
        return config, ""
    made = config.copy_and_resolve_references()
    made.unlock()
    made.data.path = f"shapes:{size}x{size}x3"
    return made, (
        f"pictures {size}x{size}x3 without classes stand in for them "
        f"(--config.data.path=shapes:{size}x{size}x3:1000 has a thousand)"
    )


def shapes_beside(system, mesh):
    """The weights of another run that training looks at, as shapes on a mesh of other devices."""
    weights, _ = system.beside(meshes.make_mesh(meshes.LOCAL))
    place = meshes.tree_shardings(weights, system.sharding, mesh)
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        weights,
        place,
    )


def a_device(tree) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    size = 0
    for leaf in jax.tree.leaves(tree):
        part = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        size += part.size * part.dtype.itemsize
    return size
