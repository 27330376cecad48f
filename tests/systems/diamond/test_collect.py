"""Playing with a policy: against the original's loop, with a small policy of the test's own."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.systems.diamond import collect, games
from diffjax.systems.diamond.games.seats import Games

# ---- the original's policy, as a stand-in (golden/diamond_games) -----------------------------


@pytest.fixture(scope="module")
def golden(root):
    return np.load(root / "tests" / "golden" / "diamond_games" / "env_loop.npz")


@pytest.fixture(scope="module")
def weights(root):
    path = root / "tests" / "golden" / "diamond_games" / "manifest_actor_critic_tiny.json"
    made = {}
    for name, (shape, _) in json.loads(path.read_text()).items():
        random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
        w = random.standard_normal(shape).astype(np.float32)
        if w.ndim > 1:
            w *= np.float32(1 / np.sqrt(np.prod(shape[1:])))
        else:
            w = 0.1 * w + (1 if name.endswith("weight") else 0)
        made[name] = w.astype(np.float32)
    return made


def convolve(w, name, x):
    kernel = w[f"{name}.weight"]
    pad = kernel.shape[-1] // 2
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2)
    return y + w[f"{name}.bias"][:, None, None]


def normalise(w, name, x):
    groups = max(1, x.shape[1] // 32)
    parts = x.reshape(x.shape[0], groups, -1)
    parts = (parts - parts.mean(-1, keepdims=True)) / jnp.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    return (
        parts.reshape(x.shape) * w[f"{name}.weight"][:, None, None]
        + w[f"{name}.bias"][:, None, None]
    )


def stand_in(w, obs, memory):
    """The tiny actor-critic; obs float32 [N, 3, 16, 16], memory (h, c) of [N, 16]."""
    x = convolve(w, "encoder.encoder.0", obs)
    for k in (1, 3):
        name = f"encoder.encoder.{k}"
        skip = name + ".skip_projection"
        y = convolve(w, f"{name}.f.2", jax.nn.silu(normalise(w, f"{name}.f.0.norm", x)))
        x = (convolve(w, skip, x) if f"{skip}.weight" in w else x) + y
        n, c, height, width = x.shape
        x = x.reshape(n, c, height // 2, 2, width // 2, 2).max((3, 5))
    h, c = memory
    gates = x.reshape(len(x), -1) @ w["lstm.weight_ih"].T + w["lstm.bias_ih"]
    gates += h @ w["lstm.weight_hh"].T + w["lstm.bias_hh"]
    i, f, g, o = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    value = h @ w["critic_linear.weight"].T + w["critic_linear.bias"]
    return h @ w["actor_linear.weight"].T + w["actor_linear.bias"], value[:, 0], (h, c)


def pixels(levels):
    return levels.astype(np.float32) / np.float32(255) * 2 - 1


@pytest.fixture(scope="module")
def script(golden):
    """The scripted environments: (world, action) -> (world, Outcome), where world counts steps."""
    steps = range(1, 9)
    none = np.zeros_like(golden["obs0_u8"])
    finals = [golden.get(f"final_obs_u8_step{t}", none) for t in steps]
    burnins = [golden.get(f"burnin_obs_u8_step{t}", np.stack([none] * 3, 1)) for t in steps]
    table = collect.Outcome(
        pixels(golden["obs_after_step_u8"]),
        golden["rew_by_step"],
        golden["end_by_step"].astype(bool),
        golden["trunc_by_step"].astype(bool),
        pixels(np.stack(finals)),
        pixels(np.stack(burnins)),
    )
    assert (table.end | table.trunc).any(1).sum() == 4
    return lambda world, action: (world + 1, jax.tree.map(lambda x: jnp.asarray(x)[world], table))


def loss_of(found, discount=0.985, trace=0.95):
    """The original's loss of a policy, and the parts that it logs."""
    reward, end, trunc = jnp.sign(found.reward), found.end * 1.0, found.trunc * 1.0
    returns, after = [], found.bootstrap[-1]
    for t in reversed(range(len(reward))):
        mixed = (1 - trunc[t]) * (1 - trace) + trunc[t]
        now = reward[t] + discount * (1 - end[t]) * mixed * found.bootstrap[t]
        after = now + (1 - jnp.maximum(end[t], trunc[t])) * discount * trace * after
        returns.append(after)
    returns = jax.lax.stop_gradient(jnp.stack(returns[::-1]))
    log_p = jax.nn.log_softmax(found.logits)
    chosen = jnp.take_along_axis(log_p, found.action[..., None], -1)[..., 0]
    actions = -(chosen * jax.lax.stop_gradient(returns - found.value)).mean()
    entropy = -(jnp.exp(log_p) * log_p).sum(-1).mean()
    values = ((found.value - returns) ** 2).mean()
    parts = {"loss_actions": actions, "loss_values": values, "loss_entropy": -0.001 * entropy}
    return sum(parts.values()), parts


