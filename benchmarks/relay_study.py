"""A relay from start to end against a cascade and bicubic enlargement, as docs/claims.md sets out.

    python benchmarks/relay_study.py PHASE --train train256.npz --test test256.npz --out FOLDER

Phases, each a command of minutes that can be repeated: `judge` trains the feature net and tries it;
`base` trains the first stage; `relay`, `cascade` and `plain` (the relay without block noise) train
a second stage: two learning rates, then the better one for the time; `starts` samples the base once
for all; `samples` makes every arm that the runs allow (arms that are there are not made again;
`--only relay_0,bicubic` names a card's share); `score` writes scores.json with the verdicts;
`order` compares the two correctors, RELAY-8. Seeds and kinds are independent: a machine of several
cards trains one on each (`CUDA_VISIBLE_DEVICES`). `all --toy` does everything small, on emoji at
24x24, to see that it runs. The data are made by
`python benchmarks/packs.py emoji emoji256.zip --out train256.npz`.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import relay_cascade
import relay_judge
import relay_verdicts
from PIL import Image
from scipy import stats

from diffjax import systems
from diffjax.core import grids
from diffjax.data.sources import open_source
from diffjax.errors import UserError, choose, command
from diffjax.metrics import frechet, kid, precision_recall
from diffjax.metrics.features import extract
from diffjax.metrics.intervals import jackknife, verdict
from diffjax.metrics.kid import Kernels
from diffjax.run import cli, devices, loop, pictures, sampling
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints
from diffjax.systems.images import to_uint8

HERE = Path(__file__).resolve().parents[1]
RATES = (1e-3, 3e-3)  # searched
SHARES = 8  # checkpoints that are kept of a training, evenly spread
STEPS = tuple((nfe + 1) // 2 for nfe in relay_verdicts.NFES)  # N of them: 2N - 1 evaluations
MAIN = (relay_verdicts.MAIN + 1) // 2
PROBE = 200  # steps that tell how fast a net trains
TOY = {"search": 1.0, "seconds": 2.0, "num": 64, "batch": 32}
SECOND = ("relay", "cascade", "plain")
NORMALIZE = "diffusion.normalize"  # of the config, where the others are of the request
EXACT = 257  # steps that stand for infinitely many


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="relay_study.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("phase", help=", ".join(PHASES))
    add("--train", default="train256.npz", help="pictures to train on, in classes")
    add("--test", default="test256.npz", help="pictures held out")
    add("--out", type=Path, required=True, help="a folder; phases find each other there")
    add("--seconds", type=float, default=420.0, help="of training, a net")
    add("--search", type=float, default=60.0, help="seconds of each learning rate searched")
    add("--seed", type=int, default=0, help="of a second stage's training")
    add("--only", default="", help="the runs, and bicubic, that `samples` is to do; default: all")
    add("--num", type=cli.positive, default=1024, help="samples an arm")
    add("--batch", type=cli.positive, default=64, help="how many are sampled at a time")
    add("--toy", action="store_true", help="everything small")
    args = parser.parse(argv)
    devices.start()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.toy:
        args.train = args.test = "emoji"
        for name, most in TOY.items():
            setattr(args, name, min(getattr(args, name), most))
    choose(args.phase, PHASES, "phase")(args)
    return 0


# ---- training ------------------------------------------------------------------------------------


def config_of(args, name: str, **overrides):
    """The config of a net of the study; every second stage has the same but for what it is."""
    stem = "relay_emoji64" if name == "base" else "relay_emoji256"
    config = cli.load_config(str(HERE / "configs" / f"{stem}.py"))
    size = open_source(args.train).image_shape[0]
    config.update(seed=args.seed if name != "base" else 0, num_samples=16, log_every=20)
    config.update(checkpoint_every=10**9, sample_every=10**9, steps=10**9, keep=1)
    config.data.update(path=args.train, image_size=size // 4 if name == "base" else size)
    # Constant, so that half a training is a fair half-trained net; and an average over a fixed
    # share of what has been seen.
    config.optimizer.update(schedule="constant", warmup_steps=200, learning_rate=RATES[0])
    config.ema.ema = {"kind": "half_life", "images": 10**9, "ramp": 0.05}
    if name != "base":
        config.parent = str(args.out / "base")
        config.diffusion.update({"cascade_mean": -0.6, "cascade_std": 1.4})
        config.diffusion.block = 0.0 if name == "plain" else 0.15
    if args.toy:
        config.update(batch_size=8, log_every=5, num_samples=8)
        patch = 1 if name == "base" else 2  # of 6x6 and 24x24
        config.network.update(widths=(8, 16), patch=patch, embedding=16, dtype="float32")
        config.optimizer.warmup_steps = 2
    return cli.apply_overrides(config, [f"{k}={v}" for k, v in overrides.items()])


def system_of(name: str, config):
    return relay_cascade.make(config) if name == "cascade" else systems.make(config)


def fixed_loss(name: str, workdir: Path, config) -> float:
    """The training loss on one batch of 256 rows and one key, of a run's averaged weights."""
    system, mesh = system_of(name, config), meshes.make_mesh(config.mesh)
    params, _ = sampling.load_params(system, workdir, mesh)
    source, rows = system.data("train"), np.arange(256)
    at = np.random.default_rng(0).integers(0, len(source), len(rows))
    batch = {"image": source.images[at], "label": source.labels[at], "row": rows.astype(np.int32)}
    return float(jax.jit(system.loss)(params, batch, jax.random.key(7))[0])


