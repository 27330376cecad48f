"""A motion model against held-out takes, as docs/claims.md sets out: MDM-7 and MDM-8.

    python benchmarks/mdm_study.py judge --data bandai_judge.npz --out FOLDER [--shuffle_frames]
    python benchmarks/mdm_study.py score --data bandai.npz --run RUN --out FOLDER [--num 2048]
    python benchmarks/mdm_study.py seams --run LONG_RUN --data bandai.npz --out FOLDER
        [--ease 20] [--blend 10]

`judge` trains the classifier of content and style on takes that no generator sees, and tries it on
the validation takes. `score` samples the run as the test clips are described and writes score.json
(accuracies beside the real clips', KID, FD, diversity, multimodality, foot skate) and a film of a
motion for each content. `seams` makes eight minutes of motion from changing texts. The data are
made by `python benchmarks/packs.py bandai`. How many steps are enough (MDM-1 to MDM-6) is asked in
`mdm_steps.py`.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from diffjax import systems
from diffjax.data.motion import features
from diffjax.data.motion.sources import open_motion
from diffjax.errors import choose, command
from diffjax.metrics import frechet, kid, motion, motion_judge
from diffjax.run import cli, devices, films, sampling
from diffjax.run import mesh as meshes
from diffjax.systems.mdm import motions, scores

COMPONENTS = 24  # of the features, for a Frechet distance from so few real clips
REPEATS = 20  # of a text, for multimodality
TOY = {"steps": 20, "num": 16}


def clips_of(source) -> tuple[np.ndarray, np.ndarray]:
    """Returns (features float32 [n, N, D], lengths int [n])."""
    clips = np.zeros((len(source), *source.motion_shape), np.float32)
    for i, row in enumerate(clips):
        found = source.features(i)
        row[: len(found)] = found
    return clips, np.asarray(source.lengths)


def kinds(source) -> tuple[dict, dict]:
    """Returns ({head: int [n]}, {head: names}) of classes called "content, style"."""
    words = [name.split(", ") for name in source.class_names]
    heads = {
        head: tuple(sorted({w[i] for w in words})) for i, head in enumerate(("content", "style"))
    }
    label = np.asarray(source.labels)
    found = {
        head: np.array([names.index(words[k][i]) for k in label])
        for i, (head, names) in enumerate(heads.items())
    }
    return found, heads


def train_judge(args) -> None:
    opened = {split: open_motion(args.data, split) for split in ("train", "val")}
    if args.shuffle_frames:
        opened = {split: motions.shuffled(source) for split, source in opened.items()}
    steps = TOY["steps"] if args.toy else 1500
    labels, heads = kinds(opened["train"])
    judge = motion_judge.train(
        *clips_of(opened["train"]), labels, heads, steps=steps, progress=True
    )
    judge = motion_judge.save(judge, args.out / "judge.safetensors")
    tried = motion_judge.trial(judge, *clips_of(opened["val"]), kinds(opened["val"])[0])
    write_json(args.out / "judge.json", tried)


def collect(system, params, request, args, num: int, condition):
    return sampling.collect(
        system, params, request, num=num, seed=0, batch=args.batch, condition=condition,
        mesh=meshes.make_mesh(meshes.LOCAL), progress=True,
    )  # fmt: skip


def opened_run(args):
    system, _ = systems.load(args.run)
    given = {name: getattr(args, name) for name in ("guidance", "ease", "blend")}
    given = {name: value for name, value in given.items() if value is not None}
    system = dataclasses.replace(system, request=dataclasses.replace(system.request, **given))
    params, which = sampling.load_params(system, args.run, meshes.make_mesh(meshes.LOCAL))
    return system, params, which


def bodies(clips, lengths, skeleton, fps) -> dict:
    """Foot skate, and the mean speed of joints, in metres."""
    joints = features.recover(np.asarray(clips, np.float64), skeleton)
    mask = motion_judge.masks(lengths, joints.shape[1])
    toes = tuple(dict.fromkeys(skeleton.feet[1::2]))
    skate = motion.foot_skate(joints, toes, fps, mask)
    speed = float(np.nanmean(motion.joint_speed(joints, fps, mask)))
    return {"skate": skate._asdict(), "joint_speed": speed}


def score(args) -> None:
    system, params, which = opened_run(args)
    judge = motion_judge.load(args.out / "judge.safetensors")
    told = system.open(args.data, "test")
    source = told.source  # cut as the run's own clips are
    real, lengths = clips_of(source)
    labels, heads = kinds(source)
    request = system.request
    made = collect(
        system, params, request, args, args.num,
        lambda index: system.condition_like(request, told, index),
    )  # fmt: skip
    some = scores.order(told)[np.arange(args.num) % len(source)]
    wanted = {head: labels[head][some] for head in heads}
    see = lambda clips, lengths: motion_judge.see(judge, clips, lengths)
    fake, true = see(made["motion"], made["length"]), see(real, lengths)
    right = {
        head: {
            "generated": motion.accuracy(fake.logits[head], wanted[head]),
            "real": motion.accuracy(true.logits[head], labels[head]),
            "gap": gap(
                true.logits[head].argmax(-1) == labels[head],
                fake.logits[head].argmax(-1) == wanted[head],
            ),
        }
        for head in heads
    }
    half = len(true.features) // 2
    mixed = true.features[np.random.default_rng(0).permutation(len(true.features))]
    main = principal(true.features, COMPONENTS)
    distance = lambda a, b: frechet.frechet_distance(*(frechet.moments(main(x)) for x in (a, b)))
    pairs = min(300, len(fake.features), len(true.features))
    parts = mixed[:half], mixed[half : 2 * half]
    repeats = repeated(system, params, args, see, source)
    found = {
        "weights": which,
        "judge": judge.version,
        "num": args.num,
        "guidance": request.guidance,
        "accuracy": right,
        "kid": kid.mmd2(fake.features, true.features).value,
        "kid_floor": kid.mmd2(*parts).value,
        "fd": distance(fake.features, true.features),
        "fd_floor": distance(*parts),
        "floor_num": half,
        "diversity": {
            "generated": motion.diversity(fake.features, pairs),
            "real": motion.diversity(true.features, pairs),
        },
        "multimodality": motion.multimodality(repeats, min(10, repeats.shape[1] // 2)),
        "nearest": nearest(
            fake.features, true.features, see(*clips_of(system.data("train").source))
        ),
        "generated": bodies(made["motion"], made["length"], source.skeleton, source.skeleton.fps),
        "real": bodies(real, lengths, source.skeleton, source.skeleton.fps),
    }
    write_json(args.out / f"{args.name or 'score'}.json", found)
    film(args, made, source, wanted, heads)


def gap(real: np.ndarray, fake: np.ndarray) -> dict:
    """Real minus generated share that is right, with its 95 % interval (two independent shares)."""
    value = float(real.mean() - fake.mean())
    half = 1.96 * float(np.sqrt(real.var() / len(real) + fake.var() / len(fake)))
    return {"value": value, "low": value - half, "high": value + half}


def nearest(fake, real, train) -> dict:
    """How far the nearest training clip is, in features: what a model knows by heart.

    Medians, and the share of samples that are nearer to one than 99 % of the held-out clips are.
    """
    train = train.features
    far = lambda x: np.array([np.sqrt(((train - row) ** 2).sum(1).min()) for row in x])
    generated, held_out = far(fake), far(real)
    limit = np.percentile(held_out, 1)
    found = {"generated": np.median(generated), "real": np.median(held_out)}
    return {**found, "nearer_than_99": np.mean(generated < limit)}


def principal(features: np.ndarray, count: int):
    """Returns the projection on the first principal components of `features`."""
    mean = features.mean(0)
    _, _, axes = np.linalg.svd(features - mean, full_matrices=False)
    return lambda x: (x - mean) @ axes[:count].T


def repeated(system, params, args, see, source) -> np.ndarray:
    """Features [classes, REPEATS, d] of samples of one text each, 60 frames long."""
    names = source.class_names[:: 20 if args.toy else 1]
    repeats = 4 if args.toy else REPEATS
    request = dataclasses.replace(system.request, cond=";".join(names), frames=60)
    num = len(names) * repeats
    made = collect(system, params, request, args, num, lambda i: system.condition(request, i))
    found = see(made["motion"], made["length"]).features  # texts are taken in turn
    return found.reshape(repeats, len(names), -1).swapaxes(0, 1)


def film(args, made, source, wanted, heads) -> None:
    """One motion of each content, side by side."""
    first = [int(np.flatnonzero(wanted["content"] == k)[0]) for k in np.unique(wanted["content"])]
    shown = [made["joints"][i][: made["length"][i]] for i in first]
    words = [
        f"{heads['content'][wanted['content'][i]]}, {heads['style'][wanted['style'][i]]}"
        for i in first
    ]
    films.save_film(shown, source.skeleton, args.out / "contents.gif", captions=words, columns=5)


def seams(args) -> None:
    """The largest joint speed at each seam against the 99th percentile of real clips' pairs."""
    system, params, which = opened_run(args)
    _, config = systems.load(args.run)
    source = open_motion(args.data, "test")
    step = config.diffusion.predict
    texts = list(source.class_names)
    random = np.random.default_rng(0)
    seconds, found, inside, heights, paces = 4.0 if args.toy else 60.0, [], [], [], []
    moved = lambda joints: np.linalg.norm(np.diff(joints, axis=0), axis=-1)
    fastest = lambda joints: moved(joints).max(-1)
    for number in range(1 if args.toy else 8):
        cond = ";".join(random.choice(texts, 12, replace=False))
        request = dataclasses.replace(system.request, cond=cond, seconds=seconds)
        given = lambda i, request=request, number=number: system.condition(request, i + number)
        joints = collect(system, params, request, args, 1, given)["joints"][0]
        pace = fastest(joints)
        found.append(pace[step - 1 :: step])
        inside.append(np.delete(pace, np.arange(step - 1, len(pace), step)))
        heights.append([float(joints[:100, 0, 1].mean()), float(joints[-100:, 0, 1].mean())])
        paces.append(moved(joints).mean())
        if not number:
            films.save_film(
                [joints[:400]], source.skeleton, args.out / "long.gif", captions=["60 s"]
            )
    real = np.concatenate([fastest(source.joints(i)) for i in range(len(source))])
    limit, found = float(np.percentile(real, 99)), np.concatenate(found)
    above = float(np.mean(found > limit))
    word = "holds" if above == 0 else "does not hold" if above > 0.02 else "undecided"
    how = {name: getattr(system.request, name) for name in ("guidance", "ease", "blend")}
    about = {"weights": which, **how, "seams": len(found), "above": above, "MDM-8": word}
    about |= {"above_elsewhere": float(np.mean(np.concatenate(inside) > limit))}
    about |= {"largest": float(found.max()), "real_99": limit, "root_heights": heights}
    pace = np.concatenate([moved(source.joints(i)).mean(-1) for i in range(len(source))]).mean()
    about["speed"] = {"generated": float(np.mean(paces)), "real": float(pace)}
    write_json(args.out / f"{args.name or 'seams'}.json", about)


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(
        jax.tree.map(lambda v: v if isinstance(v, str | bool) else float(v), content), indent=1
    )
    path.write_text(text + "\n")
    print(path, text)


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="mdm_study.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("phase", help=", ".join(PHASES))
    add("--data", required=True, help="the .npz of packs.py")
    add("--run", type=Path, help="the model's run directory")
    add("--out", type=Path, required=True, help="a folder; phases find each other there")
    add("--num", type=cli.positive, default=2048, help="samples")
    add("--batch", type=cli.positive, default=256, help="how many are sampled at a time")
    add("--shuffle_frames", action="store_true", help="judge: of clips whose frames are permuted")
    add("--guidance", type=float, help="score, seams: in place of the run's")
    add("--ease", type=int, help="seams: in place of the run's")
    add("--blend", type=int, help="seams: in place of the run's")
    add("--name", default="", help="score, seams: of the JSON file, where there are several")
    add("--toy", action="store_true", help="everything small, to see that it runs")
    args = parser.parse(argv)
    if args.toy:
        args.num = args.batch = TOY["num"]
    devices.start()
    args.out.mkdir(parents=True, exist_ok=True)
    choose(args.phase, PHASES, "phase")(args)
    return 0


PHASES = {"judge": train_judge, "score": score, "seams": seams}

if __name__ == "__main__":
    sys.exit(main())
