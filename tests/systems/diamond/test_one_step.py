"""A world as the base of APT: a frame in one call of the network."""

import json
import shutil

import apt_runs
import diamond_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
import train
from diffjax import systems
from diffjax.data import loader
from diffjax.errors import UserError
from diffjax.nets.diamond_unet import DiamondUNet
from diffjax.run import mesh as meshes
from diffjax.run import sampling
from diffjax.run.system import load_assets
from diffjax.studies import drift
from diffjax.systems.apt import origins
from diffjax.systems.diamond import moments

PAST, TOP, DATA, OFFSET = 4, 5.0, 0.5, 0.3  # as configs/diamond.py


@pytest.fixture(scope="module")
def base(finished):
    return systems.load(finished)[0]


@pytest.fixture(scope="module")
def params(base):
    """Weights that let every layer speak: a fresh network's last ones are 0."""
    random = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)
    return jax.tree.map(random, base.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def net():
    return DiamondUNet(8, (1,), (8,), (False,), num_actions=3)


@pytest.fixture(scope="module")
def cond():
    random = np.random.default_rng(0)
    past = random.uniform(-1, 1, (2, 8, 8, 3 * PAST)).astype(np.float32)
    return jnp.asarray(past), jnp.array([[0, 1, 2, 1], [2, 2, 0, 1]])


def estimate(net, params, x, sigma, past, act):
    """D without a quantiser, from the paper's words: EDM's at the level sqrt(sigma^2 + 0.3^2)."""
    level = np.sqrt(sigma**2 + OFFSET**2)
    total = level**2 + DATA**2
    told = np.full(1, np.log(level) / 4, np.float32)
    own = {"params": params["denoiser"]}
    out = net.apply(own, x / np.sqrt(total), past / DATA, told, act)
    return DATA**2 / total * x + level * DATA / np.sqrt(total) * out


def floored(x):
    return np.floor((np.clip(x, -1, 1) + 1) / 2 * 255)


# ---- the data ------------------------------------------------------------------------------------


def played(finished):
    """The replay's episodes as they lie on disk, by their numbers."""
    files = (f for f in (finished / "replay").rglob("*.npz") if f.name != "seats.npz")
    return [dict(np.load(f)) for f in sorted(files, key=lambda f: int(f.stem))]


def test_examples_are_the_recorded_frames(base, finished):
    source = base.backbone.unrolled.source(finished)
    wanted = []
    for episode in played(finished):
        for t in range(1, len(episode["act"])):
            before = max(0, t - PAST)
            obs, act = np.zeros((5, 8, 8, 3)), np.zeros(4, int)
            obs[PAST - (t - before) :] = episode["obs"][before : t + 1] / 127.5 - 1
            act[PAST - (t - before) :] = episode["act"][before:t]
            wanted.append((obs, act))
    assert len(source) == len(wanted) > 50
    every = np.arange(len(source), dtype=np.uint32)
    held = source.gather(source.arrays(), every, None)
    read = [moments.Moments(source.episodes, PAST, "")[i] for i in every]
    for name in "obs", "act", "mask":
        np.testing.assert_array_equal(held[name], np.stack([one[name] for one in read]))
    x0, (past, act) = base.backbone.examples(held, jax.random.key(0))
    frames = np.stack([obs for obs, _ in wanted])
    np.testing.assert_allclose(x0, frames[:, -1], atol=1e-6)
    for k in range(PAST):  # the oldest comes first
        np.testing.assert_allclose(past[..., 3 * k : 3 * k + 3], frames[:, k], atol=1e-6)
    np.testing.assert_array_equal(act, np.stack([act for _, act in wanted]))
    # The order of batches is the loader's: every example once an epoch.
    arrays = {"number": every, **loader.InMemory.of(source).arrays}
    look = lambda arrays, index, keys: {"number": arrays["number"][index]}
    batch = loader.take(arrays, jax.random.key(1), 0, len(source), look)
    assert sorted(batch["number"].tolist()) == every.tolist()


@pytest.mark.slow
def test_recordings_are_a_source_too(recorded, finished, tmp_path):
    workdir, folder = recorded
    source = systems.load(workdir)[0].backbone.unrolled.source(workdir)
    files = sorted(folder.glob("*.npz"))
    assert len(source) == sum(len(np.load(f)["act"]) - 1 for f in files[:-1])  # one is held out
    # Other recordings for a run that has played: what it samples from stays.
    config = apt_runs.of(finished, data__path=folder)
    assets = origins.read(config)
    own = systems.load(finished)[0].backbone.unrolled.source(finished)
    assert assets["data"]["fingerprint"] == source.fingerprint != own.fingerprint
    kept = load_assets(finished)["starts_obs"]
    np.testing.assert_array_equal(assets["starts_obs"], kept)
    assert len(systems.make(config).data("train")) == len(source)
    # And for one that was trained on a folder of another name.
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert origins.read(apt_runs.of(workdir, data__path=moved))["data"]["name"] == folder.name


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_d_sees_what_blocks_return(base, params, net, cond):
    backbone, x = base.backbone, jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    t = jnp.array([0.0, 0.6])
    fed, told = backbone.feed(x, t)
    np.testing.assert_allclose(fed, x / DATA, rtol=1e-6)
    level = np.sqrt(np.array([2e-3, 1.5]) ** 2 + OFFSET**2)  # t/(1 - t), of levels in training
    np.testing.assert_allclose(told, np.log(level) / 4, rtol=1e-5)
    np.testing.assert_allclose(
        backbone.feed(x, jnp.ones(2))[1], np.log(np.hypot(20, OFFSET)) / 4, rtol=1e-5
    )
    look, select = backbone.tapped((1, 3, 5))
    own = select(params)
    assert set(own) == {"denoiser"} and "conv_out" not in own["denoiser"]
    seen, masks = look(own, fed, told, cond)
    past, act = cond
    _, state = net.apply(
        {"params": params["denoiser"]}, fed, past / DATA, told, act, capture_intermediates=True
    )
    unet = state["intermediates"]["unet"]
    names = ("d_blocks_0", "resblocks_0"), ("mid_blocks", "resblocks_1")
    names += (("u_blocks_0", "resblocks_1"),)
    assert masks is None and backbone.blocks() == 5
    for tokens, (group, block) in zip(seen, names, strict=True):
        wanted = unet[group][block]["__call__"][0]
        np.testing.assert_allclose(tokens, wanted.reshape(2, 64, 8), atol=1e-5)
    # The past and the actions are told, not only the frame.
    for other in (past + 0.5, act), (past, (act + 1) % 3):
        assert np.abs(look(own, fed, told, other)[0][0] - seen[0]).max() > 1e-3


def test_the_teacher_is_the_run_s_own_sampler(base, params, net, cond):
    z = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
    low, x = 2e-3, np.asarray(z)  # two steps: from 5 to 0.002 and to 0
    first = np.clip(estimate(net, params, x, TOP, *cond), -1, 1)
    x = first + low / TOP * (x - first)
    wanted = np.clip(estimate(net, params, x, low, *cond), -1, 1)
    assert base.request.steps == 2
    got = base.backbone.unrolled.sampled(params, z, cond)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_distillation_is_the_distance_to_the_teacher(finished, base, params, net, cond):
    system = systems.make(apt_runs.of(finished, "distil"))
    source = system.data("train")
    batch = source.gather(source.arrays(), np.arange(3, dtype=np.uint32), None)
    batch["row"] = jnp.arange(3)
    key = jax.random.key(5)
    of_eps = jax.random.split(key, 3)[2]
    draw = lambda row: jax.random.normal(jax.random.fold_in(of_eps, row), (8, 8, 3))
    z = jnp.stack([draw(row) for row in range(3)])
    _, told = base.backbone.examples(batch, key)
    teacher = jax.tree.map(lambda a: 0.5 * a, params)
    wanted = base.backbone.unrolled.sampled(teacher, z, told)
    error = np.mean((estimate(net, params, z, TOP, *told) - wanted) ** 2)
    got, _ = system.loss(params, batch, key, teacher)
    np.testing.assert_allclose(got, error, rtol=1e-4)


@pytest.mark.slow
def test_a_frame_is_one_call_from_unit_noise(finished, params, net):
    system = systems.make(apt_runs.of(finished), origins.read(apt_runs.of(finished)))
    assert system.request.steps == 1 and system.request.horizon == 4
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(2))
    given = system.condition(system.request, np.arange(2))
    got = system.sample(params, keys, given, system.request)["imagined"]
    by_hand(finished, params, net, got)


