"""How few steps of diffusion are enough for motion: the experiment of docs/claims.md, MDM-1 to 6.

    python benchmarks/mdm_steps.py sample --run runs/t50 --judge JUDGE --out DIR --arms 50
    python benchmarks/mdm_steps.py search --run runs/t1000 --out DIR
    python benchmarks/mdm_steps.py verdict --out DIR

The runs are those of `train_seeds.py`, NAME_s0, NAME_s1 ... `sample` draws each arm from each of
them, as the test clips are described, and keeps what the judge sees (features, float16) and how
fast the joints move; an arm is a number of steps, with ddim (DDIM, eta 0), stride (DDIM on whole
strides, which leaves out the noisiest steps) or grid (a searched one) and even (its fine grid's
even part) before it. `search` finds the grids. `verdict` needs no network: it writes verdicts.json
and steps.png from what was kept, as `mdm_verdicts.py` has the rules.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import mdm_verdicts
import numpy as np

from diffjax import systems
from diffjax.errors import UserError, choose, command
from diffjax.metrics import motion_judge
from diffjax.run import cli, devices, own_grid, sampling
from diffjax.run import mesh as meshes
from diffjax.studies import grid_search
from diffjax.systems.mdm import motions, scores

COUNTS = (5, 10, 20)  # of steps, of the grids that are searched
FINE = 200  # evenly respaced steps of the 1,000 that they are chosen from


def seeds_of(run: Path) -> list[Path]:
    """Returns the runs NAME_s0, NAME_s1 ..."""
    found = sorted(run.parent.glob(f"{run.name}_s?"))
    if not found:
        raise UserError(f"{run}_s0: no such run")
    return found


def request_of(system, arm: str, out: Path):
    """Returns the request of an arm: "50", "ddim50", "stride50", "grid10", "even10"."""
    kind = arm.rstrip("0123456789")
    steps = int(arm.removeprefix(kind))
    how = {"steps": steps, "guidance": 1.0, "sampler": "ancestral"}
    if kind in ("grid", "even"):
        found = cli.read_json(out / "grids.json", "grids")[str(steps)]
        how["grid"] = own_grid.text(found["grid"] if kind == "grid" else found["even"]["grid"])
    elif kind:
        choose(kind, dict.fromkeys(("ddim", "stride")), "arm")
        how |= {"sampler": "ddim", "grid": "ddim" if kind == "stride" else "even"}
    return dataclasses.replace(system.request, **how)


def speeds(joints, lengths, fps: float) -> np.ndarray:
    """Returns the mean speed of the joints of each clip, metres a second, float32 [n]."""
    moved = np.linalg.norm(np.diff(joints.astype(np.float32), axis=1), axis=-1) * fps
    inside = motion_judge.masks(lengths, joints.shape[1])[:, 1:, None]
    return np.float32((moved * inside).sum((1, 2)) / (inside.sum((1, 2)) * moved.shape[2]))


def sample(args) -> None:
    mesh, judge = meshes.make_mesh(meshes.LOCAL), motion_judge.load(args.judge)
    runs = seeds_of(args.run)
    system, _ = systems.load(runs[0])
    told = system.open(args.data, "test")
    body = motions.described(system.assets)
    real_file = args.out / f"real_{judge.version}.npz"
    if not real_file.exists():
        clips, lengths, some = scores.examples(told, body)
        joints = np.zeros((len(clips), clips.shape[1], len(body.skeleton.names), 3), np.float32)
        for row, i, n in zip(joints, some, lengths, strict=True):
            row[:n] = told.source.joints(int(i))[:n]
        seen = motion_judge.see(judge, clips, lengths).features
        keep(real_file, seen, speeds(joints, lengths, body.skeleton.fps))
    for arm in args.arms.split(","):
        request = request_of(system, arm, args.out)
        program = sampling.sampler(system, request, mesh)
        begin = time.monotonic()
        for s, run in enumerate(runs):
            file = args.out / f"{args.run.name}.{arm}_s{s}_{judge.version}.npz"
            if file.exists():
                continue
            params, _ = sampling.load_params(system, run, mesh)
            made = sampling.collect(
                system, params, request, num=args.num, seed=s, batch=args.batch, mesh=mesh,
                run=program, condition=lambda i, r=request: system.condition_like(r, told, i),
            )  # fmt: skip
            seen = motion_judge.see(judge, made["motion"], made["length"]).features
            if not np.isfinite(seen).all():
                raise UserError(f"{run}: arm {arm} is not finite")
            keep(file, seen, speeds(made["joints"], made["length"], body.skeleton.fps))
        print(f"{args.run.name}.{arm}: {time.monotonic() - begin:.1f} s", flush=True)


def keep(file: Path, features, speed) -> None:
    with file.open("wb") as out:
        np.savez(out, features=np.float16(features), speed=speed)


def search(args) -> None:
    """Grids for ancestral steps of seed 0's model, on the validation clips, from another seed."""
    mesh, run = meshes.make_mesh(meshes.LOCAL), seeds_of(args.run)[0]
    system, _ = systems.load(run)
    told = system.open(args.data, "val")
    params, _ = sampling.load_params(system, run, mesh)
    fine = 20 if args.toy else FINE
    request = dataclasses.replace(system.request, steps=fine, guidance=1.0, sampler="ancestral")
    found = grid_search.search(
        system, params, request, (5,) if args.toy else COUNTS, num=4 if args.toy else 32, seed=1,
        batch=4 if args.toy else 16, mesh=mesh, eta=1, progress=True,
        condition=lambda i: system.condition_like(request, told, i),
    )  # fmt: skip
    text = json.dumps({str(one["steps"]): one for one in found}, indent=1)
    (args.out / "grids.json").write_text(text + "\n")


def verdict(args) -> None:
    found = mdm_verdicts.decide(args.out)
    path = args.out / "verdicts.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    mdm_verdicts.plot(found, args.out / "steps.png")
    for claim, about in found["claims"].items():
        print(claim, about["verdict"])
    print(path)


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="mdm_steps.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("phase", help=", ".join(PHASES))
    add("--run", type=Path, help="the runs are RUN_s0, RUN_s1, ...")
    add("--arms", default="", help="sample: arms, comma-separated")
    add("--judge", type=Path, help="sample: the judge's file")
    add("--data", default="bandai.npz", help="the .npz of packs.py")
    add("--out", type=Path, required=True, help="a folder; phases find each other there")
    add("--num", type=cli.positive, default=2048, help="samples an arm, of each run")
    add("--batch", type=cli.positive, default=2048, help="how many are sampled at a time")
    add("--toy", action="store_true", help="search: everything small, to see that it runs")
    args = parser.parse(argv)
    devices.start()
    args.out.mkdir(parents=True, exist_ok=True)
    choose(args.phase, PHASES, "phase")(args)
    return 0


PHASES = {"sample": sample, "search": search, "verdict": verdict}

if __name__ == "__main__":
    sys.exit(main())
