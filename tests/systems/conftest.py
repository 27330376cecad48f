"""Snapshots as the EDM repository writes them, made by hand; the tiny relay's configs."""

import collections
import io
import pickle
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from relay_runs import NAMES, run_of

from diffjax.run import cli

MAGIC = 0x1950A86A20F9469CFC6C
ABOUT = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}


class Called:
    """Pickles as a call of a global of some module that need not exist."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce_ex__(self, protocol):
        return self.function, self.arguments


@pytest.fixture
def craft(monkeypatch):
    """craft(wrapper, inner, arguments, state, **attributes) -> a snapshot's bytes.

    wrapper, inner: class names; arguments: what both were made with; state: {state-dict name:
    array}. Only the names of PyTorch's and EDM's functions are written, as a real file has them.
    """

    def known(module, name, value):
        value.__module__, value.__qualname__ = module, name
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setattr(sys.modules[module], name, value, raising=False)
        return value

    def fake(module, name):
        return known(module, name, types.FunctionType((lambda *a: None).__code__, {}, name))

    for package in ("torch", "torch.storage", "torch._utils", "torch_utils"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    persistent = fake("torch_utils.persistence", "_reconstruct_persistent_obj")
    from_bytes = fake("torch.storage", "_load_from_bytes")
    rebuild = fake("torch._utils", "_rebuild_tensor_v2")
    parameter = fake("torch._utils", "_rebuild_parameter")
    storage = known("torch", "FloatStorage", type("FloatStorage", (), {}))

    class WithId(pickle.Pickler):
        def persistent_id(self, value):
            return value[1:] if isinstance(value, tuple) and value[:1] == ("id",) else None

    def tensor(array: np.ndarray) -> Called:
        array = np.ascontiguousarray(array, np.float32)
        stream = io.BytesIO()
        for value in (MAGIC, 1001, ABOUT):
            stream.write(pickle.dumps(value, 2))
        WithId(stream, 2).dump(("id", "storage", storage, "0", "cpu", array.size, None))
        stream.write(pickle.dumps(["0"], 2) + struct.pack("<q", array.size) + array.tobytes())
        strides = tuple(n // array.itemsize for n in array.strides)
        of = Called(from_bytes, stream.getvalue())
        return Called(rebuild, of, 0, array.shape, strides, False, collections.OrderedDict())

    def module(name: str, state: dict, **more) -> Called:
        parts = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_kwargs": {}}
        inside = collections.defaultdict(dict)
        for key, array in state.items():
            head, _, rest = key.partition(".")
            if rest:
                inside[head][rest] = array
            elif head in ("u", "freqs", "resample_filter"):
                parts["_buffers"][head] = tensor(array)
            else:
                parameter_of = tensor(array), True, collections.OrderedDict()
                parts["_parameters"][head] = Called(parameter, *parameter_of)
        for key, below in inside.items():
            parts["_modules"][key] = module("Module", below)
        about = {"type": "class", "version": 6, "module_src": "# source", "class_name": name}
        return Called(persistent, {**about, "state": {**parts, **more}})

    def snapshot(wrapper, inner, arguments, state, **attributes) -> bytes:
        arguments = {"model_type": inner, **arguments}
        below = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        beside = {k: v for k, v in state.items() if not k.startswith("model.")}
        outer = module(wrapper, beside, _init_kwargs=arguments, **attributes)
        network = module(inner, below, _init_kwargs=arguments)
        outer.arguments[0]["state"]["_modules"]["model"] = network
        return pickle.dumps({"ema": outer, "loss_fn": None, "augment_pipe": None}, 4)

    return snapshot


@pytest.fixture
def by_rule():
    """by_rule(name, shape) -> the golden files' weights; see tests/golden/nets/README.md."""

    def weights(name: str, shape) -> np.ndarray:
        seed, last = zlib.crc32(name.encode()) & 0x7FFFFFFF, name.split(".")[-1]
        w = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)  # noqa: NPY002
        if last == "resample_filter":
            return np.full(shape, 1 / np.prod(shape), np.float32)
        if last == "freqs":
            return 16 * w
        if len(shape) >= 2:
            return w * np.float32(1 / np.sqrt(np.prod(shape[1:])))
        return np.float32(last == "weight") + np.float32(0.1) * w

    return weights


@pytest.fixture(scope="session")
def flags(root, tiny_data):
    """flags(stage, **more) -> train.py's words for a run of seconds of one of the tiny stages."""

    def make(stage, **more):
        small = {
            "steps": 4,
            "batch_size": 8,
            "checkpoint_every": 2,
            "log_every": 1,
            "num_samples": 4,
            "data.path": tiny_data,
            "data.image_size": {"relay_tiny_base": 4}.get(stage, 0),
            "network.widths": "(8,)",
            "network.embedding": 16,
            **{name.replace("__", "."): value for name, value in more.items()},
        }
        words = [f"--config.{name}={value}" for name, value in small.items()]
        return ["--config", str(root / "configs" / f"{stage}.py"), *words]

    return make


@pytest.fixture(scope="session")
def config_of(flags):
    def make(stage="relay_tiny", **more):
        words = flags(stage, **more)
        return cli.apply_overrides(cli.load_config(words[1]), cli.split_overrides(words[2:])[1])

    return make


@pytest.fixture(scope="session")
def autoencoder_words(root, tiny_data):
    """train.py's words, but --workdir, for an autoencoder of 8x8 to 2x2 in seconds."""
    small = {
        "steps": 30,
        "batch_size": 8,
        "checkpoint_every": 30,
        "log_every": 10,
        "sample_every": 1000,
        "num_samples": 6,
        "data.path": tiny_data,
        "network.widths": "(8, 16)",
        "network.latent_channels": 2,
        "ema.ema.decay": 0.8,
    }
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    return ["--config", str(root / "configs" / "autoencoder_tiny.py"), *flags]


@pytest.fixture(scope="session")
def autoencoder_run(autoencoder_words, tmp_path_factory):
    """A finished run of it. Copy it before changing it."""
    import train

    workdir = tmp_path_factory.mktemp("autoencoder") / "run"
    assert train.main([*autoencoder_words, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture(scope="session")
def chain(tmp_path_factory, config_of):
    """Run directories of three stages: 4x4, 8x8, 16x24 (of patches of 2x3)."""
    runs = tmp_path_factory.mktemp("chain")
    about = lambda *size: {"data": {"image_shape": [*size, 3], "class_names": NAMES}}
    first = run_of(runs / "first", config_of("relay_tiny_base"), about(4, 4), 0)
    second = run_of(runs / "second", config_of(parent=first), about(8, 8), 2)
    config = config_of(parent=second)
    with config.ignore_type():
        config.diffusion.patch = [2, 3]
    third = run_of(runs / "third", config, about(16, 24), 4)
    return first, second, third
