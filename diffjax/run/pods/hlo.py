"""A compiled program's text: its instructions, their shapes, and how often each of them runs.

What XLA prints is not a stable format. What cannot be read is left out and said, never guessed.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
LEAF = re.compile(r"([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
NAME = re.compile(r"%([\w.-]+)")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its type, sizes, and the memory that it lies in (0: the large one)."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """As many as its elements have, without what tiles add."""
        known = BITS.get(self.dtype)
        digits = re.search(r"\d+", self.dtype)
        bits = known if known is not None else int(digits[0]) if digits else 0
        return -(-math.prod(self.sizes) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name, opcode: as printed, the name without %.
      shapes: of the result, a tuple's leaves in order.
      operands: names of instructions, in order.
      literal: what stands between the parentheses.
      rest: the attributes, as text.
      root: whether it is its computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The value of `name=` where it is a name or {names}; without % and braces."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^\s,]+)", self.rest)
        return found[1].strip("{}").replace("%", "") if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: {name: {name: instruction}}, in the order of the text.
      entry: the name of the first that runs.
    """

    computations: dict[str, Computation]
    entry: str

    def operands(self, computation: str, instruction: Instruction) -> list[Instruction]:
        """The instructions that one takes, those that are known."""
        here = self.computations[computation]
        return [here[name] for name in instruction.operands if name in here]

    @functools.cached_property
    def runs(self) -> list["Run"]:
        """Every instruction that runs, with how often; see `visit`."""
        return list(self.visit())

    def visit(self) -> Iterator["Run"]:
        """Walks from the entry through calls, fusions and loops.

        Of a conditional every branch is taken to run. Computations of reductions are left out.
        """
        stack = [(self.entry, self.entry, 1, True, False)]
        while stack:
            name, frame, times, known, fused = stack.pop()
            for instruction in self.computations.get(name, {}).values():
                yield Run(name, frame, instruction, times, known, fused)
                if instruction.opcode == "while":
                    trips = self.trips(name, instruction)
                    body = instruction.attribute("body")
                    told = known and trips is not None
                    stack.append((body, body, times * (1 if trips is None else trips), told, fused))
                elif instruction.opcode == "fusion":
                    stack.append((instruction.attribute("calls"), frame, times, known, True))
                elif instruction.opcode in ("call", "async-start"):
                    called = instruction.attribute("calls") or instruction.attribute("to_apply")
                    stack.append((called, frame, times, known, fused))
                elif instruction.opcode == "conditional":
                    branches = instruction.attribute("branch_computations") or ", ".join(
                        instruction.attribute(f"{which}_computation") or ""
                        for which in ("true", "false")
                    )
                    stack += [
                        (b.strip(), b.strip(), times, known, fused) for b in branches.split(",")
                    ]

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often a `while` runs; None where the text does not say.

        From the compiler's own note, else from the condition: a counter from its start, by ones, up
        to a constant. The start is 0 where it comes from further away.
        """
        note = re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest)
        if note:
            return int(note[1])
        condition = self.computations.get(loop.attribute("condition") or "", {})
        inside = [*condition.values()]
        for instruction in condition.values():
            if instruction.opcode == "fusion":
                inside += self.computations.get(instruction.attribute("calls"), {}).values()
        ways = [i.attribute("direction") for i in inside if i.opcode == "compare"]
        limits = {
            int(i.literal)
            for i in inside
            if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.literal)
        }
        if len(ways) != 1 or ways[0] not in ("LT", "LE") or len(limits) != 1:
            return None
        counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
        start = 0
        if len(counters) == 1:
            start = self._start(computation, loop, int(counters[0].attribute("index"))) or 0
        return max(limits.pop() + (ways[0] == "LE") - start, 0)

    def _start(self, computation: str, loop: Instruction, index: int) -> int | None:
        here = self.computations[computation]
        at = here.get(loop.operands[0])
        if at is None or at.opcode != "tuple" or index >= len(at.operands):
            return None
        at = here.get(at.operands[index])
        while at is not None and at.opcode in ("copy", "bitcast", "convert"):
            at = here.get(at.operands[0])
        if at is None or at.opcode != "constant" or not re.fullmatch(r"-?\d+", at.literal):
            return None
        return int(at.literal)


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction where it runs.

    Attributes:
      computation: the name of the one that it is in.
      frame: of the loop's body, branch or entry that this is part of.
      times: how often, all loops around it multiplied.
      known: whether each of these loops says how long it is; one that does not counts once.
      fused: whether it is inside a fusion, and what it makes stays inside.
    """

    computation: str
    frame: str
    instruction: Instruction
    times: int
    known: bool
    fused: bool


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: it has no entry.
    """
    computations: dict[str, Computation] = {}
    entry, here = None, None
    for line in text.splitlines():
        header = None if line.startswith(" ") else HEADER.match(line)
        if header:
            here = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif here is not None and (instruction := _instruction(line)) is not None:
            here[instruction.name] = instruction
    if entry is None:
        raise ValueError("no entry computation in the compiled text")
    return Module(computations, entry)


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a printed shape: "(f32[2,3]{1,0}, s32[])" has two."""
    return tuple(
        Shape(
            dtype,
            tuple(int(re.sub(r"\D", "", n)) for n in sizes.split(",") if n),
            int(space[1]) if (space := re.search(r"S\((\d+)\)", layout or "")) else 0,
        )
        for dtype, sizes, layout in LEAF.findall(text)
    )


def _instruction(line: str) -> Instruction | None:
    start = LINE.match(line)
    if not start:
        return None
    at = start.end()
    end = _closing(line, at) + 1 if line.startswith("(", at) else line.find(" ", at)
    shape = line[at:end]
    opening = line.find("(", end)
    if end <= at or opening < 0:
        return None
    closing = _closing(line, opening)
    literal = line[opening + 1 : closing]
    return Instruction(
        name=start[2],
        opcode=line[end:opening].strip(),
        shapes=shapes(shape),
        operands=tuple(NAME.findall(literal)),
        literal=literal,
        rest=line[closing + 1 :],
        root=bool(start[1]),
    )


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that opens at `at` is closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text) - 1
