"""The networks: what computes. They know no process, no loss and no system.

Every network is called as `net.apply({"params": p}, x, c_noise, label, augment, train, rngs=...)`:
x float [B, H, W, C], of films [B, T, H, W, C]; c_noise float32 [B]; label int32 [B] with
num_classes for "no class"; augment float32 [B, augment_dim] or None, ignored by those that take
none; train turns dropout on, which draws from rngs {"dropout": key}. They return float32.

Networks of motions (`make_motion`) are called as `net.apply({"params": p}, x, t, condition,
mask=..., drop=..., prefix=..., train=..., rngs=...)`, see `motion_transformer.MotionTransformer`.

Networks of worlds (`make_world`): `diamond_unet.DiamondUNet`, `reward_end.RewardEnd` and
`actor_critic.ActorCritic`, each called in its own way; and so is `autoencoder.Autoencoder`
(`make_autoencoder`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffjax.errors import UserError, choose
from diffjax.nets import (
    attention,
    autoencoder,
    diamond_blocks,
    dit,
    edm_blocks,
    mmdit,
    mmdit_blocks,
    motion_gru,
    motion_transformer,
    unet_small,
)
from diffjax.nets.actor_critic import ActorCritic
from diffjax.nets.dhariwal_unet import DhariwalUNet
from diffjax.nets.diamond_unet import DiamondUNet
from diffjax.nets.dit import SIZES, DiT
from diffjax.nets.mmdit import MMDiT
from diffjax.nets.motion_gru import MotionGRU
from diffjax.nets.motion_transformer import MotionTransformer
from diffjax.nets.reward_end import RewardEnd
from diffjax.nets.song_unet import SongUNet
from diffjax.nets.unet_small import UNetSmall

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


# ---- what a field may be: (its name in messages, its value) -> the value for the module ----------


def whole(name: str, value):
    """A whole number above 0."""
    if type(value) is not int or value < 1:
        raise UserError(f"{name} {value!r}: a whole number above 0")
    return value


def count(name: str, value):
    """A whole number, 0 included."""
    if type(value) is not int or value < 0:
        raise UserError(f"{name} {value!r}: a whole number, at least 0")
    return value


def wholes(name: str, value):
    """One or more whole numbers above 0; lists stand for tuples, as JSON has none."""
    if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
        raise UserError(f"{name} {value!r}: a tuple of whole numbers")
    return tuple(whole(name, v) for v in value)


def resolutions(name: str, value):
    """Whole numbers above 0, perhaps none."""
    return wholes(name, value) if len(value) else ()


def widths(name: str, value):
    if any(w % 8 for w in wholes(name, value)):
        raise UserError(f"{name} {tuple(value)}: multiples of 8 (the norm has 8 groups)")
    return tuple(value)


def taps(name: str, value):
    value = wholes(name, value)
    if len(value) % 2 or value != value[::-1]:
        raise UserError(f"{name} {value}: of even length and symmetric, as (1, 3, 3, 1)")
    return value


def rate(name: str, value):
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{name} {value!r}: must be in [0, 1)")
    return float(value)


def number(name: str, value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{name} {value!r}: must be above 0")
    return float(value)


def switch(name: str, value):
    if not isinstance(value, bool):
        raise UserError(f"{name} {value!r}: True or False")
    return value


def dtype(name: str, value):
    return choose(value, DTYPES, name)


def one_of(*words: str) -> Callable:
    return lambda name, value: choose(value, dict(zip(words, words)), name)


def switches(name: str, value):
    """One or more of True and False."""
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{name} {value!r}: a tuple of True and False")
    return tuple(switch(name, v) for v in value)


def size(name: str, value):
    return choose(value, SIZES, name)


class Kind(NamedTuple):
    """One row of KINDS.

    Attributes:
      module: the linen class; takes channels, num_classes and the fields.
      fields: {field that the config must have: what it may be}.
      sharding: (regular expression over a path, PartitionSpec), ....
      fixed: {attribute: value} that this kind stands for.
      rounded: (params, dtype) -> params with what is rounded at each use rounded once, or None.
      unit: the class of the blocks that a discriminator looks behind, or None, where the network
        has taps of its own or is none that one could be made of.
      optional: {field that the config may have: what it may be}.
      films: whether the net takes films too.
    """

    module: Callable
    fields: dict[str, Callable]
    sharding: tuple
    fixed: dict = {}
    rounded: Callable | None = None
    unit: type | None = None
    optional: dict[str, Callable] = {}
    films: bool = False


UNET = {
    "model_channels": whole,
    "channel_mult": wholes,
    "num_blocks": whole,
    "attn_resolutions": resolutions,
    "dropout": rate,
    "augment_dim": count,
    "dtype": dtype,
}
SONG = {
    **UNET,
    "channel_mult_emb": whole,
    "channel_mult_noise": whole,
    "embedding_type": one_of("positional", "fourier"),
    "encoder_type": one_of("standard", "skip", "residual"),
    "decoder_type": one_of("standard", "skip"),
    "resample_filter": taps,
}
DDPMPP = {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1}
NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
SMALL = {"widths": widths, "patch": whole, "embedding": whole, "dtype": dtype}
MMDIT = {"width": whole, "depth": whole, "heads": whole, "class_tokens": whole, "patch": whole}
MMDIT |= {"modulation": one_of(*mmdit_blocks.STYLES), "feed": one_of("gelu", "swiglu")}
MMDIT |= {"time_scale": number, "scan": switch, "remat": switch, "dtype": dtype}
DIT = {"size": size, "patch": whole, "time_scale": number, "scan": switch, "remat": switch}

EDM = {"sharding": edm_blocks.SHARDING, "rounded": edm_blocks.rounded}
EDM |= {"unit": edm_blocks.UNetBlock}
KINDS = {
    "unet_small": Kind(UNetSmall, SMALL, unet_small.SHARDING, unit=unet_small.Block),
    "ddpmpp": Kind(SongUNet, UNET, fixed={**DDPMPP, "resample_filter": (1, 1)}, **EDM),
    "ncsnpp": Kind(SongUNet, UNET, fixed={**NCSNPP, "resample_filter": (1, 3, 3, 1)}, **EDM),
    "adm": Kind(DhariwalUNet, UNET, **EDM),
    "song": Kind(SongUNet, SONG, **EDM),
    "dhariwal": Kind(DhariwalUNet, {**UNET, "channel_mult_emb": whole}, **EDM),
    "dit": Kind(DiT, {**DIT, "dtype": dtype}, dit.SHARDING),
    "mmdit": Kind(MMDiT, MMDIT, mmdit.SHARDING, optional={"patch_frames": whole}, films=True),
}

MOTION = {"width": whole, "layers": whole, "dropout": rate, "dtype": dtype}
ENCODER = {
    **MOTION,
    "heads": whole,
    "ff": whole,
    "mask_frames": switch,
    "attention": one_of(*attention.IMPLEMENTATIONS),
}
DECODER = {**ENCODER, "emb_trans_dec": switch, "emb_policy": one_of("add", "concat")}
TRANSFORMER = {"module": MotionTransformer, "sharding": motion_transformer.SHARDING}
TRANSFORMER |= {"rounded": motion_transformer.rounded, "unit": motion_transformer.Layer}
MOTION_KINDS = {
    "trans_enc": Kind(fields=ENCODER, fixed={"decoder": False}, **TRANSFORMER),
    "trans_dec": Kind(fields=DECODER, fixed={"decoder": True}, **TRANSFORMER),
    "motion_gru": Kind(MotionGRU, MOTION, motion_gru.SHARDING, rounded=motion_transformer.rounded),
}

LEVELS = {"depths": wholes, "channels": wholes, "attention": switches, "dtype": dtype}
RECURRENT = {"lstm_dim": whole, "dtype": dtype}
WORLD_KINDS = {
    "diamond_unet": Kind(
        DiamondUNet,
        {"cond_channels": whole, "told_past_noise": switch, **LEVELS},
        diamond_blocks.SHARDING,
        rounded=edm_blocks.rounded,
    ),
    "reward_end": Kind(
        RewardEnd, {"cond_channels": whole, **RECURRENT, **LEVELS}, diamond_blocks.SHARDING
    ),
    "actor_critic": Kind(
        ActorCritic,
        {"channels": wholes, "down": switches, **RECURRENT},
        diamond_blocks.SHARDING,
    ),
}

KL = {"widths": widths, "blocks": whole, "patch": whole, "latent_channels": whole, "dtype": dtype}
AUTOENCODER_KINDS = {"kl": Kind(autoencoder.Autoencoder, KL, unet_small.SHARDING)}

ALL_KINDS = {**KINDS, **MOTION_KINDS, **WORLD_KINDS, **AUTOENCODER_KINDS}


def make(network, *, channels: int, num_classes: int, shape: tuple[int, ...]):
    """Returns the linen module that a config's `network` group describes.

    Args:
      network: kind and its fields (`KINDS`); lists stand for tuples, as JSON has none.
      channels: output channels.
      num_classes: 0 for an unconditional net.
      shape: (height, width, channels) of the input, or (frames, height, width, channels), to refuse
        what the net cannot divide.

    Raises:
      UserError: for an unknown kind, a field that is absent or no value for it, or such a shape.
    """
    kind = _kind(network, KINDS)
    fields = _fields(kind, network)
    if len(shape) == 4:
        _check_film(kind, network["kind"], fields, shape[0])
    elif fields.get("patch_frames", 1) > 1:
        raise UserError(f"config.network.patch_frames {fields['patch_frames']}: of pictures only 1")
    _check_divisible(fields, shape[-3:])
    _check_groups(fields)
    width, heads = fields.get("width", 0), fields.get("heads", 1)
    if width % heads or 0 < width < 6 * heads:
        raise UserError(
            f"config.network.width {width}: a multiple of {heads} (heads), at least 6 each"
        )
    if "size" in fields:
        fields.update(fields.pop("size"))
    return kind.module(channels=channels, num_classes=num_classes, **fields, **kind.fixed)


def make_motion(network, *, features: int, condition: str, num_actions=0, rot_vel=False):
    """Returns the linen module of a network of motions that a config's `network` group describes.

    Args:
      network: kind and its fields (`MOTION_KINDS`); a transformer's may have `attention_dropout`.
      features: numbers a frame.
      condition: "text", "action" or "none".
      num_actions: how many, for "action".
      rot_vel: whether frame 0 has layers of its own.

    Raises:
      UserError: for an unknown kind, a field that is absent or no value for it, or a width that
        does not divide into the heads.
    """
    kind = _kind(network, MOTION_KINDS)
    fields = _fields(kind, network)
    if "heads" in fields and "attention_dropout" in network:
        name = "attention_dropout"
        fields[name] = rate(f"config.network.{name}", network[name])
    width, parts = fields["width"], 2 * fields.get("heads", 1)
    if width % parts:
        raise UserError(f"config.network.width {width}: a multiple of {parts} (2 x heads)")
    choose(condition, dict.fromkeys(motion_transformer.CONDITIONS), "condition")
    given = {"features": features, "condition": condition, "num_actions": num_actions}
    return kind.module(rot_vel=rot_vel, **given, **fields, **kind.fixed)


def make_world(network, *, num_actions: int, past_frames: int = 4):
    """Returns the linen module of a network of worlds that a config's `network` group describes.

    Args:
      network: kind and its fields (`WORLD_KINDS`).
      num_actions: how many there are.
      past_frames: what a `diamond_unet` is told the actions of.

    Raises:
      UserError: for an unknown kind, a field that is absent or no value for it, fields of levels
        that are not of one length, or channels that do not divide into groups or heads.
    """
    kind = _kind(network, WORLD_KINDS)
    fields = _fields(kind, network)
    _check_levels(fields)
    if kind.module is DiamondUNet and fields["cond_channels"] % (2 * past_frames):
        raise UserError(
            f"config.network.cond_channels {fields['cond_channels']}: a multiple of "
            f"{2 * past_frames} (2 x past frames)"
        )
    return kind.module(num_actions=num_actions, **fields, **kind.fixed)


def make_autoencoder(network, *, shape: tuple[int, int, int]):
    """Returns the linen module of an autoencoder that a config's `network` group describes.

    Args:
      network: kind and its fields (`AUTOENCODER_KINDS`).
      shape: (height, width, channels) of the pictures.

    Raises:
      UserError: for an unknown kind, a field that is absent or no value for it, or such a shape.
    """
    kind = _kind(network, AUTOENCODER_KINDS)
    fields = _fields(kind, network)
    _check_divisible(fields, shape)
    return kind.module(channels=shape[-1], **fields)


def sharding(network) -> tuple:
    """Returns the net's rules, (regular expression over a path, PartitionSpec), ...."""
    return _kind(network).sharding


