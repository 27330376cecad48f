"""MDM's published networks as ours: names of weights, and the config that args.json implies.

Our parameter paths are the released state dicts' names with "/" for ".", so the translation is by
rule and knows no list of layers:

| theirs | ours |
|---|---|
| `weight` of rank 2, [out, in] | `kernel` [in, out] |
| `weight` of rank 3, a convolution's [out, in, width] | `kernel` [width, in, out] |
| `weight` of rank 1 | `scale` |
| `in_proj_weight`, `in_proj_bias` | `in_proj/kernel`, `in_proj/bias` |
| `weight_ih_l0`, `bias_hh_l0_reverse`, ... of a GRU | `ih_l0/kernel`, `hh_l0_reverse/bias`, ... |
| `weight` of `*_embedding` and `*_embeddings`, [rows, width] | `embedding` |
| any other name | the same |
| `*sequence_pos_encoder*`, `clip_model.*` | none: a table that is computed, and the text encoder |

A checkpoint's args.json, beside it, has the flags that it was trained with. Which are missing in
older files, and what they then mean, is `DEFAULTS`; those that are not there are not read.
"""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from diffjax.errors import UserError, choose
from diffjax.nets.motion_evaluators import (
    CONTACTS,
    ActionClassifier,
    MovementEncoder,
    SequenceEncoder,
)
from diffjax.weights import reading, trees

DEFAULTS = {
    "dataset": "humanml",
    "arch": "trans_enc",
    "latent_dim": 512,
    "layers": 8,
    "emb_trans_dec": False,
    "emb_policy": "add",
    "mask_frames": False,
    "text_encoder_type": "clip",
    "unconstrained": False,
    "cond_mask_prob": 0.1,
    "diffusion_steps": 1000,
    "noise_schedule": "cosine",
    "sigma_small": True,
    "context_len": 0,
    "pred_len": 0,
    "use_ema": False,
    "lambda_target_loc": 0.0,
    "multi_target_cond": False,
    "emb_before_mask": False,
    "keyframe_cond_type": "",
}
HEADS, FF, DROPOUT = 4, 1024, 0.1  # no flag sets them
# dataset -> (numbers a frame, longest motion, actions: 0 for texts)
DATASETS = {
    "humanml": (263, 196, 0),
    "kit": (251, 196, 0),
    "humanact12": (150, 60, 12),
    "uestc": (150, 60, 40),
}
TEXTS = {"clip": "clip", "bert": "bert"}
ARCHITECTURES = {"trans_enc": "trans_enc", "trans_dec": "trans_dec", "gru": "motion_gru"}
LARGEST = 8192  # of any number in args.json; a file could ask for a billion layers
LARGEST_ARGS = 1 << 20  # bytes of args.json

NOT_WEIGHTS = re.compile(r"(^|\.)sequence_pos_encoder\.|^clip_model\.")
RECURRENT = re.compile(r"(weight|bias)_(ih|hh)_(l\d+(?:_reverse)?)")


