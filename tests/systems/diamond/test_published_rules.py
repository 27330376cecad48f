"""The config of the Atari agents and what it is made into, against the published numbers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.run import cli
from diffjax.run import mesh as meshes
from diffjax.systems import diamond
from diffjax.systems.diamond import (
    batches,
    forecast,
    held_out,
    learning,
    optimizers,
    segments,
    settings,
    state,
)
from diffjax.systems.diamond.denoiser import Denoiser
from diffjax.systems.diamond.imagination import Learning, World
from diffjax.systems.diamond.sampling import Sampler

# Alonso et al. 2024, config/trainer.yaml and config/agent/default.yaml of the released code.
PUBLISHED = {
    "epochs": 1000,
    "frame_size": 64,
    "past_frames": 4,
    "collection.steps": 100_000,
    "collection.first_least": 5000,
    "collection.first_most": 10_000,
    "collection.first_rewards": 10,
    "collection.epoch_steps": 100,
    "collection.epsilon": 0.01,
    "collection.temperature": 1.0,
    "evaluation.every": 10,
    "evaluation.games": 4,
    "evaluation.final_games": 100,
    "denoiser.generated_frames": 1,
    "denoiser.first_steps": 10_000,
    "reward_end.first_steps": 10_000,
    "actor_critic.first_steps": 5000,
    "reward_end.segment": 19,
    "denoiser.cond_channels": 256,
    "reward_end.cond_channels": 128,
    "denoiser.objective": "next",
    "imagination.horizon": 15,
    "imagination.preload": 256,
    **{f"{n}.epoch_steps": 400 for n in ("denoiser", "reward_end", "actor_critic")},
    **{f"{n}.batch_size": 32 for n in ("denoiser", "reward_end", "actor_critic")},
    **{f"{n}.lstm_dim": 512 for n in ("reward_end", "actor_critic")},
    **{f"{n}.depths": [2] * 4 for n in ("denoiser", "reward_end")},
}


@pytest.fixture(scope="module")
def config(root):
    return cli.load_config(str(root / "configs" / "diamond.py"))


def test_the_config_is_the_published_one(config, monkeypatch):
    monkeypatch.setattr(settings.Parts, "init", lambda *_: None)  # of these sizes: seconds
    flat = cli.flatten(config)
    found = {k: list(v) if isinstance(v := flat[k], tuple) else v for k in PUBLISHED}
    assert found == PUBLISHED
    np.testing.assert_array_equal(config.sample_weights, (0.1, 0.1, 0.1, 0.7))
    settings.check(config)
    parts = settings.make(config, actions=4)
    assert parts.optimizers == optimizers.ATARI
    assert [
        (s.learning_rate, s.weight_decay, s.clip, s.warmup_steps, s.b1, s.b2, s.eps)
        for s in parts.optimizers.values()
    ] == [
        (1e-4, wd, clip, 100, 0.9, 0.999, 1e-8) for wd, clip in ((1e-2, 1), (1e-2, 100), (0, 100))
    ]
    assert parts.imagination.sampler == Sampler(3, 2e-3, 5.0, 7.0, 1, 0.0, 0.0, 1e9, 1.0)
    assert parts.learning == Learning(15, 0.985, 0.95, 1.0, 0.001)
    assert tuple(vars(parts.levels).values()) == (-0.4, 1.2, 2e-3, 20.0)
    d = parts.denoiser
    assert (d.sigma_data, d.sigma_offset, d.quantiser) == (0.5, 0.3, "floor")
    assert settings.updates_of(config, "rew_end_model")(0) == 10_000
    assert settings.updates_of(config, "rew_end_model")(1) == 400


def test_two_updates_by_hand():
    """Of gradient 0 and then 1: the first has the learning rate 0, and only kernels decay."""
    params = {"kernel": jnp.float32(4.0), "bias": jnp.float32(4.0), "embedding": jnp.float32(4.0)}
    tx = optimizers.make(optimizers.Settings(learning_rate=0.1, weight_decay=0.5, warmup_steps=2))
    opt_state = tx.init(params)
    for gradient, rate in ((0.0, 0.0), (0.01, 0.05), (0.0, 0.1)):
        given = dict.fromkeys(params, jnp.float32(gradient))
        found, opt_state = tx.update(given, opt_state, params)
        np.testing.assert_allclose(found["kernel"] - found["bias"], -rate * 0.5 * 4, atol=1e-6)
        assert found["bias"] == found["embedding"]
        if gradient:  # Adam: 0.1/(1 - 0.9^2) g over the root of 0.001/(1 - 0.999^2) g^2
            want = -rate * (0.1 / 0.19) / np.sqrt(0.001 / (1 - 0.999**2))
            np.testing.assert_allclose(found["bias"], want, rtol=1e-4)


def test_a_rate_that_falls():
    """min(1, t/2) (1 - t/5) for t = 0 ... 6, then nothing."""
    falling = optimizers.schedule(optimizers.Settings(1.0, warmup_steps=2, decay_steps=5))
    want = [0, 0.4, 0.6, 0.4, 0.2, 0, 0]
    np.testing.assert_allclose([falling(t) for t in range(7)], want, atol=1e-6)


class Episodes(list):
    lengths = np.full(40, 30)


@pytest.mark.parametrize(
    "network, span", [("denoiser", 6), ("rew_end_model", 19), ("actor_critic", 4)]
)
def test_what_a_network_s_batches_are(config, network, span):
    """Their length, on which sides they are padded, how often the newest quarter is drawn."""
    rows = lambda i, dtype=np.float32: np.full(30, i, dtype)
    every = Episodes(
        segments.Episode(
            np.zeros((30, 1, 1, 3), np.uint8),
            rows(i, np.int32),
            rows(0),
            rows(0, bool),
            rows(0, bool),
        )
        for i in range(40)
    )
    newest = {}
    for static in (False, True):
        made = batches.make(config, every, network, static=static)
        masks, act = (
            np.concatenate([made[k][name] for k in range(60)]) for name in ("mask", "act")
        )
        assert masks.shape == (60 * 32, span) and masks.any(1).all()
        assert not masks[:, 0].all()
        assert masks[:, -1].all() == (network != "rew_end_model")
        newest[static] = np.mean(act.max(1) >= 30)
    assert newest[False] == pytest.approx(0.7, abs=0.04)
    assert newest[True] == pytest.approx(0.25, abs=0.04)
    again = batches.make(config, every, network, static=False, epoch=1)[0]
    same = (again["act"] == batches.make(config, every, network, static=False)[0]["act"]).all()
    assert same == (network != "actor_critic")  # whose batches are counted anew in each epoch


# ---- numbers about held-out episodes -------------------------------------------------------------


def test_precision_and_recall():
    # rows: truth; columns: prediction
    found = held_out.of_confusion("x", np.array([[6, 2, 0], [3, 9, 0], [0, 0, 0]]))
    assert found == {
        "x_accuracy": 15 / 20,
        "x_recall_0": 6 / 8,
        "x_precision_0": 6 / 9,
        "x_f1_0": pytest.approx(2 / (8 / 6 + 9 / 6)),  # the harmonic mean of the two
        "x_recall_1": 9 / 12,
        "x_precision_1": 9 / 11,
        "x_f1_1": pytest.approx(2 / (12 / 9 + 11 / 9)),
    }


def test_held_out_losses_count_every_segment_once():
    """Of 7 segments in batches of 3 the mean is that of all, whatever fills the last batch."""
    value = np.arange(7)  # the loss of a segment is the action that it begins with
    every = [
        segments.Episode(
            np.zeros((4, 1, 1, 3), np.uint8), np.full(4, v, np.int32), *np.zeros((3, 4), np.float32)
        )
        for v in value
    ]

    def loss(params, batch, keys):
        rows = batch["mask"][:, 0]
        mean = (batch["act"][:, 0] * rows).sum() / rows.sum()
        return mean, {"confusion_x": np.diag([rows.sum(), 0])}

    found = held_out.losses(loss, None, every, 3, 4, ("act", "mask"), seed=0)
    assert found["loss"] == pytest.approx(value.mean())
    assert found["confusion_x"].tolist() == [[7, 0], [0, 0]]


def test_starts_are_cut_up_to_the_last_frame():
    obs = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * np.ones((1, 1, 1, 3), np.uint8)
    final = np.full((1, 1, 3), 6, np.uint8)
    one = segments.Episode(obs, np.arange(6, dtype=np.int32), *np.zeros((3, 6), np.float32), final)
    found = held_out.starts_of([SimpleNamespace(**one._asdict())], past=2, horizon=3, count=9)
    np.testing.assert_array_equal(found["starts_obs"][:, 0, 0, 0, 0], [0, 1, 2])
    assert found["starts_obs"][-1, :, 0, 0, 0].tolist() == [2, 3, 4, 5, 6]  # the final frame too
    assert found["starts_act"][-1].tolist() == [2, 3, 4, 5, 0]


# ---- a policy in an imagined world ---------------------------------------------------------------


def test_a_policy_sees_each_frame_once():
    """Its memory counts the frames that it saw, and says which action is certain."""
    net = type("Net", (), {"apply": staticmethod(lambda variables, x, *_: 0 * x)})
    policy = lambda frames, seen: (
        jnp.log(jax.nn.one_hot(seen % 3, 3)),
        jnp.zeros(len(seen)),
        seen + 1,
    )
    found = forecast.improvise(
        *(Denoiser(net), Sampler(steps=1), policy, {}, jnp.zeros((2, 4, 1, 1, 3))),
        *(jnp.zeros((2, 3), int), jax.random.split(jax.random.key(0), 2), 5),
        memory=jnp.array([0, 1]),
    )
    # Three real frames before the first that is acted on.
    assert found.act.tolist() == [[0, 1, 2, 0, 1], [1, 2, 0, 1, 2]]


# ---- what an update is given ---------------------------------------------------------------------


def test_no_two_networks_draw_from_the_same_keys():
    keys = [state.base_key(seed, name) for seed in (0, 1) for name in settings.GROUPS]
    numbers = {tuple(jax.random.key_data(key).tolist()) for key in (*keys, jax.random.key(0))}
    assert len(numbers) == 7  # the parameters' is none of them either


def test_what_is_not_there_is_grey_in_the_model_of_rewards():
    """Padding, and the last frame of an episode that has none; level 0 would be black."""
    shown = {}

    def apply(variables, obs, act, following):
        shown.update(obs=obs, following=following)
        return jnp.zeros((*act.shape, 3)), jnp.zeros((*act.shape, 2)), None

    parts = SimpleNamespace(reward_end=SimpleNamespace(apply=apply))
    batch = {
        "obs": np.array([0, 255, 255, 0], np.uint8)[None, :, None, None, None],
        "act": np.zeros((1, 4), int),
        "rew": np.zeros((1, 4), np.float32),
        "end": np.array([[0, 0, 1, 0]]),
        "mask": np.array([[False, True, True, False]]),
        "final": np.zeros((1, 1, 1, 1), np.uint8),
    }
    for known, last in ((True, -1), (False, 0)):
        state.loss_of(parts, "rew_end_model", None)(
            {}, {**batch, "has_final": np.array([known])}, None
        )
        assert shown["obs"].ravel().tolist() == [0, 1, 1]
        assert shown["following"].ravel().tolist() == [1, 1, last]


def test_each_block_of_starts_is_of_other_batches():
    asked = []

    class Source:
        def stack(self, first, count, names):
            asked.append(range(first, first + count))
            mask = np.array([[[False, True]]])
            return {"obs": np.zeros((1, 1, 2, 1, 1, 3), np.uint8), "act": mask * 1, "mask": mask}

    imagination = SimpleNamespace(preload=lambda params, obs, act: (obs, act))
    made = learning.Learner(
        SimpleNamespace(
            config=SimpleNamespace(updates_per_call=1, imagination=SimpleNamespace(preload=5)),
            parts=SimpleNamespace(imagination=imagination),
            state=SimpleNamespace(params={"rew_end_model": jnp.zeros(())}),
            mesh=meshes.make_mesh(meshes.LOCAL),
        )
    )
    obs, _ = [made._load(Source(), block) for block in range(3)][-1]
    assert [list(some) for some in asked] == [[*range(5)], [*range(5, 10)], [*range(10, 15)]]
    assert obs.ravel().tolist() == 3 * [128] + 3 * [0]


def test_worlds_live_on_from_epoch_to_epoch(monkeypatch):
    """New starts come in their stead only where they end: their frames and memories stay."""
    ones, whole = jnp.ones((2, 3)), lambda i: jnp.int32(i)
    world = World(ones, ones, (ones, ones), ones, whole(7))
    begun = state.State(
        whole(9), {"actor_critic": whole(3)}, {}, {}, world, ones, whole(2), whole(-1)
    )
    session = SimpleNamespace(
        config=SimpleNamespace(updates_per_call=1),
        state=begun,
        position=SimpleNamespace(done=0),
        mesh=meshes.make_mesh(meshes.LOCAL),
    )
    made = learning.Learner(session)
    made._load = lambda source, block: f"block {block}"
    made._bring_starts(None, 1)
    assert made._starts == "block 0"
    after = session.state
    assert (int(after.world.cursor), int(after.block)) == (0, 0)
    want = begun._replace(world=world._replace(cursor=whole(0)), block=whole(0))
    jax.tree.map(np.testing.assert_array_equal, after, want)

    # Before the first update of all there are none that could.
    first = begun._replace(counts={"actor_critic": whole(0)})
    session.state, session.parts, session.shardings = first, None, None
    seated = lambda parts, state, starts: state._replace(seat=5 * ones)
    monkeypatch.setattr(state, "begin_worlds", seated)
    made._bring_starts(None, 1)
    np.testing.assert_array_equal(session.state.seat, 5 * ones)


def test_of_the_device_only_the_cursor_is_asked_for():
    """Once a call; the block once after a kill, and never where this process began it."""
    reads = []

    class Number(int):
        def __new__(cls, name, value):
            made = super().__new__(cls, value)
            made.name = name
            return made

        def __int__(self):
            reads.append(self.name)
            return int.__int__(self)

    def of(cursor, block):
        world = World(*[jnp.ones(2)] * 4, Number("cursor", cursor))
        counts = {"actor_critic": jnp.int32(3)}
        zero = jnp.int32(0)
        return state.State(zero, counts, {}, {}, world, None, Number("block", block), zero)

    actor_critic = SimpleNamespace(batch_size=2)
    session = SimpleNamespace(
        config=SimpleNamespace(updates_per_call=1, actor_critic=actor_critic),
        state=of(3, 4),
        position=SimpleNamespace(done=5),
        mesh=meshes.make_mesh(meshes.LOCAL),
    )
    made, loaded = learning.Learner(session), []
    made._load = lambda source, block: loaded.append(block) or SimpleNamespace(act=np.zeros((8, 1)))
    for _ in range(3):
        made._bring_starts(None, 1)
    assert reads == ["block", "cursor", "cursor", "cursor"] and loaded == [4]
    session.state = of(7, 4)  # one start is left, and two are wanted
    made._bring_starts(None, 1)
    assert reads[4:] == ["cursor"] and loaded == [4, 5]
    assert (int(session.state.block), int(session.state.world.cursor)) == (5, 0)


@pytest.fixture
def tiny(root):
    """A config and the assets of a run of it."""
    config = cli.load_config(str(root / "configs" / "diamond_tiny.py"))
    return config, {"data": {"name": "x", "actions": 3, "keys": {}}}


def test_a_run_from_before_rates_fell(tiny):
    config, assets = tiny
    for group in settings.NETWORKS:
        del config[group]["decay_steps"]
    assert diamond.parts_of(config, assets).optimizers["denoiser"].decay_steps == 0


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("sampler", "heum", "--sampler 'heum' .did you mean 'heun'"), ("rho", 0.0, "--rho 0")],
)
def test_how_a_run_cannot_be_sampled(tiny, field, value, told):
    config, assets = tiny
    config.sampling = {**config.sampling, field: value}
    with pytest.raises(UserError, match=told):
        diamond.make(config, assets)
