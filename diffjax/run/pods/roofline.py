"""The least time that a step can take: the longest of what must happen, were all else free.

A bound and no forecast: matrix units are taken to be full, every link to be busy, and what takes
turns to overlap. A real step is slower; by how much must be measured.
"""

import dataclasses

from diffjax.run.pods.chips import Chip


@dataclasses.dataclass(frozen=True)
class Bound:
    """Attributes:
    seconds: {what: its least time}; None where the table or the compiler does not tell.
    mfu: model FLOPs utilisation, the counted FLOPs over what the chips could do meanwhile.
    """

    seconds: dict[str, float | None]
    mfu: float

    @property
    def least(self) -> float:
        """Seconds of a step."""
        return max(t for t in self.seconds.values() if t is not None)

    @property
    def limit(self) -> str:
        """What takes longest."""
        return max((t, what) for what, t in self.seconds.items() if t is not None)[1]


def bound(
    chip: Chip,
    chips: int,
    *,
    needed: float,
    multiplied: float,
    moved: float | None,
    inside: float | None,
    across: float | None,
) -> Bound:
    """Returns the bound of a step on so many chips.

    Args:
      needed: FLOPs of the step as it is written, of all chips.
      multiplied: FLOPs of the compiled step, of one chip: rematerialisation and what is done twice
        count here and not in the MFU.
      moved: bytes to and from its memory, of one chip.
      inside, across: bytes that a chip sends inside its slice and to other slices.
    """

    def over(amount: float | None, rate: float | None) -> float | None:
        if amount == 0:
            return 0.0
        return None if amount is None or not rate else amount / rate

    wires = chip.links * chip.link if chip.links and chip.link else None
    seconds = {
        "compute": over(multiplied, chip.flops),
        "memory": over(moved, chip.bandwidth),
        "links": over(inside, wires),
        "network": over(across, chip.dcn),
    }
    made = Bound(seconds, 0.0)
    least = made.least
    return dataclasses.replace(made, mfu=needed / (least * chip.flops * chips) if least else 0.0)
