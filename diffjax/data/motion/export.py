"""Joints become BVH files: on a skeleton of our own, or on that of a person's own files.

Positions do not say how a bone is turned about itself (its twist): both ways choose the twist
nearest to a usual pose, relative to the bone before. It changes quickly where a bone passes the
opposite of that pose; where joints are does not depend on it.
"""

from pathlib import Path

import numpy as np

from diffjax.data.motion import bvh, features
from diffjax.data.motion import rotations as rot
from diffjax.data.motion.rigs import Rig
from diffjax.data.motion.skeletons import Skeleton
from diffjax.errors import UserError

CENTIMETRE = 0.01
STRETCH = 2e-5  # of the height: a joint off its bone by more gets position channels
_TURN = ("Zrotation", "Xrotation", "Yrotation")
_MOVE = bvh.CHANNELS[:3]


def save_bvh(
    joints: np.ndarray,
    skeleton: Skeleton,
    path: Path,
    *,
    rig: Rig | None = None,
    fps: float | None = None,
    rigid: bool = False,
) -> None:
    """Writes joints [N, J, 3] as a BVH file: `on_rig` where a rig is given, else
    `with_helpers`."""
    clip = on_rig(joints, skeleton, rig, fps, rigid) if rig else with_helpers(joints, skeleton, fps)
    bvh.write(clip, path)


def with_helpers(
    joints: np.ndarray, skeleton: Skeleton, fps: float | None = None, unit: float = CENTIMETRE
) -> bvh.Clip:
    """Returns the motion on the skeleton itself, in a T pose at rest, facing +z.

    In BVH one rotation turns all children of a joint alike, but here each bone has its own. Where
    several bones meet, each child therefore hangs on a helper joint at the same place, called
    PARENT_to_CHILD. Joints are exact if their bones have the skeleton's lengths, as those of
    `features.recover_from_rotations` have; otherwise bones keep their directions and take the
    skeleton's lengths.

    Args:
      joints: [N, J, 3] in the skeleton's unit, N >= 1.
      skeleton: of the joints.
      fps: frames a second; the skeleton's by default.
      unit: metres in a unit of the file.
    """
    joints = np.asarray(joints, np.float64)
    rest, scale = t_pose(skeleton), skeleton.unit / unit
    body = rot.conjugate(features.root_rotations(joints, skeleton, smoothing=0))
    children: list[list[int]] = [[] for _ in skeleton.names]
    for joint in range(1, len(skeleton)):
        children[skeleton.parents[joint]].append(joint)
    names, parents, offsets, worlds = [], [], [], []
    # (joint, the child whose helper it is or None, parent node), depth first
    stack: list[tuple[int, int | None, int]] = [(0, None, -1)]
    while stack:
        joint, helped, above = stack.pop()
        here, name, below = len(names), skeleton.names[joint], children[joint]
        before = worlds[above] if above >= 0 else body
        offset = rest[joint] * skeleton.lengths[joint] * scale
        world, bone = before, helped
        if helped is not None:
            name, offset = f"{name}_to_{skeleton.names[helped]}", np.zeros(3)
            stack.append((helped, None, here))
        elif len(below) == 1 and joint:
            bone = below[0]
            stack.append((bone, None, here))
        else:
            stack += [(joint, child, here) for child in reversed(below)]
        if bone is not None:
            world = _aimed(before, rest[bone], joints[:, bone] - joints[:, joint])
        names.append(name)
        parents.append(above)
        offsets.append(tuple(offset.tolist()))
        worlds.append(world)
    local = [
        rot.multiply(rot.conjugate(worlds[parent]), world) if parent >= 0 else world
        for parent, world in zip(parents, worlds, strict=True)
    ]
    hierarchy = bvh.Hierarchy(
        names=tuple(names),
        parents=tuple(parents),
        offsets=tuple(offsets),
        channels=((*_MOVE, *_TURN),) + (_TURN,) * (len(names) - 1),
    )
    positions = np.broadcast_to(np.array(offsets), (len(joints), len(names), 3)).copy()
    positions[:, 0] = joints[:, 0] * scale
    return bvh.Clip(hierarchy, np.stack(local, 1), positions, 1 / (fps or skeleton.fps))


def t_pose(skeleton: Skeleton) -> np.ndarray:
    """The skeleton's directions with the arms held out, so that no arm that is raised or hangs is
    opposite to its rest."""
    rest = np.array(skeleton.directions)
    for shoulder, hip in (
        (skeleton.face[2], skeleton.face[0]),
        (skeleton.face[3], skeleton.face[1]),
    ):
        out = np.sign(skeleton.directions[hip][0]) or np.sign(skeleton.directions[shoulder][0])
        for joint in skeleton.order:
            parent = skeleton.parents[joint]
            while parent > 0 and parent != shoulder:
                parent = skeleton.parents[parent]
            if parent == shoulder and shoulder > 0 and out:
                rest[joint] = [out, 0, 0]
    return rest


def _aimed(before: np.ndarray, rest: np.ndarray, bone: np.ndarray) -> np.ndarray:
    """`before` [N, 4], turned the shortest way so that its `rest` direction points along `bone`."""
    return rot.multiply(rot.between(rot.rotate(before, rest), rot.unit(bone)), before)