def unit(network) -> type | None:
    """Returns the class of the net's blocks, for `tapping`; None where it has taps of its own."""
    return _kind(network).unit


def rounded(network, params):
    """Returns params with what the net rounds to its compute type at each use rounded already.

    The net computes the same with them. For a loop of evaluations, not for training.
    """
    kind = _kind(network)
    return kind.rounded(params, DTYPES[network["dtype"]]) if kind.rounded else params


def _kind(network, kinds: dict[str, Kind] | None = None) -> Kind:
    if "kind" not in network:
        raise UserError("config.network lacks the field 'kind'")
    return choose(network["kind"], kinds or ALL_KINDS, "config.network.kind")


def _fields(kind: Kind, network) -> dict:
    """{name: checked value} of the fields that the kind has."""
    fields = {}
    for name, check in kind.fields.items():
        if name not in network:
            raise UserError(f"config.network lacks the field {name!r}")
        fields[name] = check(f"config.network.{name}", network[name])
    for name, check in kind.optional.items():
        if name in network:
            fields[name] = check(f"config.network.{name}", network[name])
    return fields


def _check_film(kind: Kind, name: str, fields: dict, frames: int) -> None:
    if not kind.films:
        able = ", ".join(name for name, row in KINDS.items() if row.films)
        raise UserError(
            f"config.network.kind {name}: takes pictures, and config.data.frames is {frames} "
            f"({able} takes films)"
        )
    if frames % fields.get("patch_frames", 1):
        raise UserError(
            f"config.network.patch_frames {fields['patch_frames']}: does not divide films of "
            f"{frames} frames"
        )


