"""Kills a training run again and again (`kill -9`) and shows that nothing is lost.

  python benchmarks/kill_resume.py [--kills 10] [--seed 0]

One run trains undisturbed. The same run is then killed at random moments, in turn while it starts,
while it trains and while it writes a checkpoint, and started again by the same command until it is
done. Prints one JSON line; exit status 1 unless every array of the last checkpoint, the exported
weights and the picture are the same to the last bit and each step is logged once.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diffjax.errors import UserError, command
from diffjax.run import cli

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("startup", "checkpoint", "training")
SMALL = {
    "steps": 3000,
    "batch_size": 8,
    "checkpoint_every": 50,
    "log_every": 10,
    "sample_every": 1000,
    "num_samples": 8,
    "network.widths": "(8,)",
    "network.embedding": 16,
    "sampling.steps": 2,
}


def start(workdir: Path, steps: int) -> subprocess.Popen:
    """Starts the run; its messages go to a file beside the run directory."""
    flags = [f"--config.{k}={v}" for k, v in {**SMALL, "steps": steps}.items()]
    argv = [sys.executable, ROOT / "train.py", "--config", ROOT / "configs" / "edm_tiny.py"]
    # A cache of compiled programs of its own: it too is being written when the kill comes.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{workdir}.cache"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            [*map(str, argv), *flags, "--workdir", str(workdir)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip


def last_step(workdir: Path) -> int:
    """The newest step in metrics.jsonl, 0 without one."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:  # being written
            continue
    return 0


def checkpoints(workdir: Path) -> tuple[set[str], set[str]]:
    """Names of the whole checkpoints and of those being written."""
    folder = workdir / "checkpoints"
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    whole = {name for name in names if name.isdigit()}
    return whole, {name for name in names if "tmp" in name}


def starts(workdir: Path) -> int:
    """How often the run has come as far as training."""
    log = workdir / "log.jsonl"
    text = log.read_text() if log.is_file() else ""
    return text.count('"start"') + text.count('"resume"')


def newest(workdir: Path) -> int:
    return max(map(int, checkpoints(workdir)[0]), default=0)


def wait_for(process: subprocess.Popen, event) -> bool:
    """Waits until event(); False where the process ends before it."""
    while not event():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def kill_in(phase: str, process, workdir: Path, startup: float, draw: random.Random) -> bool:
    """Kills the process at a random moment of the phase; False where it ended by itself."""
    here, before, halves = newest(workdir), starts(workdir), checkpoints(workdir)[1]
    if phase == "startup":
        end = time.monotonic() + draw.uniform(0, startup)
        alive = wait_for(process, lambda: time.monotonic() > end)
    elif phase == "training":
        # Lines after `here` that the last kill left are cut before the start is logged.
        alive = wait_for(process, lambda: starts(workdir) > before and last_step(workdir) > here)
        time.sleep(draw.uniform(0, 4))
    else:
        alive = wait_for(process, lambda: checkpoints(workdir)[1] - halves)
        time.sleep(draw.uniform(0, 0.5))
    if not alive or process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def read_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by name, and the exported weights."""
    import jax

    from diffjax import systems
    from diffjax.run import mesh, update
    from diffjax.run.checkpoints import Checkpoints
    from diffjax.weights import trees

    system, config = systems.load(workdir)
    shapes, _ = update.state_shapes(system, config, mesh.make_mesh(config.mesh))
    state, _ = Checkpoints(workdir, read_only=True).restore(shapes)
    arrays = {
        mesh.path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    exported = trees.load(workdir / "weights.safetensors")
    return arrays | {f"exported/{name}": array for name, array in exported.items()}


def compare(one: Path, other: Path, steps: int) -> dict:
    """What of two finished runs is the same."""
    a, b = read_state(one), read_state(other)
    equal = a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
    lines = (other / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["step"] for line in lines]
    same = (one / "samples.png").read_bytes() == (other / "samples.png").read_bytes()
    return {
        "arrays": len(a),
        "equal": equal,
        "picture_equal": same,
        "logged_once": logged == list(range(10, steps + 1, 10)),
    }


def run(folder: Path, kills: int, seed: int, steps: int) -> dict:
    """Trains both runs and returns what is printed."""
    draw, clock = random.Random(seed), time.monotonic()
    whole, killed = folder / "whole", folder / "killed"
    process = start(whole, steps)
    wait_for(process, lambda: last_step(whole) > 0)
    startup = time.monotonic() - clock
    if process.wait():
        raise UserError(f"the undisturbed run failed: {Path(f'{whole}.log').read_text()[-500:]}")

    phases, halves = [], 0
    for i in range(kills):
        phase = PHASES[i % len(PHASES)]
        if not kill_in(phase, start(killed, steps), killed, startup, draw):
            break
        phases.append({"phase": phase, "checkpoint": newest(killed), "logged": last_step(killed)})
        halves += bool(checkpoints(killed)[1])
    status = start(killed, steps).wait()
    if status:
        log = Path(f"{killed}.log").read_text()
        return {"kills": len(phases), "equal": False, "status": status, "log": log[-500:]}
    return {
        "kills": len(phases),
        "resumes": (killed / "log.jsonl").read_text().count('"resume"'),
        "starts": 1 + len(phases),
        "checkpoints_cut_short": halves,
        **compare(whole, killed, steps),
        "moments": phases,
        "seconds": round(time.monotonic() - clock, 1),
    }


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="kill_resume.py", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=cli.positive, default=10, help="how often")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=cli.positive, default=SMALL["steps"], help="of the run")
    args = parser.parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), args.kills, args.seed, args.steps)
    print(json.dumps(found))
    good = all(found.get(name) for name in ("equal", "picture_equal", "logged_once"))
    return 0 if good and found["kills"] == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
