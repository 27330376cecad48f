"""Imagined roll-outs, against the worlds that policies learn in, and what is held out."""

import functools

import diamond_runs
import jax
import jax.numpy as jnp
import numpy as np
import players
import pytest
from diamond_original import network

from diffjax import systems
from diffjax.errors import UserError
from diffjax.nets.diamond_blocks import no_state
from diffjax.run import mesh as meshes
from diffjax.run import sampling as runs
from diffjax.systems.diamond import collect, forecast, games, held_out, imagination, rollout
from diffjax.systems.diamond.denoiser import Denoiser
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.imagination import Imagination
from diffjax.systems.diamond.quantise import round_level, to_float
from diffjax.systems.diamond.sampling import Sampler
from diffjax.systems.diamond.segments import Episode

PAST, STEPS, BATCH = 4, 3, 2


@pytest.fixture(scope="module")
def world():
    """The golden tiny networks: (Imagination, params, frames uint8, actions)."""
    denoiser, of_denoiser = network("denoiser")
    reward, of_reward = network("rew_end_model")
    made = Imagination(Denoiser(denoiser, quantiser="none"), reward, Sampler(steps=2), 10**6)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (BATCH, PAST, 16, 16, 3), dtype=np.uint8)
    act = random.integers(0, 5, (BATCH, PAST - 1 + STEPS)).astype(np.int32)
    params = {"denoiser": of_denoiser, "rew_end_model": of_reward}
    return made, params, frames, act


@pytest.fixture(scope="module")
def stepped(world):
    """What `Imagination.step` makes of the actions: (Outcomes, keys), the first keys of some under
    which no world ends, as these networks end every second one."""
    made, params, frames, act = world
    first = np.concatenate([act[:, : PAST - 1], np.zeros((BATCH, 1), np.int32)], 1)
    segment = jnp.asarray(frames[None]), jnp.asarray(first[None])
    starts = made.preload(params["rew_end_model"], *segment)

    @jax.jit
    def run(keys):
        state, found = made.reset(starts, BATCH), []
        for k in range(STEPS):
            draws = imagination.draw(forecast.step_keys(keys, k), (16, 16, 3))
            state, out = made.step(params, starts, state, act[:, PAST - 1 + k], draws)
            found.append(out)
        return found

    for seed in range(1000):
        keys = imagination.split(jax.random.key(seed), BATCH)
        found = run(keys)
        if not any(out.end.any() for out in found):
            return found, keys
    raise AssertionError("every world ends")


@pytest.mark.slow
def test_a_forecast_is_what_the_worlds_of_training_become(world, stepped):
    (made, params, frames, act), (outcomes, keys) = world, stepped
    run = jax.jit(forecast.forecast, static_argnums=(0, 1))
    found = run(made.denoiser, made.sampler, params["denoiser"], to_float(frames), act, keys)
    want = jnp.stack([out.final for out in outcomes], 1)
    assert found.shape == (BATCH, STEPS, 16, 16, 3)
    np.testing.assert_allclose(found, want, atol=2e-5)
    frames = jnp.concatenate([to_float(frames), want], 1)
    model = made.reward_end, params["rew_end_model"]
    judged = jax.jit(lambda *a: forecast.judged(*model, *a, PAST))(frames, act, keys)
    np.testing.assert_array_equal(judged.rew, np.stack([out.rew for out in outcomes], 1))
    np.testing.assert_array_equal(judged.end, np.stack([out.end for out in outcomes], 1))


@pytest.mark.slow
def test_a_roll_out_does_not_depend_on_its_batch(world):
    made, params, frames, act = world
    keys = imagination.split(jax.random.key(7), BATCH)
    run = jax.jit(forecast.forecast, static_argnums=(0, 1))
    how = made.denoiser, made.sampler, params["denoiser"]
    both = run(*how, to_float(frames), act, keys)
    one = run(*how, to_float(frames[1:]), act[1:], keys[1:])
    np.testing.assert_allclose(both[1:], one, atol=2e-5)


