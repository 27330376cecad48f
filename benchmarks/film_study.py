"""Films in one step: APT on animated emoji, as docs/claims.md sets out (APT-20, APT-21).

    python benchmarks/film_study.py PHASE --train films.npz --test films_test.npz --out FOLDER

Phases, each a command that can be repeated: `train` makes the base, its distillation and two nets
of it against a discriminator whose times are shifted by 12 and by 1 (`--only base,distilled,...`: a
card's share); `samples` draws `--num` films of each; `score` compares them with the training films,
frame by frame and in what moves, and writes scores.json with the verdicts and how far the nearest
training film is. `all --toy` does everything small, on discs that move. The data:
`python benchmarks/packs.py emoji_anim PACK --out films.npz`, and `--split test`.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from relay_study import write_json

from diffjax import systems
from diffjax.data.films import open_films
from diffjax.errors import UserError, choose, command
from diffjax.metrics import film_scores
from diffjax.metrics.features import feature_net
from diffjax.metrics.intervals import jackknife, verdict
from diffjax.metrics.kid import Kernels
from diffjax.run import cli, devices, loop, sampling
from diffjax.run import mesh as meshes

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FOREVER = 10**9
SECONDS = {"base": 240.0, "distilled": 100.0}
UPDATES = 600  # of stage three, at a rate that falls
SHIFTS = {"shift12": 12.0, "shift1": 1.0}
ARMS = {  # the run, fields of its request
    "B25": ("base", {"steps": 25, "sampler": "euler"}),
    "B1": ("base", {"steps": 1, "sampler": "euler"}),
    "C1": ("distilled", {}),
    "A1": ("shift12", {}),
    "A1_shift1": ("shift1", {}),
}
NET = "emoji"


def config_of(args, stage: str):
    base, config = (cli.load_config(str(CONFIGS / name)) for name in ("film.py", "apt.py"))
    base.network.update(width=160, depth=8, heads=5, remat=False)  # 7.2 M parameters
    base.update(batch_size=64, steps=FOREVER, time_budget=SECONDS["base"])
    base.data.path = args.train
    base.optimizer.warmup_steps = 300
    base.sampling.update(steps=25, sampler="euler")
    config.update(batch_size=64, steps=UPDATES)
    config.distil.update(batch_size=64, steps=FOREVER, time_budget=SECONDS["distilled"])
    config.distillation.shift = 12.0
    config.optimizer.update(schedule="cosine", final=0.02)
    config.adversarial.update(shift=SHIFTS.get(stage, 12.0), r1_sigma=0.1, alarm=0.0)
    if stage != "base":
        config.base = str(args.out / ("base" if stage == "distilled" else "distilled"))
    for one in (base, config):
        one.update(checkpoint_every=FOREVER, sample_every=FOREVER, num_samples=16, log_every=20)
    if args.toy:
        base.network.update(width=48, depth=2, heads=3, dtype="float32")
        base.optimizer.warmup_steps = 2.0
        base.data.update(path="dots", frames=4)
        for one in (base, config.distil, config):
            one.update(batch_size=8, steps=8, time_budget=0.0)
        base.log_every = config.log_every = 2
    config.pretrain = base
    return config


def train(args) -> None:
    for stage in ("base", "distilled", *SHIFTS):
        run = args.out / stage
        if (run / sampling.WEIGHTS).is_file() or (args.only and stage not in args.only.split(",")):
            continue
        (config, _), *_ = systems.stages(config_of(args, stage), run)
        if loop.train(systems.make(config), config, run):
            raise UserError(f"{run}: stopped")


def films_of(path: str, args):
    return open_films(path, 4 if args.toy else 16)


def make_samples(args) -> None:
    source, mesh = films_of(args.train, args), meshes.make_mesh(meshes.LOCAL)
    for arm, (name, fields) in ARMS.items():
        out, run = args.out / f"{arm}.npz", args.out / name
        if out.is_file() or not (run / sampling.WEIGHTS).is_file():
            continue
        system, _ = systems.load(run)
        request = dataclasses.replace(system.request, **fields)
        params, _ = sampling.load_params(system, run, mesh)
        found = sampling.collect(
            *(system, params, request), num=args.num, seed=5, batch=args.batch, mesh=mesh,
            run=sampling.sampler(system, request, mesh),
            condition=lambda i, s=system, r=request: s.condition_like(r, source, i),
        )  # fmt: skip
        np.savez(out, films=found["image"])
        print(out, found["image"].shape, flush=True)


# ---- scores --------------------------------------------------------------------------------------


def statistics(made: np.ndarray, real: np.ndarray) -> dict[str, Callable]:
    """{"kid_frames", "kid_motion"}: functions of which films are kept; `film_scores` says of what.

    Args:
      made, real: features [n, T, d], [m, T, d].
    """
    size = film_scores.typical(film_scores.motion(real))
    moved = [film_scores.bounded(film_scores.motion(x), size) for x in (made, real)]

    def mean(x, y) -> Callable:
        at = [Kernels(x[:, t], y[:, t]) for t in range(y.shape[1])]
        return lambda keep: float(np.mean([kernels(keep) for kernels in at]))

    return {"kid_frames": mean(made, real), "kid_motion": mean(*moved)}


def halves(real: np.ndarray, seed: int) -> dict[str, float]:
    """The scores of one random half of the real films against the other."""
    one, other = np.array_split(np.random.default_rng(seed).permutation(len(real)), 2)
    found = statistics(real[one], real[other])
    return {name: of(np.ones(len(one), bool)) for name, of in found.items()}


def nearest(made: np.ndarray, train: np.ndarray) -> np.ndarray:
    """[n]: the root mean square distance, in levels, of each film to the nearest of `train`."""
    flat = lambda x: np.asarray(x, np.float32).reshape(len(x), -1)
    a, b = flat(made), flat(train)
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square.min(1), 0) / a.shape[1])


def score(args) -> None:
    net = feature_net(NET)
    sets = {name: films_of(getattr(args, name), args) for name in ("train", "test")}
    stacked = {n: np.stack([s[i]["image"] for i in range(len(s))]) for n, s in sets.items()}
    real = film_scores.features_of(net, stacked["train"])
    floors = [halves(real, seed) for seed in range(20)]
    floor = {name: [one[name] for one in floors] for name in floors[0]}
    s_floor = float(np.std(floor["kid_frames"], ddof=1))
    held_out = nearest(stacked["test"], stacked["train"])
    found = {
        "feature_net": NET, "num_real": len(real), "num_made": args.num,
        "floor": {name: float(np.mean(values)) for name, values in floor.items()},
        "s_floor": s_floor,
        "held out": {"nearest": float(np.median(held_out))}, "arms": {},
    }  # fmt: skip
    arms = {}
    for arm in ARMS:
        if not (args.out / f"{arm}.npz").is_file():
            continue
        with np.load(args.out / f"{arm}.npz", allow_pickle=False) as file:
            films = file["films"]
        arms[arm] = statistics(film_scores.features_of(net, films), real)
        n, far = len(films), nearest(films, stacked["train"])
        about = {name: jackknife(of, n) for name, of in arms[arm].items()}
        copies = float(np.mean(far < np.percentile(held_out, 1)))
        found["arms"][arm] = {**about, "nearest": float(np.median(far)), "copies": copies}
    if {"A1", "A1_shift1"} <= set(arms):
        found["APT-20"] = less(arms["A1"], arms["A1_shift1"], "kid_motion", n)
    if {"A1", "B25"} <= set(arms):
        a1, b25 = arms["A1"]["kid_frames"], arms["B25"]["kid_frames"]
        over = lambda keep: a1(keep) - b25(keep) - max(0.1 * b25(keep), 2 * s_floor)
        frames = verdict(jackknife(over, n), -1)
        moves = less(arms["B25"], arms["A1"], "kid_motion", n)
        holds = [part["verdict"] == "holds" for part in (frames, moves)]
        fails = frames["verdict"] == "does not hold"
        word = "holds" if all(holds) else "does not hold" if fails else "undecided"
        found["APT-21"] = {"frames": frames, "motion": moves, "verdict": word}
    write_json(args.out / "scores.json", found)


def less(a: dict, b: dict, of: str, n: int) -> dict:
    """Whether a's score is below b's, with the interval of the difference."""
    return verdict(jackknife(lambda keep: a[of](keep) - b[of](keep), n), -1)


def everything(args) -> None:
    train(args)
    make_samples(args)
    score(args)


PHASES = {"train": train, "samples": make_samples, "score": score, "all": everything}


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="film_study.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("phase", help=", ".join(PHASES))
    add("--train", default="films.npz", help="films to train on")
    add("--test", default="films_test.npz", help="films held out")
    add("--out", type=Path, required=True, help="a folder; phases find each other there")
    add("--only", default="", help="what `train` is to do; default: all")
    add("--num", type=cli.positive, default=512, help="samples an arm")
    add("--batch", type=cli.positive, default=64, help="how many are sampled at a time")
    add("--toy", action="store_true", help="everything small, on discs that move")
    args = parser.parse(argv)
    devices.start()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.toy:
        args.train = args.test = "dots"
        args.num, args.batch = 24, 24
    choose(args.phase, PHASES, "phase")(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
