"""A person made of formulas: small motions of many kinds, without any recorded data.

Footsteps are planned on the floor, the legs reach them by inverse kinematics, and arms and trunk
swing along. Made for demonstrations and tests; it looks like walking, and claims no more. No clip
of it is anybody's recording.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter1d

from diffjax.data.motion import bvh
from diffjax.data.motion import rotations as rot
from diffjax.errors import choose

ACTIONS = ("walk", "run", "turn_left", "turn_right", "squat", "jump", "wave_left", "wave_right")
STYLES = ("normal", "tired", "lively", "sneaky")

THIGH, SHANK, ANKLE, BALL = (
    0.42,
    0.42,
    0.09,
    0.02,
)  # metres; heights of ankle and ball when standing
FOOT = np.array([0.0, BALL - ANKLE, 0.14])
HIP = np.array([0.09, -0.05, 0.0])
STANDING = THIGH + SHANK + ANKLE - HIP[1]
REACH = 0.99 * (THIGH + SHANK)  # a leg that is never quite straight bends its knee forwards
_TREE = (
    ("Hips", -1, (0, 0, 0)),
    ("Spine", 0, (0, 0.1, 0)),
    ("Chest", 1, (0, 0.15, 0)),
    ("Neck", 2, (0, 0.24, 0)),
    ("Head", 3, (0, 0.11, 0.02)),
    ("LeftUpperArm", 2, (0.18, 0.19, 0)),
    ("LeftLowerArm", 5, (0.28, 0, 0)),
    ("LeftHand", 6, (0.25, 0, 0)),
    ("RightUpperArm", 2, (-0.18, 0.19, 0)),
    ("RightLowerArm", 8, (-0.28, 0, 0)),
    ("RightHand", 9, (-0.25, 0, 0)),
    ("LeftUpperLeg", 0, (HIP[0], HIP[1], 0)),
    ("LeftLowerLeg", 11, (0, -THIGH, 0)),
    ("LeftFoot", 12, (0, -SHANK, 0)),
    ("LeftToes", 13, tuple(FOOT)),
    ("RightUpperLeg", 0, (-HIP[0], HIP[1], 0)),
    ("RightLowerLeg", 15, (0, -THIGH, 0)),
    ("RightFoot", 16, (0, -SHANK, 0)),
    ("RightToes", 17, tuple(FOOT)),
)
UNIT = 100.0  # its files are in centimetres, as most are
_ROTATION = ("Zrotation", "Xrotation", "Yrotation")
HIERARCHY = bvh.Hierarchy(
    names=tuple(name for name, _, _ in _TREE),
    parents=tuple(parent for _, parent, _ in _TREE),
    offsets=tuple(tuple(round(UNIT * v, 6) for v in offset) for _, _, offset in _TREE),
    channels=((*bvh.CHANNELS[:3], *_ROTATION),) + (_ROTATION,) * (len(_TREE) - 1),
    ends=((4, (0.0, 16.0, 0.0)), (7, (14.0, 0.0, 0.0)), (10, (-14.0, 0.0, 0.0)))
    + ((14, (0.0, 0.0, 6.0)), (18, (0.0, 0.0, 6.0))),
)

# speed, seconds a cycle, arm swing, foot lift, bend (radians), crouch (metres): factors but the
# last two, which are added.
_STYLE = {
    "normal": (1.0, 1.0, 1.0, 1.0, 0.0, 0.0),
    "tired": (0.62, 1.25, 0.45, 0.6, 0.35, 0.03),
    "lively": (1.2, 0.9, 1.5, 1.5, -0.08, 0.0),
    "sneaky": (0.55, 1.35, 0.5, 1.8, 0.3, 0.13),
}
_WORDS = {
    "walk": ("walks forward", "is walking straight ahead"),
    "run": ("runs forward", "is running"),
    "turn_left": ("walks and turns left", "walks in a curve to the left"),
    "turn_right": ("walks and turns right", "walks in a curve to the right"),
    "squat": ("squats down and stands up", "does squats"),
    "jump": ("jumps up and down", "jumps on the spot"),
    "wave_left": ("waves with the left hand", "stands and waves the left arm"),
    "wave_right": ("waves with the right hand", "stands and waves the right arm"),
}
_ADVERBS = {
    "normal": ("", ""),
    "tired": (" slowly, as if tired", " wearily"),
    "lively": (" with energy", " in a lively way"),
    "sneaky": (" sneakily", " as if not to be noticed"),
}


@dataclass
class _Pose:
    """What an action sets, arrays [N] or [2, N] (left, right); angles in radians."""

    place: np.ndarray  # [N, 3], y above standing height
    heading: np.ndarray
    toes: np.ndarray  # [2, N, 3]
    foot_yaw: np.ndarray
    foot_pitch: np.ndarray  # heel up
    arm_out: np.ndarray  # from the side
    arm_forward: np.ndarray
    elbow: np.ndarray
    elbow_in: np.ndarray  # towards the head, for a raised arm
    bend: np.ndarray
    twist: np.ndarray = field(default_factory=lambda: np.zeros(1))
    sway: np.ndarray = field(default_factory=lambda: np.zeros(1))


def captions(action: str, style: str = "normal") -> list[str]:
    """Returns what a clip shows, in two sentences.

    >>> captions("walk", "tired")[0]
    'a person walks forward slowly, as if tired.'
    """
    adverbs = choose(style, _ADVERBS, "style")
    pairs = zip(choose(action, _WORDS, "action"), adverbs, strict=True)
    return [f"a person {words}{adverb}." for words, adverb in pairs]


def clip(
    action: str, style: str = "normal", seed: int = 0, *, seconds: float = 4.0, fps: float = 20.0
) -> bvh.Clip:
    """Returns a motion on `HIERARCHY`, in centimetres; the same for the same arguments.

    Args:
      action: one of ACTIONS.
      style: one of STYLES.
      seed: of speed, phase, directions and amplitudes.
      seconds, fps: how long, and how finely.

    Raises:
      UserError: an unknown action or style.
    """
    make = choose(action, _MAKERS, "action")
    manner = choose(style, _STYLE, "style")
    random = np.random.default_rng([seed, ACTIONS.index(action), STYLES.index(style)])
    time = np.arange(max(2, round(seconds * fps))) / fps
    return _solve(make(time, manner, random), fps)


def _solve(pose: _Pose, fps: float) -> bvh.Clip:
    """Forward kinematics above the hips, inverse below."""
    n = len(pose.heading)
    zero = np.zeros(n)
    local = np.zeros((n, len(_TREE), 4))
    local[..., 0] = 1
    bend, twist, sway = (np.broadcast_to(a, n) for a in (pose.bend, pose.twist, pose.sway))
    hips = rot.multiply(rot.about("y", pose.heading), _turn(x=0.3 * bend, y=-0.5 * twist, z=sway))
    local[:, 0] = hips
    local[:, 1] = _turn(x=0.4 * bend, y=0.7 * twist, z=-0.6 * sway)
    local[:, 2] = _turn(x=0.3 * bend, y=0.8 * twist, z=-0.4 * sway)
    local[:, 3] = _turn(x=-0.3 * bend, y=-0.6 * twist, z=zero)
    for side, sign, arm in ((0, 1, 5), (1, -1, 8)):
        down = rot.about("z", -sign * (np.pi / 2 - pose.arm_out[side]))
        local[:, arm] = rot.multiply(rot.about("x", -pose.arm_forward[side]), down)
        local[:, arm + 1] = rot.multiply(
            rot.about("z", sign * pose.elbow_in[side]), rot.about("y", -sign * pose.elbow[side])
        )
    feet = rot.multiply(rot.about("y", pose.foot_yaw), rot.about("x", pose.foot_pitch))
    ankles = pose.toes - rot.rotate(feet, FOOT)
    place = pose.place + np.array([0, STANDING, 0])
    sockets = [rot.rotate(hips, HIP * [sign, 1, 1]) for sign in (1, -1)]
    limit = np.min(
        [_highest(ankles[i] - place - sockets[i], ankles[i], sockets[i]) for i in (0, 1)], 0
    )
    low = np.minimum(place[:, 1], limit)
    place[:, 1] = np.minimum(gaussian_filter1d(low, 0.04 * fps, mode="nearest"), limit)
    forward = rot.rotate(rot.about("y", pose.heading), np.array([0.0, 0.0, 1.0]))
    for side, leg in ((0, 11), (1, 15)):
        thigh, shank = _leg(place + sockets[side], ankles[side], forward)
        local[:, leg] = rot.multiply(rot.conjugate(hips), thigh)
        local[:, leg + 1] = rot.multiply(rot.conjugate(thigh), shank)
        local[:, leg + 2] = rot.multiply(rot.conjugate(shank), feet[side])
    places = np.broadcast_to(np.array(HIERARCHY.offsets), (n, len(_TREE), 3)).copy()
    places[:, 0] = UNIT * place
    return bvh.Clip(HIERARCHY, local, places, 1 / fps)


def _turn(x, y, z) -> np.ndarray:
    return rot.from_euler(np.stack(np.broadcast_arrays(y, x, z), -1), "yxz")


def _highest(reach: np.ndarray, ankle: np.ndarray, socket: np.ndarray) -> np.ndarray:
    """How high the hips may be for the leg to reach the ankle."""
    flat = (reach[:, ::2] ** 2).sum(-1)
    return ankle[:, 1] - socket[:, 1] + np.sqrt(np.maximum(REACH**2 - flat, 0.2**2))


def _leg(hip: np.ndarray, ankle: np.ndarray, forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World rotations of thigh and shank, the knee forwards."""
    way = ankle - hip
    length = np.minimum(rot.norm(way), REACH)
    along = rot.unit(way)
    ahead = rot.unit(forward - (forward * along).sum(-1, keepdims=True) * along)
    cosine = (THIGH**2 + length**2 - SHANK**2) / (2 * THIGH * length)
    knee = THIGH * (along * cosine + ahead * np.sqrt(np.maximum(1 - cosine**2, 0)))
    return tuple(
        rot.from_matrix(np.stack([right, up, rot.cross(right, up)], -1))
        for up in (rot.unit(-knee), rot.unit(knee - along * length))
        for right in [rot.cross(-along, ahead)]
    )


