"""EDM's published networks as ours: names of weights, and the config that the file implies.

Our parameter paths are the released state dict's names with "/" for ".", without the leading
"model.", so the translation is by rule and knows no list of layers:

| theirs | ours |
|---|---|
| `weight` of rank 4, [out, in, height, width] | `kernel` [height, width, in, out] |
| `weight` of rank 2, [out, in] | `kernel` [in, out] |
| `weight` of rank 1 | `scale` |
| `bias`, `freqs` (of the Fourier embedding) | the same |
| `resample_filter` | none: a constant, compared with the one that the network is built with |
| `u` (of the iDDPM wrapper) | not a weight: `Published.u` |
"""

import re
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffjax.errors import UserError, choose
from diffjax.weights.edm_pickles import Architecture

# Wrapper's class -> precond and times of config.diffusion: as the published ones were trained.
# iDDPM's own training, which learns variances too, is not here; EDM's serves to fine-tune it.
WRAPPERS = {
    "EDMPrecond": ("edm", "lognormal"),
    "VPPrecond": ("vp", "vp"),
    "VEPrecond": ("ve", "ve"),
    "iDDPMPrecond": ("iddpm", "lognormal"),
}
# The wrappers' own constants, of which ours are made with these. iDDPM's are in its table.
CONSTANTS = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
}
# What the constructors of the released code take where the file gives nothing (training/networks.py
# there): Karras et al. 2022, Table 7, has the same.
SONG = {
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.10,
    "augment_dim": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
DHARIWAL = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
    "dropout": 0.10,
    "augment_dim": 0,
}
KINDS = ("ddpmpp", "ncsnpp", "adm", "song", "dhariwal")  # of config.network: EDM's networks
NETWORKS = {"SongUNet": ("song", SONG), "DhariwalUNet": ("dhariwal", DHARIWAL)}
LARGEST = 8192  # of any number in an architecture; a file could ask for a billion layers
NO_DATA = "a published training set, which is not here: give --ref"


class Published(NamedTuple):
    """Published weights under our names.

    Attributes:
      params: {path: float32 array}, what `weights.trees` saves and fits.
      u: the iDDPM wrapper's table of noise levels, float32 [M + 1], or None.
    """

    params: dict[str, np.ndarray]
    u: np.ndarray | None


def to_params(state: dict[str, np.ndarray], taps: tuple[int, ...], where: str) -> Published:
    """Translates a published state dict.

    Args:
      state: {name: array}, names beginning with "model." (and "u").
      taps: the resampling filter along one axis that the network is built with.
      where: the file, for messages.

    Raises:
      UserError: a name or a rank that no such network has, or another filter.
    """
    params, u = {}, None
    for name, array in state.items():
        *parents, last = name.split(".")
        if name == "u" and array.ndim == 1:
            u = np.asarray(array, np.float32)
        elif parents[:1] != ["model"] or "/" in name or array.dtype.kind not in "fV":
            raise UserError(f"{where}: {name!r} is no weight of an EDM network")
        elif last == "resample_filter":
            _check_filter(array, taps, f"{where}: {name!r}")
        else:
            last, array = _ours(last, array, f"{where}: {name!r}")
            params["/".join([*parents[1:], last])] = np.ascontiguousarray(array, np.float32)
    return Published(params, u)


def _ours(last: str, array: np.ndarray, what: str) -> tuple[str, np.ndarray]:
    if last == "weight" and array.ndim == 4:
        return "kernel", array.transpose(2, 3, 1, 0)
    if last == "weight" and array.ndim == 2:
        return "kernel", array.T
    if array.ndim == 1 and last in ("weight", "bias", "freqs"):
        return ("scale" if last == "weight" else last), array
    raise UserError(f"{what} of shape {array.shape} is no weight of an EDM network")


def _check_filter(array: np.ndarray, taps, what: str) -> None:
    wanted = np.outer(taps, taps)[None, None] / np.sum(taps) ** 2
    if array.shape != wanted.shape or not np.allclose(array, wanted, rtol=1e-6, atol=0):
        raise UserError(f"{what} is not the filter {list(taps)} that the network is built with")


