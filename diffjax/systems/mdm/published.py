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
| any other name | the same |
| `*sequence_pos_encoder*`, `clip_model.*` | none: a table that is computed, and the text encoder |
"""

import re

import numpy as np

from diffjax.errors import UserError

NOT_WEIGHTS = re.compile(r"(^|\.)sequence_pos_encoder\.|^clip_model\.")
RECURRENT = re.compile(r"(weight|bias)_(ih|hh)_(l\d+(?:_reverse)?)")


def to_params(state: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Translates a published state dict into {path: float32 array}, what `weights.trees` fits.

    Args:
      state: {name: array}.
      where: the file, for messages.

    Raises:
      UserError: a name or a type that is no weight's.
    """
    params = {}
    for name, array in state.items():
        if NOT_WEIGHTS.search(name):
            continue
        if not name or "/" in name or np.asarray(array).dtype.kind not in "fV":
            raise UserError(f"{where}: {name[:200]!r} is no weight of MDM's networks")
        path, array = _ours(name, np.asarray(array))
        params[path] = np.ascontiguousarray(array, np.float32)
    return params


def _ours(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    *parents, last = name.split(".")
    if last in ("in_proj_weight", "in_proj_bias"):
        parents, last = [*parents, "in_proj"], last.removeprefix("in_proj_")
    elif recurrent := RECURRENT.fullmatch(last):
        last, side, layer = recurrent.groups()
        parents = [*parents, f"{side}_{layer}"]
    if last == "weight":
        last = "scale" if array.ndim == 1 else "kernel"
        array = array.T  # [out, in] or, of a convolution, [out, in, width]
    return "/".join([*parents, last]), array


def from_params(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translates {path: array} back: the state dict that the released network would have."""
    state = {}
    for path, array in params.items():
        *parents, last = path.split("/")
        if last in ("kernel", "scale"):
            last, array = "weight", array.T
        parent = parents[-1] if parents else ""
        if parent == "in_proj":
            parents, last = parents[:-1], f"in_proj_{last}"
        elif re.fullmatch(r"(ih|hh)_l\d+(_reverse)?", parent):
            parents, last = parents[:-1], f"{last}_{parent}"
        state[".".join([*parents, last])] = array
    return state