def to_params(state: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Translates a published state dict into {path: float32 array}, what `weights.trees` fits.

    Args:
      state: {name: array}.
      where: the file, for messages.

    Raises:
      UserError: a name or a type that is no weight's, or two names of one weight.
    """
    params = {}
    for name, array in state.items():
        if NOT_WEIGHTS.search(name):
            continue
        if not name or "/" in name or np.asarray(array).dtype.kind not in "fV":
            raise UserError(f"{where}: {name[:200]!r} is no weight of MDM's networks")
        path, array = _ours(name, np.asarray(array))
        if path in params:
            raise UserError(f"{where}: two arrays for {path[:200]!r}")
        params[path] = np.ascontiguousarray(array, np.float32)
    return params


def _ours(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    *parents, last = name.split(".")
    if last in ("in_proj_weight", "in_proj_bias"):
        parents, last = [*parents, "in_proj"], last.removeprefix("in_proj_")
    elif recurrent := RECURRENT.fullmatch(last):
        last, side, layer = recurrent.groups()
        parents = [*parents, f"{side}_{layer}"]
    if last == "weight" and parents and parents[-1].endswith(("_embedding", "_embeddings")):
        last = "embedding"
    elif last == "weight":
        last = "scale" if array.ndim == 1 else "kernel"
        array = array.T  # [out, in] or, of a convolution, [out, in, width]
    return "/".join([*parents, last]), array


def from_params(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translates {path: array} back: the state dict that the released network would have."""
    state = {}
    for path, array in params.items():
        *parents, last = path.split("/")
        if last in ("kernel", "scale", "embedding"):
            last, array = "weight", array if last == "embedding" else array.T
        parent = parents[-1] if parents else ""
        if parent == "in_proj":
            parents, last = parents[:-1], f"in_proj_{last}"
        elif re.fullmatch(r"(ih|hh)_l\d+(_reverse)?", parent):
            parents, last = parents[:-1], f"{last}_{parent}"
        state[".".join([*parents, last])] = array
    return state


class Model(NamedTuple):
    """A published network.

    Attributes:
      network: what `nets.make_motion` takes, in float32.
      features, condition, num_actions: of `nets.make_motion` too.
      frames: the longest motion that it was trained with.
      text: "clip" or "bert", the encoder whose outputs it was trained with; "" without texts.
      args: every flag of `DEFAULTS`: the file's, or the default.
      params: {path: float32 array}, what `weights.trees.fit` takes.
    """

    network: ConfigDict
    features: int
    condition: str
    num_actions: int
    frames: int
    text: str
    args: dict
    params: dict[str, np.ndarray]


def read(file: Path) -> Model:
    """Reads a checkpoint model000NNNNNN.pt and the args.json beside it.

    Of a file that holds an average of the weights too, the one that args.json says is used.

    Raises:
      UserError: no such files, a network that is not here, or what `weights.reading` refuses.
    """
    args = args_of(file.parent / "args.json")
    tree = reading.read_tree(file)
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        name = "model_avg" if args["use_ema"] and "model_avg" in tree else "model"
        tree = tree[name]
    return model_of(_state(tree, str(file)), args, str(file))


def model_of(state: dict[str, np.ndarray], args: dict, where: str) -> Model:
    """Returns the `Model` of a state dict and of the flags that `args_of` returned.

    Raises:
      UserError: goals or another condition that is not here, a flag of no known value, or a last
        layer that is not of the data set's motions.
    """
    goals = any(name.startswith("embed_target_cond.") for name in state)
    if goals or args["multi_target_cond"] or args["lambda_target_loc"]:
        raise UserError(f"{where}: a planner with goals, whose encoder is not here")
    for name in ("emb_before_mask", "keyframe_cond_type"):
        if args[name]:
            raise UserError(f"{where}: trained with {name} {args[name]}, which is not here")
    features, frames, num_actions = choose(args["dataset"], DATASETS, f"dataset in {where}:")
    condition = "none" if args["unconstrained"] else "action" if num_actions else "text"
    kind = choose(args["arch"], ARCHITECTURES, f"arch in {where}:")
    network = {"kind": kind, "width": args["latent_dim"], "layers": args["layers"]}
    network |= {"dropout": DROPOUT, "dtype": "float32"}
    if kind != "motion_gru":
        network |= {"heads": HEADS, "ff": FF, "attention": "auto"}
        network["mask_frames"] = args["mask_frames"]
    if kind == "trans_dec":
        network |= {"emb_trans_dec": args["emb_trans_dec"], "emb_policy": args["emb_policy"]}
    params = to_params(state, where)
    last = params.get("output_process/poseFinal/kernel")
    if last is None or last.shape[-1] != features:
        raise UserError(f"{where}: its last layer is not of {args['dataset']}'s {features} numbers")
    text = ""
    if condition == "text":
        text = choose(args["text_encoder_type"], TEXTS, f"text_encoder_type in {where}:")
    return Model(
        *(ConfigDict(network), features, condition, num_actions if condition == "action" else 0),
        *(args["context_len"] + args["pred_len"] or frames, text, args, params),
    )


def args_of(file: Path) -> dict:
    """Reads args.json: {name: value} of the flags in `DEFAULTS`; it may have others.

    Raises:
      UserError: no such file, no JSON object, or a value that is none of that flag's.
    """
    found = read_object(file, LARGEST_ARGS)
    args = {name: _flag(name, found.get(name), like, file) for name, like in DEFAULTS.items()}
    args["unconstrained"] |= found.get("cond_mode") == "no_cond"
    if args["context_len"] and not args["pred_len"]:
        args["pred_len"] = args["context_len"]
    return args


def read_object(file: Path, largest: int) -> dict:
    """Reads a JSON file's object.

    Raises:
      UserError: no such file, one of more bytes than `largest`, or no JSON object.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; it belongs beside the published weights")
    if file.stat().st_size > largest:
        raise UserError(f"{file}: larger than {largest} bytes, which none of its kind is")
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: no JSON file ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: no JSON object")
    return found


def _flag(name: str, value, like, file: Path):
    """A flag's value in the type of its default; null and absent are the default."""
    if value is None:
        return like
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    fits = type(value) is type(like)
    if fits and isinstance(value, str):
        fits = re.fullmatch("[A-Za-z0-9_]{0,32}", value)
    elif fits and not isinstance(value, bool):
        fits = 0 <= value <= LARGEST
    if not fits:
        raise UserError(f"{file}: its {name} is {ascii(value)[:60]}")
    return value


def _state(tree, where: str) -> dict[str, np.ndarray]:
    """The tree, if it is a state dict."""
    arrays = isinstance(tree, dict) and all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in tree.items()
    )
    if not arrays or not tree:
        raise UserError(f"{where}: no state dict of a network")
    return tree