def on_rig(
    joints: np.ndarray,
    skeleton: Skeleton,
    rig: Rig,
    fps: float | None = None,
    rigid: bool = False,
) -> bvh.Clip:
    """Returns the motion on the hierarchy of a person's own files: their names, order, OFFSETs.

    Where one bone leaves a joint, the joint is turned so that the bone points where it should.
    Where several do, it is turned so that they fit best (least squares, Kabsch 1976). In recorded
    motion they fit exactly. In generated motion they need not: the joints at their ends then get
    position channels and are moved to where they belong, so that all joints of the file are those
    given, to 1e-4 of the height. `rigid` leaves out these channels, for programs that want bones to
    stay in their sockets: hips and shoulders are then as near as one rotation brings them, and the
    bones below are aimed from there.

    Give joints whose bones have the skeleton's lengths (`features.recover_from_rotations`): others
    are met too, but by stretching bones. Nodes that are no joints stay in their usual pose.

    Args:
      joints: [N, J, 3] in the skeleton's unit, y up.
      skeleton, rig: from `rigs.derive`.
      fps: frames a second; the skeleton's by default.
      rigid: see above.
    """
    targets = np.asarray(joints, np.float64) * (skeleton.unit / rig.unit)
    if rig.up == "z":
        targets = targets[..., [0, 2, 1]] * np.array([1.0, -1.0, 1.0])
    hierarchy, count = rig.hierarchy, len(targets)
    places, rest = np.array(rig.places), np.array(rig.rest)
    joint_of = {node: joint for joint, node in enumerate(rig.nodes)}
    aims = _aims(rig, skeleton)
    still = np.tile([1.0, 0.0, 0.0, 0.0], (count, 1))
    world, local, positions, where = [], [], [], []
    channels = list(hierarchy.channels)
    loose = STRETCH * skeleton.height * skeleton.unit / rig.unit
    for node, parent in enumerate(hierarchy.parents):
        up = world[parent] if parent >= 0 else still
        base = where[parent] if parent >= 0 else np.zeros((count, 3))
        place = np.broadcast_to(places[node], (count, 3))
        if node in joint_of:
            wanted = rot.rotate(rot.conjugate(up), targets[:, joint_of[node]] - base)
            off = abs(wanted - place).max() > loose
            if node == rig.nodes[0] or (off and not rigid):
                place = wanted
                channels[node] = _with_position(channels[node])
        here = base + rot.rotate(up, place)
        turn = rot.multiply(up, np.broadcast_to(rest[node], (count, 4)))
        if aims[node]:
            bones = [(vector, targets[:, joint] - here) for joint, vector in aims[node]]
            turn = _fitted(turn, bones)
            channels[node] = _with_rotation(channels[node])
        elif abs(rest[node, 1:]).max() > 1e-7:  # a mean over frames is no turn about one axis
            channels[node] = _with_rotation(channels[node])
        world.append(turn)
        where.append(here)
        positions.append(place)
        local.append(rot.multiply(rot.conjugate(up), turn))
    hierarchy = bvh.Hierarchy(
        hierarchy.names, hierarchy.parents, hierarchy.offsets, tuple(channels), hierarchy.ends
    )
    return bvh.Clip(
        hierarchy, np.stack(local, 1), np.stack(positions, 1), 1 / (fps or skeleton.fps)
    )


def _aims(rig: Rig, skeleton: Skeleton) -> list[list[tuple[int, np.ndarray]]]:
    """For each node, the joints that its rotation moves, each with its place in the node's frame.

    That is the node of the joint's parent, or the last of those at the same place between the two
    (CMU's files hang each leg on a node of its own in the pelvis).
    """
    places, rest = np.array(rig.places), np.array(rig.rest)
    near = 1e-4 * skeleton.height * skeleton.unit / rig.unit
    aims: list[list] = [[] for _ in rig.hierarchy.names]
    for joint in skeleton.order:
        path = [rig.hierarchy.parents[rig.nodes[joint]]]
        while path[-1] != rig.nodes[skeleton.parents[joint]]:
            if path[-1] < 0:
                raise UserError(f"rig: {skeleton.names[joint]!r} is not below its parent's node")
            path.append(rig.hierarchy.parents[path[-1]])
        vector = places[rig.nodes[joint]]
        while len(path) > 1 and any(np.linalg.norm(places[n]) > near for n in path[:-1]):
            vector = places[path[0]] + rot.rotate(rest[path[0]], vector)
            path.pop(0)
        aims[path[0]].append((joint, vector))
    return aims


def _fitted(turn: np.ndarray, bones: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns the rotations [N, 4] that bring vectors nearest to their targets [N, 3], and of
    those the one nearest to `turn`."""
    if len(bones) == 1:
        ((vector, target),) = bones
        return _aimed(turn, vector, target)
    size = sum((vector**2).sum() for vector, _ in bones)
    # Where all bones are in line any twist fits; a little of `turn` decides.
    total = 1e-7 * size * rot.to_matrix(turn)
    for vector, target in bones:
        total = total + target[..., :, None] * vector
    u, _, vt = np.linalg.svd(total)
    u[..., 2] *= np.linalg.det(u @ vt)[..., None]
    return rot.from_matrix(u @ vt)


def _with_position(channels: tuple[str, ...]) -> tuple[str, ...]:
    return channels if set(_MOVE) <= set(channels) else (*_MOVE, *channels)


def _with_rotation(channels: tuple[str, ...]) -> tuple[str, ...]:
    """A hinge becomes a ball joint."""
    if set(_TURN) <= set(channels):
        return channels
    return (*(c for c in channels if c not in _TURN), *_TURN)
