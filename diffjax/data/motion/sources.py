"""Sets of motions by name: the walker inside the package, BVH folders, .npz, published folders."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffjax.data.motion import (
    bvh,
    bvh_folder,
    features,
    humanact12,
    humanml,
    naming,
    npz,
    rigs,
    walker,
)
from diffjax.data.motion.base import SPLITS, MotionSource, split_takes, windows
from diffjax.data.motion.skeletons import Skeleton
from diffjax.data.motion.statistics import Statistics, measure
from diffjax.data.motion.takes import Take, Takes
from diffjax.data.reading import not_found
from diffjax.errors import UserError, did_you_mean

WALKS, WALK_TESTS = 6, 2  # the walker's takes of each action and style


def open_motion(
    path: str,
    split: str = "train",
    *,
    fps: float = 20.0,
    max_frames: int = 196,
    min_frames: int = 16,
    mirror: bool = False,
    published: bool = False,
    unified: bool | None = None,
    skeleton: Skeleton | None = None,
    statistics: Statistics | None = None,
) -> MotionSource:
    """Opens a set of motions by what its path leads to.

    - "walker": motions made of formulas (`walker`), 8 classes with captions.
    - a folder of BVH files (`bvh_folder.list_takes`), classes by subfolder, captions.csv.
    - a folder in the format of HumanML3D or KIT (`humanml.open_folder`), which has its own frame
      rate, statistics, splits and mirrored copies.
    - an .npz of joints (`npz.read_takes`), or of HumanAct12's rotations (`humanact12.open_npz`).

    Args:
      path: as above.
      split: "train", "val" or "test".
      fps: frames a second that motions are brought to.
      max_frames: longer clips are cut into overlapping parts (`base.windows`).
      min_frames: shorter clips are left out.
      mirror: add the mirrored copy of each training clip, left and right exchanged in its captions
        and class name too.
      published, unified: how features are made, see `features.extract`.
      skeleton, statistics: of a run, instead of finding them in the training split.

    Raises:
      UserError: nothing there, an unknown split, an empty one, files that are not what they should
        be.
    """
    if split not in SPLITS:
        raise UserError(f"{path}: no split {split!r}{did_you_mean(split, SPLITS)}")
    if not 2 <= min_frames <= max_frames <= 1 << 16:
        raise UserError(f"min_frames {min_frames} and max_frames {max_frames} must be 2 to 65536")
    if not 0 < fps <= 1e4:
        raise UserError(f"fps is {fps}, expected a positive number")
    place = Path(path).expanduser()
    if path == "walker":
        found = walker_takes(fps)
    elif not place.exists():
        raise not_found(place)
    elif place.is_file() and humanact12.is_file(place):
        return humanact12.open_npz(place, max_frames)
    elif place.is_file() and place.suffix.lower() == ".npz":
        found = npz.read_takes(place, fps)
    elif place.suffix.lower() in (".pkl", ".pickle"):
        raise humanact12.refusal(place)
    elif place.is_file():
        raise UserError(
            f"{place}: motions are a folder of .bvh files, a folder in HumanML3D's format, or .npz"
        )
    elif humanml.is_folder(place):
        return humanml.open_folder(place, split, max_frames=max_frames)
    else:
        found = bvh_folder.list_takes(place, fps)
    if skeleton is not None:
        if skeleton.names != found.skeleton.names:
            raise UserError(f"{path}: its joints are not those that the run was trained on")
        found = dataclasses.replace(found, skeleton=skeleton)
    return build(
        path if path == "walker" else place.name,
        found,
        split=split,
        fps=fps,
        max_frames=max_frames,
        min_frames=min_frames,
        mirror=mirror,
        how={"published": published, "unified": unified},
        statistics=statistics,
    )


def walker_takes(fps: float) -> Takes:
    """Returns the takes of `walker`: each of its actions and styles WALKS times for training, once
    for validation and WALK_TESTS times for tests; 2.5 to 5 seconds each."""
    takes = []

    def make(action: str, style: str, seed: int) -> bvh.Clip:
        seconds = np.random.default_rng([seed, 7]).uniform(2.5, 5.0)
        return walker.clip(action, style, seed, seconds=seconds, fps=fps)

    first = [make(action, "normal", 0) for action in walker.ACTIONS]
    skeleton, rig = rigs.derive(first, fps=fps, name="walker")
    for action in walker.ACTIONS:
        for style in walker.STYLES:
            texts = tuple((text, 0.0, 0.0) for text in walker.captions(action, style))
            for seed in range(WALKS + 1 + WALK_TESTS):
                split = "train" if seed < WALKS else "val" if seed == WALKS else "test"
                read = lambda a=action, s=style, k=seed: rigs.joints_of(make(a, s, k), rig)
                takes.append(Take(f"{action}/{style}_{seed}", read, action, texts, split))
    return Takes(takes, skeleton, rig, walker.ACTIONS)


def build(
    name: str,
    given: Takes,
    *,
    split: str,
    fps: float,
    max_frames: int,
    min_frames: int,
    mirror: bool,
    how: dict,
    statistics: Statistics | None,
) -> MotionSource:
    """Makes a source of the takes of one split; arguments as in `open_motion`.

    A caption with a start and an end makes a clip of its own, of that part of the take.
    """
    takes, skeleton = given.takes, given.skeleton
    splits = {take.name: take.split for take in takes}
    if not any(splits.values()):
        splits = split_takes([t.name for t in takes], [t.label for t in takes])
    classes = given.class_names

    def items(wanted: str, mirrored: bool):
        for take in takes:
            if splits[take.name] == wanted:
                joints = take.read()
                try:
                    yield from _items(take, joints, skeleton, fps, max_frames, min_frames, how)
                    if mirrored:
                        seen = features.mirror(joints, skeleton)
                        other = _mirrored(take, classes)
                        yield from _items(other, seen, skeleton, fps, max_frames, min_frames, how)
                except UserError as error:
                    raise UserError(f"{name}: {take.name}: {error}") from None

    clips = list(items(split, mirror and split == "train"))
    if not clips:
        many = sum(s == split for s in splits.values())
        why = f"none of its {many} takes has {min_frames + 1} frames" if many else "it has no takes"
        raise UserError(f"{name}: the split {split!r} is empty ({why})")
    if statistics is None:
        train = clips if split == "train" else list(items("train", mirror))
        if not train:
            raise UserError(f"{name}: the split 'train' is empty, so there are no statistics")
        statistics = measure(clip[new] for clip, *_, new in train)
    clips, names, labels, captions, _ = zip(*clips, strict=True)
    return MotionSource(
        clips=clips,
        lengths=np.array([len(clip) for clip in clips]),
        skeleton=skeleton,
        statistics=statistics,
        max_frames=max_frames,
        captions=captions,
        labels=np.array([classes.index(k) for k in labels]) if classes else None,
        class_names=classes,
        names=names,
        rig=given.rig,
        name=name,
    )


def _items(take: Take, joints, skeleton, fps, max_frames, min_frames, how: dict):
    """Yields (features, name, label, captions, new) of each clip that a take gives; `new`, bool, is
    True for those of its frames that are in no clip before it."""
    if len(joints) <= min_frames:
        return
    rows = features.extract(joints, skeleton, **how)
    whole = tuple(text for text, start, end in take.captions if not start and not end)
    parts = [(0, len(rows), whole)]
    for text, start, end in take.captions:
        if start or end:
            if start * fps >= len(rows):
                raise UserError(f"caption {text[:40]!r} starts at {start:g} s, behind the end")
            parts.append((int(start * fps), min(int(end * fps), len(rows)), (text,)))
    if len(parts) > 1 and not whole:
        parts = parts[1:]
    seen = np.zeros(len(rows), bool)
    for first, last, texts in parts:
        for a, b in windows(last - first, max_frames):
            if b - a >= min_frames:
                part = slice(first + a, first + b)
                yield rows[part], take.name, take.label, texts, ~seen[part]
                seen[part] = True


def _mirrored(take: Take, classes: Sequence[str]) -> Take:
    label = take.label and naming.mirror_text(take.label)
    return Take(
        f"mirror of {take.name}",
        take.read,
        label if label in classes else take.label,
        tuple((naming.mirror_text(text), a, b) for text, a, b in take.captions),
    )
