"""Scores of motions without a trained judge: what bodies do, as plain numbers.

A judge that is trained to know motions and texts says more; one is named by `--net judge:FILE`
where it is there. These numbers need none: the speed of joints, how far feet slide while they
stand, and distances between the distributions of simple kinematic features.
"""

from collections.abc import Callable, Sequence

import numpy as np

from diffjax.data.motion import features
from diffjax.data.motion.skeletons import Skeleton
from diffjax.errors import UserError, choose
from diffjax.metrics.frechet import frechet_distance, moments
from diffjax.metrics.kid import kid
from diffjax.systems.mdm import conditions

DEFAULT = ("fd,kid,skate,speed", "kinematics")
LOW = 0.05  # of the body's height: a foot joint that is lower stands or slides


def order(source) -> np.ndarray:
    """Returns the order in which a source's examples are taken, fixed: int [n]."""
    return np.random.default_rng(0).permutation(len(source))


def captions(source) -> list[str]:
    """Returns the first caption of each clip of a `Told`."""
    return [some[0] if some else "" for some in conditions.captions_of(source.source)]


def speed(joints: np.ndarray, skeleton: Skeleton) -> float:
    """Returns the mean speed of the joints [N, J, 3], metres a second."""
    steps = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
    return float(steps.mean() * skeleton.fps * skeleton.unit)


def skate(joints: np.ndarray, skeleton: Skeleton) -> float:
    """Returns how far feet slide, metres a second: the mean horizontal speed of the foot joints in
    those steps that begin and end lower than `LOW` of the height above the clip's lowest point
    with the joint's own rest height taken off; 0 where no foot is that low."""
    feet = joints[:, list(skeleton.feet)]
    above = feet[..., 1] - np.percentile(feet[..., 1], 2, axis=0)
    low = (above[1:] < LOW * skeleton.height) & (above[:-1] < LOW * skeleton.height)
    slid = np.linalg.norm(np.diff(feet[..., ::2], axis=0), axis=-1)
    return float(slid[low].mean() * skeleton.fps * skeleton.unit) if low.any() else 0.0


def kinematics(motion: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns what a clip is told by, float64 [6 J + 4], of its features [N, 12 J - 1].

    The mean and the standard deviation over the frames of each joint's height and of its distance
    from the root's axis; each joint's mean speed and its deviation; the mean turning and speeds of
    the root. Simple, and blind to order in time: distances on them are no FID.
    """
    joints = features.recover(np.asarray(motion, np.float64), skeleton)
    flat = (joints - joints[:, :1])[..., ::2]
    away = np.linalg.norm(flat, axis=-1)
    pace = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * skeleton.fps
    scale = skeleton.height
    parts = [joints[..., 1] / scale, away / scale, pace / scale]
    root = np.asarray(motion[:, :3], np.float64) * skeleton.fps
    turn = [root[:, 0].mean(), np.abs(root[:, 0]).mean(), *(root[:, 1:].mean(0) / scale)]
    return np.concatenate([*(f(part, 0) for part in parts for f in (np.mean, np.std)), turn])


def scorer(
    source, metrics: Sequence[str], net: str, sharding=None, cache=None, *, body
) -> Callable:
    """Returns score(outputs, seed) -> {name: {"value", "floor" or "real", ...}}, JSON-ready.

    "fd" and "kid" are Frechet and kernel distances on `kinematics`, each with its floor: the same
    between two halves of the reference. "skate" and "speed" come with the reference's own value.

    Raises:
      UserError: an unknown metric or net, motions without joints, another skeleton.
    """
    known = {"fd": _frechet, "kid": _kid, "skate": skate, "speed": speed}
    for name in metrics:
        choose(name, known, "metric")
    if net != "kinematics":
        raise UserError(f"--net {net}: motions are scored on kinematics")
    if body.kind != "features":
        raise UserError("these motions' joints need the SMPL body model: they have no scores here")
    if source.source.skeleton.names != body.skeleton.names:
        raise UserError(f"{source.name}: its joints are not those that the run was trained on")

    def score(outputs, seed: int) -> dict:
        fake = [m[:n] for m, n in zip(outputs["motion"], outputs["length"], strict=True)]
        real = [source.source.features(int(i)) for i in order(source)[: max(len(fake), 4)]]
        sets = [np.stack([kinematics(m, body.skeleton) for m in some]) for some in (real, fake)]
        spread = sets[0].std(0)
        spread = np.where(spread < 1e-9, 1.0, spread)
        real_set, fake_set = ((s - sets[0].mean(0)) / spread for s in sets)
        found = {"net": net, "num_fake": len(fake), "num_real": len(real)}
        for name in metrics:
            if name in ("fd", "kid"):
                half = len(real_set) // 2
                found[name] = {
                    "value": known[name](real_set, fake_set, seed),
                    "floor": known[name](real_set[:half], real_set[half:], seed),
                }
            else:
                mean = lambda some, f=known[name]: float(
                    np.mean([f(features.recover(m, body.skeleton), body.skeleton) for m in some])
                )
                found[name] = {"value": mean(fake), "real": mean(real)}
        return found

    return score


def _frechet(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    return frechet_distance(moments(real), moments(fake))


def _kid(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    return float(kid(real, fake, seed=seed).value)
