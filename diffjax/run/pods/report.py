"""What a config's training step would need of a pod, as a person reads it."""

import sys
from collections import Counter
from pathlib import Path

from diffjax.errors import UserError
from diffjax.run import dry_run
from diffjax.run.pods import chips, costs, topologies
from diffjax.run.pods.step import Program, compile_step, without_data

GIB, MIB = 1 << 30, 1 << 20


def report(system, config, topology: topologies.Topology) -> int:
    """Compiles and prints; returns 0, or 1 where the step does not fit into a chip's memory.

    Raises:
      UserError: devices, config, mesh or batch that cannot be used.
    """
    devices = topologies.devices(topology)
    print(f"compiling   for {topology.name}: minutes, for a large network", flush=True)
    program = compile_step(system, config, devices)
    cost = cost_of(program, topology)
    print("\n".join(lines(config, topology, program, cost)), flush=True)
    if cost.fits:
        return 0
    print(f"does not fit: {verdict(program, cost)}", file=sys.stderr)
    return 1


def report_all(systems, config, workdir: Path, topology: topologies.Topology) -> int:
    """Reports on each run that one command trains; returns the largest of their statuses.

    A stage that begins from one that is not trained yet cannot be compiled, and is said to.

    Args:
      systems: the module `diffjax.systems`, which this room does not import.
    """
    config, instead = without_data(config)
    if instead:
        print(f"data        the config names none: {instead}")
    status, stages = 0, systems.stages(config, workdir)
    for number, (stage, folder) in enumerate(stages):
        if len(stages) > 1:
            print(f"stage       {number + 1} of {len(stages)}, {folder}")
        try:
            system = systems.make(stage)
        except UserError as error:
            if not number:
                raise
            print(f"  not compiled: {error}")
            continue
        if system.fit is not None:
            raise UserError(
                f"--compile_for: a {stage.system} run is a loop of several programs; not done yet"
            )
        status = max(status, report(system, stage, topology))
    return status


def cost_of(program: Program, topology: topologies.Topology) -> costs.Costs:
    """The costs on a topology, or on the local devices with the memory that these say they have."""
    if topology.kind not in topologies.LOCAL:
        return costs.of(program, chips.of_tpu(topology.kind))
    device = program.mesh.devices.flat[0]
    stats = device.memory_stats() or {}
    return costs.of(program, chips.of_device(device.device_kind), stats.get("bytes_limit"))


def verdict(program: Program, cost: costs.Costs) -> str:
    """Why it does not fit and what to change, in one line."""
    owner = cost.chip.name if cost.chip else "device"
    need = "more than" if cost.needed is None else f"{amount(cost.needed)} of"
    what = f"the step needs {need} the {amount(cost.room or 0)} that a {owner} has"
    if not cost.room:  # the compiler knows, and nobody else
        what = " ".join(program.refused.split())[:200]
    return f"{what}; config.mesh.fsdp cuts the state, config.accumulate the batch, more chips both"


def lines(config, topology, program: Program, cost: costs.Costs) -> list[str]:
    """The report, a list of lines."""
    said = [
        f"step        {config.get('name', config.system)}: batch {config.batch_size}, "
        f"{program.parameters:,} parameters",
        f"devices     {_devices(topology, program, cost)}",
        f"compiled    in {program.seconds:.1f} s",
        *_memory(program, cost),
    ]
    if program.compiled is None:
        return said
    said += _exchanges(cost)
    said += _flops(program, cost)
    if cost.bound is not None:
        said += _bound(config, cost)
    elif topology.kind != "cpu":
        said += ["least time  unavailable: this device is in no table (run/pods/chips.py)"]
    return said


def _devices(topology, program: Program, cost: costs.Costs) -> str:
    mesh = dry_run.of_mesh(program.mesh)
    if topology.kind in topologies.LOCAL:
        return mesh
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    return f"{slices}{topology.name}, {cost.chips} chips: {mesh}"


