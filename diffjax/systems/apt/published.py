"""SeedVR2's published networks as ours: names of weights, and the network that their shapes imply.

They are the only published generators that were post-trained as in APT (Wang et al. 2025), for
restoration: a picture or a film beside the noise, 33 input channels and 16 of the output. What is
here is the structure: they attend within windows of space and time, which `MMDiT` does not, so
these weights in it compute something else. The translation is by rule:

| theirs | ours |
|---|---|
| `vid_in.proj`, `txt_in` | `patch_in`, `text_in` |
| `emb_in.proj_in`, `proj_hid`, `proj_out` | `time/in`, `hid`, `out` |
| `blocks.I.attn.proj_qkv.S`, `proj_out.S`, `norm_q.S`, `norm_k.S`; S: `vid`, `txt` or `all` | `blocks/I/S/qkv`, `proj`, `q_norm`, `k_norm` |
| `blocks.I.mlp.S.proj_in`, `proj_out` | `blocks/I/S/mlp/fc1`, `fc2`; beside a `proj_in_gate` `up`, `out` |
| `blocks.I.mlp.S.proj_in_gate` | `blocks/I/S/mlp/gate` |
| `blocks.I.ada.S.NAME` | `blocks/I/S/ada/NAME` |
| `vid_out_norm`, `vid_out_ada.NAME`, `vid_out.proj` | `final/norm`, `final/ada/NAME`, `final/proj` |
| `weight` of rank 2, [out, in]; of rank 1 | `kernel` [in, out]; `scale` |
| `blocks.I.attn.rope.rope.freqs` | none: constants, compared with ours |
"""  # noqa: E501

import re

import numpy as np

from diffjax.errors import UserError
from diffjax.nets import rope3d
from diffjax.nets.mmdit import MMDiT

STREAM = r"(vid|txt|all)"
RULES = (
    (r"vid_in\.proj", r"patch_in"),
    (r"txt_in", r"text_in"),
    (r"emb_in\.proj_(in|hid|out)", r"time/\1"),
    (rf"blocks\.(\d+)\.attn\.proj_qkv\.{STREAM}", r"blocks/\1/\2/qkv"),
    (rf"blocks\.(\d+)\.attn\.proj_out\.{STREAM}", r"blocks/\1/\2/proj"),
    (rf"blocks\.(\d+)\.attn\.norm_(q|k)\.{STREAM}", r"blocks/\1/\3/\2_norm"),
    (rf"blocks\.(\d+)\.mlp\.{STREAM}\.proj_in_gate", r"blocks/\1/\2/mlp/gate"),
    (rf"blocks\.(\d+)\.mlp\.{STREAM}\.proj_in", r"blocks/\1/\2/mlp/fc1"),
    (rf"blocks\.(\d+)\.mlp\.{STREAM}\.proj_out", r"blocks/\1/\2/mlp/fc2"),
    (r"vid_out_norm", r"final/norm"),
    (r"vid_out\.proj", r"final/proj"),
)
TABLES = (
    (rf"blocks\.(\d+)\.ada\.{STREAM}\.((?:attn|mlp)_\w+)", r"blocks/\1/\2/ada/\3"),
    (r"vid_out_ada\.(out_\w+)", r"final/ada/\1"),
)
FREQUENCIES = re.compile(r"blocks\.\d+\.attn\.rope\.rope\.freqs")
PATCH = 2  # side of a patch of one frame, in both published networks
# Of any size that is read off a weight: a file could ask for more than it has.
LARGEST, MOST_BLOCKS = 1 << 16, 256


