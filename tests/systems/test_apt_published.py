"""SeedVR2's published networks: every name and shape is one of ours, by eval_shape alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apt_golden import manifest

from diffjax.errors import UserError
from diffjax.nets import rope3d, stacking
from diffjax.nets.mmdit import SIZES, MMDiT
from diffjax.systems.apt import published
from diffjax.weights import trees

COUNTS = {"7b": 8_239_607_872, "3b": 3_391_475_776}
SDS = jax.ShapeDtypeStruct


def state_of(name):
    return {k: SDS(shape, jnp.float32) for k, shape in manifest(f"seedvr2_{name}").items()}


def shapes_of(net, channels, text):
    """{path: shape} of a net's parameters with its blocks unstacked."""
    inputs = (
        SDS((1, 2, 4, 4, channels), jnp.float32),
        SDS((1,), jnp.float32),
        SDS((1, 3, text), jnp.float32),
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    shapes["blocks"] = jax.eval_shape(stacking.unstack, shapes["blocks"])
    return shapes


@pytest.mark.parametrize("name", COUNTS)
def test_every_weight_has_its_place(name):
    state = state_of(name)
    net = published.network(state, "file")
    known = SIZES[name.upper()]
    assert {k: getattr(net, k) for k in known} == known
    assert net.channels == 16
    shapes = shapes_of(net, 33, 5120)
    trees.check(published.to_params(state, "file"), shapes, "file")
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[name]


def test_arrays_are_transposed_and_frequencies_compared():
    freqs = "blocks.0.attn.rope.rope.freqs"
    state = {
        "txt_in.weight": np.arange(6.0).reshape(2, 3),
        "blocks.4.attn.norm_q.all.weight": np.ones(2),
        freqs: rope3d.stretch_frequencies(128).astype(np.float16),
    }
    params = published.to_params(state, "file")
    assert sorted(params) == ["blocks/4/all/q_norm/scale", "text_in/kernel"]
    np.testing.assert_array_equal(params["text_in/kernel"], state["txt_in.weight"].T)
    state[freqs] = 1.1 * rope3d.frequencies(128)
    with pytest.raises(UserError, match="not the published ones"):
        published.to_params(state, "file")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.attn.proj_qkv.video.weight", (2, 2)),
        ("blocks.0.ada.vid.attn_shift", (2, 2)),
        ("../txt_in.weight", (2, 2)),
        ("blocks.0.attn.rope.rope.freqs", (7,)),
    ],
)
def test_other_names_are_refused(name, shape):
    with pytest.raises(UserError, match="SeedVR2|rotary"):
        published.to_params({name: SDS(shape, jnp.float32)}, "file")


def test_a_file_that_asks_for_too_much_is_refused():
    state = state_of("7b")
    with pytest.raises(UserError, match="no weight 'vid_in.proj.weight'"):
        published.network({}, "file")
    with pytest.raises(UserError, match="99999 blocks|100000 blocks"):
        published.network(
            {**state, "blocks.99999.ada.vid.attn_gate": SDS((1,), jnp.float32)}, "file"
        )
    wide = {"vid_in.proj.weight": SDS((1 << 20, 4), jnp.float32)}
    with pytest.raises(UserError, match="width 1048576"):
        published.network({**state, **wide}, "file")


@pytest.mark.parametrize(
    ("size", "modulation", "millions"),
    [("S", "adaln", 64.7), ("S", "single", 44.0), ("XL", "adaln", 1343.9), ("XL", "single", 903.1)],
)
def test_sizes(size, modulation, millions):
    net = MMDiT(modulation=modulation, output="adaln" * (modulation == "adaln") or "linear")
    net = net.clone(last_text_pre_only=False, **SIZES[size])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(net, 4, 768)))
    assert abs(count / 1e6 - millions) < 0.06, count
