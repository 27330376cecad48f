"""What a compiled step costs, in numbers: memory, exchanges, work, the least time."""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable

from diffjax.run import mesh as meshes
from diffjax.run.pods import collectives, hlo, roofline, work
from diffjax.run.pods.chips import Chip
from diffjax.run.pods.step import Program


@dataclasses.dataclass(frozen=True)
class Costs:
    """All of one chip, unless said otherwise.

    Attributes:
      chip: its row; None where the table has none.
      chips: how many there are.
      memory: {kind: bytes}, of the compiled program; {} where it was refused.
      needed: bytes at once.
      room: bytes that there are; None where nobody says.
      exchanges: the collectives, of one device; None where the compiler gives no text.
      multiplied: FLOPs that the text has, loops by their length; None where it does not tell.
      once: FLOPs by XLA's `cost_analysis`, the body of a loop once; None where it gives none.
      moved: bytes to and from memory, loops by their length; without text no more than what must
        be: arguments are read once, outputs written once.
      bound: the least time; None without a row.
    """

    chip: Chip | None
    chips: int
    memory: dict[str, int]
    needed: int | None
    room: int | None
    exchanges: list[collectives.Collective] | None
    multiplied: float | None
    once: float | None
    moved: float | None
    bound: roofline.Bound | None

    @property
    def fits(self) -> bool:
        """Whether there is room; True where nobody says how much there is."""
        return self.needed is not None and (self.room is None or self.needed <= self.room)


def of(program: Program, chip: Chip | None, room: int | None = None) -> Costs:
    """Returns the costs of a program.

    Args:
      room: bytes of a device, as it says itself; before what the table knows of its kind.
    """
    each = chip.devices if chip else 1
    room = chip.room * each if chip and room is None else room
    count = program.mesh.size // each
    compiled = program.compiled
    if compiled is None:
        return Costs(chip, count, {}, asked(program.refused, each), room, *[None] * 5)
    memory = kinds(compiled.memory_analysis(), each)
    found = compiled.cost_analysis() or {}
    once = found.get("flops")
    module = read(compiled)
    exchanges = multiplied = bound = None
    moved = float(memory["arguments"] + memory["outputs"])
    slices = meshes.slices_of(program.mesh.devices.flat)
    if module is not None:
        exchanges = understood(collectives.find, module, program.mesh.size // slices, slices)
        flops, traffic = understood(work.multiplied, module), understood(work.moved, module)
        multiplied = None if flops is None else flops * each
        moved = moved if traffic is None else traffic * each
    if chip is not None:
        sent = lambda between: each * sum(e.sent for e in exchanges if e.between == between)
        bound = roofline.bound(
            chip,
            count,
            needed=program.count.flops,
            multiplied=max(multiplied or 0.0, program.count.flops / count),
            moved=moved,
            inside=None if exchanges is None else sent(False),
            across=None if exchanges is None else sent(True),
        )
    return Costs(
        chip,
        count,
        memory,
        together(memory),
        room,
        exchanges,
        multiplied,
        None if once is None else once * each,
        moved,
        bound,
    )


def kinds(analysis, each: int = 1) -> dict[str, int]:
    """A `memory_analysis()` as {kind: bytes of a chip}, of so many devices a chip."""
    return {
        "arguments": each * analysis.argument_size_in_bytes,
        "outputs": each * analysis.output_size_in_bytes,
        "aliased": each * analysis.alias_size_in_bytes,
        "temporaries": each * analysis.temp_size_in_bytes,
        "program": each * analysis.generated_code_size_in_bytes,
    }


def together(memory: dict[str, int]) -> int:
    """Bytes at once: outputs in the place of arguments, the donated state, count once."""
    return sum(memory.values()) - 2 * memory["aliased"]


def asked(refusal: str, each: int = 1) -> int | None:
    """Bytes of a chip that a refused program asks for, in the compiler's words; None: not told."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    found = re.search(r"\((\d+(?:\.\d+)?)([KMGT])\) exceeds available", refusal)
    found = found or re.search(r"[Uu]sed (\d+(?:\.\d+)?)([KMGT])i?B? of", refusal)
    return int(float(found[1]) * units[found[2]] * each) if found else None


def read(compiled) -> hlo.Module | None:
    """The program's text; None where the compiler gives none, as for TPU7x."""
    try:
        with silenced():
            text = compiled.as_text()
        return hlo.parse(text)
    except Exception:  # of whatever kind the compiler's own failure is
        return None


def understood(count: Callable, module: hlo.Module, *args):
    """count(module, ...); None of a text that is not of the form that `count` reads."""
    try:
        return count(module, *args)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def silenced():
    """Keeps what libraries write to standard error by themselves, such as stack traces, away."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