@pytest.mark.slow
def test_an_agent_s_actions_lead_where_recorded_ones_do(world):
    """The actions of `improvise`, given to `forecast`, make the same frames; and the policy's draw
    is `rollout`'s."""
    made, params, frames, act = world
    keys = imagination.split(jax.random.key(7), BATCH)
    net, of_policy = network("actor_critic")
    policy = lambda obs, memory: net.apply({"params": of_policy}, obs, memory)
    how, past = (made.denoiser, made.sampler), to_float(frames)
    memory = no_state(BATCH, net.lstm_dim)
    found = jax.jit(
        lambda p, past, act, keys: forecast.improvise(
            *how, policy, p, past, act, keys, STEPS, memory
        )
    )(params["denoiser"], past, act[:, : PAST - 1], keys)
    acts = jnp.concatenate([act[:, : PAST - 1], found.act], 1)
    same = jax.jit(forecast.forecast, static_argnums=(0, 1))
    again = same(*how, params["denoiser"], past, acts, keys)
    np.testing.assert_allclose(found.frames, again, atol=2e-5)
    # The same policy at the same frames, step by step.
    for frame in jnp.swapaxes(past, 0, 1)[:-1]:
        _, _, memory = policy(frame, memory)
    seen = [past[:, -1], *jnp.swapaxes(found.frames, 0, 1)]
    for k in range(STEPS):
        logits, _, memory = policy(seen[k], memory)
        folded = [jax.random.fold_in(key, forecast.ACTION) for key in forecast.step_keys(keys, k)]
        uniform = jnp.stack([jax.random.uniform(key) for key in folded])
        np.testing.assert_array_equal(rollout.categorical(logits, uniform), found.act[:, k])


# ---- sample.py and --play make the same frames ---------------------------------------------------


@pytest.mark.slow
def test_playing_the_recorded_actions_gives_the_sample(root):
    config = diamond_runs.config_of(root, imagination__s_churn=1.0)
    system = systems.make(config, diamond_runs.assets_of(config))
    params = system.init(jax.random.key(1))
    mesh, request = meshes.make_mesh(meshes.LOCAL), system.request
    how = {"num": 8, "seed": 3, "batch": 8, "mesh": mesh}
    sampled = runs.collect(system, params, request, **how)
    assert sampled["imagined"].shape == (8, 8, 8, 8, 3) and sampled["real"].shape[1] == 8
    opened = system.play(params, request, 3)
    for i in range(2):
        played, picture = opened["start"]()
        for k in range(4):
            np.testing.assert_array_equal(small(picture), sampled["imagined"][i, 3 + k])
            played, picture = opened["step"](played, int(sampled["act"][i, 3 + k]))
            if sampled["end"][i, k]:
                assert played.steps == 0
                break
            assert played.score == sampled["rew"][i, : k + 1].sum()


def test_a_world_is_played_through_a_socket(root):
    """From the server that a browser opens: each picture is that of a step with the held key."""
    config = diamond_runs.config_of(root)
    system = systems.make(config, diamond_runs.assets_of(config))
    opened = system.play(system.init(jax.random.key(1)), system.request, 0)
    done = []

    def step(played, action):
        played, picture = opened["step"](played, action)
        done.append((action, picture))
        return played, picture

    server = players.Server(opened["start"], step, {"": 0, "ArrowLeft": 1, "ArrowRight": 2})
    client = players.Client(server.port).open()
    seen = [client.picture()]
    client.send("2")
    while not any(action == 2 for action, _ in done):
        seen.append(client.picture())
    seen += [client.picture() for _ in range(3)]
    client.socket.close()
    server.stop()
    assert server.error is None and len(done) >= 3
    for found, (_, want) in zip(seen[1:], done):
        np.testing.assert_array_equal(found[..., :3], want)


def small(picture):
    """The frame in a picture of `playing.drawn`: enlarged sixteen times, under a line."""
    assert picture.shape == (14 + 128, 128, 3)
    return picture[14::16, ::16]


def test_what_is_kept_is_checked(root):
    config = diamond_runs.config_of(root)
    good = diamond_runs.assets_of(config)
    spoiled = [
        ("train the run first", {"starts_obs": None}),
        ("not recordings", {"starts_obs": good["starts_obs"][:, :, :4]}),
        ("not recordings", {"starts_obs": good["starts_obs"].astype(np.float32)}),
        ("actions or lengths", {"starts_act": good["starts_act"] + 9}),
        ("actions or lengths", {"starts_length": good["starts_length"] * 0}),
        ("assets/data.json", {"data": {**good["data"], "actions": "3"}}),
        ("no table of keys", {"data": {**good["data"], "keys": {"ArrowUp": 7}}}),
    ]
    for message, change in spoiled:
        assets = {k: v for k, v in {**good, **change}.items() if v is not None}
        with pytest.raises(UserError, match=message):
            system = systems.make(config, assets)
            system.condition(system.request, np.arange(2))