def seconds_to_steps(workdir: Path, config, seconds: float) -> int:
    """How many steps the time is, at the speed that a run in `workdir` had once it was compiled."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rate = float(np.median([row["images_per_second"] for row in rows[len(rows) // 2 :]]))
    return max(1, int(rate / config.batch_size * seconds))


def train(args, name: str) -> None:
    """Searches the learning rate, then trains for the time.

    Both in steps that were counted before: on the clock each training would pay for compiling, and
    a repeated phase would not find its runs again.
    """
    workdir = args.out / (name if name == "base" else f"{name}_{args.seed}")
    trial = lambda what: args.out / "search" / f"{workdir.name}_{what}"

    def run(place: Path, **fields):
        config = config_of(args, name, **fields)
        loop.train(system_of(name, config), config, place)
        return config

    config, found = run(trial("probe"), steps=20 if args.toy else PROBE), {}
    count = lambda seconds: seconds_to_steps(trial("probe"), config, seconds)
    for rate in RATES if name in SECOND else ():  # the base is common to all: nothing to be fair to
        fields = {"steps": count(args.search), "optimizer.learning_rate": rate}
        found[rate] = fixed_loss(name, trial(f"{rate:g}"), run(trial(f"{rate:g}"), **fields))
    best = min(found, key=found.get, default=RATES[0])
    every = max(1, count(args.seconds) // SHARES)
    fields = {"steps": SHARES * every, "checkpoint_every": every, "keep_every": every}
    begun = time.monotonic()
    run(workdir, **fields, **{"optimizer.learning_rate": best})
    about = {"search": {f"{k:g}": v for k, v in found.items()}, "rate": best, **fields}
    about |= {"images": fields["steps"] * config.batch_size, "seconds": time.monotonic() - begun}
    write_json(args.out / f"{workdir.name}.json", about)


def train_judge(args) -> None:
    source, test = open_source(args.train), open_source(args.test)
    path = args.out / "judge.safetensors"
    steps, batch = (20, 8) if args.toy else (3000, 64)
    relay_judge.train(source, path, steps, batch)
    net = relay_judge.load(path, source.num_classes, source.image_shape)
    write_json(args.out / "judge.json", relay_judge.trial(net, test.images, test.labels))


# ---- sampling ------------------------------------------------------------------------------------


def draw(system, params, request, labels, args, begin=None, draw=None):
    """Samples of the labels, in order, as NumPy; `begin` are the pictures that they start from."""
    mesh = meshes.make_mesh(meshes.LOCAL)
    if begin is not None:
        start = dataclasses.replace(system.start, pictures=lambda request: begin)
        system = dataclasses.replace(system, start=start)
    if draw is not None:
        system = dataclasses.replace(system, sample=draw)
    return sampling.collect(
        system, params, request, num=len(labels), seed=0, batch=args.batch, mesh=mesh,
        condition=lambda index: labels[index % len(labels)], progress=True,
    )  # fmt: skip


def sample_base(args) -> None:
    """The small pictures that all second stages start from, with their labels."""
    system, _ = systems.load(args.out / "base")
    mesh = meshes.make_mesh(meshes.LOCAL)
    params, _ = sampling.load_params(system, args.out / "base", mesh)
    test = open_source(args.test)
    labels = system.condition_like(system.request, test, np.arange(args.num))
    small = lambda *given: {"x": system.pixels(*given)}
    x = draw(system, params, system.request, labels, args, draw=small)["x"]
    np.savez(args.out / "starts.npz", x=x, labels=labels)


def steps_below(count: int, cut: float) -> int:
    """How many levels a grid needs for `count` of them to be below the cut."""
    for steps in range(count, 2000):
        if np.sum((g := grids.karras(steps, 0.008, 80.0)) < cut) - (g[-1] == 0) == count:
            return steps
    raise UserError(f"no grid has {count} levels below {cut}")


def arms(args) -> dict[str, tuple[Path, str, dict, int]]:
    """{arm: (run, what it is, fields of its request, share of its training in eighths)}."""
    found = {}
    for name in SECOND:
        steps = (lambda n: n) if name == "cascade" else (lambda n: steps_below(n, 0.9))
        for run in sorted(args.out.glob(f"{name}_[0-9]")):

            def add(what, share=SHARES, run=run, name=name, n=MAIN, **fields):
                found[f"{run.name}.{what}"] = (run, name, {"steps": steps(n), **fields}, share)  # noqa: B023

            for n in (MAIN,) if name == "plain" else STEPS:
                add(f"nfe{2 * n - 1}", n=n)
            for share in (1, 2) if name == "plain" else (1, 2, 4, 6):
                add(f"share{share}", share)
            if name != "relay":
                continue
            add("normalized", **{NORMALIZE: True})
            for eta in (0.0, 0.1, 0.4):
                add(f"eta{eta}", eta=eta)
            for cut in (0.6, 1.2):
                add(f"start{cut}", truncation=cut, steps=steps_below(MAIN, cut))
            for n in STEPS[:3]:
                add(f"second{2 * n - 1}", n=n, second_order=True)
    return found


def judge_of(args):
    source, test = open_source(args.train), open_source(args.test)
    path = args.out / "judge.safetensors"
    return relay_judge.load(path, source.num_classes, source.image_shape), source, test


def make_samples(args) -> None:
    """Samples every arm, or those of --only, and keeps their features and a picture."""
    net, source, _ = judge_of(args)
    wanted = lambda name: not args.only or name in args.only.split(",")
    with np.load(args.out / "starts.npz") as given:
        starts, labels = given["x"], given["labels"]
    (args.out / "features").mkdir(exist_ok=True)
    size = source.image_shape[0]
    if wanted("bicubic"):
        enlarged = [
            np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
            for image in np.asarray(to_uint8(jnp.asarray(starts)))
        ]
        keep_features(args, net, "bicubic", np.stack(enlarged))
    for arm, (run, name, fields, share) in arms(args).items():
        if not wanted(run.name) or (args.out / "features" / f"{arm}.npz").exists():
            continue
        config, fields = cli.read_config(run), dict(fields)
        if fields.pop(NORMALIZE, False):
            config.diffusion.normalize = True
        system = system_of(name, config)
        request = dataclasses.replace(system.request, **fields)
        steps = sorted(Checkpoints(run, read_only=True).steps())
        step = steps[-1] if share == SHARES else steps[len(steps) * share // SHARES - 1]
        params, _ = sampling.load_params(system, run, meshes.make_mesh(meshes.LOCAL), step=step)
        images = draw(system, params, request, labels, args, begin=starts)["image"]
        keep_features(args, net, arm, images)


def order(args) -> None:
    """How far both correctors are from many steps of themselves, without new noise: order.json.

    Root mean square distances of 256 samples of the first relay, one a sample, at 9 evaluations.
    """
    run = args.out / "relay_0"
    system, _ = systems.load(run)
    params, _ = sampling.load_params(system, run, meshes.make_mesh(meshes.LOCAL))
    with np.load(args.out / "starts.npz") as given:
        starts, labels = given["x"][:256], given["labels"][:256]
    floats, found = (lambda *given: {"x": system.pixels(*given)}), {}
    for second in (False, True):
        x = {}
        for n in (5, EXACT):
            fields = {"eta": 0.0, "second_order": second, "steps": steps_below(n, 0.9)}
            request = dataclasses.replace(system.request, **fields)
            x[n] = draw(system, params, request, labels, args, begin=starts, draw=floats)["x"]
        found[second] = np.sqrt(((x[5] - x[EXACT]) ** 2).mean((1, 2, 3)))
    gap = found[False] - found[True]
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
    about = {"released": float(found[False].mean()), "second_order": float(found[True].mean())}
    mean = float(gap.mean())
    interval = {"value": mean, "low": mean - float(half), "high": mean + float(half)}
    write_json(args.out / "order.json", {**about, "RELAY-8": verdict(interval, 1)})


def keep_features(args, net, arm: str, images: np.ndarray) -> None:
    path = args.out / "features" / f"{arm}.npz"
    pictures.labelled_grid(images[:64], None, (), path.with_suffix(".png"))
    spatial = extract(net, images, output="spatial")
    np.savez(path, apply=extract(net, images), spatial=spatial)


# ---- scores --------------------------------------------------------------------------------------


def floors(real, spatial) -> dict:
    """What two halves of the real pictures score against each other, mean over 20 splits."""
    random, found = np.random.default_rng(0), []
    for _ in range(20):
        a, b = np.split(random.permutation(len(real))[: len(real) // 2 * 2], 2)
        found.append(
            {
                "kid": kid.mmd2(real[a], real[b]).value,
                "sfd": frechet.frechet_distance(*(frechet.moments(spatial[i]) for i in (a, b))),
                "precision": precision_recall.precision(real[a], real[b], 3),
                "recall": precision_recall.precision(real[b], real[a], 3),
            }
        )
    return {k: float(np.mean([f[k] for f in found])) for k in found[0]} | {"count": len(a)}


def score(args) -> None:
    """Writes scores.json: every arm's scores, differences with their intervals, the verdicts.

    Precision, recall and the spatial distance are at equal counts, of the first samples, which are
    of the held-out pictures' classes one by one. `training` is that many of the training pictures.
    """
    net, source, test = judge_of(args)
    real, trained = extract(net, test.images), extract(net, source.images)
    real_spatial = extract(net, test.images, output="spatial")
    picked = np.random.default_rng(0).permutation(len(source))[: args.num]
    keep_features(args, net, "training", source.images[picked])
    judge = json.loads((args.out / "judge.json").read_text())
    kernels, scores, pairs = {}, {}, {}
    for path in sorted((args.out / "features").glob("*.npz")):
        with np.load(path) as arrays:
            f, spatial = arrays["apply"], arrays["spatial"]
        kernels[path.stem], n = Kernels(f, real), min(len(f), len(real))
        moments = (frechet.moments(x[:n]) for x in (spatial, real_spatial))
        scores[path.stem] = {
            "kid": kid.mmd2(f, real).value,
            "kid_to_training": kid.mmd2(f, trained).value,
            "sfd": frechet.frechet_distance(*moments),
            "precision": precision_recall.precision(real[:n], f[:n], 3),
            "recall": precision_recall.precision(f[:n], real[:n], 3),
        }
        print(f"{path.stem:28} " + " ".join(f"{k} {v:.4f}" for k, v in scores[path.stem].items()))
    for name in kernels:
        run, _, _ = name.partition(".")
        rival = name.replace("relay", "cascade", 1)
        for other in {f"{run}.nfe{2 * MAIN - 1}", rival, "bicubic"} & set(kernels) - {name}:
            a, b = kernels[name], kernels[other]
            pairs[f"{name} - {other}"] = jackknife(lambda keep: a(keep) - b(keep), args.num)  # noqa: B023
    decided = relay_verdicts.decide(kernels, args.num, judge["s_floor"], judge["sees"])
    for claim, about in decided.items():
        print(claim, about["verdict"])
    about = {p.stem: json.loads(p.read_text()) for p in sorted(args.out.glob("*_[0-9].json"))}
    floor = floors(real, real_spatial)
    found = {"judge": judge, "floor": floor, "runs": about, "arms": scores, "pairs": pairs}
    found["claims"] = decided
    write_json(args.out / "scores.json", found)


def write_json(path: Path, content) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
    print(path, json.dumps(content)[:400])


def everything(args) -> None:
    """All phases after one another: for --toy."""
    for name in [
        "judge",
        "base",
        "relay",
        "cascade",
        "plain",
        "starts",
        "samples",
        "score",
        "order",
    ]:
        PHASES[name](args)


PHASES = {
    "judge": train_judge,
    "starts": sample_base,
    "samples": make_samples,
    "score": score,
    "order": order,
    "all": everything,
    **{name: (lambda args, name=name: train(args, name)) for name in ("base", *SECOND)},
}

if __name__ == "__main__":
    sys.exit(main())
