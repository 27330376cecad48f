"""What devices send to each other in a compiled program: kind, bytes, and over which network."""

import dataclasses
import math
import re

import numpy as np

from diffjax.run.pods import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
KINDS += ("ragged-all-to-all", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective where it runs.

    Attributes:
      kind: one of `KINDS`.
      group: devices that take part together, one of each slice where it is between slices.
      bytes: of the whole array that is reduced, gathered or exchanged, as one device sees it: what
        goes into an all-reduce, reduce-scatter or all-to-all, what comes out of an all-gather.
      times: how often it runs in one call of the program.
      known: whether every loop around it says how long it is.
      between: whether it is between slices, and not inside one.
    """

    kind: str
    group: int
    bytes: int
    times: int
    known: bool
    between: bool = False

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all its runs, by the ring algorithms."""
        share = (self.group - 1) / self.group
        share = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.bytes * share


def find(module: hlo.Module, devices: int, slices: int = 1) -> list[Collective]:
    """Returns the collectives between at least two devices.

    An exchange that the compiler spreads over a start, a middle and an end, which print the same
    channel, counts once; an all-reduce of which each device keeps a slice is a reduce-scatter.
    Between slices the hosts send, and the text has one slice's program.

    Args:
      devices: how many a slice has.
      slices: how many there are.
    """
    found: dict[object, Collective] = {}
    for number, run in enumerate(module.runs):
        one = _between(run, slices) or _inside(module, run, devices)
        if one is None or one.group < 2:
            continue
        channel = run.instruction.attribute("channel_id")
        found.setdefault((one.kind, channel, run.frame) if channel else number, one)
    return list(found.values())


def _between(run: hlo.Run, slices: int) -> Collective | None:
    if run.instruction.opcode != "send":
        return None
    how = re.search(r'_xla_megascale_transfer_type="(\w+)"', run.instruction.rest)
    if how is None:
        return None
    kind = how[1].lower().replace("_", "-")
    size = run.instruction.shapes[0].bytes * (slices if kind == "all-gather" else 1)
    return Collective(kind, slices, size, run.times, run.known, between=True)


def _inside(module: hlo.Module, run: hlo.Run, devices: int) -> Collective | None:
    kind = run.instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    size = _size(kind, run.instruction, devices)
    given = sum(operand.bytes for operand in module.operands(run.computation, run.instruction))
    whole = given * size if kind == "all-gather" else given
    if kind == "all-reduce" and run.fused and _sliced(module, run):
        kind = "reduce-scatter"
    return Collective(kind, size, whole, run.times, run.known)


def _sliced(module: hlo.Module, run: hlo.Run) -> bool:
    """Whether all that is taken of an instruction's result is a slice."""
    users = [
        other.opcode
        for other in module.computations[run.computation].values()
        if run.instruction.name in other.operands
    ]
    return bool(users) and set(users) == {"dynamic-slice"}


def _size(kind: str, instruction: hlo.Instruction, devices: int) -> int:
    """How many devices take part together; 1: none sends."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.rest)
        found = re.findall(r"\{(\d+),(\d+)\}", pairs[1]) if pairs else []
        return 1 + any(a != b for a, b in found)
    written = re.search(
        r"replica_groups=(mesh\[.*?\{[^}]*\}|.*?(?=, [a-z_]+=|$))", instruction.rest
    )
    return len(groups(written[1] if written else "{}", devices)[0])


def groups(text: str, devices: int) -> list[list[int]]:
    """Reads replica groups in each of the ways in which they are printed; of none, all devices.

    "{{0,1},{2,3}}"; "[2,2]<=[4]", two groups of two; "[2,2]<=[2,2]T(1,0)", of the transposed
    numbers; "mesh['a'=2,'b'=2] {'b'}", along named axes, before which may stand device_ids=(...),
    the order of the devices.
    """
    text = text.strip()
    if text.startswith("mesh["):
        return _along_axes(text, devices)
    iota = re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        numbers = np.arange(devices).reshape([int(n) for n in iota[3].split(",")])
        if iota[4]:
            numbers = numbers.transpose([int(n) for n in iota[4].split(",")])
        return numbers.reshape(int(iota[1]), int(iota[2])).tolist()
    listed = re.findall(r"\{([\d,]+)\}", text)
    return [[int(n) for n in row.split(",")] for row in listed] or [list(range(devices))]


def _along_axes(text: str, devices: int) -> list[list[int]]:
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text)}
    chosen = text[text.rfind("{") :]
    order = np.arange(devices)
    ids = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", text)
    if ids:
        order = order.reshape([int(n) for n in ids[1].split(",")])
        order = order.transpose([int(n) for n in ids[2].split(",")] if ids[2] else None)
    # 'a':(2)4 is the part of axis a of size 4 after its first 2.
    parts = {
        name: (int(before or 1), int(size or axes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    }
    sizes, within = [], []
    for name, size in axes.items():
        before, width = parts.get(name, (1, 1))
        within.append(len(sizes) + 1)
        sizes += [before, width, size // (before * width)]
    if math.prod(sizes) != devices:
        return [list(range(devices))]
    numbers = order.reshape(sizes)
    outside = [i for i in range(len(sizes)) if i not in within]
    group = math.prod(sizes[i] for i in within)
    return numbers.transpose(outside + within).reshape(-1, group).tolist()
