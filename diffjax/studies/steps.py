"""How few steps are enough: `python -m diffjax.studies.steps --workdir RUN [RUN ...]`.

Samples a run at several step counts (and samplers, and schedules), scores each against real
examples, and says which is the smallest count that is no worse than the reference count by more
than a margin. Several runs are taken for trainings of one thing under several seeds. With --search
it also looks for the best times of so many steps. Writes NAME.json and NAME.png.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from diffjax import systems
from diffjax.data.sources import open_source
from diffjax.errors import UserError, choose, command
from diffjax.metrics import intervals, judging
from diffjax.metrics.intervals import Statistic
from diffjax.metrics.judging import Judge
from diffjax.run import cli, devices, own_grid, sampling
from diffjax.run import mesh as meshes
from diffjax.run.system import System
from diffjax.studies import files, grid_search, steps_report
from diffjax.studies.arms import combinations, title
from diffjax.studies.steps_report import EVEN, SEARCHED

FEWEST = 8  # samples an arm
FINEST = 4096  # steps of the grid that a search chooses from


@command
def main(argv: list[str]) -> int:
    parser = _parser()
    first = cli.workdir_of(parser, argv)
    devices.start()
    default = systems.load(first)[0].request
    names = [field.name for field in dataclasses.fields(default)]
    if "steps" not in names:
        raise UserError(f"{first}: its system takes no --steps")
    args, request = cli.with_request(parser, argv, default, without=("steps",))
    counts = _counts("--steps", args.steps)
    reference = args.reference or max(counts)
    searched = _counts("--search", args.search) if args.search else []
    own = set() if args.against else {reference}
    arms = _arms(request, sorted({*counts, *searched, *own}), args.vary)
    begin = next((arm for arm in arms if arm.steps == reference and own), None)
    begin = begin or _arms(request, [reference], args.vary)[0]
    _check_flags(args, names, searched)
    out = files.place(args.out, [".json", ".png", *(f".grid_{k}.json" for k in searched)])

    mesh = meshes.make_mesh(meshes.LOCAL)
    opened_systems: list[tuple] = []
    runs = [_open(name, request, args, mesh, opened_systems) for name in args.workdir]
    against = [_open(name, request, args, mesh, opened_systems) for name in args.against] or runs
    if len(against) != len(runs):
        raise UserError(f"--against: {len(against)} runs, but --workdir has {len(runs)}")
    system = runs[0].system
    opened = lambda split: open_source(args.ref, split) if args.ref else system.data(split)
    source = opened(args.split)
    for arm in [*arms, begin]:
        if own_grid.read(str(arm.fields.get("grid", getattr(request, "grid", "")))) is not None:
            raise UserError("--grid with levels of one's own decides the steps: name a schedule")
    for arm in arms:  # refused before the first sample, not after the last
        system.condition_like(arm.request, source, np.arange(1))
    against[0].system.condition_like(begin.request, source, np.arange(1))
    judge = _judge(system, source, args.metric, args.net, mesh)
    found = []
    if searched:
        found = grid_search.search(
            system, runs[0].weights(request, mesh),
            dataclasses.replace(request, **arms[0].fields, steps=args.fine), searched,
            condition=_like(system, request, opened(args.search_split or args.split)),
            num=args.search_num, seed=(args.seed + 1) % 2**32, batch=args.batch, mesh=mesh,
            method=args.search_by, eta=args.search_eta, rounds=args.search_rounds, progress=True,
        )  # fmt: skip
        arms += _grid_arms(request, arms[0].fields, found)
    how = {"num": args.num, "seed": args.seed, "batch": args.batch, "mesh": mesh}
    result = {
        "workdirs": args.workdir,
        "against": args.against,
        "weights": [run.which for run in runs],
        "ref": source.name,
        "num": args.num,
        "seed": args.seed,
        "request": vars(request),
        **study(runs, against, arms, begin, judge, source, how, args.metric, args.margin),
        "search": found,
    }
    steps_report.write(out, result)
    print("\n".join([steps_report.table(result), *result["answers"]]))
    print(f"{out}.json, {out}.png")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="diffjax.studies.steps", description=__doc__.split(":")[0], add_help=False
    )
    add = parser.add_argument
    add("--workdir", nargs="+", default=["runs/emoji"], help="runs of one config, one a seed")
    add("--against", nargs="+", default=[], help="runs that the reference is sampled from instead")
    add("--steps", default="4,8,16,32,64", help="step counts to compare, comma-separated")
    add("--reference", type=int, default=0, help="the count to be no worse than; 0: the largest")
    add("--vary", nargs="+", default=[], help="other fields: sampler=heun,ddim grid=edm,vp")
    add("--metric", default="kid", help="what decides")
    add("--net", default="emoji", help="feature net or judge, as evaluate takes it")
    add("--margin", type=float, default=0.1, help="the share of the score that may be lost")
    add("--num", type=cli.positive, default=1024, help="samples an arm, of each run")
    add("--seed", type=int, default=0, help="sample s is made of (seed, s) in every arm")
    add("--batch", type=cli.positive, default=128, help="how many at a time, on all devices")
    add("--ema", default="", help="which EMA; empty: the first; none: raw; posthoc:STD")
    add("--step", type=int, default=-1, help="the checkpoint of this step; -1: the newest")
    add("--ref", default="", help="data to compare with; empty: what the run was trained on")
    add("--split", default="train", help="the split of the reference")
    add("--search", default="", help="step counts to search grids of, comma-separated")
    add("--search_by", default="dp", help="dp (dynamic programming) or greedy")
    add("--search_eta", type=int, default=0, help="0: for ddim; 1: for ancestral sampling")
    add(
        "--search_rounds",
        type=int,
        default=3,
        help="how often each time is moved to a better place",
    )
    add("--search_num", type=cli.positive, default=32, help="samples that the search looks at")
    add("--search_split", default="", help="the split that it takes conditions of; empty: --split")
    add("--fine", type=cli.positive, default=64, help="steps of the grid that it chooses from")
    add("--out", default="steps", help="NAME.json, NAME.png and NAME.grid_K.json are written")
    return parser


def _check_flags(args, names: list[str], searched: list[int]) -> None:
    if not 0 <= args.margin < 1:
        raise UserError(f"--margin {args.margin}: a share, from 0 to below 1")
    if args.num < FEWEST:
        raise UserError(f"--num {args.num}: an interval needs at least {FEWEST} samples")
    if searched and "grid" not in names:
        raise UserError("--search: this system takes no --grid to try what is found")
    if searched and args.fine > FINEST:
        raise UserError(f"--fine {args.fine}: at most {FINEST}, as every jump's cost is kept")
    if searched and args.fine < max(searched):
        raise UserError(f"--search {max(searched)}: must be from 1 to the {args.fine} of --fine")
    choose(args.search_by, grid_search.METHODS, "--search_by")


def _counts(flag: str, text: str) -> list[int]:
    words = text.split(",")
    if not all(w.strip().isdecimal() and 0 < int(w) <= 10_000 for w in words):
        raise UserError(f"{flag} {text}: step counts from 1 to 10000, comma-separated")
    return sorted({int(w) for w in words})


# ---- what is compared ----------------------------------------------------------------------------


class Arm(NamedTuple):
    """One way of sampling.

    Attributes:
      group: what it has in common with arms of other step counts: "sampler=ddim".
      steps: how many.
      fields: what the group sets of the request.
      request: a system's.
    """

    group: str
    steps: int
    fields: dict
    request: Any

    @property
    def name(self) -> str:
        """In words: "20 steps, sampler=ddim"."""
        return f"{self.steps} steps" + (f", {self.group}" if self.group else "")


def _arms(request, counts: list[int], vary: list[str]) -> list[Arm]:
    """All counts of all combinations of the fields that vary; the first of each comes first."""
    arms = []
    for fields in combinations(request, vary, ("steps",)):
        make = lambda n, fields=fields: dataclasses.replace(request, **fields, steps=n)
        arms += [Arm(title(fields), n, fields, make(n)) for n in counts]
    return arms


def _grid_arms(request, fields: dict, found: list[dict]) -> list[Arm]:
    """Both grids of each count of a search, sampled with the first combination of fields."""
    arms = []
    for one in found:
        for group, times in (SEARCHED, one["grid"]), (EVEN, one["even"]["grid"]):
            own = {**fields, "grid": own_grid.text(times)}
            arm = dataclasses.replace(request, **own, steps=one["steps"])
            arms.append(Arm(group, one["steps"], own, arm))
    return arms


class Run(NamedTuple):
    """A run directory, opened; `params` are its own weights, before `System.equip`."""

    system: System
    params: Any
    which: str

    def weights(self, request, mesh: Mesh):
        """What `System.sample` takes for params."""
        if self.system.equip is None:
            return self.params
        return self.system.equip(self.params, request, mesh)[0]


def _open(workdir: str, request, args, mesh: Mesh, known: list[tuple]) -> Run:
    """known: of the runs before, to which this one's is added: seeds of one config share a system,
    and so a compiled program."""
    system, config = systems.load(workdir)
    about = {k: v for k, v in config.to_dict().items() if k not in ("name", "seed")}
    for same, other in known:
        if about == same and _equal(system.assets, other.assets):
            system = other
    known.append((about, system))
    if type(system.request) is not type(request):
        raise UserError(f"{workdir}: a run of another system than {args.workdir[0]}")
    params, which = sampling.load_params(system, Path(workdir), mesh, ema=args.ema, step=args.step)
    return Run(system, params, which)


def _equal(a: dict, b: dict) -> bool:
    """Whether two systems' assets are the same."""
    leaves, shape = jax.tree.flatten(a)
    others, shape_b = jax.tree.flatten(b)
    return shape == shape_b and all(map(np.array_equal, leaves, others))


