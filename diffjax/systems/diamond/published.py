"""DIAMOND's published agents as ours: names of weights, and the networks that their shapes imply.

A file is a flat state dict of three networks, each behind its name and a dot; CSGO's has
`denoiser.` and `upsampler.`. The translation is by rule and knows no list of layers:

| theirs | ours |
|---|---|
| `inner_model.` in front | nothing |
| a number between dots: `d_blocks.0.conv1` | joined to what is before: `d_blocks_0/conv1` |
| `weight` of rank 4, [out, in, height, width] | `kernel` [height, width, in, out] |
| `weight` of rank 2, [out, in] | `kernel` [in, out] |
| `weight` of rank 1 | `scale` |
| `act_emb*.weight`, [actions, width] | `embedding` |
| `noise_emb.weight`, `noise_cond_emb.weight`, [1, n] | `freqs` [n] |
| `lstm.weight_ih`, `lstm.bias_hh_l0`, ... | `lstm/ih/kernel`, `lstm/hh/bias`, ... |
| any other name | the same |
"""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from diffjax.errors import UserError
from diffjax.nets.actor_critic import ActorCritic
from diffjax.nets.diamond_unet import DiamondUNet
from diffjax.nets.reward_end import RewardEnd
from diffjax.weights import reading, trees

RECURRENT = re.compile(r"(weight|bias)_(ih|hh)(_l0)?")
# Of any size that is read off a weight, of levels and of blocks in one: a file could ask for more
# than it has.
LARGEST, MOST_LEVELS, MOST_BLOCKS = 1 << 16, 8, 16


