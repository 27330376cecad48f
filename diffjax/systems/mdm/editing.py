"""Editing: a motion of which a part is kept, by in-painting (Tevet et al. 2023, section 3)."""

from pathlib import Path

import numpy as np

from diffjax.data.motion import bvh, features, rigs, statistics
from diffjax.data.npz import read_array
from diffjax.data.reading import open_zip
from diffjax.errors import UserError
from diffjax.systems.mdm import motions
from diffjax.systems.mdm.motions import Body

MAX_BYTES = 1 << 30


def read_motion(path: Path, body: Body) -> np.ndarray:
    """Returns the features of a person's motion file, float32 [N, D], at the run's frame rate.

    Args:
      path: a .bvh file with the joints of the run's, or an .npz with "joints" [N + 1, J, 3] in the
        skeleton's unit and frame rate, as sample.py writes.

    Raises:
      UserError: another file, other joints, or a run that knows no BVH files.
    """
    if body.kind != "features":
        raise UserError("--motion: this run makes rotations of SMPL's joints, which are not edited")
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npz":
        joints = read_array(open_zip(path), "joints", "f", MAX_BYTES)
    elif path.suffix.lower() == ".bvh":
        if body.rig is None:
            raise UserError(f"--motion {path}: this run was not trained on BVH files: give an .npz")
        clip = bvh.resample(bvh.read(path), body.fps)
        joints = _named(path, lambda: rigs.joints_of(clip, body.rig))
    else:
        raise UserError(f"--motion {path}: a .bvh file, or an .npz with joints")
    return _named(path, lambda: features.extract(joints, body.skeleton))


def _named(path: Path, make):
    try:
        return make()
    except UserError as error:
        raise UserError(f"--motion {path}: {error}") from error


def known(path: Path, body: Body, edit: str, keep: tuple[float, float]) -> dict[str, np.ndarray]:
    """Returns what of a motion is kept: {"known": float32 [N, D], as the network sees motions,
    "kept": bool [N, D], "given": bool [N], the frames that are kept whole}.

    Args:
      edit: "in_between" keeps the frames before the first share of the motion and from the second
        on; "upper_body" keeps root, legs and contacts, and makes the rest new.
      keep: those shares, as (0.25, 0.75).

    Raises:
      UserError: as `read_motion`; longer than the run's motions; or nothing is left to make.
    """
    motion = read_motion(path, body)
    count = len(motion)
    if count > body.max_frames:
        raise UserError(
            f"--motion {path}: {count} frames at {body.fps:g} a second, this model knows up to "
            f"{body.max_frames}, {body.max_frames / body.fps:.1f} seconds"
        )
    if edit == "upper_body":
        kept = np.tile(statistics.body_mask(body.skeleton, "lower_body"), (count, 1))
    else:
        first, last = (int(share * count) for share in keep)
        if first >= last:
            raise UserError(f"--keep: no frame of {count} is between")
        rows = (np.arange(count) < first) | (np.arange(count) >= last)
        kept = np.tile(rows[:, None], (1, body.size))
    x = motions.normalised(motion, body).astype(np.float32)
    return {"known": x, "kept": kept, "given": kept.all(1)}