def _judge(system: System, source, metric: str, net: str, mesh: Mesh) -> Judge:
    if system.judge is not None:
        return system.judge(source, metric, net, sharding=meshes.rows(mesh))
    score = system.evaluate(source, [metric], net, sharding=meshes.rows(mesh))
    return judging.of_scorer(score, metric, net)


def _like(system: System, request, source):
    return lambda index: system.condition_like(request, source, index)


# ---- the study -----------------------------------------------------------------------------------


def study(
    runs: list[Run],
    against: list[Run],
    arms: list[Arm],
    reference: Arm,
    judge: Judge,
    source,
    how: dict,
    metric: str = "kid",
    margin: float = 0.1,
) -> dict:
    """Scores all arms, compares them with the reference, and answers; ready for JSON.

    Args:
      runs: of one thing, one a training seed.
      against: the runs that the reference is sampled from, as many; `runs` themselves, or others.
      arms: what is compared; `reference` is one of them, unless it is of other runs.
      judge: of the metric. source: what it compares with, whose conditions are taken.
      how: num, seed, batch and mesh, for `sampling.batches`.
      margin: the share of the reference's score that may be lost.
    """
    n = how["num"]
    jobs = [(reference, against), *((arm, runs) for arm in arms if arm is not reference)]
    scored: list[tuple[list[Statistic], float]] = []
    with tqdm(total=len(jobs) * len(runs) * n, unit="sample", disable=None) as bar:
        for arm, models in jobs:
            bar.set_description(arm.name)
            scored.append(_score(arm, models, judge, source, how, bar))
    base, *rest = [statistics for statistics, _ in scored]
    s_floor = judge.floor(n)
    rows = []
    for (arm, _), (statistics, seconds) in zip(jobs, scored):
        row = {"steps": arm.steps, "group": arm.group, "fields": arm.fields}
        row |= {"score": intervals.of_runs(statistics, n), "seconds_a_sample": seconds}
        if statistics is not base:
            row["no_worse"] = intervals.no_worse(
                statistics, base, n, share=margin, s_floor=s_floor, sign=judge.sign
            )
        rows.append(row)
    of = {(arm.group, arm.steps): statistics for (arm, _), (statistics, _) in zip(jobs, scored)}
    about = {
        "metric": metric,
        "net": judge.name,
        "net_version": judge.version,
        "lower_is_better": judge.sign < 0,
        "margin": margin,
        "s_floor": s_floor,
        "runs": len(runs),
        "reference": {"steps": reference.steps, "group": reference.group},
        "arms": rows,
        "grids": _compare_grids(of, reference.group, n, judge.sign),
    }
    return {**about, **steps_report.answers(about)}