# ---- held out ------------------------------------------------------------------------------------


def test_games_that_are_recorded_have_the_scores_of_those_that_are_not():
    make = functools.partial(games.make, "ball", 8)
    policy = held_out.uniform(3)
    with Games(make, 2, 5) as seats:
        want = collect.play_games(seats, policy, None, 3, seed=5)
    with Games(make, 2, 5) as seats:
        found, episodes = held_out.play(seats, policy, None, 3, seed=5, keep=30)
    assert found == want
    for played, episode in zip(found, episodes, strict=True):
        assert len(episode.act) == min(30, played.length)
        if played.length <= 30:
            assert episode.rew.sum() == played.score and episode.final is not None
    with Games(make, 2, 5) as seats:
        found, begun = held_out.play(seats, policy, None, 3, seed=5, keep=30, most=7)
    assert not found and [len(e.act) for e in begun[:2]] == [7, 7]
    np.testing.assert_array_equal(begun[0].obs, episodes[0].obs[:7])


def episode(length, first=0, final=True):
    """Frames whose level is their number."""
    obs = np.broadcast_to(np.arange(first, first + length)[:, None, None, None], (length, 8, 8, 3))
    last = np.full((8, 8, 3), first + length, np.uint8) if final else None
    zero = np.zeros(length)
    act = np.arange(length, dtype=np.int32)
    return Episode(obs.astype(np.uint8), act, zero.astype(np.float32), zero > 0, zero > 0, last)


def test_starts_are_windows_of_episodes():
    found = held_out.starts_of([episode(3), episode(12, 100), episode(7, 50)], 2, 4, 5)
    obs, act, length = (found[f"starts_{name}"] for name in ("obs", "act", "length"))
    assert obs.shape == (5, 6, 8, 8, 3) and length.tolist() == [6] * 5
    for row, acts in zip(obs[:, :, 0, 0, 0].tolist(), act.tolist()):
        assert row == list(range(row[0], row[0] + 6)) and acts[0] == row[0] % 50
    found = held_out.starts_of([episode(3), episode(5, 20, final=False)], 2, 9, 5)
    assert found["starts_length"].tolist() == [5, 4]
    assert found["starts_obs"][1, :, 0, 0, 0].tolist() == [0, 1, 2, *[3] * 8]
    assert found["starts_act"][1].tolist() == [0, 1, 2, *[0] * 8]
    with pytest.raises(UserError, match="more than 4 frames"):
        held_out.starts_of([episode(3)], 4, 9, 5)


def test_confusion_is_told_by_class():
    found = held_out.of_confusion("end", np.array([[6, 2], [1, 3]]))
    assert found["end_accuracy"] == 9 / 12
    assert (found["end_recall_1"], found["end_precision_1"]) == (3 / 4, 3 / 5)
    np.testing.assert_allclose(found["end_f1_1"], 2 * 0.75 * 0.6 / 1.35)
    assert "rew_recall_2" not in held_out.of_confusion("rew", np.diag([1, 1, 0]))


def test_losses_walk_through_every_step_once():
    """A loss that counts the steps it is shown, and the levels in them."""

    def loss(params, batch, keys):
        level = jnp.where(batch["mask"], batch["obs"][:, :, 0, 0, 0], 0)
        seen = {"confusion_levels": jnp.array([[level.sum(), batch["mask"].sum()]])}
        return params * batch["mask"].any(1).sum(), seen

    episodes = [episode(5), episode(7, 10)]
    found = held_out.losses(jax.jit(loss), 2.0, episodes, 2, 3, ("obs", "mask"), 0)
    # Pieces of 3, 2; 3, 3 (a last single step is left out): two batches of two segments.
    assert found["loss"] == 4
    assert found["confusion_levels"].tolist() == [[sum(range(5)) + sum(range(10, 16)), 11]]


def test_levels_survive_the_way_to_floats_and_back():
    levels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(round_level(to_float(levels)), levels)
