"""Chains of relay stages: what they hand over, pictures of one's own, the commands."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from relay_runs import NAMES, run_of

import sample
import train
from diffjax import systems
from diffjax.core import samplers
from diffjax.errors import UserError
from diffjax.run import mesh as meshes
from diffjax.run import sampling
from diffjax.systems.relay import starts
from diffjax.weights import trees


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(meshes.LOCAL)


@pytest.mark.slow
def test_a_chain_is_its_stages_one_after_another(chain, mesh):
    parts = [systems.load(run)[0] for run in chain]
    params = [sampling.load_params(s, run, mesh)[0] for s, run in zip(parts, chain)]
    got = sampling.collect(parts[2], params[2], parts[2].request, num=5, seed=3, batch=8, mesh=mesh)
    assert got["image"].shape == (5, 16, 24, 3) and got["image"].std() > 5
    assert got["label"].tolist() == [0, 1, 2, 0, 1]

    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(5))
    label = jnp.asarray(got["label"])
    x = jax.jit(lambda p: parts[0].pixels(p, keys, label, parts[0].request))(params[0])
    assert x.dtype == jnp.float32 and x.shape == (5, 4, 4, 3)
    second, third = parts[1:]
    x = jax.jit(lambda p: second.pixels(p, keys, (label, x), second.request))(params[1])
    image = jax.jit(lambda p: third.sample(p, keys, (label, x), third.request))(params[2])["image"]
    assert len({picture.tobytes() for picture in got["image"]}) == 5
    # Five here and a batch of eight there: a sample is its own. And what is handed on is neither
    # clipped nor rounded, so every level is the same but for the last digit.
    assert np.abs(np.int32(image) - got["image"]).max() <= 1


@pytest.mark.slow
def test_the_first_stages_sampler(chain, mesh):
    # CelebA-HQ's: with no new noise it is Heun's method, and eta is the share of it.
    system, _ = systems.load(chain[0])
    params, _ = sampling.load_params(system, chain[0], mesh)
    keys, label = jax.random.split(jax.random.key(0), 3), jnp.arange(3)

    def pixels(**fields):
        request = dataclasses.replace(system.request, steps=3, **fields)
        return np.asarray(system.pixels(params, keys, label, request))

    heun, relay = pixels(), pixels(sampler="relay", eta=0.0)
    np.testing.assert_allclose(relay, heun, atol=1e-4)
    assert np.abs(pixels(sampler="relay", eta=0.3) - heun).max() > 0.05


def test_stages_draw_apart(chain, monkeypatch):
    # All stages are handed the same key for a sample; their noise must not repeat.
    monkeypatch.setattr(samplers, "relay", lambda denoise, process, grid, x, *_, **__: x)
    keys, noise = jax.random.split(jax.random.key(0), 4), []
    for run, small in (chain[1], (4, 4, 3)), (chain[2], (8, 8, 3)):
        system, _ = systems.load(run)
        given = jnp.zeros(4, int), jnp.zeros((4, *small))
        noise.append(np.reshape(system.pixels({}, keys, given, system.request), (4, -1)))
    a, b = noise[0], noise[1][:, : noise[0].shape[1]]
    assert a.std() > 0.5
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_parents_request(chain):
    system, _ = systems.load(chain[1])
    parent, place = system.start.parent()
    assert place == chain[0]
    ask = lambda **fields: system.start.adopt(parent, dataclasses.replace(system.request, **fields))
    assert ask() == parent.request
    got = ask(parent="steps=5, guidance=1.5,sampler=euler", cond="blue")
    assert (got.steps, got.guidance, got.sampler, got.cond) == (5, 1.5, "euler", "blue")
    for text, fragment in {
        "step=3": "did you mean 'steps'",
        "steps": "write NAME=VALUE",
        "steps=many": "--parent steps=many: takes int",
        "steps=0": "config.parent .*first: --steps 0: must be from 1",
        "autoguide=runs/none": "config.parent .*first: no run directory runs/none",
        "cond=red": "field in --parent",
    }.items():
        with pytest.raises(UserError, match=fragment):
            ask(parent=text)


@pytest.mark.slow
def test_a_parent_that_another_run_guides(chain, mesh, tmp_path):
    first = shutil.copytree(chain[0], tmp_path / "worse")
    weights = {k: 0.5 * v for k, v in trees.load(first / sampling.WEIGHTS).items()}
    trees.save(weights, first / sampling.WEIGHTS)
    system, _ = systems.load(chain[1])
    params, _ = sampling.load_params(system, chain[1], mesh)

    def images(parent, run=chain[1]):
        system, _ = systems.load(run)
        request = dataclasses.replace(system.request, parent=f"steps=2,{parent}")
        got = sampling.collect(system, params, request, num=4, seed=0, batch=4, mesh=mesh)
        return got["image"].astype(int)

    by = lambda scale: f"guidance=1,autoguide={first},autoguide_scale={scale}"
    alone = images("guidance=1")
    assert np.abs(images(by(1)) - alone).max() <= 1
    assert np.abs(images(by(3)) - alone).max() > 3


@pytest.mark.slow
def test_a_parent_without_classes(chain, mesh, config_of, tmp_path):
    about = {"data": {"image_shape": [4, 4, 3], "class_names": []}}
    first = run_of(tmp_path / "plain", config_of("relay_tiny_base"), about, 0)
    about = {"data": {"image_shape": [8, 8, 3], "class_names": NAMES}}
    second = run_of(tmp_path / "second", config_of(parent=first), about, 2)
    system, _ = systems.load(second)
    params, _ = sampling.load_params(system, second, mesh)
    request = dataclasses.replace(system.request, cond="blue")
    got = sampling.collect(system, params, request, num=2, seed=0, batch=2, mesh=mesh)
    assert got["label"].tolist() == [2, 2] and got["image"].std() > 5


def test_a_request_is_checked_before_a_parent_is_opened(chain, mesh, tmp_path):
    alone = shutil.copytree(chain[1], tmp_path / "alone")
    config = alone / "config.json"
    config.write_text(config.read_text().replace(str(chain[0]), "runs/nowhere"))
    system, _ = systems.load(alone)
    request = dataclasses.replace(system.request, cond="rde")
    with pytest.raises(UserError, match="did you mean 'red'"):
        sampling.collect(system, {}, request, num=2, seed=0, batch=2, mesh=mesh)


def test_a_parent_that_was_moved_along(chain, tmp_path, mesh):
    for run in chain[:2]:
        shutil.copytree(run, tmp_path / run.name)
    config = tmp_path / "second" / "config.json"
    config.write_text(config.read_text().replace(str(chain[0]), "runs/elsewhere/first"))
    assert systems.load(tmp_path / "second")[0].start.parent()[1] == tmp_path / "first"
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(UserError, match="its parent runs/elsewhere/first is not there"):
        systems.load(tmp_path / "second")[0].start.parent()
    config.write_text(config.read_text().replace("runs/elsewhere/first", ""))
    with pytest.raises(UserError, match="names no parent: give --start"):
        systems.load(tmp_path / "second")[0].start.parent()


def test_parents_that_do_not_fit(chain, config_of, tmp_path):
    about = {"data": {"image_shape": [12, 12, 3], "class_names": NAMES}}
    system = systems.make(config_of(parent=chain[0]), about)
    with pytest.raises(UserError, match="makes 4x4x3, this stage starts from 6x6x3"):
        system.start.adopt(systems.load(chain[0])[0], system.request)
    about = {"data": {"image_shape": [8, 8, 3], "class_names": ["a", "b"]}}
    system = systems.make(config_of(parent=chain[0]), about)
    with pytest.raises(UserError, match="has other classes"):
        system.start.adopt(systems.load(chain[0])[0], system.request)
    with pytest.raises(UserError, match="this stage starts from 2x2x3"):  # before training, too
        systems.make(config_of(parent=chain[0], diffusion__patch=4))


# ---- one's own pictures --------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A folder of three pictures of a colour each: as large as wanted, 3 times larger, wide."""
    folder = tmp_path / "mine"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate([(4, 4), (12, 12), (7, 20)]):
        array = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


