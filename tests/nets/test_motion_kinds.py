"""Networks of motions from a config: every kind, its sharding and rounding, and refusals."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import drawn
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.errors import UserError
from diffjax.nets.attention import implementation_for
from diffjax.nets.motion_transformer import MotionTransformer
from diffjax.weights import trees

GRU = {"kind": "motion_gru", "width": 16, "layers": 1, "dropout": 0.1, "dtype": "bfloat16"}
ENCODER = {**GRU, "kind": "trans_enc", "heads": 4, "ff": 32, "mask_frames": True}
ENCODER["attention"] = "auto"
DECODER = {**ENCODER, "kind": "trans_dec", "emb_trans_dec": True, "emb_policy": "concat"}
ALL = {config["kind"]: config for config in (GRU, ENCODER, DECODER)}


@pytest.mark.parametrize("kind", ALL)
def test_a_kind(kind):
    config = ConfigDict(ALL[kind])
    net = nets.make_motion(config, features=7, condition="action", num_actions=3)
    assert net.dtype == jnp.bfloat16 and net.num_actions == 3
    args = (jnp.ones((2, 5, 7)), jnp.arange(2), jnp.asarray([1, 3]))
    params = trees.unflatten(drawn(net, *args))
    apply = jax.jit(net.apply)
    out = apply({"params": params}, *args)
    assert out.shape == (2, 5, 7) and out.dtype == jnp.float32
    rounded = nets.rounded(config, params)
    np.testing.assert_array_equal(apply({"params": rounded}, *args), out)
    kinds = {path: leaf.dtype for path, leaf in trees.flatten(rounded).items()}
    assert kinds["input_process/poseEmbedding/kernel"] == jnp.bfloat16
    assert kinds["embed_timestep/time_embed/0/kernel"] == jnp.float32
    for path, leaf in trees.flatten(params).items():
        specs = [spec for rule, spec in nets.sharding(config) if re.search(rule, path)]
        assert specs or leaf.ndim == 1 or path == "embed_action/action_embedding"
        assert all(len(spec) <= leaf.ndim for spec in specs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "dit"}, "unknown config.network.kind 'dit'"),
        ({"width": 20}, "config.network.width 20: a multiple of 8"),
        ({"heads": 0}, "config.network.heads 0"),
        ({"dropout": 1.0}, "config.network.dropout 1.0"),
        ({"attention": "flash"}, "unknown config.network.attention 'flash'"),
        ({"emb_policy": "sum"}, "unknown config.network.emb_policy 'sum'"),
        ({"mask_frames": 1}, "config.network.mask_frames 1"),
    ],
)
def test_configs_that_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        nets.make_motion(ConfigDict({**DECODER, **change}), features=7, condition="text")


def test_where_attention_is_cudnn(monkeypatch):
    of = functools.partial(implementation_for, "auto")
    assert of(jnp.bfloat16, 64) == "einsum"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, wanted in (("9.0", "cudnn"), ("7.5", "einsum"), ("gfx90a", "einsum")):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert of(jnp.bfloat16, 64) == wanted
        assert of(jnp.float32, 64) == of(jnp.bfloat16, 12) == of(jnp.bfloat16, 136) == "einsum"
        assert implementation_for("xla", jnp.float32, 7) == "xla"


def test_dropout_of_the_attention_is_a_field():
    config = ConfigDict({**ENCODER, "attention_dropout": 0.0})
    assert nets.make_motion(config, features=7, condition="text").attention_dropout == 0
    config.attention_dropout = 1.0
    with pytest.raises(UserError, match="config.network.attention_dropout 1.0"):
        nets.make_motion(config, features=7, condition="text")


def test_more_that_is_refused():
    config = ConfigDict({k: v for k, v in DECODER.items() if k != "emb_policy"})
    with pytest.raises(UserError, match="lacks the field 'emb_policy'"):
        nets.make_motion(config, features=7, condition="text")
    with pytest.raises(UserError, match="unknown condition 'sound'"):
        nets.make_motion(ConfigDict(DECODER), features=7, condition="sound")
    with pytest.raises(UserError, match="unknown config.network.kind 'trans_enc'"):
        nets.make(ConfigDict(ENCODER), channels=3, num_classes=0, shape=(8, 8, 3))
    net = MotionTransformer(7, "none", attention="flash")
    with pytest.raises(UserError, match="unknown attention 'flash'"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 7)), jnp.zeros(1))
