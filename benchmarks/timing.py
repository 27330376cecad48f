"""What the benchmarks of speed share: their flags, how a call is timed, and their line of JSON."""

import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from diffjax.run import cli, dry_run, update
from diffjax.run import mesh as meshes
from diffjax.run.feed import make_feed


def compiled(function, *arguments):
    """Returns the compiled function, its seconds of compiling and its memory in GiB."""
    begin = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    memory = dry_run.peak(program.memory_analysis())
    return program, round(seconds, 1), round(memory / 2**30, 2)


def synchronised(call, repeats: int) -> float:
    """Median seconds of `repeats` calls, each waited for, after two that are not counted."""
    seconds = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def in_flight(call, repeats: int) -> float:
    """Mean seconds of `repeats` calls of which only the last is waited for."""
    begin = time.perf_counter()
    for _ in range(repeats):
        found = call()
    jax.block_until_ready(found)
    return (time.perf_counter() - begin) / repeats


def training(system, config):
    """run/loop.py's step: jitted with the state donated, data on the device.

    Returns:
      (call, seconds of compiling, GiB, check): call() makes a step and returns its metrics, check()
      raises where a loss was not finite.
    """
    mesh = meshes.make_mesh(config.mesh)
    _, shardings = update.state_shapes(system, config, mesh)
    feed, place = make_feed(system, config, mesh), meshes.replicated(mesh)
    step = jax.jit(
        update.step_function(system, config, feed, mesh),
        donate_argnums=0,
        out_shardings=(shardings, place),
    )
    state = update.init_state(system, config, shardings)
    fed, share = next(feed.start(0)), jax.device_put(np.float32(0), place)
    program, seconds, memory = compiled(step, state, fed, share)

    def call():
        nonlocal state
        state, metrics = program(state, fed, share)
        return metrics

    def check() -> None:
        if int(state.bad_step) >= 0:
            raise RuntimeError(f"the loss was not finite at step {int(state.bad_step)}")

    return call, seconds, memory, check


def record(folder: str, call) -> None:
    """Records one call with the JAX profiler, where a folder is given."""
    if folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())


def parser(name: str, doc: str, repeats: int, only: str = "") -> cli.Parser:
    """The flags of a benchmark; only: the names of its parts, where it has several."""
    made = cli.Parser(prog=name, description=doc.splitlines()[0])
    if only:
        made.add_argument("--only", default=only, help="which of these")
    made.add_argument("--repeats", type=cli.positive, default=repeats, help="calls timed")
    made.add_argument("--toy", action="store_true", help="a tiny net, to try the script on a CPU")
    made.add_argument("--profile", default="", help="a folder for one recorded call of each")
    made.add_argument("--out", default="", help="a JSON file")
    return made


def about() -> dict:
    """What a result begins with."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def part(args, name: str) -> str:
    """The folder for the recording of one part, "" where none is wanted."""
    return str(Path(args.profile, name)) if args.profile else ""


def told(result: dict, name: str, found: dict) -> None:
    """Keeps what was found of one part, and says it at once."""
    result[name] = found
    print(name, found, file=sys.stderr)


def end(result: dict, out: str) -> int:
    """Prints the result as one line, and writes it where a file is named."""
    text = json.dumps(result)
    print(text)
    if out:
        Path(out).write_text(text + "\n")
    return 0
