"""HumanAct12 for MDM's action models: rotations of SMPL's joints, not features.

The set is published as a pickle, and opening a pickle runs what is in it; diffjax opens none. Where
the file is trusted, Python makes an .npz of it, d being what the pickle holds:

    numpy.savez("humanact12.npz", poses=numpy.concatenate(d["poses"]),
                joints3D=numpy.concatenate(d["joints3D"]),
                lengths=[len(p) for p in d["poses"]], y=d["y"])

poses is axis-angle, float [frames of all clips, 72]; joints3D float [frames, 24, 3], metres.
"""

import zipfile
from pathlib import Path

import numpy as np

from diffjax.data.motion import rotations as rot
from diffjax.data.motion.base import MotionSource, windows
from diffjax.data.motion.skeletons import SMPL
from diffjax.data.motion.statistics import Statistics
from diffjax.data.npz import read_array
from diffjax.data.reading import open_zip
from diffjax.errors import UserError

CLASSES = ("warm_up", "walk", "run", "jump", "drink", "lift_dumbbell", "sit", "eat")
CLASSES += ("turn steering wheel", "phone", "boxing", "throw")
SIZE = 6 * (len(SMPL) + 1)
MAX_BYTES = 1 << 31


def refusal(path: Path) -> UserError:
    """Returns the error for a pickle, which says what to do instead."""
    return UserError(
        f"{path} is a pickle: opening one runs what is in it, so diffjax does not; where you trust "
        "it, save its poses, joints3D, lengths and y as .npz (docs/reference/data.md, humanact12)"
    )


def is_file(path: Path) -> bool:
    """Whether the file is an .npz as above."""
    if not zipfile.is_zipfile(path):
        return False
    return {"poses.npy", "joints3D.npy", "y.npy"} <= set(open_zip(path).namelist())


def open_npz(path: Path, max_frames: int = 60) -> MotionSource:
    """Opens such an .npz: float32 [max_frames, 150] an example, not normalised.

    A frame is 25 rows of 6: 24 joints' rotations in 6D by rows (`rotations.to_6d_rows`), and the
    root's shift since the example's first frame, three numbers and three zeros (Tevet et al. 2023).
    A clip that is too short repeats its last frame, and its length is max_frames then. A longer one
    gives overlapping parts, where the original cuts one part at random. There are no splits.

    Raises:
      UserError: arrays that are missing, of other types, or do not fit together.
    """
    archive = open_zip(path)
    if "lengths.npy" not in archive.namelist():
        raise UserError(f"{path}: has no array 'lengths', the frames of each clip")
    poses, joints = (read_array(archive, key, "f", MAX_BYTES) for key in ("poses", "joints3D"))
    lengths, labels = (read_array(archive, key, "iu", MAX_BYTES) for key in ("lengths", "y"))
    frames = len(poses)
    if poses.size != frames * 72 or not frames:
        raise UserError(f"{path}: poses is {poses.shape}, expected (frames, 72)")
    if joints.shape != (frames, len(SMPL), 3):
        raise UserError(f"{path}: joints3D is {joints.shape}, expected ({frames}, 24, 3)")
    if not (np.isfinite(poses).all() and np.isfinite(joints).all()):
        raise UserError(f"{path}: has numbers that are not finite")
    if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
        raise UserError(f"{path}: lengths must be numbers of frames [n]")
    if int(lengths.astype(object).sum()) != frames:
        raise UserError(f"{path}: lengths add up to other than the {frames} frames of poses")
    if labels.shape != lengths.shape or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise UserError(f"{path}: y must be 0 to {len(CLASSES) - 1}, one a clip")
    turns = rot.from_axis_angle(poses.astype(np.float32).reshape(frames, len(SMPL), 3))
    rows = rot.to_6d_rows(rot.to_matrix(turns))
    root = joints[:, 0].astype(np.float32)
    clips, kinds, names = [], [], []
    for i, end in enumerate(np.cumsum(lengths)):
        start = int(end - lengths[i])
        for a, b in windows(int(lengths[i]), max_frames):
            clips.append(
                _clip(rows[start + a : start + b], root[start + a : start + b], max_frames)
            )
            kinds.append(labels[i])
            names.append(f"clip {i}")
    zero = np.zeros(SIZE, np.float32)
    return MotionSource(
        clips=clips,
        lengths=np.full(len(clips), max_frames),
        skeleton=SMPL,
        statistics=Statistics(zero, zero + 1),
        max_frames=max_frames,
        captions=((),) * len(clips),
        labels=np.array(kinds),
        class_names=CLASSES,
        names=tuple(names),
        kind="rot6d",
        name=path.name,
    )


def _clip(rows: np.ndarray, root: np.ndarray, max_frames: int) -> np.ndarray:
    shift = np.zeros((len(rows), 1, 6), np.float32)
    shift[:, 0, :3] = root - root[0]
    frames = np.concatenate([rows, shift], 1).reshape(len(rows), SIZE)
    return frames[np.minimum(np.arange(max_frames), len(rows) - 1)]
