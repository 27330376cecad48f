"""What a chip can do, in one table. Per chip, and published unless said otherwise.

A TPU's interconnect is given by its makers as GB/s both ways together: a link sends half of its
share. Not every number is published, and an estimate leaves out what is None.
"""

import dataclasses

from diffjax.errors import choose

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: "TPU v5e".
      flops: bfloat16, dense, FLOP/s (a multiply-add is two).
      memory: bytes, as published.
      usable: bytes that a program may take, or None where that is not known. Of a TPU: what the
        compiler of libtpu 0.0.52 says is available when a program is too large.
      bandwidth: of that memory, bytes/s.
      links, link: how many other chips it is wired to; bytes/s that one link sends.
      dcn: bytes/s that it sends to other slices, its share of the hosts' network.
      devices: how many JAX devices the compiler makes of a chip.
      sources: where each number is from.
    """

    name: str
    flops: float
    memory: int
    usable: int | None
    bandwidth: float
    links: int | None
    link: float | None
    dcn: float | None
    devices: int
    sources: str

    @property
    def room(self) -> int:
        """Bytes that the programs of one device may take."""
        return (self.usable or self.memory) // self.devices


CHIPS = {
    "v4": Chip(
        name="TPU v4",
        flops=275e12,
        memory=32 * GIB,
        usable=int(2 * 15.25 * GIB),
        bandwidth=1200e9,
        links=6,
        link=50e9,
        dcn=None,
        devices=2,  # as it is compiled without the chip; the real one runs both cores as one
        sources="docs.cloud.google.com/tpu/docs/v4 (peak, memory, its bandwidth); "
        "arXiv 2304.01433 (50 GB/s a link, six links)",
    ),
    "v5e": Chip(
        name="TPU v5e",
        flops=197e12,
        memory=16 * GIB,
        usable=int(15.75 * GIB),
        bandwidth=819e9,
        links=4,
        link=50e9,
        dcn=6.4e12 / 8 / 256,
        devices=1,
        sources="docs.cloud.google.com/tpu/docs/v5e (400 GB/s both ways over 4 ports; "
        "6.4 Tbit/s for the 256 chips of a pod)",
    ),
    "v5p": Chip(
        name="TPU v5p",
        flops=459e12,
        memory=95 * GIB,
        usable=int(95.73 * GIB),
        bandwidth=2765e9,
        links=6,
        link=100e9,
        dcn=50e9 / 8,
        devices=1,
        sources="docs.cloud.google.com/tpu/docs/v5p (1200 GB/s both ways, a 3-D torus; "
        "50 Gbit/s a chip between slices)",
    ),
    "v6e": Chip(
        name="TPU v6e",
        flops=918e12,
        memory=32 * GIB,
        usable=int(31.24 * GIB),
        bandwidth=1638e9,
        links=4,
        link=100e9,
        dcn=100e9 / 8,
        devices=1,
        sources="docs.cloud.google.com/tpu/docs/tpu7x, its table of generations (800 GB/s both "
        "ways, a 2-D torus; 100 Gbit/s a chip between slices)",
    ),
    "tpu7x": Chip(
        name="TPU7x",
        flops=2307e12,
        memory=192 * GIB,
        usable=int(2 * 94.74 * GIB),
        bandwidth=7380e9,
        links=6,
        link=100e9,
        dcn=100e9 / 8,
        devices=2,
        sources="docs.cloud.google.com/tpu/docs/tpu7x (1200 GB/s both ways, a 3-D torus; "
        "100 Gbit/s a chip between slices)",
    ),
    "h100": Chip(
        name="H100 SXM",
        flops=989e12,
        memory=80 * 10**9,
        usable=None,
        bandwidth=3.35e12,
        links=18,
        link=25e9,
        dcn=None,
        devices=1,
        sources="NVIDIA's data sheet (dense bfloat16; NVLink 900 GB/s both ways over 18 links)",
    ),
    "h200": Chip(
        name="H200 SXM",
        flops=989e12,
        memory=141 * 10**9,
        usable=None,
        bandwidth=4.8e12,
        links=18,
        link=25e9,
        dcn=None,
        devices=1,
        sources="NVIDIA's data sheet (dense bfloat16; NVLink 900 GB/s both ways over 18 links)",
    ),
}
TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
# How a device's `device_kind` begins -> its row.
KINDS = {"NVIDIA H200": "h200", "NVIDIA H100": "h100"}


def of_tpu(kind: str) -> Chip:
    """Returns the row of "v5e" and the like; `UserError` with the nearest name otherwise."""
    return choose(kind, {name: CHIPS[name] for name in TPUS}, "kind of TPU")


def of_device(device_kind: str) -> Chip | None:
    """Returns the row of a local device; None where the table has none."""
    rows = [row for start, row in KINDS.items() if device_kind.startswith(start)]
    return CHIPS[rows[0]] if rows else None
