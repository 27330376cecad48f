"""Scores of motions: distances between sets of clips on features, and what bodies do.

The features are those of a judge that was trained on the project's own clips (`--net judge:FILE`,
`metrics.motion_judge`), or, without one, simple kinematic numbers. Neither is the evaluator of
published text-to-motion numbers, and nothing here compares with those.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax.data.motion import features
from diffjax.data.motion.skeletons import Skeleton
from diffjax.errors import UserError, choose
from diffjax.metrics import judging, motion, motion_judge, report
from diffjax.metrics.frechet import moments
from diffjax.systems.mdm import conditions

DEFAULT = ("fd,kid,precision,recall,skate,speed", "kinematics")
COMPARED = ("fd", "kid", "precision", "recall")  # on the features of the net
BODIES = ("skate", "speed")
LIMIT = 10_000  # clips of the reference
SLIDE = 0.5  # metres a second: faster, a foot on the floor slides


class Net(NamedTuple):
    """What clips are told by.

    Attributes:
      name, version: scores on others do not compare.
      see: (clips [n, N, D], lengths int [n]) -> features [n, d].
      classify: the same -> logits [n, classes], or None where the classes are not the run's.
    """

    name: str
    version: str
    see: Callable
    classify: Callable | None = None


def order(source) -> np.ndarray:
    """Returns the order in which a source's examples are taken, fixed: int [n]."""
    return np.random.default_rng(0).permutation(len(source))


def captions(source) -> list[str]:
    """Returns the first caption of each clip of a `Told`."""
    return [some[0] if some else "" for some in conditions.captions_of(source.source)]


