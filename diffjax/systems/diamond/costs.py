"""What a DIAMOND run would cost, without an update: parameters, FLOPs, memory of each network."""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.run import dry_run
from diffjax.run import mesh as meshes
from diffjax.systems.diamond import batches
from diffjax.systems.diamond import state as states
from diffjax.systems.diamond.imagination import Starts
from diffjax.systems.diamond.settings import GROUPS, Parts, updates_of


def report(parts: Parts, config, shapes: states.State, mesh) -> int:
    """Compiles an update of each network for shapes alone and prints its costs; returns 0.

    FLOPs are XLA's count: the body of a loop counts once, so that of the policy's they are of one
    step of the imagined worlds.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.params):
        print(f"{meshes.path_name(path):64} {leaf.dtype!s:9} {tuple(leaf.shape)}")
    print(f"devices        {dry_run.of_mesh(mesh)}")
    for network in parts.networks:
        size = config[GROUPS[network]].batch_size
        if network == "actor_critic":
            call, fed = states.policy_call(parts, config, 1), _starts(parts, config, mesh)
        else:
            call = states.train_call(parts, network, config, mesh)
            fed = _batch(parts, config, network, mesh)
        out = states.shardings_of(shapes, mesh), meshes.replicated(mesh)
        compiled = jax.jit(call, donate_argnums=0, out_shardings=out).lower(shapes, fed).compile()
        costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes.params[network]))
        every = updates_of(config, network)
        print(
            f"{network:14} {count:,} parameters, batch {size}, {every(0):,} updates in the first "
            f"epoch and {every(1):,} in each of {config.epochs - 1:,} others; "
            f"{costs.get('flops', float('nan')):.4g} FLOPs an update and device (XLA's count), "
            f"{dry_run.peak(memory) / 2**20:,.1f} MiB a device"
        )
    return 0


def _batch(parts: Parts, config, network: str, mesh) -> dict:
    lead = (1, config[GROUPS[network]].batch_size)
    span = batches.spans(config)[network]
    types = {
        "obs": ((span, *parts.frame), np.uint8),
        "act": ((span,), np.int32),
        "rew": ((span,), np.float32),
        "end": ((span,), bool),
        "mask": ((span,), bool),
        "final": (parts.frame, np.uint8),
        "has_final": ((), bool),
    }
    place = states.stacked_rows(mesh)
    return {
        name: jax.ShapeDtypeStruct((*lead, *types[name][0]), types[name][1], sharding=place)
        for name in batches.FIELDS[network]
    }


def _starts(parts: Parts, config, mesh) -> Starts:
    count = config.imagination.preload * config.actor_critic.batch_size
    whole = meshes.replicated(mesh)
    made = lambda shape, dtype: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=whole)
    memory = made((parts.reward_end.lstm_dim,), jnp.float32)
    return Starts(
        made((parts.past, *parts.frame), jnp.uint8),
        made((parts.past,), jnp.int32),
        (memory, memory),
    )
