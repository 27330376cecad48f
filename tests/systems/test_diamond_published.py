"""DIAMOND's published agents: names and sizes, forwards at full size, refusals."""

import functools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diamond_original import (
    GOLDEN,
    load,
    manifest,
    near,
    network,
    ours,
    stacked,
    state_of,
    theirs,
)
from relay_checkpoint import Tensor, write

from diffjax.errors import UserError
from diffjax.nets import actor_critic, diamond_unet, reward_end
from diffjax.nets.diamond_blocks import SHARDING
from diffjax.systems.diamond import published
from diffjax.systems.diamond.denoiser import Denoiser
from diffjax.weights import trees

ATARI = ("denoiser", "rew_end_model", "actor_critic")


def shapes_of(names):
    """A state dict of zeros that take no memory."""
    return {n: np.broadcast_to(np.float32(0), shape) for n, (shape, _) in names.items()}


def blank(actions=4):
    """A published Breakout agent without its weights, perhaps for another number of actions."""
    state = {}
    for part in ATARI:
        for name, array in shapes_of(manifest(f"{part}_atari_breakout")).items():
            if "act_emb" in name or "actor_linear" in name:
                array = np.broadcast_to(np.float32(0), (actions, *array.shape[1:]))
            state[f"{part}.{name}"] = array
    return state


# What every weight of the agents is, and no other: names of both sides, and the settings.
@pytest.mark.parametrize(
    ("actions", "count"),
    [(4, 13_536_456), (3, 13_535_751), (18, 13_546_326)],
)
def test_names_and_sizes(actions, count):
    agent = published.agent_of(blank(actions), "agent")
    net = agent.denoiser.net
    assert net == diamond_unet.DiamondUNet(**diamond_unet.ATARI, num_actions=actions)
    assert agent.rew_end_model.net == reward_end.RewardEnd(actions, **reward_end.ATARI)
    assert agent.actor_critic.net == actor_critic.ActorCritic(actions, **actor_critic.ATARI)
    assert agent.num_actions == actions and agent.upsampler is None
    sizes = [trees.flatten(getattr(agent, part).params) for part in ATARI]
    total = sum(a.size for part in sizes for path, a in part.items() if "freqs" not in path)
    assert total == count


def test_every_kernel_has_a_sharding_of_its_rank():
    agent = published.agent_of(blank(), "agent")
    for part in ATARI:
        for path, array in trees.flatten(getattr(agent, part).params).items():
            specs = [spec for rule, spec in SHARDING if re.search(rule, path)]
            wanted = [array.ndim] if path.endswith("kernel") else []
            assert [len(spec) for spec in specs[:1]] == wanted, path


