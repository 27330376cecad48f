"""Small sets of BVH files, runs that are trained on them, and assets without any data."""

import numpy as np

from diffjax.data.motion import bvh, walker
from diffjax.data.motion.skeletons import HUMANML3D
from diffjax.nets import text_small
from diffjax.run import cli, sampling
from diffjax.run import mesh as meshes

ACTIONS = ("walk", "squat")
STYLES = ("normal", "tired")
SMALL = {
    "steps": 3,
    "batch_size": 8,
    "checkpoint_every": 3,
    "log_every": 1,
    "num_samples": 2,
    "data.max_frames": 32,
    "data.min_frames": 12,
    "network.width": 16,
    "network.layers": 1,
    "network.heads": 2,
    "network.ff": 16,
    "text.width": 16,
    "text.layers": 0,
    "diffusion.steps": 8,
    "sampling.seconds": 1.0,
}


def folder_of(place):
    """Writes FOLDER/walk/normal/0.bvh ... as a person's own files; returns the folder."""
    for action in ACTIONS:
        for style in STYLES:
            for seed in range(3):
                path = place / action / style / f"{seed}.bvh"
                path.parent.mkdir(parents=True, exist_ok=True)
                bvh.write(walker.clip(action, style, seed, seconds=1.6, fps=30), path)
    return place


def words(root, folder, **more):
    """train.py's flags for a run of seconds."""
    fields = {**SMALL, "data.path": folder}
    fields |= {name.replace("__", "."): value for name, value in more.items()}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", str(root / "configs" / "mdm_tiny.py"), *flags]


def config_of(root, folder="walker", **more):
    flags = words(root, folder, **more)
    return cli.apply_overrides(cli.load_config(flags[1]), cli.split_overrides(flags[2:])[1])


def assets_of(config) -> dict:
    """What a run of HumanML3D's skeleton keeps, or of SMPL's rotations: made of nothing."""
    from diffjax.data.motion.humanact12 import CLASSES, SIZE
    from diffjax.data.motion.skeletons import SMPL

    rot6d = config.conditioning == "action"
    skeleton = SMPL if rot6d else HUMANML3D
    size = SIZE if rot6d else skeleton.size
    return {
        "data": {
            "kind": "rot6d" if rot6d else "features",
            "max_frames": config.data.max_frames,
            "class_names": list(CLASSES) if rot6d else [],
            "captions": ["a person walks.", "a person waves."],
            "fingerprint": "",
        },
        "skeleton": skeleton.to_json(),
        "mean": np.zeros(size, np.float32),
        "std": np.ones(size, np.float32),
        "vocabulary": text_small.vocabulary(["a person walks.", "a person waves."] * 2).to_json(),
        "text": {"width": 512, "pooled": True},
        "prefixes": np.zeros((2, max(config.diffusion.context, 1), size), np.float32),
    }


def fields_of(config, system) -> dict:
    """{field: (shape, dtype)} of one example of a batch."""
    size = len(system.assets["mean"])
    fields = {"motion": ((config.data.max_frames, size), np.float32)}
    fields |= {"length": ((), np.int32), "index": ((), np.int32)}
    if config.conditioning == "action":
        return {**fields, "label": ((), np.int32)}
    if config.text.encoder == "words":
        return {**fields, "text": ((32,), np.int32), "text_mask": ((32,), bool)}
    width = system.assets["text"]["width"]
    return {**fields, "text": ((1, width), np.float32), "text_mask": ((1,), bool)}


def draw(system, params, request, count, batch=None, seed=0):
    """Samples number 0 ... count - 1, so many at once."""
    how = {"num": count, "seed": seed, "batch": batch or count}
    return sampling.collect(system, params, request, mesh=meshes.make_mesh(meshes.LOCAL), **how)


def refused(capsys, main, *words):
    """The one line that a command answers bad input with."""
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]