def from_params(
    params: dict[str, np.ndarray], taps: tuple[int, ...], u: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Translates our {path: array} back: the state dict that the released network would have.

    Args:
      params, u: `Published`.
      taps: the resampling filter; the convolutions that resample have it as a constant.
    """
    state = {} if u is None else {"u": u}
    for path, array in params.items():
        *parents, last = path.split("/")
        if last == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        state[".".join(["model", *parents, last])] = array
    constant = np.outer(taps, taps)[None, None] / np.sum(taps) ** 2
    return state | {f"{name}.resample_filter": constant.astype(np.float32) for name in _fir(params)}


def _fir(params: dict[str, np.ndarray]) -> list[str]:
    """The released names of the convolutions that resample, some of which have no weights."""
    modules = {tuple(path.split("/")[:2]) for path in params}
    # A decoder of type "skip" has an output at every level, and enlarges those of the coarser ones.
    outputs = sum(name.endswith("_aux_norm") for _, name in modules)
    found = []
    for half, name in sorted(modules):
        whole = f"model.{half}.{name}"
        if name.endswith(("_down", "_up")):
            found += [f"{whole}.conv0", f"{whole}.skip"]
            if name.endswith("_up") and outputs > 1:
                found.append(whole.replace("_up", "_aux_up"))
        elif name.endswith("_aux_residual"):
            found.append(whole)
        elif name.endswith("_aux_skip"):
            found.append(whole.replace("_aux_skip", "_aux_down"))
    return found


def taps_of(network) -> tuple[int, ...]:
    """Returns the resampling filter along one axis of a config's `network`, of an EDM kind."""
    if network.kind == "ncsnpp":
        return (1, 3, 3, 1)
    return tuple(network.get("resample_filter", (1, 1)))


def config_of(architecture: Architecture, where: str) -> ConfigDict:
    """Returns the run's config that a snapshot's architecture implies.

    `network` has kind "song" or "dhariwal" and the fields of that kind; `diffusion` the wrapper's
    `precond`, the `times` of its training, and sigma_data; `sampling` the published grid: 18 steps
    (35 evaluations) up to 32x32, 40 (79) above (Karras et al. 2022, Table 2).

    Raises:
      UserError: a network or a wrapper that is not EDM's, or a number that none of them has.
    """
    given = {**architecture.arguments, **architecture.inner_arguments}
    kind, defaults = choose(architecture.inner, NETWORKS, f"network in {where}:")
    precond, times = choose(architecture.wrapper, WRAPPERS, f"wrapper in {where}:")
    for name, value in CONSTANTS.get(architecture.wrapper, {}).items():
        if architecture.attributes.get(name, value) != value:
            found = ascii(architecture.attributes[name])[:60]
            raise UserError(f"{where}: {architecture.wrapper} with {name} {found}, not {value}")
    network = {"kind": kind, "dtype": "float32"}
    for name, default in defaults.items():
        network[name] = _checked(name, given.get(name, default), default, where)
    sigma_data = architecture.attributes.get("sigma_data", 0.5)
    resolution, _, _ = image_shape(architecture, where)
    return ConfigDict(
        {
            "name": "published",
            "system": "edm",
            "seed": 0,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1},
            "data": {"path": NO_DATA, "image_size": resolution, "balanced": False},
            "network": network,
            "diffusion": {
                "precond": precond,
                "times": times,
                "sigma_data": _checked("sigma_data", sigma_data, 0.5, where),
                "p_mean": -1.2,
                "p_std": 1.2,
                "label_dropout": 0.0,
            },
            "sampling": {
                "steps": 18 if resolution <= 32 else 40,
                "sigma_min": 0.002,
                "sigma_max": 80.0,
            },
        }
    )


def image_shape(architecture: Architecture, where: str) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the pictures."""
    size, channels = (
        _checked(name, architecture.arguments.get(name), 1, where)
        for name in ("img_resolution", "img_channels")
    )
    if not 4 <= size <= 1024 or channels not in (1, 3):
        raise UserError(f"{where}: pictures of {size}x{size} with {channels} channels")
    return size, size, channels


def num_classes(architecture: Architecture, where: str) -> int:
    """Returns how many classes the network knows; 0 for an unconditional one."""
    return _checked("label_dim", architecture.arguments.get("label_dim", 0), 0, where)


def _checked(name: str, value, like, where: str):
    """The value in the type of `like`, if it is one that a network may have."""
    if isinstance(like, tuple) and type(value) in (list, tuple) and len(value) <= 16:
        return tuple(_checked(name, v, 1, where) for v in value)
    if type(like) is str and type(value) is str and re.fullmatch("[a-z]{1,32}", value):
        return value
    number = isinstance(like, int) and not isinstance(like, tuple) and type(value) is int
    if isinstance(like, float) and type(value) in (int, float):
        number, value = True, float(value)
    if number and 0 <= value <= LARGEST:
        return value
    raise UserError(f"{where}: its network says {name} {ascii(value)[:60]}")


def named_shape(params: dict[str, np.ndarray], where: str) -> tuple[tuple[int, int, int], int]:
    """Returns (image shape, classes) of weights alone: their first layer says both.

    Raises:
      UserError: where there is no such layer.
    """
    first = [re.fullmatch(r"enc/([0-9]{1,4})x\1_conv/kernel", path) for path in params]
    found = [(int(m[1]), params[m[0]].shape[2]) for m in first if m]
    if len(found) != 1:
        raise UserError(f"{where}: no first layer enc/RxR_conv/kernel: not an EDM network")
    (size, channels), label = found[0], params.get("map_label/kernel")
    return (size, size, channels), 0 if label is None else label.shape[0]