def by_hand(run, params, net, got):
    """Holds roll-outs of seed 3, uint8, to the formula: D(z; 5) of unit noise z, rounded down."""
    starts, count = load_assets(run), len(got)
    obs, act = starts["starts_obs"][:count], starts["starts_act"][:count]
    assert got.shape == (count, PAST + 4, 8, 8, 3)
    np.testing.assert_array_equal(got[:, :PAST], obs[:, :PAST])
    frames, apply = (
        list(np.moveaxis(got, 1, 0) / 127.5 - 1),
        jax.jit(estimate, static_argnums=(0, 3)),
    )
    for k in range(4):
        key = lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(3), i), k)  # noqa: B023
        noise = lambda i: jax.random.normal(jax.random.fold_in(key(i), 0), (8, 8, 3))  # noqa: B023
        z = jnp.stack([noise(i) for i in range(count)])
        past = np.concatenate(frames[k : k + PAST], -1).astype(np.float32)
        levels = floored(apply(net, params, z, TOP, past, act[:, k : k + PAST]))
        off = np.abs(levels - got[:, PAST + k])
        assert off.max() <= 1 and (off > 0).mean() < 0.02  # where it falls on a level


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """The two stages on a world of three networks."""
    workdir = tmp_path_factory.mktemp("one_step") / "run"
    words = apt_runs.words(finished, num_samples=2)
    assert train.main([*words, "--workdir", str(workdir), "--debug"]) == 0
    return workdir