# ---- evaluators ----------------------------------------------------------------------------------


class Evaluator(NamedTuple):
    """A network and its weights: `net.apply({"params": params}, ...)`."""

    net: nn.Module
    params: dict


def read_evaluators(file: Path) -> dict[str, Evaluator]:
    """Reads finest.tar of HumanML3D or KIT: evaluators "movement", "motion" and "text".

    Raises:
      UserError: one of the three is not in it, or has other weights.
    """
    tree = reading.read_tree(file)
    found = {}
    for name in ("movement", "motion", "text"):
        where = f"{file}: {name}_encoder"
        state = tree.get(f"{name}_encoder") if isinstance(tree, dict) else None
        params = to_params(_state(state, where), where)
        size = functools.partial(_size, params, where)
        if name == "movement":
            net = MovementEncoder(size("main/0/kernel", -1), size("out_net/kernel", -1))
            inputs = [_floats(1, 8, size("main/0/kernel", 1) + CONTACTS)]
        else:
            net = SequenceEncoder(size("input_emb/kernel", -1), size("output_net/3/kernel", -1))
            inputs = [_floats(1, 8, size("input_emb/kernel", 0)), ONE]
            if name == "text":
                inputs.append(_floats(1, 8, size("pos_emb/kernel", 0)))
        found[name] = _fitted(net, params, inputs, where)
    return found


def read_action_classifier(file: Path) -> Evaluator:
    """Reads HumanAct12's classifier, a state dict or {"model": a state dict}.

    Raises:
      UserError: it is no such network's.
    """
    tree, where = reading.read_tree(file), str(file)
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        tree = tree["model"]
    params = to_params(_state(tree, where), where)
    size = functools.partial(_size, params, where)
    hidden, features = (size("linear1/kernel", axis) for axis in (0, 1))
    layers = sum(bool(re.fullmatch(r"recurrent/hh_l\d/kernel", path)) for path in params)
    net = ActionClassifier(size("linear2/kernel", 1), hidden, layers, features)
    inputs = [_floats(1, 8, size("recurrent/ih_l0/kernel", 0)), ONE, _floats(layers, 1, hidden)]
    return _fitted(net, params, inputs, where)


def _fitted(net: nn.Module, params: dict[str, np.ndarray], inputs: list, where: str) -> Evaluator:
    like = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return Evaluator(net, trees.fit(params, like, where))


def _size(params: dict[str, np.ndarray], where: str, name: str, axis: int) -> int:
    """A number of the network, read off a weight."""
    if name not in params or params[name].ndim < 2:
        raise UserError(f"{where}: no weights named {name!r}")
    return params[name].shape[axis]


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


ONE = jax.ShapeDtypeStruct((1,), np.int32)  # a length
