"""EDM's network snapshots against one that the EDM repository wrote."""

import json
import pickle
import sys
import types

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.weights import edm_pickles
from diffjax.weights.reading import kind_of, read_weights


def test_the_state_dict(snapshot, files, rule):
    manifest = json.loads((files / "manifest_persistence_tiny.json").read_text())
    assert kind_of(snapshot) == "pickle"
    state = read_weights(snapshot)
    assert list(state) == list(manifest)
    for name, (shape, dtype) in manifest.items():
        assert (list(state[name].shape), state[name].dtype.name) == (shape, dtype), name
        np.testing.assert_array_equal(state[name], rule(name, shape))


def test_the_architecture(snapshot):
    about, _ = edm_pickles.read(snapshot.read_bytes(), "here")
    assert (about.wrapper, about.inner) == ("EDMPrecond", "SongUNet")
    assert about.arguments["channel_mult"] == [1, 2]
    assert about.arguments["resample_filter"] == [1, 3, 3, 1]
    assert about.attributes["sigma_data"] == 0.5
    assert about.inner_arguments["in_channels"] == about.inner_arguments["out_channels"] == 3
    assert not any(name.startswith("_") for name in about.attributes)


def test_nothing_may_follow(snapshot):
    with pytest.raises(UserError, match="here: 1 bytes follow the pickle"):
        edm_pickles.read(snapshot.read_bytes() + b"x", "here")


class Meta(dict):
    pass


def pickled(value) -> bytes:
    """A pickle in which `Meta` objects are EDM's persistent objects and `EasyDict`s its dicts."""
    modules = {}
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        modules[name] = types.ModuleType(name)

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("ran")

    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = easy
    sys.modules.update(modules)
    try:
        Meta.__reduce_ex__ = lambda self, _: (_reconstruct_persistent_obj, (dict(self),))
        if isinstance(value, tuple):
            value = easy(value[0])
        return pickle.dumps(value, 4)
    finally:
        for name in modules:
            del sys.modules[name]


def module(name: str, **state) -> Meta:
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_kwargs": {}, **state}
    source = {"version": 6, "module_src": "raise SystemExit"}
    return Meta(type="class", **source, class_name=name, state=state)


def test_edm2_is_named(tmp_path):
    data = pickled(({"ema": module("Precond", _modules={"unet": module("UNet")})},))
    with pytest.raises(UserError, match=r"'Precond' is not supported yet \(EDM2"):
        edm_pickles.read(data, "here")


def test_an_easy_dict_is_a_dict():
    inner = module("SongUNet", _modules={"gone": None}, _buffers={"none": None})
    about, state = edm_pickles.read(
        pickled(({"ema": module("VEPrecond", _modules={"model": inner})},)), "here"
    )
    assert (about.wrapper, about.inner, state) == ("VEPrecond", "SongUNet", {})


INNER = module("SongUNet")
BROKEN = {
    "a plain pickle": ({"weights": 1}, "no EDM network snapshot: no 'ema'"),
    "a list": ([1, 2], "no EDM network snapshot"),
    "no object": ({"ema": {"a": 1}}, "no network module"),
    "no inner": ({"ema": module("EDMPrecond")}, "no network module"),
    "no class": ({"ema": Meta(type="function")}, "no network module"),
    "no arguments": (
        {"ema": module("EDMPrecond", _init_kwargs=[], _modules={"model": INNER})},
        "without _init_kwargs",
    ),
    "parameters a list": (
        {"ema": module("EDMPrecond", _modules={"model": module("SongUNet", _parameters=[1])})},
        "without _parameters",
    ),
    "a number for a tensor": (
        {"ema": module("EDMPrecond", _modules={"model": INNER}, _buffers={"u": 3})},
        "'u' is no tensor",
    ),
    "a path for a name": (
        {"ema": module("EDMPrecond", _modules={"model": INNER, "../x": INNER})},
        "a module named '../x'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_snapshots(case):
    value, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as caught:
        edm_pickles.read(pickled(value), "here.pkl")
    assert str(caught.value).startswith("here.pkl: ")