@pytest.mark.slow
def test_a_run_is_sampled_and_played(made, finished, net):
    assert (made / "base.gif").is_file() and (made / "samples.gif").is_file()
    system, mesh = systems.load(made)[0], meshes.make_mesh(meshes.LOCAL)
    params = jax.device_get(sampling.load_params(system, made, mesh)[0])
    base = systems.load(finished)[0]
    theirs = jax.device_get(sampling.load_params(base, finished, mesh)[0])
    same = {
        name: all(jax.tree.leaves(jax.tree.map(np.array_equal, params[name], theirs[name])))
        for name in theirs
    }
    assert same == {"denoiser": False, "rew_end_model": True, "actor_critic": True}
    # sample.py's frames are the formula's, and those that are played are sample.py's.
    assert sample.main(["--workdir", str(made), "--out", str(made / "a.npz"), "--seed", "3"]) == 0
    imagined = np.load(made / "a.npz")["imagined"]
    by_hand(made, params, net, imagined)
    served = system.play(params, system.request, 3)
    state, _ = served["start"]()
    state, _ = served["step"](state, int(load_assets(made)["starts_act"][0, PAST - 1]))
    shown = np.rint((np.asarray(state.world.obs[0, -1]) + 1) * 127.5)  # levels, as floats
    np.testing.assert_array_equal(shown, imagined[0, PAST])
    assert sample.main(["--workdir", str(made), "--out", str(made / "a.gif"), "--num", "1"]) == 0
    with Image.open(made / "a.gif") as film:
        assert film.n_frames == PAST + 4


@pytest.mark.slow
def test_it_drifts_beside_its_parent(made, finished, tmp_path):
    folder = diamond_runs.recordings(tmp_path / "mine", length=16)
    words = ["--workdir", str(made), "--ref", str(folder), "--judge", "pixels", "--horizon", "10"]
    words += ["--starts", "8", "--batch", "8", "--contexts", "3", "--noises", "2"]
    words += ["--out", str(tmp_path / "drift")]
    assert drift.main([*words, "--against", str(finished)]) == 0
    found = json.loads((tmp_path / "drift.json").read_text())
    parent, child = found["arms"]
    assert (parent["arm"], child["arm"]) == ("against", drift.ALONE) and found["against"] == [
        str(finished)
    ]
    less = child["less_first"]["auc"]["value"]
    own = [arm["scores"]["auc"]["value"] for arm in (parent, child)]
    assert less == pytest.approx(own[1] - own[0]) and less != 0
    # The parent's arm is what it has when it is studied alone.
    alone = [str(finished), *words[2:-1], str(tmp_path / "alone"), "--vary", "steps=2"]
    assert drift.main(["--workdir", *alone]) == 0
    (arm,) = json.loads((tmp_path / "alone.json").read_text())["arms"]
    assert arm["scores"]["auc"]["value"] == pytest.approx(own[0], rel=1e-5)


# ---- refusals ------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_one_line(root, finished, tmp_path, capsys):
    around = diamond_runs.config_of(root, imagination__start="prev_plus_sigma_max")
    diamond_runs.blank(around, tmp_path / "around")
    diamond_runs.blank(diamond_runs.config_of(root), tmp_path / "unplayed")
    decay = {"distil__optimizer__weight_decay": 0.1}
    for base, more, line in (
        (tmp_path / "around", {}, "a run of diamond cannot be post-trained"),
        (finished, {"distillation__guidance": 2.0}, "was not trained without its condition"),
        (finished, decay, "config.optimizer.weight_decay 0.1: would shrink"),
        (finished, {"adversarial__taps": "(6,)"}, "has 5 blocks"),
    ):
        words = apt_runs.words(base, **more)
        assert train.main([*words, "--workdir", str(tmp_path / "no")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and line in said[0]
    with pytest.raises(UserError, match="no recorded play in it .*--config.data.path=FOLDER"):
        apt_runs.of(tmp_path / "unplayed")
    with pytest.raises(UserError, match="big: it is of another game, or of other frames"):
        apt_runs.of(finished, data__path=diamond_runs.recordings(tmp_path / "big", size=16))