@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_calls_equal_the_original_s(golden, weights, script, gradients):
    @jax.jit
    def call(w, obs, world, memory, uniforms):
        def loss(w):
            carry, found = collect.rollout(
                functools.partial(stand_in, w), script, obs, world, memory, uniforms, unroll=True
            )
            total, parts = loss_of(found)
            return total, (carry, found, parts)

        return jax.grad(loss, has_aux=True)(w) if gradients else ({}, loss(w)[1])

    memory = (jnp.zeros((3, 16)), jnp.zeros((3, 16)))
    carry = (pixels(golden["obs0_u8"]), jnp.int32(0), memory)
    worst = {}
    for k in (0, 1):
        gradient, (carry, found, parts) = call(
            weights, *carry, jnp.asarray(golden["uniforms"][4 * k : 4 * k + 4])
        )
        found, parts, gradient = jax.device_get((found, parts, gradient))
        want = {n.split("/")[1]: golden[n] for n in golden.files if n.startswith(f"call{k}/")}
        np.testing.assert_array_equal(found.action.T, want["act"])
        np.testing.assert_array_equal(found.end.T, want["end"])
        np.testing.assert_array_equal(found.trunc.T, want["trunc"])
        np.testing.assert_array_equal(found.reward.T, want["rew"])
        pairs = {
            "logits": (found.logits.swapaxes(0, 1), want["logits"]),
            "val": (found.value.T, want["val"]),
            "val_bootstrap": (found.bootstrap.T, want["val_bootstrap"]),
        }
        pairs |= {name: (parts[name], want[f"loss_{name}"]) for name in parts}
        for name, (x, y) in pairs.items():
            worst[name] = max(worst.get(name, 0), np.abs(x - y).max() / np.abs(y).max())
        if not gradients:
            continue
        norms = [np.linalg.norm(gradient[str(n)]) for n in golden["grad_names"]]
        off = np.abs(np.array(norms) - want["grad_norm_by_name"]) / want["grad_norm_by_name"].max()
        worst["gradients"] = max(worst.get("gradients", 0), off.max())
    print({name: f"{value:.1e}" for name, value in worst.items()})
    assert worst.pop("gradients", 0) < 1e-4
    assert max(worst.values()) < 5e-5


def test_the_burn_in_carries_gradient_and_the_past_none():
    """One environment that ends at its second step; the policy's memory adds up what it sees."""

    def policy(obs, memory):
        return jnp.zeros((1, 2)), memory + obs, memory + obs

    def values(past, final, burnin, new):
        def environment(world, action):
            ends = world == 1
            obs = jnp.where(ends | (world == 2), new, past)
            out = (obs, jnp.zeros(1), ends[None], jnp.array([False]), final, burnin)
            return world + 1, collect.Outcome(*out)

        carry, found = collect.rollout(
            policy, environment, past, jnp.int32(0), jnp.zeros(1), jnp.zeros((3, 1))
        )
        return found.value[:, 0], found.bootstrap[:, 0], carry[2]

    one = jnp.ones(1)
    value, bootstrap, memory = values(one, 10 * one, jnp.array([[2.0, 3.0, 4.0]]), 20 * one)
    assert value.tolist() == [1, 2, 29]  # after the end: 2 + 3 + 4 and the new frame
    assert bootstrap.tolist() == [2, 12, 49]  # the final frame on top of 2; the last is looked at,
    assert memory.tolist() == [29]  # and not remembered
    third = lambda *x: values(*x)[0][2]
    gradient = jax.grad(third, (0, 1, 2, 3))(one, one, jnp.ones((1, 3)), one)
    assert [g.tolist() for g in gradient] == [[0], [0], [[1, 1, 1]], [1]]
    later = lambda *x: values(*x)[1].sum()
    gradient = jax.grad(later, (0, 1, 2, 3))(one, one, jnp.ones((1, 3)), one)
    assert not any(g.any() for g in gradient)  # a bootstrap value is a number


# ---- drawing actions -------------------------------------------------------------------------


def test_actions_follow_their_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    uniform = (jnp.arange(1000) + 0.5) / 1000
    found = np.bincount(collect.choose(jnp.broadcast_to(logits, (1000, 3)), uniform))
    np.testing.assert_array_equal(found, [500, 300, 200])
    cold = collect.choose(jnp.broadcast_to(logits, (1000, 3)), uniform, 0.5)
    squares = np.array([0.25, 0.09, 0.04])
    np.testing.assert_allclose(np.bincount(cold) / 1000, squares / squares.sum(), atol=1e-3)


