"""DIAMOND's networks against the released code's arrays, and what those arrays do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diamond_original import load, manifest, near, network, ours, rule, state_of, theirs
from ml_collections import ConfigDict

from diffjax import nets
from diffjax.errors import UserError
from diffjax.nets import diamond_blocks as blocks
from diffjax.nets.actor_critic import ActorCritic
from diffjax.nets.diamond_unet import DiamondUNet, merged
from diffjax.nets.edm_blocks import FourierEmbedding
from diffjax.nets.reward_end import RewardEnd
from diffjax.systems.diamond import published
from diffjax.weights import trees

F32 = jnp.float32
BLOCKS = {
    "groupnorm80": blocks.Norm(F32),
    "adagn64": blocks.AdaptiveNorm(F32),
    "attn32": blocks.SelfAttention(F32),
    "resblock_proj_attn": blocks.ResBlock(64, True, F32),
    "resblock_plain": blocks.ResBlock(32, False, F32),
    "downsample_odd": blocks.Downsample(F32),
    "upsample": blocks.Upsample(F32),
    "smallres": blocks.SmallResBlock(40, F32),
    "smallres_same": blocks.SmallResBlock(40, F32),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name):
    g = load("blocks")
    params = published.to_params(state_of(manifest("blocks")[name]), name)
    told = [g[f"{name}/in1"]] if f"{name}/in1" in g else []
    run = jax.jit(BLOCKS[name].apply)
    out = run({"params": trees.unflatten(params)}, ours(g[f"{name}/in0"]), *told)
    near(theirs(out), g[f"{name}/out"], 2e-5)


def test_fourier_features():
    g = load("blocks")
    params = {"freqs": rule("noise_emb.weight", (1, 8))[0]}
    net = FourierEmbedding(16, scale=1.0)
    near(net.apply({"params": params}, g["fourier/in0"]), g["fourier/out"], 2e-5)


@pytest.mark.parametrize("size", [pytest.param("even", marks=pytest.mark.slow), "odd"])
def test_denoiser(size):
    g = {k.removeprefix(f"{size}/"): v for k, v in load("inner_model_tiny").items() if size in k}
    net, params = network("denoiser")
    run = jax.jit(lambda *args: net.apply({"params": params}, *args, capture_intermediates=True))
    out, state = run(ours(g["x"]), ours(g["obs"]), g["c_noise"], g["act"])
    near(theirs(out), g["out"], 5e-5)
    inside = state["intermediates"]
    near(inside["cond_proj_2"]["__call__"][0], g["cond"], 5e-5)
    made = inside["unet"]
    for stage, name in (
        ("d0", "d_blocks_0"),
        ("d1", "d_blocks_1"),
        ("mid", "mid_blocks"),
        ("u0", "u_blocks_0"),
        ("u1", "u_blocks_1"),
    ):
        near(statistics(made[name]["__call__"][0][-1]), g[f"stat_{stage}"], 5e-5)
    near(statistics(inside["conv_in"]["__call__"][0]), g["stat_conv_in"], 5e-5)


def statistics(x):
    x = np.asarray(x, np.float64)
    return [x.mean(), x.std(), np.abs(x).max(), x.flat[0], x.flat[-1]]


def test_reward_and_end():
    g = load("rew_end_tiny")
    net, params = network("rew_end_model")
    run = jax.jit(lambda *args: net.apply({"params": params}, *args))
    obs, act = ours(g["obs"]), g["act"]
    rew, end, state = run(obs[:, :5], act[:, :5], obs[:, 1:6])
    near(rew, g["logits_rew"], 5e-5)
    near(end, g["logits_end"], 5e-5)
    check_state(state, g, "")


@pytest.mark.slow
def test_reward_and_end_go_on():
    g = load("rew_end_tiny")
    net, params = network("rew_end_model")
    run = jax.jit(lambda *args: net.apply({"params": params}, *args))
    obs, act = ours(g["obs"]), g["act"]
    _, _, state = run(obs[:, :2], act[:, :2], obs[:, 1:3])
    check_state(state, g, "after2/")
    rew, end, state = run(obs[:, 2:3], act[:, 2:3], obs[:, 3:4], state)
    near(rew, g["step3/logits_rew"], 5e-5)
    near(end, g["step3/logits_end"], 5e-5)
    check_state(state, g, "step3/")


def check_state(state, g, prefix):
    for ours_, name in zip(state, ("hx", "cx")):
        near(ours_, g[prefix + name].reshape(ours_.shape), 5e-5)


def test_actor_critic():
    g = load("actor_critic_tiny")
    net, params = network("actor_critic")
    run = jax.jit(lambda *args: net.apply({"params": params}, *args, capture_intermediates=True))
    state = blocks.no_state(2, 16)
    for t in range(3):
        (logits, value, state), seen = run(ours(g["obs"][:, t]), state)
        near(logits, g[f"t{t}/logits"], 5e-5)
        near(value, g[f"t{t}/val"], 5e-5)
        check_state(state, g, f"t{t}/")
        if t == 0:
            made = seen["intermediates"]["encoder"]["__call__"][0]
            near(theirs(made), g["encoder_t0"], 5e-5)


@pytest.mark.slow
def test_merged_layers():
    """One layer for all norms computes the same."""
    g = load("inner_model_tiny")
    net, params = merged(*network("denoiser"))
    assert not [path for path in trees.flatten(params) if "/linear/" in path]
    args = ours(g["even/x"]), ours(g["even/obs"]), g["even/c_noise"], g["even/act"]
    near(theirs(jax.jit(net.apply)({"params": params}, *args)), g["even/out"], 5e-5)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
    trees.check(trees.flatten(params), shapes, "merged")
    half, rounded = merged(network("denoiser")[0].clone(dtype=jnp.bfloat16), network("denoiser")[1])
    kinds = {path: leaf.dtype for path, leaf in trees.flatten(rounded).items()}
    assert kinds["conv_in/kernel"] == kinds["conv_out/bias"] == jnp.bfloat16
    assert kinds["merged/kernel"] == kinds["norm_out/norm/scale"] == jnp.float32
    near(theirs(jax.jit(half.apply)({"params": rounded}, *args)), g["even/out"], 3e-2)


@pytest.mark.slow
def test_initialisation():
    """Zero layers are zero, so that the first policy is uniform and F is a constant."""
    small = {"depths": (1, 1), "channels": (32, 32), "attention": (False, False)}
    net = DiamondUNet(8, num_actions=3, **small)
    x = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 6)), jnp.zeros(1), jnp.zeros((1, 2), int)
    params = trees.flatten(jax.jit(net.init)(jax.random.key(0), *x)["params"])
    last = "unet/mid_blocks/resblocks_0/"
    zero = ["conv_out/kernel", f"{last}conv2/kernel", f"{last}attn/out_proj/kernel"]
    for path in [*zero, f"{last}attn/out_proj/bias"]:
        assert not np.any(params[path]), path
    assert 0 < np.abs(params["conv_out/bias"]).max() <= (9 * 32) ** -0.5
    assert 0.9 * 288**-0.5 < np.abs(params[f"{last}conv1/kernel"]).max() <= 288**-0.5
    down = np.asarray(params["unet/downsamples_1/conv/kernel"]).reshape(-1, 32)
    np.testing.assert_allclose(down.T @ down, np.eye(32), atol=1e-5)
    obs = jnp.zeros((1, 1, 4, 4, 3))
    reward = RewardEnd(3, 16, 8, **small)
    shapes = jax.eval_shape(reward.init, jax.random.key(0), obs, jnp.zeros((1, 1), int), obs)
    assert "head_2/bias" not in trees.flatten(shapes["params"])
    policy = ActorCritic(3, 16, (32,), (True,))
    params = jax.jit(policy.init)(jax.random.key(0), obs[0])["params"]
    logits, value, _ = policy.apply({"params": params}, obs[0])
    assert not logits.any() and not value.any()
    lstm = params["lstm"]
    np.testing.assert_array_equal(
        lstm["ih"]["bias"].reshape(4, 16), np.eye(4)[1][:, None] * np.ones(16)
    )
    np.testing.assert_allclose(lstm["hh"]["kernel"] @ lstm["hh"]["kernel"].T, np.eye(16), atol=1e-5)


@pytest.mark.slow
def test_half_precision():
    g = load("inner_model_tiny")
    net, params = network("denoiser")
    args = ours(g["odd/x"]), ours(g["odd/obs"]), g["odd/c_noise"], g["odd/act"]
    out = jax.jit(net.clone(dtype=jnp.bfloat16).apply)({"params": params}, *args)
    assert out.dtype == jnp.float32
    near(theirs(out), g["odd/out"], 0.05)
    net, params = network("actor_critic")
    g = load("actor_critic_tiny")
    half = jax.jit(net.clone(dtype=jnp.bfloat16).apply)
    logits, value, state = half({"params": params}, ours(g["obs"][:, 0]))
    assert logits.dtype == value.dtype == state[0].dtype == state[1].dtype == jnp.float32
    near(logits, g["t0/logits"], 0.05)
    net, params = network("rew_end_model")
    g = load("rew_end_tiny")
    half = jax.jit(net.clone(dtype=jnp.bfloat16).apply)
    obs = ours(g["obs"])
    rew, _, state = half({"params": params}, obs[:, :5], g["act"][:, :5], obs[:, 1:6])
    assert rew.dtype == state[0].dtype == jnp.float32
    near(rew, g["logits_rew"], 0.05)


LEVELS = {"depths": [1, 2], "channels": [32, 64], "attention": [False, True], "dtype": "float32"}
KINDS = {
    "diamond_unet": {"cond_channels": 32, "told_past_noise": False, **LEVELS},
    "reward_end": {"cond_channels": 16, "lstm_dim": 16, **LEVELS, "depths": [1, 1]},
    "actor_critic": {
        "lstm_dim": 16,
        "channels": [32, 64],
        "down": [True, True],
        "dtype": "bfloat16",
    },
}


def made(kind, **changed):
    given = {"kind": kind, **KINDS.get(kind, {}), **changed}
    return nets.make_world(ConfigDict(given), num_actions=5)


def test_made_from_a_config():
    assert made("diamond_unet") == network("denoiser").net
    assert made("reward_end") == network("rew_end_model").net
    assert made("actor_critic") == network("actor_critic").net.clone(dtype=jnp.bfloat16)
    for kind in KINDS:
        assert nets.sharding({"kind": kind}) == blocks.SHARDING
    params = {"conv": {"kernel": jnp.zeros((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    half = nets.rounded({"kind": "diamond_unet", "dtype": "bfloat16"}, params)
    assert half["conv"]["kernel"].dtype == half["conv"]["bias"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("diamond_net", {}, "network.kind 'diamond_net' .did you mean 'diamond_unet'"),
        ("diamond_unet", {"cond_channels": 20}, "cond_channels 20: a multiple of 8"),
        ("diamond_unet", {"depths": [1]}, r"depths \(1,\) and channels \(32, 64\): one entry"),
        ("diamond_unet", {"attention": [1, 0]}, "attention 1: True or False"),
        ("diamond_unet", {"attention": "ab"}, "attention 'ab': a tuple of True and False"),
        ("reward_end", {"channels": [32, 100]}, "layers of 100 channels"),
        ("actor_critic", {"down": [True]}, r"down \(True,\) and channels"),
        ("actor_critic", {"lstm_dim": 0}, "lstm_dim 0: a whole number above 0"),
    ],
)
def test_configs_that_are_refused(kind, changed, message):
    with pytest.raises(UserError, match=message):
        made(kind, **changed)
