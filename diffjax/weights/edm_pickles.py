"""Networks that were saved as Python objects by the EDM repository and its forks, read as data.

Two kinds of file: EDM's own snapshots (network-snapshot-*.pkl, edm-*.pkl), and PyTorch checkpoints
(.pt) in which a fork put whole networks, as relay diffusion's are.

A snapshot is a plain pickle of a dict {"ema", "loss_fn", "augment_pipe", "dataset_kwargs"}, a
checkpoint a zip file whose tree is one of {"ema", "net", "optimizer_state", "step"}. Every object
of a network class is written as a call of `_reconstruct_persistent_obj` with the class' source text
and the object's attributes; the original runs that text. Here the text is skipped: the architecture
is known by its class' name and the arguments that it was made with.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffjax.errors import UserError
from diffjax.weights import opcodes, torch_files
from diffjax.weights.opcodes import Buffer, Record
from diffjax.weights.tensors import NAMES, Storage, Tensor, arrays, empty_dict
from diffjax.weights.torch_files import read_stream

WRAPPERS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")


@dataclass(frozen=True)
class Architecture:
    """What a snapshot says of its network.

    Attributes:
      wrapper: class name of the preconditioning, "EDMPrecond" for one.
      arguments: what the wrapper was made with; those that are absent took their defaults.
      attributes: the wrapper's plain attributes: sigma_data, img_resolution, label_dim, ....
      inner: class name of the network inside, "SongUNet" for one.
      inner_arguments: what that was made with.
      inner_attributes: its plain attributes, label_dropout for one.
    """

    wrapper: str
    arguments: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    inner: str = ""
    inner_arguments: dict[str, Any] = field(default_factory=dict)
    inner_attributes: dict[str, Any] = field(default_factory=dict)


class _Persistent(Record):
    """An object of a class whose source text is in the file; `kind` is the class' name."""

    def __init__(self, meta):
        # The dict may still be filled after this; it is looked into when the file is read.
        super().__init__("an EDM object", meta)


def _module_dict(*arguments) -> Record:
    if arguments:
        raise ValueError("arguments")
    return Record("ModuleDict")


MODULE = "torch_utils.persistence"
# What such a file may name beside what every checkpoint may, and what stands for it.
OBJECTS = {
    **NAMES,
    (MODULE, "_reconstruct_persistent_obj"): _Persistent,
    ("torch.nn.modules.container", "ModuleDict"): _module_dict,
    # Dicts with attribute access, of which only the dict matters.
    ("dnnlib.util", "EasyDict"): empty_dict,
}


def read(data: Buffer, where: str, network: str = "ema") -> tuple[Architecture, dict]:
    """Reads a snapshot's network.

    Args:
      data: the file.
      where: its name, for messages.
      network: which of the snapshot's entries.

    Returns:
      (architecture, {state-dict name: array}): the names that the network's state_dict() would
      have, "model.enc.32x32_conv.weight" for one; arrays as they are in the file, read only.

    Raises:
      UserError: another kind of file, one that lies or would run something, or an architecture
        that is not EDM's.
    """
    known: dict[int, tuple[Storage, memoryview]] = {}  # the view too: its id is its own while alive

    def storage(raw) -> Storage:
        """Stands for torch.storage._load_from_bytes: bytes that are a checkpoint of a storage."""
        if not isinstance(raw, memoryview):
            raise ValueError("a storage that is no bytes")
        if id(raw) not in known:
            found, _ = read_stream(raw, where)
            if not isinstance(found, Storage):
                raise ValueError("bytes that hold something else than a storage")
            known[id(raw)] = found, raw
        return known[id(raw)][0]

    names = {**OBJECTS, ("torch.storage", "_load_from_bytes"): storage}
    tree, end = opcodes.load(data, where, names)
    if end != len(data):
        raise UserError(f"{where}: {len(data) - end} bytes follow the pickle in it")
    return _network(tree, network, where, len(data))


def holds_networks(path: Path) -> bool:
    """Whether a checkpoint in the zip format says that it holds networks of this kind as objects.

    Raises:
      UserError: no such checkpoint.
    """
    return MODULE.encode() in torch_files.tree_of_zip(path)


def read_checkpoint(path: Path, network: str = "ema") -> tuple[Architecture, dict]:
    """Reads one network of a checkpoint in the zip format, as `read` does of a snapshot.

    The others in it, and the optimiser's state, are not read.
    """
    finish = lambda tree, where, stored: _network(tree, network, where, stored)
    return torch_files.read_zip(path, OBJECTS, finish)


def _network(tree, network: str, where: str, stored: int) -> tuple[Architecture, dict]:
    """The architecture and the state dict of one entry of what was read."""
    if not isinstance(tree, dict) or network not in tree:
        raise UserError(f"{where}: a pickle, but no EDM network snapshot: no {network!r} in it")
    wrapper, state = _object(tree[network], where)
    if wrapper not in WRAPPERS:
        raise UserError(
            f"{where}: architecture {wrapper[:80]!r} is not supported yet (EDM2 and others); "
            f"EDM's are {', '.join(WRAPPERS)}"
        )
    inner, inner_state = _object(_dict(state, "_modules", where).get("model"), where)
    architecture = Architecture(
        wrapper=wrapper,
        arguments=_plain(_dict(state, "_init_kwargs", where)),
        attributes=_plain(state),
        inner=inner,
        inner_arguments=_plain(_dict(inner_state, "_init_kwargs", where)),
        inner_attributes=_plain(inner_state),
    )
    tensors: dict[str, Tensor] = {}
    _collect(tree[network], "", tensors, where)
    return architecture, arrays(tensors, where, stored)


def _object(value, where: str) -> tuple[str, dict]:
    """The class name and the attributes of an object of a network class."""
    if isinstance(value, _Persistent):
        meta = value.state
        if isinstance(meta, dict) and meta.get("type") == "class":
            name, state = meta.get("class_name"), meta.get("state")
            if type(name) is str and isinstance(state, dict):
                return name, state
    elif isinstance(value, Record) and isinstance(value.state, dict):
        return value.kind, value.state
    raise UserError(f"{where}: an EDM pickle with a part that is no network module")


def _dict(state: dict, name: str, where: str) -> dict:
    found = state.get(name)
    if not isinstance(found, dict):
        raise UserError(f"{where}: an EDM pickle with a module without {name}")
    return found


def _collect(module, prefix: str, found: dict[str, Tensor], where: str) -> None:
    """Adds a module's tensors by state-dict name: its parameters, its buffers, its modules'."""
    _, state = _object(module, where)
    skipped = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in _dict(state, group, where).items():
            if value is None or (group == "_buffers" and name in skipped):
                continue
            if type(name) is not str or not isinstance(value, Tensor):
                raise UserError(f"{where}: {str(prefix + str(name))[:200]!r} is no tensor")
            found[prefix + name] = value
    for name, value in _dict(state, "_modules", where).items():
        if type(name) is not str or "." in name or "/" in name:
            raise UserError(f"{where}: a module named {str(name)[:200]!r}")
        if value is not None:
            _collect(value, f"{prefix}{name}.", found, where)


def _plain(values: dict) -> dict[str, Any]:
    """The entries that are numbers, texts and lists of such: what a config can hold."""

    def plain(value) -> bool:
        if type(value) in (list, tuple):
            return len(value) <= 64 and all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    return {k: v for k, v in values.items() if plain(v) and str(k)[:1] != "_"}
