"""DIAMOND's imagined worlds and its policy at work, against the released code's arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diamond_original import floats, load, near, network, ours, theirs

from diffjax.nets.diamond_blocks import no_state
from diffjax.systems.diamond import imagination, optimizers, published, rollout
from diffjax.systems.diamond.denoiser import Denoiser
from diffjax.systems.diamond.imagination import Imagination, Learner, Learning
from diffjax.weights import trees


def levels(u8):
    """(..., C, H, W) uint8 -> [..., H, W, C]."""
    return jnp.asarray(np.moveaxis(u8, -3, -1))


@pytest.fixture(scope="module")
def world():
    """(Imagination, {network: params}) of the tiny networks, horizon 3, without the quantiser."""
    denoiser, of_denoiser = network("denoiser")
    reward, of_reward = network("rew_end_model")
    made = Imagination(Denoiser(denoiser, quantiser="none"), reward, horizon=3)
    return made, {"denoiser": of_denoiser, "rew_end_model": of_reward}


@pytest.fixture(scope="module")
def starts(world):
    g, (made, models) = load("world_model_env"), world
    preload = jax.jit(lambda p, obs, act: made.preload(p, obs, act))
    return preload(models["rew_end_model"], levels(g["init_obs_u8"]), g["init_act"])


def test_world(world, starts):
    g, (made, models) = load("world_model_env"), world
    state = made.reset(starts, 2)
    near(theirs(state.obs[:, -1]), g["reset_obs"], 1e-6)
    step = jax.jit(made.step)
    for t in range(5):
        start, (reward, end) = ours(g["noise"][t]), g["uniforms"][2 * t : 2 * t + 2, :, 0]
        draws = imagination.Draws(start, reward, end)
        state, out = step(models, starts, state, g["act"][t].astype(np.int32), draws)
        want = {k.removeprefix(f"t{t}/"): v for k, v in g.items() if k.startswith(f"t{t}/")}
        near(theirs(out.obs), want["obs"], 1e-4)
        for name in ("rew", "end", "trunc"):
            np.testing.assert_array_equal(getattr(out, name), want[name])
        for got, name in zip(state.state, ("hx", "cx")):
            near(got, want[name][0], 1e-4)
        np.testing.assert_array_equal(state.length, want["ep_len"])
        np.testing.assert_array_equal(state.act, want["act_buffer"])
        dead = np.asarray(out.end | out.trunc)
        if dead.any():
            near(theirs(out.final)[dead], want["final_observation"], 1e-4)
            near(out.burn_in[dead], floats(want["burnin_obs_u8"]), 1e-6)
    assert state.cursor == 7


def test_nothing_of_a_step_is_drawn_twice():
    keys = imagination.split(jax.random.key(0), 400)
    drawn = imagination.draw(keys, (2, 2, 3))
    normals = [np.ravel(a) for a in (drawn.start, drawn.churn(0), drawn.churn(1))]
    assert np.abs(np.corrcoef(normals) - np.eye(3)).max() < 0.1
    assert np.abs(np.corrcoef(drawn.reward, drawn.end)[0, 1]) < 0.2
    alone = imagination.draw(keys[7:8], (2, 2, 3))
    np.testing.assert_array_equal(drawn.start[7], alone.start[0])
    assert drawn.reward[7] == alone.reward[0] and drawn.end[7] == alone.end[0]


def test_starts_run_out(world, starts):
    """Where fewer are left than are wanted, the rest is dropped and the first come again."""
    made, _ = world
    state = made.reset(starts, 2)._replace(cursor=jnp.int32(7))
    one = imagination.begin_again(state, starts, jnp.asarray([False, True]))
    assert one.cursor == 8
    np.testing.assert_array_equal(one.act[1], starts.act[7])
    np.testing.assert_array_equal(one.obs[0], state.obs[0])
    two = imagination.begin_again(state, starts, jnp.asarray([True, True]))
    assert two.cursor == 2
    np.testing.assert_array_equal(two.act, starts.act[:2])


@pytest.mark.slow
def test_draws_do_not_depend_on_the_batch():
    key = jax.random.key(3)

    @functools.partial(jax.jit, static_argnums=0)
    def drawn(batch):
        made = imagination.draw(imagination.split(key, batch), (2, 2, 3))
        return [*made[:3], made.churn(0), made.churn(4)]

    few, many = drawn(2), drawn(5)
    for a, b in zip(few, many):
        np.testing.assert_array_equal(a, b[:2])
    start, reward, end, *churn = few
    assert reward[0] != end[0] and (start != churn[0]).all() and (churn[0] != churn[1]).all()


def test_categorical():
    u = (jnp.arange(10_000) + 0.5) / 10_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.2, 0.5, 0.3])), (10_000, 3))
    assert jnp.bincount(rollout.categorical(logits, u)).tolist() == [2000, 5000, 3000]
    assert rollout.categorical(jnp.full((1, 5), 30.0), jnp.float32([0.99999994])) == 4


def scripted(g):
    """(k-th step's Outcome of three environments whatever the actions, how many steps)."""
    steps, frames = len(g["obs_after_step_u8"]), floats(g["obs_after_step_u8"])
    blank = np.zeros((3, 3, 3, 16, 16), np.uint8)
    given = lambda name, like: floats(
        np.stack([g.get(f"{name}_u8_step{t + 1}", like) for t in range(steps)])
    )
    final, burn_in = given("final_obs", blank[0]), given("burnin_obs", blank)
    rew, end, trunc = (jnp.asarray(g[f"{k}_by_step"]) for k in ("rew", "end", "trunc"))
    out = rollout.Outcome(frames, rew, end > 0, trunc > 0, final, burn_in)
    return lambda t: jax.tree.map(lambda a: a[t], out), steps


@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_policy_in_a_scripted_environment(gradients):
    """Two rollouts, one going on from the other; gradients through memory and burn-in."""
    g = load("../diamond_games/env_loop")
    net, params = network("actor_critic")
    outcome, steps = scripted(g)

    @jax.jit
    def call(params, t, seat):
        def loss(params):
            trajectory, after, then = rollout.rollout(
                *(net, params, lambda t, act, k: (t + 1, outcome(t)), t, seat),
                *(lambda k: jnp.asarray(g["uniforms"])[t + k], steps // 2),
            )
            value, metrics = Learning().loss(trajectory)
            return value, (trajectory, after, then, metrics)

        if gradients:
            return jax.value_and_grad(loss, has_aux=True)(params)
        return loss(params), None

    t, seat = jnp.int32(0), rollout.take_seat(floats(g["obs0_u8"]), net.lstm_dim)
    for i in range(2):
        (total, (made, t, seat, metrics)), gradient = call(params, t, seat)
        want = {k.removeprefix(f"call{i}/"): v for k, v in g.items()}
        for got, name in (
            (made.logits, "logits"),
            (made.values, "val"),
            (made.bootstrap, "val_bootstrap"),
            (total, "loss_loss_total"),
            *((metrics[k], f"loss_{k}") for k in metrics),
        ):
            near(got, want[name], 5e-5)
        for name in ("act", "rew", "end", "trunc"):
            np.testing.assert_array_equal(getattr(made, name), want[name])
        if not gradients:
            continue
        named = published.from_params(trees.flatten(gradient), "actor_critic")
        norms = [np.linalg.norm(named[name]) for name in g["grad_names"]]
        near(norms, want["grad_norm_by_name"], 1e-4)
    assert t == steps


class Sum:
    """A policy whose memory adds up w times what it sees, and whose value that is."""

    @staticmethod
    def apply(variables, obs, memory):
        memory = memory + variables["params"] * obs
        return jnp.zeros((1, 2)), memory[:, 0], memory


def test_the_burn_in_carries_gradient_and_the_past_none():
    """One environment that ends at its second step."""
    flag = lambda value: jnp.asarray(value)[None]

    def values(w, memory, final, burn_in, new):
        past = jnp.ones((1, 1))

        def env_step(t, act, k):
            obs = jnp.where(t > 0, new, past)
            ended = flag(t == 1), flag(False)
            return t + 1, rollout.Outcome(obs, jnp.zeros(1), *ended, final, burn_in)

        seat = rollout.Seat(past, memory)
        found, _, seat = rollout.rollout(
            *(Sum, w, env_step, jnp.int32(0), seat, lambda k: jnp.zeros(1), 3)
        )
        return found.values[0], found.bootstrap[0], seat.state[0, 0]

    one, burn_in = jnp.ones((1, 1)), jnp.array([2.0, 3.0, 4.0])[None, :, None]
    given = (jnp.ones(()), 0 * one, 10 * one, burn_in, 20 * one)
    value, bootstrap, memory = values(*given)
    assert value.tolist() == [1, 2, 29]  # after the end: 2 + 3 + 4 and the new frame
    assert bootstrap.tolist() == [2, 12, 49]  # the final frame on top of 2; the last is looked at,
    assert memory == 29  # and not remembered
    slopes = jax.jacobian(lambda *x: values(*x)[0], (0, 1))(*given)
    assert slopes[0].tolist() == [1, 2, 29]  # with respect to w, through the burn-in too,
    assert not slopes[1].any()  # and none to the memory that came in
    slopes = jax.jacobian(lambda w: values(w, *given[1:])[1])(given[0])
    assert not slopes.any()  # a bootstrap value is a number


def tiny_learner(world, starts, net, params, tx, batch=2):
    made, _ = world
    state = made.reset(starts, batch)
    seat = rollout.Seat(state.obs[:, -1], no_state(batch, net.lstm_dim))
    return Learner(params, tx.init(params), state, seat)


@pytest.mark.slow
def test_update(world, starts):
    """One program: worlds that end and begin again, and a policy that changes."""
    made, models = world
    net, params = network("actor_critic")
    tx = optimizers.make(optimizers.Settings(learning_rate=1e-3, warmup_steps=1, clip=100.0))
    learner = tiny_learner(world, starts, net, params, tx)
    learning = Learning(steps=4)
    step = jax.jit(
        lambda learner, key: imagination.update(
            made, net, tx, learner, models, starts, key, learning
        )
    )
    first, metrics = step(learner, jax.random.key(0))
    second, _ = step(first, jax.random.key(1))
    assert metrics["cuts"] >= 1 and np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert first.world.cursor > 2 and (first.world.length < 3).all()
    np.testing.assert_array_equal(first.seat.obs, first.world.obs[:, -1])
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), params, first.params)
    assert all(jax.tree.leaves(same))  # the first step of the warm-up has no learning rate
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, second.params)
    assert all(jax.tree.leaves(moved))
