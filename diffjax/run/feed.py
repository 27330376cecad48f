"""How batches reach the step: data that fit live on the device, the rest stream through Grain.

Either way batch i is a function of (seed, i), so a run resumes anywhere with nothing stored.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax.data import loader
from diffjax.data.sources import ArraySource
from diffjax.errors import UserError
from diffjax.run import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Feed:
    """Attributes:
    start: first step -> an iterator of what the host feeds, one item a step (global arrays).
    take: (fed, key, step) -> batch; runs inside the jitted step.
    shapes: ShapeDtypeStructs (with shardings) of what is fed, for compiling without data.
    """

    start: Callable[[int], Iterator[Any]]
    take: Callable
    shapes: Any


def make_feed(system, config, mesh: Mesh) -> Feed:
    """Returns the feed of the system's training source.

    An `ArraySource`, and a source with `arrays()` and `gather` of its own (`loader.InMemory.of`),
    is put on the device; any other is streamed by index.
    """
    source = system.data("train")
    if isinstance(source, ArraySource) or hasattr(source, "gather"):
        return _on_device(source, system.balanced, config.batch_size, mesh)
    return _streamed(source, system.balanced, config, mesh)


def _on_device(source, balanced: bool, batch_size: int, mesh: Mesh) -> Feed:
    memory = loader.InMemory.of(source, balanced)
    sharding = meshes.replicated(mesh)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), memory.arrays
    )

    def start(step: int):
        fed = jax.tree.map(
            lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]),
            memory.arrays,
        )
        while True:
            yield fed

    def take(fed, key, step):
        return memory.take(fed, key, step, batch_size, memory.gather)

    return Feed(start, take, shapes)


def _streamed(source, balanced: bool, config, mesh: Mesh) -> Feed:
    shards, processes = meshes.batch_shards(mesh), jax.process_count()
    if shards % processes:
        raise UserError(
            f"config.mesh data x fsdp = {shards} does not divide over {processes} processes, "
            "each of which reads rows of its own"
        )
    sharding = meshes.rows(mesh)
    example = source[0]
    shapes = {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *np.shape(value)), np.asarray(value).dtype, sharding=sharding
        )
        for name, value in example.items()
    }

    def start(step: int):
        local = loader.batches(
            source,
            seed=config.seed,
            batch_size=config.batch_size,
            start=step,
            balanced=balanced,
            process_index=jax.process_index(),
            process_count=processes,
        )
        for batch in local:
            yield {
                name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
                for name, value in batch.items()
            }

    def take(fed, key, step):
        return fed

    return Feed(start, take, shapes)