def _check_divisible(fields: dict, shape) -> None:
    """Each level halves the picture, and a patch becomes one pixel or token."""
    levels = len(fields.get("widths", fields.get("channel_mult", (1,))))
    patch = fields.get("patch", 1)
    divisor = patch * 2 ** (levels - 1)
    if shape[0] % divisor or shape[1] % divisor:
        raise UserError(
            f"images of {shape[0]}x{shape[1]} do not divide by {divisor} "
            f"(config.network.patch {patch} and {levels} levels): set config.data.image_size"
        )


def _check_levels(fields: dict) -> None:
    """DIAMOND's norms have C // 32 groups and its heads 8 channels; every field has all levels."""
    channels = fields["channels"]
    for name in ("depths", "attention", "down"):
        if len(fields.get(name, channels)) != len(channels):
            raise UserError(
                f"config.network.{name} {fields[name]} and channels {channels}: one entry a level"
            )
    for c in (
        *channels,
        *(a + b for a, b in zip(channels, channels[1:])),
        *(2 * a for a in channels),
    ):
        groups = diamond_blocks.groups(c)
        if c % 8 or c % groups:
            raise UserError(
                f"config.network.channels {channels} gives layers of {c} channels, which do not "
                f"divide by 8 and into {groups} groups: use multiples of 32"
            )


def _check_groups(fields: dict) -> None:
    """EDM's norms have min(32, C // 4) groups, and the decoder's inputs are sums of two widths."""
    if "model_channels" not in fields:
        return
    base, mult = fields["model_channels"], fields["channel_mult"]
    single = [base, *(base * m for m in mult)]
    for c in {*single, *(a + b for a, b in zip(single, single[1:])), *(2 * a for a in single)}:
        if c % 4 or c % min(32, c // 4):
            raise UserError(
                f"config.network.model_channels {base} with channel_mult {mult} gives layers of "
                f"{c} channels, which do not divide into {min(32, c // 4)} groups: use a multiple "
                "of 32"
            )