def to_params(state: dict, where: str) -> dict:
    """Translates a published state dict into {path: array}, blocks unstacked.

    Args:
      state: {name: array}; ShapeDtypeStructs give shapes.
      where: the file, for messages.

    Raises:
      UserError: a name that none of these networks has, rotary frequencies that are not ours, or
        two names of one weight.
    """
    gated = any(name.endswith("proj_in_gate.weight") for name in state)
    params = {}
    for name, array in state.items():
        if FREQUENCIES.fullmatch(name):
            _check_frequencies(array, f"{where}: {name!r}")
            continue
        path, turned = _ours(name, len(array.shape), where)
        if gated:
            path = path.replace("mlp/fc1", "mlp/up").replace("mlp/fc2", "mlp/out")
        if path in params:
            raise UserError(f"{where}: two arrays for {path[:200]!r}")
        params[path] = _transposed(array) if turned else array
    return params


def _ours(name: str, rank: int, where: str) -> tuple[str, bool]:
    """(our path, whether the matrix is to be transposed)."""
    for pattern, ours in TABLES:
        if rank == 1 and (match := re.fullmatch(pattern, name)):
            return match.expand(ours), False
    stem, _, last = name.rpartition(".")
    for pattern, ours in RULES:
        if match := re.fullmatch(pattern, stem):
            if last == "bias" and rank == 1:
                return f"{match.expand(ours)}/bias", False
            if last == "weight" and rank in (1, 2):
                return f"{match.expand(ours)}/{'scale' if rank == 1 else 'kernel'}", rank == 2
    raise UserError(f"{where}: {name[:200]!r} is no weight of SeedVR2's networks")


def _transposed(array):
    if isinstance(array, np.ndarray):
        return array.T
    return type(array)(array.shape[::-1], array.dtype)


def _check_frequencies(array, what: str) -> None:
    """Either variant's, for heads of 128 channels; half precision keeps three digits."""
    wanted = {len(f): f for f in (rope3d.frequencies(128), rope3d.stretch_frequencies(128))}
    count = array.shape[0] if len(array.shape) == 1 else 0
    if count not in wanted:
        raise UserError(f"{what} of shape {tuple(array.shape)} is no table of rotary frequencies")
    if isinstance(array, np.ndarray):
        values = np.asarray(array, np.float64)
        if not np.allclose(values, wanted[count], rtol=1e-2, atol=1e-6):
            raise UserError(f"{what} has rotary frequencies that are not the published ones")


def network(state: dict, where: str) -> MMDiT:
    """Returns the `MMDiT` that a published state dict's shapes imply, for `to_params` of it.

    Raises:
      UserError: weights that tell are missing, or sizes that no such network has.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in state or len(state[name].shape) != rank:
            raise UserError(f"{where}: no weight {name!r} of {rank} dimensions")
        return tuple(state[name].shape)

    blocks = [int(m[1]) for m in map(re.compile(r"blocks\.(\d{1,5})\.").match, state) if m]
    depth, (width, _) = max(blocks, default=-1) + 1, shape("vid_in.proj.weight", 2)
    head = shape("blocks.0.attn.norm_q.vid.weight", 1)[0]
    if not 0 < depth <= MOST_BLOCKS or width > LARGEST or not head or width % head:
        raise UserError(f"{where}: {depth} blocks, width {width}, heads of {head} channels")
    apart = [i for i in range(depth) if f"blocks.{i}.attn.proj_qkv.vid.weight" in state]
    gated = "blocks.0.mlp.vid.proj_in_gate.weight" in state
    turned = shape("blocks.0.attn.rope.rope.freqs", 1)[0]
    last = f"blocks.{depth - 1}.attn.proj_out"
    return MMDiT(
        channels=shape("vid_out.proj.weight", 2)[0] // PATCH**2,
        patch=PATCH,
        width=width,
        depth=depth,
        heads=width // head,
        hidden=shape("blocks.0.mlp.vid.proj_in.weight", 2)[0],
        modulation="single",
        feed="swiglu" if gated else "gelu",
        rope="mm3d" if turned == head // 6 else "stretch3d",
        shared_from=None if len(apart) == depth else len(apart),
        last_text_pre_only=f"{last}.txt.weight" not in state,
        output="single" if "vid_out_norm.weight" in state else "linear",
    )
