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
      group: devices that take part together.
      bytes: of the whole array that is reduced, gathered or exchanged, as one device sees it: what
        goes into an all-reduce, reduce-scatter or all-to-all, what comes out of an all-gather.
      times: how often it runs in one call of the program.
      known: whether every loop around it says how long it is.
      slices: over how many slices a group is spread.

    `inside` and `across` are the bytes that a device sends to its own slice and to others in all
    runs, by ring algorithms; over several slices first inside, then each device its share across.
    """

    kind: str
    group: int
    bytes: int
    times: int
    known: bool
    slices: int

    @property
    def inside(self) -> float:
        near = self.group // self.slices
        if self.kind == "collective-permute":
            share = float(self.slices == 1)
        elif self.kind == "all-to-all":
            share = (near - 1) / self.group
        else:
            share = (1 + (self.kind == "all-reduce")) * (near - 1) / near
        return self.times * self.bytes * share

    @property
    def across(self) -> float:
        near = self.group // self.slices
        share = (self.slices - 1) / self.slices
        if self.kind == "collective-permute":
            share = float(self.slices > 1)
        elif self.kind != "all-to-all":
            share *= (1 + (self.kind == "all-reduce")) / near
        return self.times * self.bytes * share


def find(module: hlo.Module, devices: int, slice_of: list[int] | None = None) -> list[Collective]:
    """Returns the collectives between at least two devices.

    An exchange that the compiler spreads over a start, a middle and an end, which print the same
    channel, counts once; an all-reduce of which each device keeps a slice is a reduce-scatter.

    Args:
      devices: how many the program was compiled for.
      slice_of: of each device, in the order of the mesh, the slice that it is in; None: one.
    """
    found: dict[object, Collective] = {}
    for number, run in enumerate(module.runs):
        instruction = run.instruction
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        together = _groups(kind, instruction, devices)
        size = len(together[0]) if kind != "collective-permute" else 2
        if size < 2:
            continue
        given = sum(operand.bytes for operand in module.operands(run.computation, instruction))
        whole = given * size if kind == "all-gather" else given
        if kind == "all-reduce" and run.fused and _sliced(module, run):
            kind = "reduce-scatter"
        slices = 1
        if slice_of is not None:
            slices = max(len({slice_of[device] for device in group}) for group in together)
        one = Collective(kind, size, whole, run.times, run.known, slices)
        channel = instruction.attribute("channel_id")
        key = (kind, channel) if channel else number
        if key not in found or found[key].times * found[key].bytes < one.times * one.bytes:
            found[key] = one
    return list(found.values())


def _sliced(module: hlo.Module, run: hlo.Run) -> bool:
    """Whether all that is taken of an instruction's result is a slice."""
    users = [
        other.opcode
        for other in module.computations[run.computation].values()
        if run.instruction.name in other.operands
    ]
    return bool(users) and set(users) == {"dynamic-slice"}


def _groups(kind: str, instruction: hlo.Instruction, devices: int) -> list[list[int]]:
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.rest)
        found = re.findall(r"\{(\d+),(\d+)\}", pairs[1]) if pairs else []
        return [[int(a), int(b)] for a, b in found if a != b] or [[0]]
    written = re.search(r"replica_groups=(.*?)(?:, [a-z_]+=|$)", instruction.rest)
    return groups(written[1] if written else "{}", devices)


def groups(text: str, devices: int) -> list[list[int]]:
    """Reads replica groups in each of the ways in which they are printed; of none, all devices.

    "{{0,1},{2,3}}"; "[2,2]<=[4]", two groups of two; "[2,2]<=[2,2]T(1,0)", of the transposed
    numbers; "mesh['a'=2,'b'=2] {'b'}", along named axes.
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
    numbers = np.arange(devices).reshape(sizes)
    outside = [i for i in range(len(sizes)) if i not in within]
    group = math.prod(sizes[i] for i in within)
    return numbers.transpose(outside + within).reshape(-1, group).tolist()
