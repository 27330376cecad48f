"""Motion as numbers: the 12J - 1 features a frame of HumanML3D, and back.

Guo et al. 2022. N + 1 frames of J joints give N rows; r[t] is the rotation about y that turns the
body of frame t to face +z, P the joints, p the root:

    root yaw    1         arcsin of the y part of r[t+1] r[t]^-1: half an angle, radians a frame
    root xz     2         r[t+1] (p[t+1] - p[t]), x and z
    height      1         y of the root
    positions   3 (J-1)   r[t] (P[t] - p[t]) of the other joints, y from the floor
    rotations   6 (J-1)   local rotations of the other joints, 6D by columns
    velocities  3 J       r[t] (P[t+1] - P[t])
    contacts    4         whether left ankle, left toe, right ankle, right toe stand

(The root's velocity is turned by the next frame's r, a joint's by its own frame's.) A joint's
rotation is that of the bone that ends in it, relative to the bone before it in its chain, and the
bones of a chain that starts inside the body are relative to the root's: not the rotations of SMPL.
The root's rotation is here r itself and not its inverse, by which the body stands in the world.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from diffjax.data.motion import rotations as rot
from diffjax.data.motion.skeletons import Skeleton
from diffjax.errors import UserError

SMOOTHING = 20.0  # frames, of the facing direction
UP = np.array([0.0, 1.0, 0.0])
FORWARD = np.array([0.0, 0.0, 1.0])


def channels(joints: int) -> dict[str, slice]:
    """Returns where each block of the features of so many joints lies, in order."""
    sizes = {"yaw": 1, "velocity": 2, "height": 1}
    sizes |= {"positions": 3 * (joints - 1), "rotations": 6 * (joints - 1)}
    sizes |= {"velocities": 3 * joints, "contacts": 4}
    start, blocks = 0, {}
    for name, size in sizes.items():
        blocks[name] = slice(start, start + size)
        start += size
    return blocks


def facing(joints: rot.Array, skeleton: Skeleton, swapped: bool = False) -> rot.Array:
    """Returns the horizontal direction that the body faces, [..., J, 3] -> [..., 3], not
    normalised. Works on NumPy and JAX arrays.

    Args:
      joints: positions.
      skeleton: whose `face` joints are used.
      swapped: with the two hips exchanged, as the published extraction has it by mistake.
    """
    r_hip, l_hip, r_shoulder, l_shoulder = (joints[..., j, :] for j in skeleton.face)
    hips = l_hip - r_hip if swapped else r_hip - l_hip
    across = rot.unit(hips + r_shoulder - l_shoulder)
    return rot.cross(np.broadcast_to(UP.astype(across.dtype), across.shape), across)


def canonical(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns the clip with its lowest joint on the floor, its first root at x = z = 0 and its
    first frame facing +z: [N, J, 3] -> float64 [N, J, 3]."""
    joints = np.array(joints, np.float64)
    joints[..., 1] -= joints[..., 1].min()
    joints -= joints[0, 0] * np.array([1.0, 0.0, 1.0])
    turn = rot.between(rot.unit(facing(joints[:1], skeleton)), FORWARD)
    return rot.rotate(turn[:, None], joints)


def root_rotations(
    joints: np.ndarray, skeleton: Skeleton, *, swapped: bool = False, smoothing: float = SMOOTHING
) -> np.ndarray:
    """Returns r, the rotation about y that turns each frame to face +z, float64 [N, 4].

    Args:
      joints: [N, J, 3].
      skeleton, swapped: see `facing`.
      smoothing: of the direction over time, a Gaussian's deviation in frames; 0 for none.
    """
    forward = facing(np.asarray(joints, np.float64), skeleton, swapped)
    if smoothing:
        forward = gaussian_filter1d(forward, smoothing, axis=0, mode="nearest")
    return rot.between(rot.unit(forward), FORWARD)


