"""Motions as a NumPy archive: joints of many clips in one file.

joints       float [frames of all clips, J, 3], one clip behind the other
lengths      int [n], frames of each
skeleton     JSON text (`Skeleton.to_json`)
and, where they exist:
labels       int [n]                 class_names  text [K]
captions     text [m]                caption_of   int [m], the clip of each
names        text [n]                splits       text [n]: train, val, test; others are left out
rig          JSON text (`rigs.Rig.to_json`), to write BVH as the files that the clips came from
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffjax.data.base import MAX_CLASSES
from diffjax.data.motion.rigs import Rig, rig_from_json
from diffjax.data.motion.skeletons import Skeleton, from_json
from diffjax.data.motion.takes import Take, Takes
from diffjax.data.npz import read_array
from diffjax.data.reading import is_unicode, open_zip, reading
from diffjax.errors import UserError

MAX_BYTES = 1 << 32
MAX_TABLE_BYTES = 1 << 28


def write_npz(
    path: Path,
    clips: Sequence[np.ndarray],
    skeleton: Skeleton,
    *,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    names: Sequence[str] = (),
    splits: Sequence[str] = (),
    rig: Rig | None = None,
) -> None:
    """Writes clips [N_i, J, 3] at the skeleton's frame rate as the archive above, under a
    temporary name first. The arguments are one a clip, or none."""
    arrays = {
        "joints": np.concatenate([np.asarray(c, np.float32) for c in clips]),
        "lengths": np.array([len(c) for c in clips]),
        "skeleton": np.array(json.dumps(skeleton.to_json())),
    }
    if labels is not None:
        arrays |= {"labels": np.asarray(labels), "class_names": np.array(list(class_names), "U")}
    if any(captions):
        rows = [(text, i) for i, some in enumerate(captions) for text in some]
        arrays["captions"] = np.array([text for text, _ in rows], "U")
        arrays["caption_of"] = np.array([i for _, i in rows])
    for key, value in (("names", names), ("splits", splits)):
        if len(value):
            arrays[key] = np.array(list(value), "U")
    if rig is not None:
        arrays["rig"] = np.array(json.dumps(rig.to_json()))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def read_takes(path: Path, fps: float) -> Takes:
    """Reads the archive above.

    Raises:
      UserError: arrays that are missing, of other types, or do not fit together; another frame
        rate than `fps`.
    """
    archive = open_zip(path)
    there = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}

    def array(key: str, kinds: str, count: int | None = None) -> np.ndarray | None:
        if key not in there:
            return None
        value = read_array(archive, key, kinds, MAX_BYTES if key == "joints" else MAX_TABLE_BYTES)
        if count is not None and value.shape != (count,):
            raise UserError(f"{path}: {key} has shape {value.shape}, expected ({count},)")
        if value.dtype.kind == "U" and not all(map(is_unicode, value.ravel().tolist())):
            raise UserError(f"{path}: {key} has a text that is no Unicode")
        return value

    def parsed(key: str, make):
        text = array(key, "U")
        if text is None or text.ndim:
            return None
        with reading(f"{path}: {key}"):
            value = json.loads(str(text))
        return make(value, f"{path}: {key}")

    joints, lengths = array("joints", "f"), array("lengths", "iu")
    skeleton, rig = parsed("skeleton", from_json), parsed("rig", rig_from_json)
    if joints is None or lengths is None or skeleton is None:
        raise UserError(
            f"{path}: needs the arrays joints, lengths and skeleton (docs/reference/data.md)"
        )
    if joints.ndim != 3 or joints.shape[1:] != (len(skeleton), 3):
        raise UserError(f"{path}: joints is {joints.shape}, expected (frames, {len(skeleton)}, 3)")
    if rig is not None and len(rig.nodes) != len(skeleton):
        raise UserError(f"{path}: rig and skeleton have different joints")
    if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
        raise UserError(f"{path}: lengths must be numbers of frames [n]")
    if int(lengths.astype(object).sum()) != len(joints):
        raise UserError(f"{path}: lengths add up to other than the {len(joints)} frames of joints")
    if abs(skeleton.fps - fps) > 1e-3:
        raise UserError(
            f"{path}: has {skeleton.fps:g} frames a second and {fps:g} are asked for; set fps to it"
        )
    n = len(lengths)
    labels, kinds = array("labels", "iu", n), array("class_names", "U")
    names, splits = array("names", "U", n), array("splits", "U", n)
    texts, owners = array("captions", "U"), array("caption_of", "iu")
    if labels is not None:
        high = MAX_CLASSES if kinds is None else kinds.size
        if labels.min() < 0 or labels.max() >= high:
            raise UserError(f"{path}: labels must be 0 to {high - 1}")
        kinds = kinds.ravel() if kinds is not None else np.arange(int(labels.max()) + 1).astype("U")
        if len(set(kinds.tolist())) != len(kinds):
            raise UserError(f"{path}: two classes have one name")
    captions: list[list] = [[] for _ in range(n)]
    if texts is not None:
        good = owners is not None and texts.shape == owners.shape and texts.ndim == 1
        if not good or (len(owners) and not 0 <= owners.min() <= owners.max() < n):
            raise UserError(f"{path}: captions and caption_of do not fit together")
        for text, owner in zip(texts.tolist(), owners.tolist(), strict=True):
            captions[owner].append((text, 0.0, 0.0))
    if names is not None and len(set(names.tolist())) != n:
        raise UserError(f"{path}: two clips have one name")
    ends = np.cumsum(lengths)
    takes = []
    for i in range(n):
        part = joints[ends[i] - lengths[i] : ends[i]]
        takes.append(
            Take(
                str(names[i]) if names is not None else f"{i:06d}",
                lambda part=part: part,
                str(kinds[labels[i]]) if labels is not None else None,
                tuple(captions[i]),
                str(splits[i]) if splits is not None else "",
            )
        )
    classes = tuple(map(str, kinds)) if labels is not None else ()
    return Takes(takes, skeleton, rig, classes)