def _score(arm: Arm, models, judge: Judge, source, how: dict, bar) -> tuple:
    """([one statistic a model], median seconds a sample of the batches after the first)."""
    statistics, seconds, programs = [], [], {}
    for model in models:
        system, parts, clock = model.system, [], time.monotonic()
        run = programs.setdefault(id(system), sampling.sampler(system, arm.request, how["mesh"]))
        for part in sampling.batches(
            system, model.weights(arm.request, how["mesh"]), arm.request, run=run,
            condition=_like(system, arm.request, source), **how,
        ):  # fmt: skip
            count = len(jax.tree.leaves(part)[0])
            seconds.append((time.monotonic() - clock) / count)
            parts.append(part)
            bar.update(count)
            clock = time.monotonic()
        outputs = jax.tree.map(lambda *a: np.concatenate(a), *parts)
        statistics.append(judge.score(outputs))
    return statistics, float(np.median(seconds[1:] or seconds))  # the first one compiles


def _compare_grids(of: dict, group: str, n: int, sign: int) -> list[dict]:
    """Whether the grid that was found is better than the even one and than the schedule's own."""
    found = []
    for name, steps in of:
        if name == SEARCHED:
            better = lambda other, steps=steps: intervals.better(
                of[SEARCHED, steps], of[other, steps], n, sign=sign
            )
            own = {"than_schedule": better(group)} if (group, steps) in of else {}
            found.append({"steps": steps, "than_even": better(EVEN), **own})
    return found


if __name__ == "__main__":
    sys.exit(main())
