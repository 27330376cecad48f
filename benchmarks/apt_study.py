"""APT on small pictures, as docs/claims.md sets out: three stages of each seed, and ablations.

    python benchmarks/apt_study.py PHASE --train train64.npz --test test64.npz --out FOLDER

Phases, each a command that can be repeated: `judge` trains the feature net (or takes --judge) and
tries it on spoiled pictures; `train --seed S` trains the three stages of a seed, 8, 3 and 5 minutes
by default, scaled by --seconds, in FOLDER/seed_S; what is there already is not done again. `search`
tries the settings of SEARCH from a seed's distillation, and `choose` takes those, and the number of
updates, whose samples have the least KID to training pictures: where it was run, its choice is what
`train` and `ablate` do. `ablate` trains the ablations from seed 0's distillation, the same number
of updates each as the default makes in --ablation seconds (`--only no_r1,fd`: a card's share);
`samples` draws all arms that the runs allow; `score` writes scores.json with the verdicts. Seeds
and ablations are independent: a machine of several cards trains one on each. `all --toy` does
everything small, on emoji at 24x24. The data: `python benchmarks/packs.py cifar10 PACK --out F`;
sets of larger pictures take the net of configs/relay_emoji64.py.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import relay_judge
from apt_verdicts import Arm, ablations, of_seed, over_seeds
from relay_study import write_json

from diffjax import systems
from diffjax.data.sources import open_source
from diffjax.errors import UserError, choose, command
from diffjax.metrics import features as nets
from diffjax.metrics import kid, precision_recall
from diffjax.metrics.features import extract
from diffjax.metrics.kid import Kernels
from diffjax.run import cli, devices, loop, pictures, sampling
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints
from diffjax.run.logs import read_metrics
from diffjax.systems.apt import adversary

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHARES = {"base": 8 / 16, "distilled": 3 / 16, "adversarial": 5 / 16}
KEPT = 20  # checkpoints of an ablation, evenly spread
FOREVER = 10**9
ABLATIONS = {
    "default": {},
    "again": {"seed": 1},
    "no_r1": {"adversarial.r1_weight": 0.0},
    "g_diffusion": {"adversarial.g_from": "diffusion"},
    "d_random": {"adversarial.d_from": "random"},
    "d_distilled": {"adversarial.d_from": "distilled"},
    "last_only": {"adversarial.taps": (-1,)},
    "half_depth": {"adversarial.depth": 0.5},
    "t_zero": {"adversarial.times": "zero"},
    "small_batch": {},  # an eighth
    "long": {},  # three times the updates
    "relativistic": {"adversarial.family": "relativistic", "adversarial.r2": True},
    "fd": {"adversarial.r1_mode": "fd"},
}
SEARCH = {
    "plain": {},
    "slow": {"optimizer.learning_rate": 2e-5},
    "held": {"adversarial.r1_weight": 1000.0},
    "slow_held": {"optimizer.learning_rate": 2e-5, "adversarial.r1_weight": 1000.0},
}
SEARCHED, EVERY = 1200, 100  # updates, and of them between two looks
ARMS = {  # of a seed: the run, fields of its request
    "B25": ("base", {"steps": 25, "sampler": "euler"}),
    "U25": ("base", {"steps": 25, "sampler": "euler", "guidance": 1.0}),
    "B1": ("base", {"steps": 1, "sampler": "euler"}),
    "C1": ("distilled", {}),
    **{f"A{k}": ("", {"steps": k}) for k in (1, 2, 4, 8)},
}


def config_of(args, **fields):
    """The config of a whole seed; a field is an override."""
    config = cli.load_config(str(CONFIGS / "apt.py"))
    base = cli.load_config(str(CONFIGS / "relay_emoji64.py"))
    size = open_source(args.train).image_shape[0]
    for one, share in ((base, "base"), (config.distil, "distilled"), (config, "adversarial")):
        one.update(steps=FOREVER, batch_size=256, time_budget=args.seconds * SHARES[share])
    for one in (base, config):
        one.update(checkpoint_every=FOREVER, sample_every=FOREVER, num_samples=64, seed=args.seed)
    base.data.update(path=args.train, image_size=size)
    base.diffusion.update(times="uniform", label_dropout=0.1)
    if size <= 32:  # CIFAR-10: 6.6 M parameters that see every pixel
        base.network.update(widths=(96, 128, 192), patch=1)
        base.diffusion.sigma_data = 0.5
    base.sampling.update(steps=25, sampler="euler", guidance=1.5)
    config.log_every = 20
    config.adversarial.alarm = 0.0  # a run that is to be scored goes on
    if args.toy:
        small = {"widths": (8, 16), "patch": 2, "embedding": 16, "dtype": "float32"}
        base.network.update(**small)
        for one in (base, config.distil, config):
            one.update(batch_size=16, steps=12, time_budget=0.0)
        config.update(log_every=2)
        base.update(log_every=2)
        base.optimizer.warmup_steps = 2.0
    config.pretrain = base
    words = [f"{name}={value}" for name, value in fields.items()]
    return cli.apply_overrides(config, words)


def chosen(args) -> dict:
    """The fields that `choose` found best; none where it was not run."""
    found = args.out / "chosen.json"
    return json.loads(found.read_text())["fields"] if found.is_file() else {}


def last_of(args) -> str:
    """Where the last stage of a seed is: apart from another that was trained before the search."""
    return "adversarial_chosen" if chosen(args) else "adversarial"


def trained(config, workdir: Path) -> None:
    """What `train.py` does with a config."""
    for stage, place in systems.stages(config, workdir):
        if loop.train(systems.make(stage), stage, place):
            raise UserError(f"{place}: stopped")


def train(args) -> None:
    # Not in the last stage's own directory: that is made first, and this is simpler to look at.
    place, parent = args.out / f"seed_{args.seed}", {}
    for stage in ("base", "distilled", "adversarial"):
        last = stage == "adversarial"
        run, own = place / (last_of(args) if last else stage), chosen(args) if last else {}
        if not (run / sampling.WEIGHTS).is_file():
            (config, _), *_ = systems.stages(config_of(args, **parent, **own), place)
            if loop.train(systems.make(config), config, run):
                raise UserError(f"{run}: stopped")
        parent = {"base": str(run)}
        if stage == args.until:
            return


def counted(args, begin: str) -> int:
    """How many updates the default makes in --ablation seconds."""
    found = args.out / "ablations" / "counted.json"
    if not found.is_file():
        clock = {} if args.toy else {"time_budget": args.ablation}
        probe = args.out / "ablations" / "probe"
        trained(config_of(args, base=begin, **clock), probe)
        write_json(found, {"steps": Checkpoints(probe, read_only=True).newest()})
    return json.loads(found.read_text())["steps"]


def ablate(args) -> None:
    begin = str(args.out / "seed_0" / "distilled")
    steps = chosen(args).get("steps") or counted(args, begin)
    for name, fields in ABLATIONS.items():
        if args.only and name not in args.only.split(","):
            continue
        count = 3 * steps if name == "long" else steps
        every = max(1, count // (2 if args.toy else KEPT))
        given = {"base": begin, **chosen(args), "steps": count, "time_budget": 0.0, **fields}
        given |= {"checkpoint_every": every, "keep_every": every}
        if name == "small_batch":
            given["batch_size"] = config_of(args).batch_size // 8
        trained(config_of(args, **given), args.out / "ablations" / name)


def search(args) -> None:
    net, train = judge_of(args)[0], open_source(args.train)
    steps, every = (4, 2) if args.toy else (SEARCHED, EVERY)
    for name, fields in SEARCH.items():
        if args.only and name not in args.only.split(","):
            continue
        run = args.out / "search" / name
        given = {"base": str(args.out / f"seed_{args.seed}" / "distilled"), "steps": steps}
        given |= {"time_budget": 0.0, "checkpoint_every": every, "keep_every": every, **fields}
        trained(config_of(args, **given), run)
        for step in Checkpoints(run, read_only=True).steps():
            out = args.out / "features" / f"search.{name}.{step:07}.npz"
            draw(args, net, train, run, {}, out, step=step)


def choose_best(args) -> None:
    net, train = judge_of(args)[0], open_source(args.train)
    some = np.random.default_rng(0).permutation(len(train.images))[:10_000]
    real, found = extract(net, train.images[some]), {}
    for path in sorted((args.out / "features").glob("search.*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.stem[7:]] = float(kid.mmd2(arrays["features"], real).value)
    if not found:
        raise UserError(f"{args.out}: nothing was searched")
    trained_ones = [name for name in found if int(name.rsplit(".", 1)[1])]  # 0: the distilled net
    name, step = min(trained_ones, key=found.get).rsplit(".", 1)
    fields = {**SEARCH[name], "steps": int(step), "time_budget": 0.0}
    write_json(args.out / "chosen.json", {"fields": fields, "kid": found})


def train_judge(args) -> None:
    if not args.judge:
        steps, batch = (20, 8) if args.toy else (3000, 64)
        relay_judge.train(open_source(args.train), args.out / "judge.safetensors", steps, batch)
    net, test = judge_of(args)
    write_json(args.out / "judge.json", relay_judge.trial(net, test.images, test.labels))


# ---- sampling ------------------------------------------------------------------------------------


@functools.cache
def opened(run: Path, fields: tuple):
    """(system, request, its jitted sampler, mesh) of a run: compiled once for all checkpoints."""
    system, _ = systems.load(run)
    mesh = meshes.make_mesh(meshes.LOCAL)
    request = dataclasses.replace(system.request, **dict(fields))
    return system, request, sampling.sampler(system, request, mesh), mesh


def draw(args, net, test, run: Path, fields: dict, out: Path, ema: str = "", step: int = -1):
    """Samples of the held-out pictures' classes, as features, calls of class and sharpness."""
    if out.is_file():
        return
    system, request, sampler, mesh = opened(run, tuple(fields.items()))
    params, _ = sampling.load_params(system, run, mesh, ema=ema, step=step)
    found = sampling.collect(
        system, params, request, num=args.num, seed=5, batch=args.batch, mesh=mesh, run=sampler,
        condition=lambda index: system.condition_like(request, test, index),
    )  # fmt: skip
    images = found["image"]
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.labelled_grid(
        images[:: max(1, len(images) // 64)][:64], None, (), out.with_suffix(".png")
    )
    right = extract(net, images, output="probs").argmax(-1) == found["label"]
    np.savez(out, features=extract(net, images), right=right, sharp=energy(images))
    print(out, f"accuracy {right.mean():.3f}", flush=True)


def energy(images) -> np.ndarray:
    """[n]: the mean squared gradient of each picture's luminance, by forward differences."""
    grey = np.asarray(images, np.float64) @ [0.299, 0.587, 0.114] / 255
    across, down = np.diff(grey, axis=2), np.diff(grey, axis=1)
    return (across**2).mean((1, 2)) + (down**2).mean((1, 2))


def make_samples(args) -> None:
    net, test = judge_of(args)
    features = args.out / "features"
    for seed in sorted(args.out.glob("seed_[0-9]")):
        for arm, (run, fields) in ARMS.items():
            place = seed / (run or last_of(args))
            draw(args, net, test, place, fields, features / f"{name_of(args, seed, arm)}.npz")
    for name in ABLATIONS:
        run = args.out / "ablations" / name
        if not (run / sampling.WEIGHTS).is_file():
            continue
        draw(args, net, test, run, {}, features / f"ablation.{name}.npz")
        if name in ("default", "relativistic", "long"):
            for step in Checkpoints(run, read_only=True).steps()[:-1]:
                for ema in (
                    ("", "none") if name == "default" and step > 200 * (not args.toy) else ("",)
                ):
                    out = features / f"step.{name}.{step:07}.{'raw' if ema else 'ema'}.npz"
                    draw(args, net, test, run, {}, out, ema, step)


def name_of(args, seed: Path, arm: str) -> str:
    """Of the features of a seed's arm."""
    return f"{seed.name}.{arm}" if ARMS[arm][0] else f"{seed.name}.{last_of(args)}.{arm}"


def judge_of(args):
    if args.judge:
        return nets.own_classifier(args.judge), open_source(args.test)
    source, path = open_source(args.train), args.out / "judge.safetensors"
    return relay_judge.load(path, source.num_classes, source.image_shape), open_source(args.test)


# ---- scores --------------------------------------------------------------------------------------


def arm_of(path: Path, real, sharp: float) -> Arm:
    with np.load(path, allow_pickle=False) as found:
        x, right, of_each = found["features"], found["right"], found["sharp"]
    n = len(x)
    part = lambda values: lambda keep: float(values[:n][keep[:n]].mean())
    return Arm(n, Kernels(x, real), part(of_each / sharp), part(right), covered(real, x))


def covered(real, x, k: int = 3) -> np.ndarray:
    """bool [m]: whether a real picture is within the k-th neighbour's distance of a sample."""
    apart = lambda a, b: (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    x, real = np.asarray(x, np.float64), np.asarray(real, np.float64)
    radii = np.sort(apart(x, x), 1)[:, k]
    return (apart(real, x) <= radii).any(1)


def score(args) -> None:
    net, test = judge_of(args)
    real, sharp = extract(net, test.images), energy(test.images).mean()
    judge = json.loads((args.out / "judge.json").read_text())
    load = lambda name: arm_of(args.out / "features" / f"{name}.npz", real, sharp)
    found, shown, seeds = {"judge": judge}, {}, []
    for seed in sorted(args.out.glob("seed_[0-9]")):
        arms = {name: load(name_of(args, seed, name)) for name in ARMS}
        shown |= {f"{seed.name}.{name}": numbers(arm) for name, arm in arms.items()}
        seeds.append(of_seed(arms, judge["s_floor"]))
    found["claims"] = over_seeds(seeds)
    there = [n for n in ABLATIONS if (args.out / "features" / f"ablation.{n}.npz").is_file()]
    if {"default", "again"} <= set(there):
        arms, about = {name: load(f"ablation.{name}") for name in there}, {}
        shown |= {f"ablation.{name}": numbers(arm) for name, arm in arms.items()}
        for name in there:
            records = read_metrics(args.out / "ablations" / name)
            alarm = any(adversary.collapsed(records[:i], 0.1) for i in range(len(records)))
            about[name] = {"d_loss": records[-1]["d_adversarial"], "alarm": alarm}
            about[name] |= {"kids": kids(args, name, real)}
        if steps := sorted((args.out / "features").glob("step.long.*.ema.npz")):
            best = steps[int(np.argmin(about["long"]["kids"]["ema"]))]
            arms["long_best"] = arm_of(best, real, sharp)
        found["ablations"] = ablations(arms, about, judge["s_floor"])
        found["ablation_runs"] = about
    found["arms"] = shown
    found["floor"] = precision_recall.precision(real[::2], real[1::2], 3)
    if not judge["sees"]:
        found["warning"] = "the judge does not tell spoiled pictures: its verdicts mean nothing"
    write_json(args.out / "scores.json", found)
    for claim, about in {**found["claims"], **found.get("ablations", {})}.items():
        if isinstance(about, dict) and "verdict" in about:
            print(claim, about["verdict"])


def kids(args, name: str, real) -> dict:
    """{"ema", "raw"}: KID at each kept step, where samples of it are."""
    found = {"ema": [], "raw": []}
    for path in sorted((args.out / "features").glob(f"step.{name}.*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.stem.split(".")[-1]].append(float(kid.mmd2(arrays["features"], real).value))
    if found["raw"]:  # the first ones have no raw twin
        found["ema_all"], found["ema"] = found["ema"], found["ema"][-len(found["raw"]) :]
    return found


def numbers(arm: Arm) -> dict:
    every = np.ones(arm.n, bool)
    found = {"kid": arm.kid(every), "sharpness": arm.sharp(every), "accuracy": arm.right(every)}
    return {**found, "recall": float(arm.covered.mean())}


def everything(args) -> None:
    train_judge(args)
    args.until = "distilled"
    for args.seed in (1, 0):
        train(args)
    search(args)
    choose_best(args)
    args.until = ""
    for args.seed in (0, 1):
        train(args)
    ablate(args)
    make_samples(args)
    score(args)


PHASES = {"judge": train_judge, "train": train, "search": search, "choose": choose_best}
PHASES |= {"ablate": ablate, "samples": make_samples, "score": score, "all": everything}


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="apt_study.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("phase", help=", ".join(PHASES))
    add("--train", default="train64.npz", help="pictures to train on, in classes")
    add("--test", default="test64.npz", help="pictures held out")
    add("--judge", default="", help="a classifier's weights; default: one is trained by `judge`")
    add("--out", type=Path, required=True, help="a folder; phases find each other there")
    add("--seconds", type=float, default=960.0, help="of a seed's three stages, 8 : 3 : 5")
    add("--ablation", type=float, default=120.0, help="of the default ablation's training")
    add("--seed", type=int, default=0, help="of `train` and `search`")
    add("--until", default="", help="the last stage of `train`: base, distilled; default: all")
    add("--only", default="", help="what `ablate` or `search` is to do; default: all")
    add("--num", type=cli.positive, default=4096, help="samples an arm")
    add("--batch", type=cli.positive, default=256, help="how many are sampled at a time")
    add("--toy", action="store_true", help="everything small, on the emoji of the package")
    args = parser.parse(argv)
    choose(args.until, dict.fromkeys(("", "base", "distilled")), "--until")
    names = SEARCH if args.phase == "search" else ABLATIONS
    for name in filter(None, args.only.split(",")):
        choose(name, names, "--only")
    devices.start()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.toy:
        args.train = args.test = "emoji"
        args.num, args.batch = 48, 48
    choose(args.phase, PHASES, "phase")(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
