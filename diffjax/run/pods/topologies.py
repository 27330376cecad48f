"""Names of machines to compile for, and the devices that stand for them. Imports no JAX by itself.

"v5p:4x4x4" is a kind of TPU and how its chips lie; `jax.experimental.topologies` makes devices of
it that hold no data but can be compiled for, by libtpu, on a machine without a TPU. "gpu" and
"cpu" are what this machine has.
"""

import dataclasses
import importlib.util
import math
import os
import re

from diffjax.errors import UserError, did_you_mean

LOCAL = ("gpu", "cpu")
# kind: (dimensions of its network, chips of the largest slice, an example)
SHAPES = {
    "v4": (3, 4096, "v4:2x2x1"),
    "v5e": (2, 256, "v5e:2x2"),
    "v5p": (3, 8960, "v5p:4x4x4"),
    "v6e": (2, 256, "v6e:4x4"),
    "tpu7x": (3, 9216, "tpu7x:2x2x1"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a program is to run.

    Attributes:
      kind: a row of `chips.CHIPS`, or one of `LOCAL`.
      shape: how the chips of a slice lie; () for `LOCAL`.
      slices: how many such slices, which reach each other over the hosts' network.
    """

    kind: str
    shape: tuple[int, ...] = ()
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}" if self.shape else self.kind

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices


def parse(text: str, slices: int = 1) -> Topology:
    """Returns the topology that `--compile_for` and `--num_slices` name.

    Raises:
      UserError: an unknown kind, another number of dimensions, more chips than a slice has.
    """
    what = f"--compile_for {text}"
    if text in LOCAL:
        if slices != 1:
            raise UserError(f"--num_slices {slices}: slices are of TPUs, not of {what}")
        return Topology(text)
    kind, colon, dims = text.partition(":")
    if kind not in SHAPES:
        raise UserError(f"{what}: no such kind of machine{did_you_mean(kind, [*SHAPES, *LOCAL])}")
    rank, most, example = SHAPES[kind]
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})*", dims):
        raise UserError(f"{what}: write how the chips of {kind} lie, as {example}")
    shape = tuple(map(int, dims.split("x")))
    if len(shape) != rank:
        raise UserError(f"{what}: chips of {kind} lie in {rank} dimensions, as {example}")
    if math.prod(shape) > most:
        raise UserError(
            f"{what}: {math.prod(shape)} chips, and a slice of {kind} has at most {most}"
            " (--num_slices joins several)"
        )
    return Topology(kind, shape, slices)


def prepare(topology: Topology) -> None:
    """Sets what must be in the environment before JAX is imported; for TPUs looks for libtpu.

    Raises:
      UserError: no libtpu.
    """
    # A program for devices that are not there cannot be read back; others are to be compiled now.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if topology.kind == "gpu":
        return
    # The local accelerator is neither needed nor waited for.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.kind == "cpu":
        return
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--compile_for {topology.name} needs libtpu, which needs no TPU:"
            " pip install 'diffjax[tpu]'"
        )
    # Otherwise libtpu asks the cloud's metadata server who it is, and waits.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Nothing is run, so that neither others who compile nor a TPU at work are in the way.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of a host that is not there; any will do
    }.items():
        os.environ.setdefault(name, value)


def devices(topology: Topology) -> list:
    """Returns the devices; those of TPUs can be compiled for and nothing else.

    Raises:
      UserError: no GPU here, or a shape that libtpu refuses.
    """
    import jax

    if topology.kind in LOCAL:
        if jax.default_backend() != topology.kind:
            raise UserError(
                f"--compile_for {topology.kind}: JAX finds none here, but {jax.default_backend()}"
            )
        return jax.devices()
    from jax.experimental import topologies

    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **more
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--compile_for {topology.name}: {refusal(str(error), topology)}"
        ) from error
    return list(described.devices)


def refusal(error: str, topology: Topology) -> str:
    """Says what libtpu's message means, with the next shape that its hosts make."""
    bounds = re.search(r'chips_per_host_bounds "([0-9]+(?:x[0-9]+)*)"', error)
    if not bounds:
        return f"libtpu refuses it ({error.splitlines()[0][:200]})"
    host = tuple(map(int, bounds[1].split("x")))
    near = tuple(-(-n // h) * h for n, h in zip(topology.shape, host))
    near = f"{topology.kind}:{'x'.join(map(str, near))}"
    return f"hosts of {bounds[1]} chips do not make it (did you mean {near!r}?)"