def _gait(time, manner, random, *, speed, cycle, stance, turn=0.0, lift=0.1, run=False) -> _Pose:
    """Walking and running: `stance` is the share of a cycle that a foot stands."""
    faster, longer, swing, higher, bend, crouch = manner
    speed *= faster * random.uniform(0.9, 1.1)
    cycle *= longer * random.uniform(0.95, 1.05)
    turn *= random.uniform(0.8, 1.2) * min(1.0, faster)
    start, begin = random.uniform(0, 1), random.uniform(-np.pi, np.pi)
    fine = np.arange(time[0] - 3 * cycle, time[-1] + 3 * cycle, 0.01)
    heading = begin + turn * fine
    path = np.cumsum(0.01 * speed * np.stack([np.sin(heading), np.cos(heading)], -1), 0)

    def where(t):
        return np.stack([np.interp(t, fine, path[:, 0]), np.interp(t, fine, path[:, 1])], -1)

    n = len(time)
    toes, yaw, pitch = np.zeros((2, n, 3)), np.zeros((2, n)), np.zeros((2, n))
    width = 0.03 if run else 0.07
    for side, sign in ((0, 1), (1, -1)):
        phase = time / cycle + start + 0.5 * side
        step = np.floor(phase)
        share = phase - step

        def plant(k, side=side, sign=sign):
            middle = (k + stance / 2 - start - 0.5 * side) * cycle
            toward = begin + turn * middle
            across = sign * width * np.stack([np.cos(toward), -np.sin(toward)], -1)
            ahead = 0.07 * np.stack([np.sin(toward), np.cos(toward)], -1)
            return where(middle) + across + ahead, toward

        (here, yaw_here), (there, yaw_there) = plant(step), plant(step + 1)
        swung = np.clip((share - stance) / (1 - stance), 0, 1)
        ease = swung**2 * (3 - 2 * swung)
        toes[side, :, ::2] = here + (there - here) * ease[:, None]
        toes[side, :, 1] = BALL + lift * higher * np.sin(np.pi * swung) ** (1 if run else 2)
        yaw[side] = yaw_here + (yaw_there - yaw_here) * ease
        off = np.clip((share / stance - 0.6) / 0.4, 0, 1) ** 2
        heel = (1.0 if run else 0.55) * np.where(swung > 0, np.cos(np.pi / 2 * ease) ** 2, off)
        pitch[side] = heel - 0.15 * np.sin(np.pi * ease) ** 2
    body = 2 * np.pi * (time / cycle + start)
    swing *= (0.75 if run else 0.5) * random.uniform(0.9, 1.1)
    forward = swing * np.stack([np.sin(body - np.pi / 2), -np.sin(body - np.pi / 2)])
    bounce = -0.05 if run else 0.02  # a runner is highest in the air, a walker over the foot
    rise = bounce * np.cos(2 * body - 2 * np.pi * (stance + (0 if run else -0.1)))
    flat = where(time)
    return _Pose(
        place=np.stack([flat[:, 0], rise - crouch - (0.06 if run else 0.015), flat[:, 1]], -1),
        heading=begin + turn * time,
        toes=toes,
        foot_yaw=yaw,
        foot_pitch=pitch,
        arm_out=np.full((2, n), 0.15),
        arm_forward=forward,
        elbow=(1.4 if run else 0.3) + 0.3 * np.maximum(forward, 0),
        elbow_in=np.zeros((2, n)),
        bend=np.full(n, bend + (0.25 if run else 0.04)),
        twist=0.12 * swing * np.sin(body + np.pi / 2),
        sway=0.04 * np.sin(body),
    )