def to_params(state: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Translates one network's state dict, without its prefix, into {path: float32 array}.

    Raises:
      UserError: a name or a type that is no weight's, or two names of one weight.
    """
    params = {}
    for name, array in state.items():
        array = np.asarray(array)
        if not name or "/" in name or array.dtype.kind not in "fV":
            raise UserError(f"{where}: {name[:200]!r} is no weight of DIAMOND's networks")
        path, array = _ours(name, array)
        if path in params:
            raise UserError(f"{where}: two arrays for {path[:200]!r}")
        params[path] = np.ascontiguousarray(array, np.float32)
    return params


def _ours(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    name = re.sub(r"\.(\d+)(?=\.)", r"_\1", name.removeprefix("inner_model."))
    *parents, last = name.split(".")
    parent = parents[-1] if parents else ""
    if recurrent := RECURRENT.fullmatch(last):
        last, side, _ = recurrent.groups()
        parents = [*parents, side]
    if last == "weight" and parent in ("noise_emb", "noise_cond_emb"):
        last, array = "freqs", array.reshape(-1)
    elif last == "weight" and parent.startswith("act_emb"):
        last = "embedding"
    elif last == "weight":
        last = "scale" if array.ndim == 1 else "kernel"
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return "/".join([*parents, last]), array


def from_params(params: dict[str, np.ndarray], network: str) -> dict[str, np.ndarray]:
    """Translates {path: array} back, into the state dict that the released network would have.

    Args:
      network: "denoiser" or "upsampler", "rew_end_model" or "actor_critic": the first two have
        `inner_model.` in front, and the second's LSTM counts its layers.
    """
    state = {}
    for path, array in params.items():
        *parents, last = path.split("/")
        array = np.asarray(array)
        if last == "freqs":
            last, array = "weight", array[None]
        elif last in ("kernel", "scale", "embedding"):
            if last == "kernel":
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            last = "weight"
        if parents and parents[-1] in ("ih", "hh"):
            layer = "_l0" if network == "rew_end_model" else ""
            last = f"{last}_{parents.pop()}{layer}"
        name = re.sub(r"_(\d+)(?=\.)", r".\1", ".".join([*parents, last]))
        state[f"inner_model.{name}" if network in ("denoiser", "upsampler") else name] = array
    return state


def state_dict(params: dict[str, dict]) -> dict[str, np.ndarray]:
    """Returns the flat state dict of a whole agent, of {network: its params}; the inverse of
    `agent_of`, for other programs."""
    return {
        f"{network}.{name}": array
        for network, tree in params.items()
        for name, array in from_params(trees.flatten(tree), network).items()
    }


class Network(NamedTuple):
    """A network and its weights: `net.apply({"params": params}, ...)`."""

    net: nn.Module
    params: dict


class Agent(NamedTuple):
    """What a published file holds.

    Attributes:
      denoiser: `DiamondUNet`.
      rew_end_model: `RewardEnd`, or None where the file has none, as CSGO's.
      actor_critic: `ActorCritic`, or None.
      upsampler: `DiamondUNet`, of CSGO's, or None.
      num_actions: how many actions they know.
    """

    denoiser: Network
    rew_end_model: Network | None
    actor_critic: Network | None
    upsampler: Network | None
    num_actions: int


def read(file: Path) -> Agent:
    """Reads a published agent, `<Game>.pt` or `csgo.pt`, or what our code saved in that form.

    Raises:
      UserError: no such file, no agent, a weight that is missing, left over or of another shape,
        or what `weights.reading` refuses.
    """
    return agent_of(reading.read_tree(file), str(file))


def agent_of(tree, where: str) -> Agent:
    """Returns the `Agent` of a flat state dict {name: array}; raises `UserError` as `read`."""
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{where}: no state dict of an agent")
    parts: dict[str, dict] = {}
    for name, array in tree.items():
        prefix, dot, rest = name.partition(".") if isinstance(name, str) else ("", "", "")
        if prefix not in MAKERS or not dot or not isinstance(array, np.ndarray):
            known = ", ".join(MAKERS)
            raise UserError(f"{where}: {str(name)[:200]!r} is no weight of an agent's ({known})")
        parts.setdefault(prefix, {})[rest] = array
    if "denoiser" not in parts:
        raise UserError(f"{where}: no denoiser in it")
    made = {prefix: network_of(part, prefix, where) for prefix, part in parts.items()}
    actions = {n.net.num_actions for prefix, n in made.items() if prefix != "upsampler"}
    if len(actions) > 1:
        raise UserError(f"{where}: its networks know {sorted(actions)} actions")
    return Agent(*(made.get(prefix) for prefix in MAKERS), made["denoiser"].net.num_actions)


def network_of(state: dict[str, np.ndarray], network: str, where: str) -> Network:
    """Returns one network of a state dict without its prefix; raises `UserError` as `read`.

    Args:
      network: one of `MAKERS`.
    """
    where = f"{where}: {network}"
    params = to_params(state, where)
    net, inputs = MAKERS[network](params, where)
    try:
        like = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    except (TypeError, ValueError, ArithmeticError) as error:  # channels of no group or no head
        raise UserError(f"{where}: its weights' shapes are of no network") from error
    return Network(net, trees.fit(params, like, where))


# ---- what the shapes say of a network ------------------------------------------------------------


def _size(params: dict, where: str, path: str, axis: int) -> int:
    if path not in params or not -params[path].ndim <= axis < params[path].ndim:
        raise UserError(f"{where}: no weights named {path!r}")
    size = params[path].shape[axis]
    if not 0 < size <= LARGEST:
        raise UserError(f"{where}: {path!r} has shape {params[path].shape}")
    return size


def _levels(params: dict, where: str, prefix: str) -> dict:
    """depths, channels and attention of `{prefix}{i}/resblocks_{k}`, i = 0, 1, ..."""
    depths, channels, attention = [], [], []
    found = [re.match(rf"{prefix}(\d+)/resblocks_(\d+)/", path) for path in params]
    found = {(int(m[1]), int(m[2])) for m in found if m and len(m[1]) < 3 and len(m[2]) < 3}
    while (len(depths), 0) in found:
        i = len(depths)
        first = f"{prefix}{i}/resblocks_0/"
        depths.append(sum(level == i for level, _ in found))
        channels.append(_size(params, where, f"{first}conv1/kernel", -1))
        attention.append(f"{first}attn/qkv_proj/kernel" in params)
    if not depths:
        raise UserError(f"{where}: no weights named '{prefix}0/resblocks_0/conv1/kernel'")
    if len(depths) > MOST_LEVELS + 1 or max(depths) > MOST_BLOCKS:
        raise UserError(f"{where}: a network of {len(depths)} levels, of {depths} blocks")
    return {"depths": tuple(depths), "channels": tuple(channels), "attention": tuple(attention)}


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def _whole(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32)


def _denoiser(params: dict, where: str) -> tuple:
    image = _size(params, where, "conv_out/kernel", -1)
    past = _size(params, where, "conv_in/kernel", -2) - image
    cond = _size(params, where, "cond_proj_0/kernel", 0)
    actions, act = 0, None
    if "act_emb_0/embedding" in params:
        actions = _size(params, where, "act_emb_0/embedding", 0)
        frames = cond // _size(params, where, "act_emb_0/embedding", 1)
        act = _whole(1, frames)
        if not frames or cond % frames or past != frames * image:
            raise UserError(f"{where}: sees {past} channels of the past, told {frames} actions")
    net = DiamondUNet(
        cond,
        **_levels(params, where, "unet/d_blocks_"),
        num_actions=actions,
        image_channels=image,
        told_past_noise="noise_cond_emb/freqs" in params,
    )
    if past < 1 or cond % 2:
        raise UserError(f"{where}: its conv_in or its cond_proj is of an odd size")
    side = 2 ** len(net.depths)
    return net, (_floats(1, side, side, image), _floats(1, side, side, past), _floats(1), act)


def _reward_end(params: dict, where: str) -> tuple:
    levels = _levels(params, where, "encoder/blocks_")
    levels = {name: value[:-1] for name, value in levels.items()}  # the last is always there
    if not levels["depths"]:
        raise UserError(f"{where}: no weights named 'encoder/blocks_1/resblocks_0/conv1/kernel'")
    actions, cond = (_size(params, where, "act_emb/embedding", axis) for axis in (0, 1))
    hidden = _size(params, where, "lstm/hh/kernel", 0)
    net = RewardEnd(actions, hidden, cond, **levels)
    image = _size(params, where, "encoder/conv_in/kernel", -2) // 2
    side = _side(params, where, levels["channels"][-1]) * 2 ** (len(levels["depths"]) - 1)
    obs = _floats(1, 1, side, side, image)
    return net, (obs, _whole(1, 1), obs)


def _actor_critic(params: dict, where: str) -> tuple:
    blocks = [re.match(r"encoder/encoder_(\d{1,3})/f_2/kernel", path) for path in params]
    places = sorted(int(m[1]) for m in blocks if m)
    channels = [_size(params, where, f"encoder/encoder_{i}/f_2/kernel", -1) for i in places]
    if not places:
        raise UserError(f"{where}: no weights named 'encoder/encoder_1/f_2/kernel'")
    if len(places) > MOST_LEVELS:
        raise UserError(f"{where}: a network of {len(places)} levels")
    # A pooling counts as a layer; that the last block has one too does not show in the names.
    down = tuple(b - a > 1 for a, b in zip(places, places[1:])) + (True,)
    hidden = _size(params, where, "lstm/hh/kernel", 0)
    actions = _size(params, where, "actor_linear/kernel", -1)
    net = ActorCritic(actions, hidden, tuple(channels), down)
    image = _size(params, where, "encoder/encoder_0/kernel", -2)
    side = _side(params, where, channels[-1]) * 2 ** sum(down)
    return net, (_floats(1, side, side, image),)


def _side(params: dict, where: str, channels: int) -> int:
    """Height and width of what goes into the LSTM."""
    pixels = _size(params, where, "lstm/ih/kernel", 0) / channels
    side = round(pixels**0.5)
    if side**2 != pixels:
        raise UserError(f"{where}: its LSTM takes {pixels:g} pixels of {channels} channels")
    return side


MAKERS = {
    "denoiser": _denoiser,
    "rew_end_model": _reward_end,
    "actor_critic": _actor_critic,
    "upsampler": _denoiser,
}
