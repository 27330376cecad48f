"""A published model000NNNNNN.pt as a run that sample.py takes: its config and its assets.

The file and args.json beside it hold the weights and the settings. The statistics that it saw
motions by are not in it (`--stats`), nor is the text encoder (`--text`), nor, for a planner, the
frames that it goes on from.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax.data.motion import humanact12, humanml
from diffjax.data.motion.skeletons import HUMANML3D, KIT, SMPL, Skeleton
from diffjax.data.motion.statistics import Statistics, normalise
from diffjax.errors import UserError
from diffjax.systems.mdm import published
from diffjax.systems.mdm.published import Model

NO_DATA = "a published training set, which is not here: give --ref"
WIDTHS = {"clip": 512, "bert": 768}
DATA = {"humanml": HUMANML3D, "kit": KIT, "humanact12": SMPL, "uestc": SMPL}
FPS = {"humanml": 20.0, "kit": 12.5}  # SMPL's sets say none: 20
PREFIXES = 32


def is_published(file: Path) -> bool:
    """Whether a file has MDM's args.json beside it."""
    return (file.parent / "args.json").is_file() and file.suffix == ".pt"


def run_of(file: Path, stats: str = "", text: str = ""):
    """Returns (config, assets, {path: array}) of a published checkpoint.

    Args:
      file: the .pt.
      stats: a folder with Mean.npy and Std.npy of the set that the model was trained on; for a
        planner the whole folder, whose motions it goes on from.
      text: the text encoder's folder, kept in the config.

    Raises:
      UserError: what `published.read` refuses; statistics that are missing or of another skeleton.
    """
    model = published.read(file)
    skeleton = DATA[model.args["dataset"]]
    rot6d = skeleton is SMPL
    if rot6d:
        zero = np.zeros(model.features, np.float32)
        found = Statistics(zero, zero + 1)
    elif not stats:
        raise UserError(
            f"{file}: give --stats FOLDER with the Mean.npy and Std.npy of its training set, "
            f"{model.args['dataset']}: the model saw motions by them, and they are in no checkpoint"
        )
    else:
        theirs, found = humanml.read_statistics(Path(stats).expanduser())
        if theirs is not skeleton:
            raise UserError(
                f"--stats {stats}: of {theirs.size} features, the model of {skeleton.size}"
            )
    config = config_of(model, text)
    config.name = file.stem
    assets = {
        "data": {
            "kind": "rot6d" if rot6d else "features",
            "max_frames": model.frames,
            "class_names": list(_names(model)),
            "captions": [],
            "fingerprint": f"weights {file.name}",
        },
        "skeleton": skeleton.to_json(),
        "mean": found.mean,
        "std": found.std,
    }
    if model.text:
        assets["text"] = {"width": WIDTHS[model.text], "pooled": model.text == "clip"}
    if config.diffusion.context:
        assets["prefixes"] = _prefixes(file, stats, config.diffusion.context, skeleton, found)
    return config, assets, {f"motion/{path}": array for path, array in model.params.items()}


def config_of(model: Model, text: str = "") -> ConfigDict:
    """Returns the run's config that a published model implies."""
    args = model.args
    dropout = float(args["cond_mask_prob"]) if model.condition != "none" else 0.0
    planner = bool(args["context_len"])
    return ConfigDict(
        {
            "name": "published",
            "system": "mdm",
            "seed": 0,
            "num_samples": 4,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            "conditioning": model.condition,
            "condition_dropout": dropout,
            "data": {
                "path": NO_DATA,
                "fps": FPS.get(args["dataset"], 20.0),
                "max_frames": model.frames,
                "min_frames": 2,
                "crop": 0 if planner else 4,
                "mirror": False,
            },
            "text": {"encoder": "folder", "folder": text},
            "network": model.network,
            "diffusion": {
                "schedule": args["noise_schedule"],
                "steps": args["diffusion_steps"],
                "context": args["context_len"],
                "predict": args["pred_len"] if planner else 0,
            },
            "sampling": {
                "guidance": 1.0 if not dropout else 7.5 if planner else 2.5,
                "sampler": "ancestral" if args["sigma_small"] else "ancestral_large",
                "seconds": 8.0 if planner else 6.0 if args["dataset"] in FPS else 3.0,
            },
        }
    )


def _names(model: Model) -> tuple[str, ...]:
    if model.args["dataset"] == "humanact12":
        return humanact12.CLASSES
    return tuple(str(i) for i in range(model.num_actions))


def _prefixes(file: Path, stats: str, context: int, skeleton: Skeleton, found: Statistics):
    """The beginnings of some motions of the test split, as the network sees them: [n, C, D]."""
    folder = Path(stats).expanduser()
    if not humanml.is_folder(folder):
        raise UserError(
            f"{file}: a planner goes on from frames of motions: give --stats the whole folder of "
            "its set, with new_joint_vecs and test.txt"
        )
    source = humanml.open_folder(folder, "test")
    some = [i for i in range(len(source)) if source.lengths[i] >= context][:PREFIXES]
    if not some:
        raise UserError(f"--stats {stats}: no motion of {context} frames in test.txt")
    return np.stack([normalise(source.features(i)[:context], found) for i in some])
