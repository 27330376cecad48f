"""Writes a file as relay diffusion's training does: torch.save of whole networks, in a zip.

Without PyTorch: its names are made up for as long as the pickle is written. Layout: a dict of
`step`, `ema` and `net`; a network is a call of _reconstruct_persistent_obj with the class' name,
its source text (one for all, shared) and its attributes; so is every module in it.
"""

import contextlib
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

NAMES = {
    "torch_utils.persistence": ("_reconstruct_persistent_obj",),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
    "torch.nn.modules.container": ("ModuleDict",),
    "torch": ("FloatStorage",),
}
SOURCE = "raise SystemExit('executed')"


class Module:
    """An object of a network class: {name: array or Module}."""

    def __init__(self, kind: str, arguments: dict, **attributes):
        self.kind, self.arguments, self.attributes = kind, arguments, attributes
        self.parameters, self.buffers, self.modules = {}, {}, {}


class Modules(Module):
    """torch.nn.ModuleDict, which is no persistent object."""


class Storage:
    def __init__(self, array):
        self.array = array


class Tensor:
    def __init__(self, array):
        self.array = np.ascontiguousarray(array, np.float32)


class Parameter(Tensor):
    pass


@contextlib.contextmanager
def made_up():
    """The names that the pickle refers to, as functions that must never run."""
    made = {}
    for module in sorted({part for name in NAMES for part in (name, name.rsplit(".", 1)[0])}):
        made[module] = types.ModuleType(module)
    for module, names in NAMES.items():
        for name in names:
            made_name = type(name, (), {"__module__": module, "__qualname__": name})
            setattr(made[module], name, made_name)
    kept = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield lambda module, name: getattr(made[module], name)
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write(path: Path, tree: dict) -> None:
    """Writes a tree of plain values, `Module`s and `Tensor`s."""
    storages = []
    with made_up() as named:

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if not isinstance(value, Storage):
                    return None
                storages.append(value.array)
                kind = named("torch", "FloatStorage")
                return "storage", kind, str(len(storages) - 1), "cpu", value.array.size

            def reducer_override(self, value):
                if isinstance(value, Tensor):
                    strides = tuple(s // 4 for s in value.array.strides)
                    storage = Storage(value.array.ravel())
                    arguments = (storage, 0, value.array.shape, strides, False, {})
                    plain = _Call(named("torch._utils", "_rebuild_tensor_v2"), arguments)
                    if not isinstance(value, Parameter):
                        return plain.reduced()
                    return named("torch._utils", "_rebuild_parameter"), (plain, True, {})
                if isinstance(value, _Call):
                    return value.reduced()
                if isinstance(value, Module):
                    state = {
                        "training": True,
                        "_parameters": {k: Parameter(v) for k, v in value.parameters.items()},
                        "_buffers": {k: Tensor(v) for k, v in value.buffers.items()},
                        "_non_persistent_buffers_set": set(),
                        "_modules": value.modules,
                        **value.attributes,
                    }
                    if isinstance(value, Modules):
                        return named("torch.nn.modules.container", "ModuleDict"), (), state
                    state |= {"_init_args": [], "_init_kwargs": value.arguments}
                    meta = {"type": "class", "version": 6, "module_src": SOURCE}
                    meta |= {"class_name": value.kind, "state": state}
                    function = named("torch_utils.persistence", "_reconstruct_persistent_obj")
                    return function, (meta,)
                return NotImplemented

        file = io.BytesIO()
        Pickler(file, 2).dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for i, array in enumerate(storages):
            archive.writestr(f"archive/data/{i}", array.astype("<f4").tobytes())
        archive.writestr("archive/version", "3\n")


class _Call:
    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def reduced(self):
        return self.function, self.arguments


def network(state: dict[str, np.ndarray], arguments: dict, label_dropout: float = 0.0) -> Module:
    """EDMPrecond around a DhariwalUNet whose state dict is `state` ("model.enc...")."""
    sizes = {"img_resolution": 16, "img_channels": 3, "label_dim": arguments.get("label_dim", 0)}
    sizes["img_resolution"] = arguments["img_resolution"]
    wrapper = {"model_type": "DhariwalUNet", **arguments}
    root = Module("EDMPrecond", wrapper, sigma_data=0.5, use_fp16=False, sigma_min=0, **sizes)
    inner = Module("DhariwalUNet", arguments, label_dropout=label_dropout)
    root.modules["model"] = inner
    for name, array in state.items():
        _, *parents, last = name.split(".")
        node = inner
        for depth, part in enumerate(parents):
            if part not in node.modules:
                whole = Modules("ModuleDict", {}) if part in ("enc", "dec") and not depth else None
                node.modules[part] = whole or Module("UNetBlock", {})
            node = node.modules[part]
        (node.buffers if last == "resample_filter" else node.parameters)[last] = array
    return root