def test_own_pictures(own):
    small = starts.Own(own, (4, 4, 3))
    assert len(small) == 3
    read = lambda i: np.float32(Image.open(own / f"{i}.png")) / 127.5 - 1
    np.testing.assert_allclose(small[0], read(0), atol=1e-6)
    means = read(1).reshape(4, 3, 4, 3, 3).mean((1, 3))
    np.testing.assert_allclose(small[1], means, atol=1 / 127)
    assert small[2].shape == (4, 4, 3) and small[2].dtype == np.float32
    one = starts.Own(own / "0.png", (2, 4, 1))
    assert len(one) == 1 and one[0].shape == (2, 4, 1)
    with pytest.raises(UserError, match="--start .*nothing: no such file"):
        starts.Own(own / "nothing", (4, 4, 3))
    (own / "0.png").write_bytes(b"text")
    with pytest.raises(UserError, match="0.png: not a picture"):
        starts.Own(own, (4, 4, 3))


@pytest.mark.slow
def test_sampling_own_pictures(own, chain, tmp_path, capsys):
    out = tmp_path / "out.npz"
    argv = ["--workdir", str(chain[1]), "--start", str(own), "--out", str(out)]
    moved = tmp_path / "alone"  # no parent is needed
    shutil.copytree(chain[1], moved)
    argv[1] = str(moved)
    assert sample.main([*argv, "--steps", "6", "--sigma_max", "0.5", "--eta", "0"]) == 0
    assert capsys.readouterr().out.startswith("3 samples")
    with np.load(out) as arrays:
        assert arrays["image"].shape == (3, 8, 8, 3)
        assert arrays["label"].tolist() == [3, 3, 3]  # no class, unless one is named
    assert sample.main([*argv, "--num", "5", "--cond", "green"]) == 0
    with np.load(out) as arrays:
        assert arrays["label"].tolist() == [1] * 5
    out.unlink()
    assert sample.main([*argv, "--start", str(tmp_path / "no")]) == 2
    assert "--start" in capsys.readouterr().err and not out.exists()


# ---- the commands --------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_and_sampling_a_relay(chain, flags, tmp_path, capsys):
    stage, out = tmp_path / "stage", tmp_path / "x.npz"
    words = flags("relay_tiny", parent=tmp_path / "base")
    assert train.main([*words, "--workdir", str(stage)]) == 0  # its base need not be there
    assert (stage / "samples.png").is_file()
    argv = ["--workdir", str(stage), "--num", "6", "--out", str(out), "--parent", "steps=3"]
    assert sample.main(argv) == 2
    assert "is not there: train it, or give --start" in capsys.readouterr().err
    shutil.copytree(chain[0], tmp_path / "base")
    assert sample.main([*argv, "--second_order", "true", "--guidance", "2"]) == 0
    with np.load(out) as arrays:
        assert arrays["image"].shape == (6, 8, 8, 3) and arrays["label"].tolist() == [0, 1, 2] * 2
    # It is done already, and its parent may have moved since.
    words = [w.replace(str(tmp_path / "base"), "elsewhere") for w in words]
    assert train.main([*words, "--workdir", str(stage)]) == 0
    assert "was finished already" in capsys.readouterr().err