def kinematics(clip: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns what a clip is told by, float64 [6 J + 4], of its features [N, 12 J - 1].

    The mean and the standard deviation over the frames of each joint's height, of its distance from
    the root's axis and of its speed; the mean turning and speeds of the root. In heights of the
    body and seconds. Simple, and blind to order in time.
    """
    joints = features.recover(np.asarray(clip, np.float64), skeleton)
    away = np.linalg.norm((joints - joints[:, :1])[..., ::2], axis=-1)
    pace = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * skeleton.fps
    parts = [part / skeleton.height for part in (joints[..., 1], away, pace)]
    root = np.asarray(clip[:, :3], np.float64) * skeleton.fps
    turn = [root[:, 0].mean(), np.abs(root[:, 0]).mean()]
    turn += (root[:, 1:].mean(0) / skeleton.height).tolist()
    return np.concatenate([*(f(part, 0) for part in parts for f in (np.mean, np.std)), turn])


def open_net(name: str, body, clips, lengths) -> Net:
    """Returns the net of `--net`: "kinematics" or "judge:FILE".

    Args:
      clips, lengths: the reference's, whose deviations kinematic numbers are counted in.

    Raises:
      UserError: another name, no judge in the file, or one of other features.
    """
    if name == "kinematics":
        see = lambda clips, lengths: np.stack(
            [kinematics(c[:n], body.skeleton) for c, n in zip(clips, lengths, strict=True)]
        )
        real = see(clips, lengths)
        mean, std = real.mean(0), real.std(0)
        std = np.where(std < 1e-9, 1.0, std)
        return Net(name, "", lambda clips, lengths: (see(clips, lengths) - mean) / std)
    if not name.startswith("judge:"):
        raise UserError(f"--net {name}: motions are scored on kinematics, or on judge:FILE")
    judge = motion_judge.load(Path(name.removeprefix("judge:")).expanduser())
    if len(judge.mean) != body.size:
        raise UserError(f"--net {name}: a judge of {len(judge.mean)} features, not of {body.size}")
    heads = [head for head, names in judge.heads.items() if names == body.class_names]
    see = lambda clips, lengths: motion_judge.see(judge, clips, lengths)
    return Net(
        f"judge {Path(name).name}",
        judge.version,
        lambda *a: see(*a).features,
        (lambda *a: see(*a).logits[heads[0]]) if heads else None,
    )


def examples(source, body, limit: int = LIMIT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (features float32 [n, N, D], lengths int [n], their numbers) of a reference.

    Raises:
      UserError: no joints, or other joints than the run's.
    """
    if body.kind != "features":
        raise UserError("these motions' joints need the SMPL body model: they have no scores here")
    if source.source.skeleton.names != body.skeleton.names:
        raise UserError(f"{source.name}: its joints are not those that the run was trained on")
    some = order(source)[:limit]
    lengths = source.source.lengths[some]
    clips = np.zeros((len(some), int(lengths.max()), body.size), np.float32)
    for row, i in zip(clips, some, strict=True):
        found = source.source.features(int(i))
        row[: len(found)] = found
    return clips, lengths, some


def bodies(clips, lengths, body) -> dict[str, dict]:
    """Returns {"skate": ..., "speed": ...} of clips, with `metrics.motion`'s numbers, in metres."""
    joints = features.recover(np.asarray(clips, np.float64), body.skeleton) * body.skeleton.unit
    mask, fps = motion_judge.masks(lengths, joints.shape[1]), body.skeleton.fps
    feet = tuple(dict.fromkeys(body.skeleton.feet[1::2]))  # the toes, which come nearest the floor
    slid = motion.foot_skate(joints, feet, fps, mask, slide=SLIDE / fps)
    speed = float(np.nanmean(motion.joint_speed(joints, fps, mask)))
    return {"skate": {"value": slid.ratio, **slid._asdict()}, "speed": {"value": speed}}


def scorer(source, metrics: Sequence[str], net: str, sharding=None, cache=None, *, body):
    """Returns score(outputs, seed) -> a JSON-ready dict like that of `metrics.report`.

    fd, kid, precision and recall have a "floor", the same between two halves of the reference;
    skate and speed have "real", the reference's own; accuracy, of a judge that knows the run's
    classes, too.

    Raises:
      UserError: an unknown metric or net, or one that does not serve; what `examples` refuses.
    """
    if not metrics:
        raise UserError(f"--metrics is empty (known: {', '.join((*COMPARED, *BODIES))}, accuracy)")
    for name in metrics:
        choose(name, dict.fromkeys((*COMPARED, *BODIES, "accuracy")), "metric")
    clips, lengths, some = examples(source, body)
    made = open_net(net, body, clips, lengths)
    if "accuracy" in metrics and made.classify is None:
        raise UserError(
            f"metric 'accuracy' needs a judge of the run's classes, --net {net} is none"
        )
    compared = {name: report.METRICS[name] for name in metrics if name in COMPARED}
    for name, metric in compared.items():
        if len(clips) < metric.least:
            raise UserError(f"metric {name!r} needs {metric.least} clips, it has {len(clips)}")

    def score(outputs: dict, seed: int) -> dict:
        fake = outputs["motion"], outputs["length"]
        known, shown = made.see(clips, lengths), made.see(*fake)
        half = len(known) // 2
        mixed = known[np.random.default_rng(seed).permutation(len(known))]
        scores = {}
        for name, metric in compared.items():
            sets = (known, shown), (mixed[:half], mixed[half : 2 * half])
            if not metric.whole:
                sets = [tuple(map(moments, pair)) if len(pair[0]) > 1 else None for pair in sets]
            scores[name] = metric.score(*sets[0], seed)
            floor = metric.score(*sets[1], seed)["value"] if half >= metric.least else None
            scores[name]["floor"] = floor
        if "accuracy" in metrics:
            right = lambda clips, labels: motion.accuracy(made.classify(*clips), labels)
            value = right(fake, outputs["label"])
            real = right((clips, lengths), np.asarray(source.labels)[some])
            scores["accuracy"] = {"value": value, "real": real}
        if set(metrics) & {*BODIES}:
            found, real = bodies(*fake, body), bodies(clips, lengths, body)
            for name in set(metrics) & {*BODIES}:
                scores[name] = {**found[name], "real": real[name]["value"]}
        return {
            "feature_net": made.name,
            "num_fake": len(shown),
            "num_real": len(known),
            "floor_num": half,
            "seed": seed,
            "scores": {name: scores[name] for name in metrics},
        }

    return score


def judge(source, metric: str, net: str, sharding=None, *, body) -> judging.Judge:
    """Returns a `judging.Judge` on the features of a net, for studies; raises as `scorer`."""
    choose(metric, dict.fromkeys(COMPARED), "metric")
    clips, lengths, _ = examples(source, body)
    made = open_net(net, body, clips, lengths)
    see = lambda outputs: made.see(outputs["motion"], outputs["length"])
    return judging.of_features(metric, made.see(clips, lengths), see, made.name, made.version)
