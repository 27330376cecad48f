"""Devices as one mesh, and where each array lives on it."""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffjax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
LOCAL = {"data": -1}  # all devices as data, for sampling
BATCH = PartitionSpec(("data", "fsdp"))  # fsdp devices hold other rows and other parameters


def make_mesh(sizes: dict[str, int], devices: Sequence | None = None) -> Mesh:
    """Returns the mesh over all devices; one size may be -1 (what is left).

    Args:
      sizes: {"data": -1, "fsdp": 1, "tensor": 1, "context": 1}, a config's `mesh`.
      devices: all that JAX finds, where it is None. Of several slices of TPUs, `data` is cut over
        the slices first: only gradients cross the network between them.

    Raises:
      UserError: where the sizes' product is not the number of devices, or slices do not divide
        `data`.
    """
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if any(n < 1 and n != -1 for n in shape) or shape.count(-1) > 1:
        raise UserError(f"config.mesh {dict(zip(AXES, shape))}: sizes are >= 1, one may be -1")
    fixed = 1
    for n in shape:
        fixed *= n if n != -1 else 1
    if -1 in shape and count % fixed == 0:
        shape[shape.index(-1)] = count // fixed
        fixed = count
    if fixed != count:
        given = " x ".join(f"{a}={n}" for a, n in zip(AXES, shape))
        raise UserError(f"config.mesh {given} does not make {count} devices")
    # Auto axes: shardings are hints on arrays and XLA does the rest; the explicit mode that
    # make_mesh gives otherwise refuses plain indexing.
    auto = (AxisType.Auto,) * len(AXES)
    slices = slices_of(devices)
    if shape[0] % slices:
        raise UserError(f"config.mesh.data={shape[0]} does not divide over {slices} slices")
    if any(device.device_kind == "TPU v4" and device.core_on_chip for device in devices):
        # Without the chip its two cores are compiled for one by one, which make_mesh refuses.
        devices = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.id))
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=auto)
    if slices == 1:
        try:
            return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)
        except NotImplementedError:  # an axis of the mesh is no whole axes of the chips' network
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return Mesh(grid, AXES, axis_types=auto)
    inside, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=auto)


def slices_of(devices) -> int:
    """How many slices of TPUs, or how many networks of other devices, these are in."""
    return len({getattr(device, "slice_index", None) for device in devices})


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def tree_shardings(tree, rules, mesh: Mesh):
    """Returns a sharding for each leaf of a tree of arrays or ShapeDtypeStructs.

    The leaf's path ("params/block_0/conv/kernel") is searched with each rule's expression; the
    first that matches gives its PartitionSpec, none means replicated. An axis that does not divide
    its dimension is left out: correct everywhere, sharded where it fits.
    """

    def one(path, leaf):
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, _fit(spec, leaf.shape, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def path_name(path) -> str:
    """Returns a tree path as "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if len(spec) > len(shape):  # optimiser scalars that share a parameter's path
        return PartitionSpec()

    def keep(axes, dim):
        names = axes if isinstance(axes, tuple) else (axes,)
        size = 1
        for name in names:
            size *= mesh.shape[name] if name else 1
        return axes if size and dim % size == 0 else None

    return PartitionSpec(*(keep(axes, dim) for axes, dim in zip(spec, shape)))