@pytest.mark.slow
def test_csgo():
    for part, settings, count in (
        ("denoiser", diamond_unet.CSGO, 330_489_219),
        ("upsampler", diamond_unet.CSGO_UPSAMPLER, 51_149_187),
    ):
        state = shapes_of(manifest(f"csgo_{part}"))
        params = published.to_params(state, "csgo")
        net, inputs = published.MAKERS[part](params, "csgo")
        assert net == diamond_unet.DiamondUNet(**settings)
        trees.check(params, jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"], part)
        assert sum(a.size for path, a in params.items() if "freqs" not in path) == count


def test_there_and_back():
    for file in GOLDEN.glob("manifest_*.json.gz"):
        name = file.name.removeprefix("manifest_").removesuffix(".json.gz")
        if name == "blocks" or "csgo_" in name and "tiny" not in name:
            continue
        kind = next(k for k in (*ATARI, "upsampler", "rew_end") if k in name)
        kind = "rew_end_model" if kind == "rew_end" else kind
        state = state_of(manifest(name)) if "tiny" in name else shapes_of(manifest(name))
        back = published.from_params(published.to_params(state, name), kind)
        assert back.keys() == state.keys()
        for key, array in state.items():
            np.testing.assert_array_equal(back[key], array)


def draw(tag, *shape):
    return np.random.RandomState(zlib.crc32(tag.encode()) & 0x7FFFFFFF)  # noqa: NPY002


def image(tag, *shape):
    return draw(tag).randint(0, 256, shape).astype(np.float32) / 255 * 2 - 1


def normal(tag, *shape):
    return draw(tag).standard_normal(shape).astype(np.float32)


@functools.cache
def full(part):
    return published.network_of(state_of(manifest(f"{part}_atari_breakout")), part, part)


def check_summary(got, g, name):
    got = np.asarray(got, np.float64)
    near([got.mean(), got.std()], g[f"{name}/mean_std"], 1e-4)
    near(got.ravel()[:64], g[f"{name}/first64"], 1e-4)


def test_full_size_policy():
    g = load("full_size")
    net, params = full("actor_critic")
    obs = ours(image("full", 1, 4, 3, 64, 64))
    logits, value, state = jax.jit(net.apply)({"params": params}, obs[:, 0])
    near(logits, g["ac/logits"], 1e-4)
    near(value, g["ac/val"], 1e-4)
    check_summary(state[0], g, "ac/hx")
    check_summary(state[1], g, "ac/cx")


@pytest.mark.slow
def test_full_size_reward_and_end():
    g = load("full_size")
    net, params = full("rew_end_model")
    obs, act = ours(image("full", 1, 4, 3, 64, 64)), g["act"][:, :3]
    rew, end, state = jax.jit(net.apply)({"params": params}, obs[:, :3], act, obs[:, 1:])
    near(rew, g["rew/logits_rew"], 1e-4)
    near(end, g["rew/logits_end"], 1e-4)
    check_summary(state[0], g, "rew/hx")
    check_summary(state[1], g, "rew/cx")


@pytest.mark.slow
def test_full_size_denoiser():
    g = load("full_size")
    net, params = full("denoiser")
    x, past = ours(normal("full:x", 1, 3, 64, 64)), stacked(image("full", 1, 4, 3, 64, 64))
    run = jax.jit(lambda *args: net.apply({"params": params}, *args))
    out = run(x, past / 0.5, jnp.float32([0.4]), g["act"])
    check_summary(theirs(out), g, "denoiser_inner_model")
    denoised = theirs(Denoiser(net)(params, x, jnp.float32(1.5), past, g["act"]))
    off = np.abs(denoised.ravel()[:64] - g["denoiser_denoise_sigma1.5/first64"])
    assert off.max() < 0.00785 and np.mean(off > 1e-6) < 0.02
    near([denoised.mean(), denoised.std()], g["denoiser_denoise_sigma1.5/mean_std"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["upsampler", "denoiser"])
def test_full_size_csgo(part):
    g = load("csgo_full_size")
    net, params = published.network_of(state_of(manifest(f"csgo_{part}")), part, part)
    if part == "denoiser":
        x, past = normal("csfull:x", 1, 3, 30, 56), image("csfull", 1, 4, 3, 30, 56)
        told, act = jnp.float32([-1.3]), jnp.asarray(g["act"], jnp.float32)
    else:
        x, past = normal("csfullu:x", 1, 3, 150, 280), image("csfullu", 1, 2, 3, 150, 280)
        told, act = jnp.zeros(1), None
    run = jax.jit(lambda p, *args: net.apply({"params": p}, *args))
    out = run(params, ours(x), stacked(past) / 0.5, jnp.float32([0.2]), act, told)
    check_summary(theirs(out), g, part)


# ---- what is refused -----------------------------------------------------------------------------


def changed(**given):
    """A blank agent, changed: __ stands for "."; None leaves a weight out."""
    state = {**blank(), **{name.replace("__", "."): array for name, array in given.items()}}
    return {name: array for name, array in state.items() if array is not None}


ZERO = np.zeros(1, np.float32)
HUGE = np.broadcast_to(np.float32(0), (1, 1 << 17))
BLOCK = "denoiser__inner_model__unet__d_blocks__{}__resblocks__0__conv1__weight"
DEEP = {BLOCK.format(i): np.zeros((64, 64, 3, 3), np.float32) for i in range(4, 12)}
LONG = {
    BLOCK.replace("__0__conv1", f"__{i}__conv1").format(0): np.zeros((64, 64, 3, 3), np.float32)
    for i in range(20)
}
BAD = {
    "not an agent": ({}, "no state dict of an agent"),
    "a list": ([ZERO], "no state dict of an agent"),
    "another name": (changed(optimizer__w=ZERO), "'optimizer.w' is no weight of an agent's"),
    "not an array": (changed(denoiser__x="words"), "'denoiser.x' is no weight"),
    "a number as a name": ({3: ZERO}, "'3' is no weight"),
    "whole numbers": (changed(denoiser__x=np.zeros(1, int)), "denoiser: 'x' is no weight"),
    "no denoiser": ({"actor_critic.x": ZERO}, "no denoiser in it"),
    "left over": (changed(denoiser__inner_model__x=ZERO), "1 weights that the network lacks"),
    "missing": (
        changed(denoiser__inner_model__conv_in__bias=None),
        "agent: denoiser: no weights named 'conv_in/bias'",
    ),
    "no conv_out": (changed(denoiser__inner_model__conv_out__weight=None), "'conv_out/kernel'"),
    "another shape": (
        changed(denoiser__inner_model__conv_in__bias=ZERO),
        "'conv_in/bias' has shape .1,., the network wants .64,.",
    ),
    "huge": (changed(rew_end_model__act_emb__weight=HUGE), r"'act_emb/embedding' has shape \(1, 1"),
    "no levels": (
        {"denoiser.x": ZERO, "actor_critic.lstm.weight_hh": ZERO},
        "denoiser: no weights named",
    ),
    "an LSTM of no square": (
        changed(actor_critic__lstm__weight_ih=np.zeros((2048, 64 * 5), np.float32)),
        "its LSTM takes 5 pixels of 64 channels",
    ),
    "twice": (
        changed(denoiser__inner_model__conv_in__kernel=ZERO),
        "two arrays for 'conv_in/kernel'",
    ),
    "channels of no group": (
        changed(**{BLOCK.format(0): np.zeros((100, 64, 3, 3), np.float32)}),
        "its weights' shapes are of no network",
    ),
    "more actions told than there is room": (
        changed(denoiser__inner_model__act_emb__0__weight=np.zeros((4, 512), np.float32)),
        "sees 12 channels of the past, told 0 actions",
    ),
    "no channels": (
        changed(rew_end_model__encoder__conv_in__weight=np.zeros((32, 1, 3, 3), np.float32)),
        "its weights' shapes are of no network",
    ),
    "other actions": (
        changed(rew_end_model__act_emb__weight=np.zeros((6, 128), np.float32)),
        r"its networks know \[4, 6\] actions",
    ),
    "many blocks": (changed(**LONG), "a network of 4 levels, of .20, 2, 2, 2. blocks"),
    "many levels": (changed(**DEEP), "a network of 12 levels"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files(what):
    tree, message = BAD[what]
    with pytest.raises(UserError, match=message) as raised:
        published.agent_of(tree, "agent")
    assert "\n" not in str(raised.value)


def test_a_file(tmp_path):
    """A checkpoint of PyTorch's with tiny networks, read without it."""
    tiny = {"denoiser": "denoiser", "rew_end_model": "rew_end", "actor_critic": "actor_critic"}
    state = {
        f"{part}.{name}": Tensor(array)
        for part, file in tiny.items()
        for name, array in state_of(manifest(f"{file}_tiny")).items()
    }
    write(tmp_path / "Tiny.pt", state)
    agent = published.read(tmp_path / "Tiny.pt")
    for part in tiny:
        net, params = network(part)
        assert getattr(agent, part).net == net
        jax.tree.map(np.testing.assert_array_equal, getattr(agent, part).params, params)
    back = published.state_dict({part: getattr(agent, part).params for part in tiny})
    assert back.keys() == state.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name].array)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such weights file"):
        published.read(tmp_path / "Breakout.pt")
    (tmp_path / "Pong.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="Pong.pt"):
        published.read(tmp_path / "Pong.pt")