def _stand(time, manner, random) -> _Pose:
    _, _, _, _, bend, crouch = manner
    n, heading = len(time), random.uniform(-np.pi, np.pi)
    facing = rot.about("y", np.full(n, heading))
    width = random.uniform(0.09, 0.14)
    toes = [rot.rotate(facing, np.array([s * width, BALL, 0.1])) for s in (1, -1)]
    breath = 2 * np.pi * 0.3 * time + random.uniform(0, 6)
    sideways = rot.rotate(facing, np.array([1.0, 0.0, 0.0])) * (0.015 * np.sin(breath))[:, None]
    return _Pose(
        place=sideways - np.array([0, crouch + 0.02, 0]),
        heading=np.full(n, heading),
        toes=np.stack(toes),
        foot_yaw=np.stack([np.full(n, heading + s * 0.15) for s in (1, -1)]),
        foot_pitch=np.zeros((2, n)),
        arm_out=np.full((2, n), 0.15),
        arm_forward=np.full((2, n), 0.05),
        elbow=np.full((2, n), 0.25),
        elbow_in=np.zeros((2, n)),
        bend=bend + 0.02 * np.sin(breath),
    )


def _squat(time, manner, random) -> _Pose:
    pose = _stand(time, manner, random)
    speed, longer = manner[:2]
    cycle = 1.9 * longer * random.uniform(0.9, 1.1)
    down = (0.5 - 0.5 * np.cos(2 * np.pi * time / cycle + random.uniform(0, 6))) * min(1, speed)
    depth = random.uniform(0.3, 0.38)
    back = rot.rotate(rot.about("y", pose.heading), np.array([0.0, 0.0, -1.0]))
    pose.place += back * (0.18 * down)[:, None]
    pose.place[:, 1] -= depth * down
    pose.bend = pose.bend + 0.7 * down
    pose.arm_forward = pose.arm_forward + 1.4 * down
    return pose