def bone_rotations(joints: np.ndarray, root: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns the shortest rotations from `skeleton.directions` to the bones, float64 [N, J, 4].

    Entry j is that of the bone ending in j, in the world; entry 0 is `root` [N, 4]. A bone of
    length 0 has the identity.
    """
    joints = np.asarray(joints, np.float64)
    parents = np.array(skeleton.parents)
    bones = joints[:, 1:] - joints[:, parents[1:]]
    directions = np.array(skeleton.directions)[1:]
    return np.concatenate([root[:, None], rot.between(directions, rot.unit(bones))], 1)


def unify(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns the motion on the proportions of `skeleton`: [N, J, 3] -> float64 [N, J, 3].

    The bones keep their directions and take the lengths of the skeleton; the root's path is scaled
    by the leg's length, whose own is that of the first frame.
    """
    joints = np.asarray(joints, np.float64)
    parents = np.array(skeleton.parents)
    first = joints[0, 1:] - joints[0, parents[1:]]
    own = np.concatenate([[0.0], np.sqrt((first**2).sum(-1))])
    legs = np.abs(skeleton.offsets).max(-1)[list(skeleton.leg)].sum()
    raw = np.abs(np.array(skeleton.directions) * own[:, None]).max(-1)[list(skeleton.leg)].sum()
    if not raw > 0:
        raise UserError("a clip's legs have no length, so it cannot be scaled to the skeleton")
    bones = rot.unit(joints[:, 1:] - joints[:, parents[1:]])
    result = np.empty_like(joints)
    result[:, 0] = joints[:, 0] * (legs / raw)
    for joint in skeleton.order:
        step = bones[:, joint - 1] * skeleton.lengths[joint]
        result[:, joint] = result[:, skeleton.parents[joint]] + step
    return result


def extract(
    joints: np.ndarray, skeleton: Skeleton, *, published: bool = False, unified: bool | None = None
) -> np.ndarray:
    """Returns the features of a clip, [N + 1, J, 3] -> float32 [N, 12J - 1].

    Computed in float64, of the clip made `canonical`: `recover` gives just that back, up to its
    last frame, and up to rounding. The clip itself is then known but for a rotation about y and a
    shift.

    The published extraction exchanges the two hips when it looks for the facing direction, which
    makes it noisy where the shoulders are not much wider than the hips, and loses track of a body
    that turns past 180 degrees (Guo et al.'s code, which made HumanML3D and KIT).

    Args:
      joints: positions in the skeleton's unit, N >= 1.
      skeleton: of the clip.
      published: as the published data sets were made, instead of correctly.
      unified: bring the clip to the skeleton's proportions first; by default as published.

    Raises:
      UserError: another shape, or numbers that are not finite.
    """
    joints = check(joints, skeleton)
    if published if unified is None else unified:
        joints = unify(joints, skeleton)
    joints = canonical(joints, skeleton)
    turn = root_rotations(joints, skeleton, swapped=published)
    turn[0] = [1, 0, 0, 0]
    now, moves = turn[:-1, None], joints[1:] - joints[:-1]
    yaw = rot.multiply(turn[1:], rot.conjugate(turn[:-1]))
    if not published:  # q and -q are one rotation, and only one of them is a small one
        yaw = np.where(yaw[:, :1] < 0, -yaw, yaw)
    world = bone_rotations(joints, turn, skeleton)
    local = rot.multiply(rot.conjugate(world[:, list(skeleton.previous)]), world)[:-1, 1:]
    flat = joints[:-1] - joints[:-1, :1] * np.array([1.0, 0.0, 1.0])
    feet = (moves[:, list(skeleton.feet)] ** 2).sum(-1) < skeleton.contact
    blocks = [
        np.arcsin(np.clip(yaw[:, 2:3], -1, 1)),
        rot.rotate(turn[1:], moves[:, 0])[:, ::2],
        joints[:-1, 0, 1:2],
        rot.rotate(now, flat)[:, 1:],
        rot.to_6d_columns(rot.to_matrix(local)),
        rot.rotate(now, moves),
        feet,
    ]
    return np.concatenate([b.reshape(len(moves), -1) for b in blocks], -1).astype(np.float32)


def check(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns the joints as float64; raises `UserError` if they are no clip of the skeleton."""
    joints = np.asarray(joints)
    if joints.dtype.kind not in "fiu" or joints.ndim != 3 or joints.shape[1:] != (len(skeleton), 3):
        found = f"{joints.dtype} {joints.shape}"
        raise UserError(f"joints must be numbers [frames, {len(skeleton)}, 3], not {found}")
    if len(joints) < 2:
        raise UserError("a clip must have 2 frames or more")
    joints = joints.astype(np.float64)
    if not np.isfinite(joints).all() or abs(joints).max() > 1e9:
        raise UserError("joints must be finite numbers")
    return joints


def root(features: rot.Array) -> tuple[rot.Array, rot.Array]:
    """Returns (r [..., N, 4], root position [..., N, 3]) of features [..., N, 12J - 1].

    The first frame faces +z at x = z = 0. Works on NumPy and JAX arrays.
    """
    xp = rot.namespace(features)
    # Frame t is the sum of the steps before it; the last row's own step leads beyond the clip.
    steps = xp.concatenate([xp.zeros_like(features[..., :1, :3]), features[..., :-1, :3]], -2)
    turn = rot.about("y", 2 * xp.cumsum(steps[..., 0], -1))
    flat = xp.stack([steps[..., 1], xp.zeros_like(steps[..., 0]), steps[..., 2]], -1)
    place = xp.cumsum(rot.rotate(rot.conjugate(turn), flat), -2)
    return turn, xp.stack([place[..., 0], features[..., 3], place[..., 2]], -1)


def recover(features: rot.Array, skeleton: Skeleton) -> rot.Array:
    """Returns the joints of features by their positions, [..., N, 12J - 1] -> [..., N, J, 3].

    What the published evaluation and pictures use. Works on NumPy and JAX arrays, also inside jit;
    padding behind a clip does not change it.
    """
    xp = rot.namespace(features)
    turn, place = root(features)
    flat = features[..., channels(len(skeleton))["positions"]]
    flat = flat.reshape(*flat.shape[:-1], len(skeleton) - 1, 3)
    joints = rot.rotate(rot.conjugate(turn)[..., None, :], flat)
    joints = joints + (place * np.array([1, 0, 1], features.dtype))[..., None, :]
    return xp.concatenate([place[..., None, :], joints], -2)


def recover_rotations(features: rot.Array, skeleton: Skeleton) -> rot.Array:
    """Returns the world rotation of the bone ending in each joint, [..., N, J, 3, 3]; entry 0 is r.
    Works on NumPy and JAX arrays."""
    xp = rot.namespace(features)
    turn, _ = root(features)
    local = features[..., channels(len(skeleton))["rotations"]]
    local = rot.from_6d_columns(local.reshape(*local.shape[:-1], len(skeleton) - 1, 6))
    world = [rot.to_matrix(turn)] + [None] * (len(skeleton) - 1)
    for joint in skeleton.order:
        # Not a matrix product, which accelerators round to 8 bits or so.
        before = world[skeleton.previous[joint]][..., None]
        world[joint] = (before * local[..., joint - 1, None, :, :]).sum(-2)
    return xp.stack(world, -3)


def recover_from_rotations(features: rot.Array, skeleton: Skeleton) -> rot.Array:
    """Returns the joints of features by their rotations and the skeleton's bone lengths,
    [..., N, 12J - 1] -> [..., N, J, 3].

    Bones keep their lengths here, whatever a network made of the positions. Equal to `recover` for
    features of a clip with the skeleton's lengths. Works on NumPy and JAX arrays.
    """
    xp = rot.namespace(features)
    world = recover_rotations(features, skeleton)
    joints: list = [root(features)[1]] + [None] * (len(skeleton) - 1)
    offsets = skeleton.offsets.astype(features.dtype)
    for joint in skeleton.order:
        step = (world[..., joint, :, :] * offsets[joint]).sum(-1)
        joints[joint] = joints[skeleton.parents[joint]] + step
    return xp.stack(joints, -2)


def mirror(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Returns the motion seen in a mirror: x negated, left and right joints exchanged.

    Raises:
      UserError: the skeleton knows no pairs.
    """
    if not skeleton.pairs:
        raise UserError("skeleton: no left and right pairs are known, so motions have no mirror")
    return joints[:, list(skeleton.mirrored())] * np.array([-1.0, 1.0, 1.0], joints.dtype)
