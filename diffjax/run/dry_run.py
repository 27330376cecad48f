"""What a config would cost, without a step: parameters, FLOPs, memory, shapes."""

import jax
import jax.numpy as jnp

from diffjax.run import mesh as meshes
from diffjax.run import update
from diffjax.run.feed import make_feed
from diffjax.run.loop import check_config
from diffjax.run.system import System


def report(system: System, config) -> int:
    """Compiles the training step for shapes alone and prints its costs; returns 0.

    FLOPs are XLA's count: the body of a loop counts once, so with config.accumulate > 1 they are
    of one slice.
    """
    check_config(config)
    mesh = meshes.make_mesh(config.mesh)
    update.check_batch(config, mesh)
    state, shardings = update.state_shapes(system, config, mesh)
    shapes = state.params
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        print(f"{meshes.path_name(path):48} {leaf.dtype!s:9} {tuple(leaf.shape)}")
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))

    beside = [] if system.beside is None else [system.beside(mesh)[0]]
    feed = make_feed(system, config, mesh)
    share = jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))
    step = update.jitted_step(system, config, feed, mesh, shardings)
    compiled = step.lower(state, feed.shapes, share, *beside).compile()
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    print(f"devices     {of_mesh(mesh)}")
    print(f"parameters  {count:,}")
    print(f"batch       {config.batch_size} (of all devices), {config.steps} steps")
    print(f"FLOPs       {costs.get('flops', float('nan')):.4g} a step and device (XLA's count)")
    if memory is not None:
        print(
            f"memory      {peak(memory) / 2**20:,.1f} MiB a device: "
            f"state and data {memory.argument_size_in_bytes / 2**20:,.1f}, "
            f"temporary {memory.temp_size_in_bytes / 2**20:,.1f}"
        )
    return 0


def of_mesh(mesh) -> str:
    """The devices of a mesh and its axes, in words."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({axes})"


def peak(memory) -> int:
    """Bytes that a compiled program has at most, of its `memory_analysis()`."""
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return size + memory.temp_size_in_bytes - memory.alias_size_in_bytes