def test_edges_of_the_draw():
    logits = jnp.zeros((3, 7))
    found = collect.choose(logits, jnp.array([0.0, 0.5, 1 - 2**-24]))
    assert found.tolist() == [0, 3, 6] and found.dtype == jnp.int32
    # A forbidden action is never drawn, though its cumulated probability is 0.
    assert collect.choose(jnp.array([[-jnp.inf, 0.0]]), jnp.zeros(1)).tolist() == [1]


def test_memory_is_forgotten_by_row():
    memory = {"h": jnp.ones((3, 2)), "n": jnp.ones((3, 2, 2))}
    found = collect.forget(memory, jnp.array([True, False, True]))
    assert found["h"].sum(-1).tolist() == [0, 2, 0] and found["n"].sum((1, 2)).tolist() == [0, 4, 0]


def test_draws_depend_on_game_and_step_alone():
    game, played = np.array([4, 7]), np.array([10, 0])
    uniform, _, action = collect.draws(1, game, played, 3)
    alone, _, one = collect.draws(1, game[1:], played[1:], 3)
    assert uniform[1] == alone[0] and action[1] == one[0]
    table = np.array([collect.draws(1, np.array([0]), np.array([t]), 3)[2][0] for t in range(600)])
    assert np.bincount(table).min() > 150 and set(table) == {0, 1, 2}


# ---- collecting ------------------------------------------------------------------------------

BALL = functools.partial(games.make, "ball", 8)


@jax.jit
def counting(obs, memory):
    """A policy whose memory counts the frames since it was zero, and that goes left or right."""
    count = memory["count"] + 1
    logits = jnp.stack([jnp.zeros(len(obs)), jnp.sin(count / 5), jnp.cos(count / 5)], -1)
    return logits, count, {"count": count}


def zero(n):
    return {"count": jnp.zeros(n)}


def test_collection_is_what_the_games_did():
    with Games(BALL, 2, seed=3, life_ends=True) as seats:
        found, memory = collect.collect(seats, counting, zero(2), 120, seed=5)
    with Games(BALL, 2, seed=3, life_ends=True) as again:
        for t in range(120):
            np.testing.assert_array_equal(again.obs, found.obs[t])
            np.testing.assert_array_equal(again.game, found.game[t])
            out = again.step(found.act[t])
            np.testing.assert_array_equal(out.reward, found.rew[t])
            np.testing.assert_array_equal(out.end, found.end[t])
    assert found.end.sum() >= 4 and set(found.final) == {
        (t, n) for t, n in np.argwhere(found.end | found.trunc).tolist()
    }
    since = 119 - np.array([np.flatnonzero(found.end[:, n])[-1] for n in range(2)])
    np.testing.assert_array_equal(memory["count"], since)  # zero after an end, one more a step


def test_collection_in_parts_is_the_same():
    with Games(BALL, 2, seed=3) as seats:
        whole, _ = collect.collect(seats, counting, zero(2), 60, seed=5, epsilon=0.3)
    with Games(BALL, 2, seed=3) as seats:
        first, memory = collect.collect(seats, counting, zero(2), 25, seed=5, epsilon=0.3)
        second, _ = collect.collect(seats, counting, memory, 35, seed=5, epsilon=0.3)
    for a, b, c in zip(whole[:-1], first[:-1], second[:-1], strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))


def test_epsilon_is_drawn_once_for_all_seats():
    def certain(obs, memory):
        return jnp.log(jnp.eye(3)[jnp.zeros(len(obs), int)]), jnp.zeros(len(obs)), memory

    with Games(BALL, 6, seed=0) as seats:
        found, _ = collect.collect(seats, certain, {}, 300, epsilon=0.3)
    explored = (found.act != 0).any(1)
    assert 0.2 < explored.mean() < 0.4  # five of six seats would hide it if each drew its own
    chosen = np.bincount(found.act[explored].ravel(), minlength=3) / found.act[explored].size
    assert np.abs(chosen - 1 / 3).max() < 0.08


def test_games_are_scored_whatever_is_played_beside_them():
    with Games(BALL, 1, seed=2) as seats:
        alone = collect.play_games(seats, counting, zero(1), 5, seed=1)
    with Games(BALL, 3, seed=2) as seats:
        together = collect.play_games(seats, counting, zero(3), 5, seed=1)
    assert alone == together and [p.game for p in alone] == [0, 1, 2, 3, 4]
    assert all(p.length > 10 and p.score <= 1000 for p in alone)


@pytest.mark.parametrize(
    "words", [{"epsilon": 1.5}, {"epsilon": float("nan")}, {"temperature": 0.0}, {"steps": 0}]
)
def test_bad_settings(words):
    words = {"steps": 3} | words
    with Games(BALL, 1) as seats, pytest.raises(UserError, match="collection: epsilon"):
        collect.collect(seats, counting, zero(1), **words)
