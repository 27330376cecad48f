"""The motions of a run: its data, the body that moves, and what samples become in the end.

A run keeps its body as assets (skeleton.json, rig.json where the data were BVH files, mean.npy and
std.npy, data.json), so that sampling opens no data.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.data.motion import export, features, rigs, skeletons, sources, statistics
from diffjax.data.motion import rotations as rot
from diffjax.data.motion.base import MotionSource
from diffjax.data.motion.rigs import Rig
from diffjax.data.motion.skeletons import Skeleton
from diffjax.data.motion.statistics import Statistics
from diffjax.errors import UserError
from diffjax.run import films

KINDS = ("features", "rot6d")
TEXT_BYTES = 240  # of a caption that goes with a sample
FILM = 16  # motions in one picture
LARGEST = 1 << 16  # of a number of frames


class Body(NamedTuple):
    """What a run knows of motions.

    Attributes:
      kind: "features", or "rot6d" for rotations of SMPL's joints (`data.motion.humanact12`).
      skeleton, rig, statistics: as of `MotionSource`; rig is None where no BVH files were.
      max_frames: the longest example that it was trained on.
      class_names: of the data's classes; () where there are none.
      captions: some of the training set's, to show.
    """

    kind: str
    skeleton: Skeleton
    rig: Rig | None
    statistics: Statistics
    max_frames: int
    class_names: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def size(self) -> int:
        """Numbers a frame."""
        return len(self.statistics.mean)

    @property
    def fps(self) -> float:
        return self.skeleton.fps


def opener(config) -> Callable:
    """Returns (path, split) -> a source as config.data says, each opened once.

    Raises:
      UserError: no path, or numbers that make no sense.
    """
    data, steps = config.data, config.diffusion
    if not data.path:
        raise UserError(
            "config.data.path is empty: give a folder of .bvh files, a folder in HumanML3D's "
            "format, an .npz of joints, or walker"
        )
    if not 1 <= data.fps <= 1000:
        raise UserError(f"config.data.fps {data.fps}: frames a second, from 1 to 1000")
    if not 2 <= data.min_frames <= data.max_frames <= LARGEST:
        raise UserError(
            f"config.data.min_frames {data.min_frames} and max_frames {data.max_frames}: must be "
            f"from 2 to {LARGEST}, the first not above the second"
        )
    if data.crop < 0:
        raise UserError(f"config.data.crop {data.crop}: a unit of frames, 0 for no cutting")
    whole = steps.context + steps.predict
    if whole > data.max_frames:
        raise UserError(
            f"config.data.max_frames {data.max_frames}: less than config.diffusion.context + "
            f"predict = {whole}, which an example must have"
        )

    @functools.cache
    def opened(path: str, split: str) -> MotionSource:
        source = sources.open_motion(
            path,
            split,
            fps=data.fps,
            max_frames=data.max_frames,
            min_frames=max(data.min_frames, whole),
            mirror=data.mirror,
        )
        return shuffled(source) if data.shuffle_frames else source

    return opened


def shuffled(source: MotionSource) -> MotionSource:
    """Returns the clips with the frames of each in another order, drawn once: what a set is without
    its smoothness in time, for studies of what that is good for."""
    draws = (np.random.default_rng([1, i]) for i in range(len(source)))
    clips = [draw.permutation(source.features(i)) for i, draw in enumerate(draws)]
    return dataclasses.replace(source, clips=clips)


def describe(source: MotionSource, captions: tuple[str, ...]) -> dict:
    """Returns the assets that `described` reads."""
    assets = {
        "data": {
            "kind": source.kind,
            "max_frames": int(source.max_frames),
            "class_names": list(source.class_names),
            "captions": list(captions),
            "fingerprint": source.fingerprint,
        },
        "skeleton": source.skeleton.to_json(),
        "mean": np.asarray(source.statistics.mean),
        "std": np.asarray(source.statistics.std),
    }
    return assets if source.rig is None else {**assets, "rig": source.rig.to_json()}


def described(assets: dict) -> Body:
    """Returns the body that assets describe; `UserError` where they are not such."""
    about = assets.get("data")
    wanted = {"kind", "max_frames", "class_names", "captions"}
    if not isinstance(about, dict) or not wanted <= set(about):
        raise UserError(f"the run directory lacks assets/data.json ({', '.join(sorted(wanted))})")
    if about["kind"] not in KINDS:
        raise UserError(f"assets/data.json: kind {ascii(about['kind'])[:40]}: {', '.join(KINDS)}")
    frames = about["max_frames"]
    if type(frames) is not int or not 2 <= frames <= LARGEST:
        raise UserError(f"assets/data.json: max_frames {ascii(frames)[:40]}: 2 to {LARGEST}")
    for name in ("class_names", "captions"):
        if not isinstance(about[name], list) or any(not isinstance(v, str) for v in about[name]):
            raise UserError(f"assets/data.json: {name} is no list of texts")
    skeleton = skeletons.from_json(assets.get("skeleton"), "assets/skeleton.json")
    size = skeleton.size if about["kind"] == "features" else 6 * (len(skeleton) + 1)
    for name in ("mean", "std"):
        if not isinstance(assets.get(name), np.ndarray):
            raise UserError(f"the run directory lacks assets/{name}.npy")
    rig = rigs.rig_from_json(assets["rig"], "assets/rig.json") if "rig" in assets else None
    if rig is not None and len(rig.nodes) != len(skeleton):
        raise UserError("assets/rig.json: has other joints than assets/skeleton.json")
    return Body(
        about["kind"],
        skeleton,
        rig,
        statistics.check_statistics(assets["mean"], assets["std"], size, "assets"),
        frames,
        tuple(about["class_names"]),
        tuple(about["captions"]),
    )


def joints_of(motion, body: Body):
    """Returns the joints of features, float32 [..., N, D] -> [..., N, J, 3], in metres or what the
    skeleton counts in; bones have the skeleton's lengths. Inside jit too.

    Each bone points where the features' positions say, as the published pictures show them, but
    keeps its length, which BVH files want: a network's positions stretch bones a little. Of
    rotations of SMPL's joints these are the places of a stand-in body (`stand_in`).
    """
    if body.kind == "rot6d":
        return stand_in(motion, body.skeleton)
    loose = features.recover(motion, body.skeleton)
    joints = [loose[..., 0, :]] + [None] * (len(body.skeleton) - 1)
    for joint in body.skeleton.order:
        parent = body.skeleton.parents[joint]
        bone = rot.unit(loose[..., joint, :] - loose[..., parent, :])
        joints[joint] = joints[parent] + body.skeleton.lengths[joint] * bone
    return rot.namespace(motion).stack(joints, -2)


def stand_in(motion, skeleton: Skeleton):
    """Returns places of SMPL's 24 joints from their rotations, [..., N, 150] -> [..., N, 24, 3].

    SMPL's own body is licensed separately and not here: this is a body of HumanML3D's proportions
    in a T pose, turned by the same rotations. Good to look at, and no measure of anything. The
    clips' y points down (Tevet et al. 2023 turn them for their pictures), and here it points up.
    """
    xp = rot.namespace(motion)
    rows = motion.reshape(*motion.shape[:-1], len(skeleton) + 1, 6)
    local = rot.from_6d_rows(rows[..., :-1, :])
    rest = export.t_pose(skeleton)
    rest[skeleton.names.index("head")] = [0, 1, 0]
    offsets = rest * np.array(skeleton.lengths)[:, None]
    world, joints = [local[..., 0, :, :]], [rows[..., -1, :3]]
    world += [None] * (len(skeleton) - 1)
    joints += [None] * (len(skeleton) - 1)
    for joint in skeleton.order:
        parent = skeleton.parents[joint]
        step = (world[parent] * offsets[joint].astype(motion.dtype)).sum(-1)
        joints[joint] = joints[parent] + step
        turned = world[parent][..., None] * local[..., joint, None, :, :]
        world[joint] = turned.sum(-2)
    return xp.stack(joints, -2) * np.array([1, -1, -1], motion.dtype)


def to_bytes(texts: list[str]) -> np.ndarray:
    """Returns texts as uint8 [n, TEXT_BYTES], UTF-8 and then zeros: strings go on no device."""
    rows = np.zeros((len(texts), TEXT_BYTES), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        # Of a letter that is cut in two nothing is left.
        cut = text.encode("utf-8", "replace")[:TEXT_BYTES].decode("utf-8", "ignore").encode()
        row[: len(cut)] = np.frombuffer(cut, np.uint8)
    return rows


def to_text(row: np.ndarray) -> str:
    """Undoes `to_bytes` for one row."""
    return bytes(np.asarray(row, np.uint8)).rstrip(b"\0").decode("utf-8", "replace")


def captions_of(outputs: dict, body: Body) -> list[str]:
    """Returns what each of the samples was told, "" where nothing."""
    if "caption" in outputs:
        return [to_text(row) for row in outputs["caption"]]
    if "label" in outputs:
        return [body.class_names[i].replace("_", " ") for i in outputs["label"]]
    return [""] * len(outputs["joints"])


def show(outputs: dict, path: Path, body: Body) -> None:
    """Writes a film of the first of the samples, .gif or .mp4; frames that were given are pale."""
    some = range(min(FILM, len(outputs["joints"])))
    length = outputs["length"]
    texts = captions_of({k: v[:FILM] for k, v in outputs.items()}, body)
    films.save_film(
        [outputs["joints"][i][: length[i]] for i in some],
        body.skeleton,
        path,
        captions=texts if any(texts) else (),
        given=[outputs["given"][i][: length[i]] for i in some] if "given" in outputs else (),
    )


def write(output: dict, path: Path, body: Body) -> None:
    """Writes one sample: a BVH file at `path`, and beside it the same joints as an .npz.

    The .npz has joints float32 [N, J, 3], motion float32 [N, D] (what the network made, in the
    data's units), names of the joints, parents, fps, unit (metres), and caption.
    """
    count = int(output["length"])
    joints = np.asarray(output["joints"])[:count]
    export.save_bvh(joints, body.skeleton, path, rig=body.rig)
    caption = captions_of({k: v[None] for k, v in output.items()}, body)[0]
    temporary = path.with_suffix(".npz.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            joints=joints,
            motion=np.asarray(output["motion"])[:count],
            names=np.array(body.skeleton.names),
            parents=np.array(body.skeleton.parents),
            fps=np.float64(body.fps),
            unit=np.float64(body.skeleton.unit),
            caption=np.array(caption),
        )
    temporary.replace(path.with_suffix(".npz"))


def normalised(motion, body: Body):
    """Features as the network sees them."""
    return statistics.normalise(motion, body.statistics)


def denormalised(x, body: Body):
    """What the network made, as features."""
    return statistics.denormalise(x, body.statistics)


def places(body: Body) -> np.ndarray:
    """bool [D]: the features that say where something is, not how fast it moves."""
    found = np.ones(body.size, bool)
    if body.kind == "features":
        blocks = features.channels(len(body.skeleton))
        for name in ("yaw", "velocity", "velocities", "contacts"):
            found[blocks[name]] = False
    return found


def mask_of(length, frames: int):
    """bool [..., frames]: True in the first `length` [...]."""
    xp = jnp if not isinstance(length, np.ndarray) else np
    return xp.arange(frames) < length[..., None]