def _memory(program: Program, cost: costs.Costs) -> list[str]:
    each = cost.chip.devices if cost.chip else 1
    room = f", of {amount(cost.room)}" if cost.room else ""
    said = [f"memory      of a chip{room}"]
    row = lambda name, size, remark="": said.append(f"  {name:<16}{amount(size):>12}{remark}")
    for name, size in program.held.items():
        row(name, size * each)
    if not cost.memory:
        asks = "more" if cost.needed is None else amount(cost.needed)
        return [*said, f"  the compiler refuses the step: it asks for {asks}"]
    given = sum(program.held.values()) * each
    row("padding, scalars", max(cost.memory["arguments"] - given, 0), "  of arguments")
    for name in ("arguments", "outputs"):
        row(name, cost.memory[name])
    row("aliased", cost.memory["aliased"], "  outputs in the place of arguments")
    row("temporaries", cost.memory["temporaries"])
    row("program", cost.memory["program"])
    share = f"  {100 * cost.needed / cost.room:.1f} %" if cost.room else ""
    row("at once", cost.needed, share + ("" if cost.fits else ": does not fit"))
    return said


def _exchanges(cost: costs.Costs) -> list[str]:
    if cost.exchanges is None:
        return ["exchanges   unavailable: the compiler gives no text for these devices"]
    if not cost.exchanges:
        return ["exchanges   none"]
    each = cost.chip.devices if cost.chip else 1
    runs, size, sent = Counter(), Counter(), Counter()
    for one in cost.exchanges:
        kind = one.kind + (", slices" if one.between else "")
        runs[kind] += one.times
        size[kind] += one.times * one.bytes * each
        sent[kind] += one.sent * each
    said = ["exchanges   of a chip in one step, loops by their length"]
    said.append(f"  {'kind':<24}{'runs':>6}{'of arrays':>14}{'sent':>14}")
    for kind in sorted(runs, key=lambda kind: -sent[kind]):
        row = f"  {kind:<24}{runs[kind]:>6}{amount(size[kind]):>14}{amount(sent[kind]):>14}"
        said.append(row)
    if not all(one.known for one in cost.exchanges):
        said.append("  some are in loops whose length the text does not say: these count once")
    return said


def _flops(program: Program, cost: costs.Costs) -> list[str]:
    needed = program.count.flops
    said = [f"FLOPs       {needed:.4g} a step, as it is written: products and convolutions"]
    if program.count.unknown:
        said.append(f"  without what {' and '.join(program.count.unknown)} repeats or does")
    if cost.multiplied is None:
        said.append(
            "  compiled: unavailable, "
            + ("no text" if cost.exchanges is None else "libraries do them")
        )
    elif needed:
        total = cost.multiplied * cost.chips
        said.append(
            f"  compiled: {total:.4g} of all chips, loops by their length: "
            f"{total / needed:.3f} times as many"
        )
    if cost.once is not None:
        said.append(f"  XLA's cost analysis: {cost.once:.4g} a chip, all operations, a loop once")
    return said


def _bound(config, cost: costs.Costs) -> list[str]:
    bound, chip = cost.bound, cost.chip
    rates = {
        "compute": f"{chip.flops / 1e12:g} TFLOP/s, bfloat16",
        "memory": f"{amount(cost.moved)} at {chip.bandwidth / 1e9:g} GB/s" if cost.moved else "",
        "links": f"{chip.links} x {chip.link / 1e9:g} GB/s" if chip.links else "",
        "network": f"{chip.dcn / 1e9:g} GB/s between slices" if chip.dcn else "",
    }
    said = [f"least time  of a step: a bound, not a forecast ({chip.name})"]
    for what, seconds in bound.seconds.items():
        time = "unavailable" if seconds is None else f"{1e3 * seconds:.4g} ms"
        said.append(f"  {what:<10}{time:>14}  {rates[what]}".rstrip())
    if cost.exchanges is None:
        said.append("  loose: without a text only what must be read and written once is known")
    if not bound.least:
        return said
    said.append(
        f"  at least {1e3 * bound.least:.4g} ms, by {bound.limit}; at most {100 * bound.mfu:.1f} % "
        f"MFU, {3600 / bound.least:,.0f} steps an hour, "
        f"{config.batch_size / bound.least:,.0f} examples a second"
    )
    return said


def amount(size: float) -> str:
    """Bytes as a person reads them."""
    if size >= GIB:
        return f"{size / GIB:,.2f} GiB"
    return f"{size / MIB:,.2f} MiB" if size >= 1e4 else f"{size:,.0f} B"