def _jump(time, manner, random) -> _Pose:
    pose = _stand(time, manner, random)
    faster, longer = manner[:2]
    cycle = 1.5 * longer * random.uniform(0.95, 1.05)
    flight = 0.42 * np.sqrt(min(1.2, faster)) / cycle  # share of the cycle in the air
    share = (time / cycle + random.uniform(0, 1)) % 1.0
    ground = share / (1 - flight)
    air = np.clip((share - (1 - flight)) / flight, 0, 1)
    # Landing, standing up, then down again to push off.
    crouch = 0.22 * np.exp(-(((ground - 0.12) / 0.12) ** 2))
    crouch += 0.25 * np.exp(-(((ground - 0.78) / 0.13) ** 2))
    rise = 9.81 * (flight * cycle) ** 2 / 2 * air * (1 - air)
    pose.place[:, 1] += rise - crouch * (air == 0)
    pose.toes[..., 1] += rise
    pose.foot_pitch = pose.foot_pitch + 0.7 * np.sin(np.pi * air)
    pose.bend = pose.bend + 1.4 * crouch * (air == 0)
    pose.arm_forward = pose.arm_forward + 1.2 * np.sin(np.pi * air) - 2 * crouch * (air == 0)
    return pose


def _wave(side: int):
    def make(time, manner, random) -> _Pose:
        pose = _stand(time, manner, random)
        speed, longer, swing = manner[:3]
        beat = 2 * np.pi * time / (0.8 * longer * random.uniform(0.9, 1.1)) + random.uniform(0, 6)
        up = random.uniform(1.7, 2.1) * min(1.0, 0.6 + 0.4 * speed)
        pose.arm_out[side] = up
        pose.arm_forward[side] = 0.2
        pose.elbow[side] = 0.2
        pose.elbow_in[side] = 0.55 + 0.5 * min(swing, 1.3) * np.sin(beat)
        pose.sway = (1 if side == 0 else -1) * (0.03 + 0.02 * np.sin(beat))
        return pose

    return make


def _walk(turn: float):
    return lambda *a: _gait(*a, speed=1.25, cycle=1.08, stance=0.62, turn=turn)


_MAKERS = {
    "walk": _walk(0.0),
    "run": lambda *a: _gait(*a, speed=2.9, cycle=0.72, stance=0.36, lift=0.2, run=True),
    "turn_left": _walk(0.8),
    "turn_right": _walk(-0.8),
    "squat": _squat,
    "jump": _jump,
    "wave_left": _wave(0),
    "wave_right": _wave(1),
}
