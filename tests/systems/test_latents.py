"""Training behind an autoencoder: the pair, EDM in latents, APT on it, what is refused."""

import dataclasses
import json
import shutil

import apt_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sample
import train
from diffjax import evaluate, nets, systems
from diffjax.core import samplers
from diffjax.data.latents import BATCH, LatentSource, encoded
from diffjax.data.sources import ArraySource, LazySource
from diffjax.errors import UserError
from diffjax.run import cli, feed, sampling
from diffjax.run import mesh as meshes
from diffjax.run.system import load_assets, save_assets
from diffjax.systems import images, latents
from diffjax.systems.edm import preconditioning
from diffjax.systems.edm.request import noise_levels, solve
from diffjax.weights import trees

SHAPE = (8, 8, 3)


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)


@pytest.fixture(scope="module")
def words(tiny_config, autoencoder_run, root):
    """train.py's words, but --workdir, for EDM behind the tiny autoencoder: latents of 2x2."""
    more = {"data.latents": autoencoder_run, "network.patch": 1, "diffusion.sigma_data": 1.0}
    return [*tiny_config, *(f"--config.{name}={value}" for name, value in more.items())]


@pytest.fixture
def config(words):
    return config_of(words)


def config_of(words, *overrides):
    _, given = cli.split_overrides(words[2:])
    return cli.apply_overrides(cli.load_config(words[1]), [*given, *overrides])


@pytest.fixture(scope="module")
def latent_run(words, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latents") / "run"
    assert train.main([*words, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def net(autoencoder_run):
    """(module, parameters, about) of the autoencoder, read without the code that is tested."""
    config = cli.read_config(autoencoder_run)
    module = nets.make_autoencoder(config.network, shape=SHAPE)
    params = trees.unflatten(trees.load(autoencoder_run / "weights.safetensors"))
    about = json.loads((autoencoder_run / "assets" / "latents.json").read_text())
    return module, params, about


# ---- the pair ------------------------------------------------------------------------------------


def test_the_identity_is_the_identity():
    pair = latents.identity(SHAPE)
    x, source = jnp.ones((1, *SHAPE)), object()
    assert pair.shape == SHAPE and pair.read is images.to_float
    assert pair.pixels(x) is x and pair.over(source) is source


def test_a_run_without_the_field_goes_on_in_pixels(trained, tiny_config, tmp_path):
    # Runs from before the field: the same bits, as the file of the weights has them.
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    plain = json.loads((old / "config.json").read_text())
    assert plain["data"].pop("latents") == ""
    (old / "config.json").write_text(json.dumps(plain))
    about = json.loads((old / "assets" / "data.json").read_text())
    assert set(about) == {"image_shape", "class_names", "fingerprint"}
    assert sorted(p.name for p in (old / "assets").iterdir()) == ["data.json"]
    # Half-way back, and on: the weights are those of the run that had it.
    shutil.rmtree(old / "checkpoints" / "6")
    (old / "weights.safetensors").unlink()
    assert train.main([*tiny_config, "--workdir", str(old)]) == 0
    of = lambda run: (run / "weights.safetensors").read_bytes()
    assert of(old) == of(trained)


def test_latents_have_unit_variance_and_come_back(config, net, tiny_arrays):
    system = systems.make(config)
    source = system.data("train")
    z = source.arrays()["image"]
    assert z.shape == (40, 2, 2, 2) and z.dtype == np.float32
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-4)
    module, params, about = net
    x = jnp.asarray(tiny_arrays["images"], jnp.float32) / 127.5 - 1
    mean, _ = module.apply({"params": params}, x, method="encode")
    np.testing.assert_allclose(z * about["std"] + about["mean"], mean, rtol=1e-3, atol=1e-4)
    # And back: the decoder's pictures of the means themselves.
    pair = latents.behind(system.assets, SHAPE)
    assert pair.shape == (2, 2, 2) and pair.read(z) is z
    wanted = module.apply({"params": params}, mean, method="decode")
    np.testing.assert_allclose(pair.pixels(jnp.asarray(z)), wanted, rtol=1e-3, atol=1e-3)


def test_what_the_loop_is_fed_and_what_scores_see(config, tiny_arrays):
    system = systems.make(config)
    source = system.data("train")
    np.testing.assert_array_equal(source[7]["image"], tiny_arrays["images"][7])
    assert len(source) == 40 and source.image_shape == SHAPE and source.num_classes == 3
    made = feed.make_feed(system, config, one_device())
    fed = next(made.start(0))
    batch = jax.jit(lambda fed: made.take(fed, jax.random.key(0), jnp.int32(0)))(fed)
    assert batch["image"].shape == (8, 2, 2, 2) and batch["image"].dtype == jnp.float32
    z, labels = source.arrays()["image"], tiny_arrays["labels"]
    for latent, label in zip(np.asarray(batch["image"]), np.asarray(batch["label"])):
        (row,) = np.flatnonzero((z == latent).all((1, 2, 3)))
        assert labels[row] == label


def test_a_set_is_encoded_a_batch_at_a_time_wherever_it_lies(tiny_arrays):
    pictures = np.tile(tiny_arrays["images"], (BATCH // 40 + 1, 1, 1, 1))[: BATCH + 3]
    pictures = pictures + np.arange(len(pictures), dtype=np.uint8)[:, None, None, None]
    shapes = set()

    def encode(image):
        shapes.add(image.shape)
        return image[:, :1, :1].astype(np.float32)

    lazy = LazySource(lambda i: pictures[i], len(pictures), SHAPE, "mark")
    for source in (ArraySource(pictures), lazy):
        found = LatentSource(source, encode)
        np.testing.assert_array_equal(found.arrays()["image"], pictures[:, :1, :1])
        assert set(found.arrays()) == {"image"} and found.fingerprint == source.fingerprint
    assert shapes == {(BATCH, *SHAPE)}  # so it compiles once
    some = encoded(lazy, np.array([5, 2]), encode)
    np.testing.assert_array_equal(some, pictures[[5, 2], :1, :1])


def test_latents_that_do_not_fit_are_refused_after_the_first_batch(monkeypatch):
    monkeypatch.setattr("diffjax.data.latents.MAX_BYTES", 1000)
    asked = []
    load = lambda i: asked.append(i) or np.zeros(SHAPE, np.uint8)
    source = LazySource(load, 10_000, SHAPE, "mark", name="many")
    with pytest.raises(UserError, match="many: 10000 latents of 12 bytes"):
        LatentSource(source, lambda image: image[:, 0, 0].astype(np.float32)).arrays()
    assert len(asked) == BATCH


def test_weights_among_assets_survive_the_disk(tmp_path):
    random = np.random.default_rng(0)
    weights = {"a/kernel": random.standard_normal((2, 3)).astype(np.float32), "b": np.zeros(1)}
    assets = {"data": {"x": {}}, "net": weights, "rows": np.arange(3), "empty": {}}
    save_assets(assets, tmp_path)
    kinds = {"data.json", "net.safetensors", "rows.npy", "empty.json"}
    assert {p.name for p in (tmp_path / "assets").iterdir()} == kinds
    found = load_assets(tmp_path)
    assert found["data"] == assets["data"] and found["empty"] == {}
    assert set(found["net"]) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found["net"][name], value)
    (tmp_path / "assets" / "net.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="net.safetensors: not a safetensors file"):
        load_assets(tmp_path)


# ---- EDM -----------------------------------------------------------------------------------------


def test_the_loss_is_of_latents(config, monkeypatch):
    # A network that answers 0: D is c_skip x, and x is what it saw over c_in, by hand.
    class Probe:
        def apply(self, variables, x, c_noise, label, **told):
            self.x, self.c_noise = x, c_noise
            return jnp.zeros_like(x)

    probe = Probe()
    monkeypatch.setattr(nets, "make", lambda *args, **kwargs: probe)
    system = systems.make(config)
    z = system.data("train").arrays()["image"][:8].astype(np.float64)
    batch = {"image": jnp.asarray(z, jnp.float32), "row": jnp.arange(8, dtype=jnp.int32)}
    loss, _ = system.loss({}, batch, jax.random.key(2))
    sigma = np.exp(4 * np.asarray(probe.c_noise, np.float64)).reshape(8, 1, 1, 1)
    x = np.asarray(probe.x) * np.sqrt(1 + sigma**2)
    n = (x - z) / sigma
    assert abs(n.mean()) < 0.4 and n.std() == pytest.approx(1, abs=0.3)
    weight = (sigma**2 + 1) / sigma**2
    assert loss == pytest.approx(np.mean(weight * (x / (1 + sigma**2) - z) ** 2), rel=1e-3)


def test_samples_are_decoded(latent_run, net, autoencoder_run, tmp_path):
    # The run is sampled without the autoencoder's: what it needs is among its assets.
    moved = tmp_path / "moved"
    shutil.copytree(latent_run, moved)
    plain = cli.read_json(moved / "config.json", "config")
    plain["data"]["latents"] = "gone"
    (moved / "config.json").write_text(json.dumps(plain))
    assert (
        sample.main(["--workdir", str(moved), "--num", "6", "--out", str(tmp_path / "x.npz")]) == 0
    )
    with np.load(tmp_path / "x.npz") as found:
        made = found["image"]
    assert made.shape == (6, *SHAPE) and made.dtype == np.uint8
    # By hand: the solver's latents through the decoder.
    system, _ = systems.load(moved)
    mesh = one_device()
    params, _ = sampling.load_params(system, moved, mesh)
    module, weights, about = net

    def by_hand(params, keys, cond, request):
        problem = system.problem(params, keys, cond, request)
        z = solve(request, problem, noise_levels(request, preconditioning.make("edm", 1.0))[1])
        z = z * np.float32(about["std"]) + np.float32(about["mean"])
        return {"z": z, "x": module.apply({"params": weights}, z, method="decode")}

    how = {"num": 6, "seed": 0, "batch": 6, "mesh": mesh}
    run = sampling.sampler(system, system.request, mesh, by_hand)
    wanted = sampling.collect(system, params, system.request, run=run, **how)
    assert wanted["z"].shape == (6, 2, 2, 2)
    levels = np.clip(127.5 * wanted["x"] + 127.5, 0, 255)
    assert np.max(np.abs(levels - made)) < 0.6
    # What a stage that starts from this run is given: float pictures, decoded.
    floats = sampling.sampler(system, system.request, mesh, lambda *a: {"x": system.pixels(*a)})
    pixels = sampling.collect(system, params, system.request, run=floats, **how)["x"]
    np.testing.assert_allclose(pixels, wanted["x"], atol=1e-3)


def test_scores_are_of_pictures(latent_run, tiny_data, capsys):
    words = ["--workdir", str(latent_run), "--num", "12", "--batch", "12", "--metrics", "kid"]
    assert evaluate.main([*words, "--net", "pixels"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["num_real"] == 40 and own["num_fake"] == 12
    assert evaluate.main([*words, "--net", "pixels", "--ref", str(tiny_data)]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["scores"] == own["scores"]  # the reference is the pictures, either way


def test_it_resumes_to_the_same_bits(latent_run, words, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(latent_run, run)
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "weights.safetensors").unlink()
    assert train.main([*words, "--workdir", str(run)]) == 0
    of = lambda run: (run / "weights.safetensors").read_bytes()
    assert of(run) == of(latent_run)


def test_another_autoencoder_is_another_run(latent_run, autoencoder_run, words, tmp_path, capfd):
    other = tmp_path / "other"
    shutil.copytree(autoencoder_run, other)
    about = json.loads((other / "assets" / "latents.json").read_text())
    about["mean"][0] += 0.5
    flat = trees.load(other / "weights.safetensors")
    about["fingerprint"] = latents._mark(about, flat)
    (other / "assets" / "latents.json").write_text(json.dumps(about))
    run = tmp_path / "run"
    shutil.copytree(latent_run, run)
    again = [*words, f"--config.data.latents={other}", "--workdir", str(run)]
    assert train.main(again) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "behind the autoencoder" in lines[0] and str(other) in lines[0]


def test_a_run_in_pixels_does_not_guide_one_in_latents(latent_run, trained):
    system, _ = systems.load(latent_run)
    itself = dataclasses.replace(system.request, autoguide=str(latent_run))
    assert len(system.condition(itself, np.arange(1))) == 1
    with pytest.raises(UserError, match="trained in other latents, or one of the two in pixels"):
        system.condition(dataclasses.replace(system.request, autoguide=str(trained)), np.arange(1))


# ---- APT -----------------------------------------------------------------------------------------


def test_post_training_sees_latents_and_makes_pictures(latent_run, net):
    base = cli.read_config(latent_run)
    assets = load_assets(latent_run)
    own = apt_runs.of(latent_run, "distil")
    own.mesh.data = 1
    system = systems.make(own, {**assets, "base": {"config": base.to_dict()}})
    # Training: the loop is fed latents, and an example of the loss is one.
    batch = system.data("train").arrays()
    assert batch["image"].shape == (40, 2, 2, 2)
    batch = {k: jnp.asarray(v[:4]) for k, v in batch.items()} | {"row": jnp.arange(4)}
    x0, _ = systems.load(latent_run)[0].backbone.examples(batch, jax.random.key(0))
    np.testing.assert_array_equal(x0, batch["image"])
    # Sampling: one call of the network, decoded by hand here.
    params, _ = sampling.load_params(systems.load(latent_run)[0], latent_run, one_device())
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    label = system.condition(system.request, np.arange(3))
    made = jax.jit(system.sample, static_argnums=3)(params, keys, label, system.request)
    floats = jax.jit(system.pixels, static_argnums=3)(params, keys, label, system.request)
    assert made["image"].shape == floats.shape == (3, *SHAPE)
    t, scale = systems.load(latent_run)[0].backbone.start
    z = samplers.draws(keys, (2, 2, 2), system.process)(0)
    z0 = system.denoiser(params, scale * z, jnp.float32(t), label)
    module, weights, about = net
    z0 = z0 * np.float32(about["std"]) + np.float32(about["mean"])
    wanted = module.apply({"params": weights}, z0, method="decode")
    np.testing.assert_allclose(floats, wanted, atol=2e-3)
    levels = np.clip(127.5 * np.asarray(wanted) + 127.5, 0, 255)
    assert np.max(np.abs(levels - made["image"])) < 1


@pytest.mark.slow
def test_post_training_from_end_to_end(latent_run, tmp_path):
    argv = apt_runs.words(latent_run)
    assert train.main([*argv, "--workdir", str(tmp_path / "apt")]) == 0
    # The run keeps the autoencoder, and is sampled and scored without the others.
    kept = {p.name for p in (tmp_path / "apt" / "assets").iterdir()}
    assert {"autoencoder.safetensors", "latents.json", "data.json", "base.json"} <= kept
    shutil.rmtree(tmp_path / "apt" / "distilled")
    words = ["--workdir", str(tmp_path / "apt"), "--num", "4"]
    assert sample.main([*words, "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as found:
        assert found["image"].shape == (4, *SHAPE)


@pytest.mark.slow
def test_the_configs_as_they_are(root, tmp_path):
    of = lambda name: ["--config", str(root / "configs" / f"{name}.py")]
    small = ["--config.steps=4", "--config.checkpoint_every=4", "--config.num_samples=8"]
    behind = f"--config.data.latents={tmp_path / 'ae'}"
    assert train.main([*of("autoencoder_tiny"), *small, "--workdir", str(tmp_path / "ae")]) == 0
    assert train.main([*of("latents"), *small, behind, "--workdir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "samples.png").stat().st_size


# ---- what is refused -----------------------------------------------------------------------------


def refused(config, fragment):
    with pytest.raises(UserError, match=fragment):
        systems.make(config)


def test_runs_that_are_none(config, autoencoder_run, trained, tmp_path, tiny_arrays):
    config.data.latents = str(tmp_path / "nowhere")
    refused(config, "config.data.latents: no run directory .*nowhere")
    config.data.latents = str(trained)
    refused(config, "trained: a run of edm, not of autoencoder")
    bare = tmp_path / "bare"
    shutil.copytree(autoencoder_run, bare)
    (bare / "assets" / "latents.json").unlink()
    config.data.latents = str(bare)
    refused(config, "bare: is not finished: train it to its end")
    # Killed before its end, a run has weights in its checkpoint alone.
    shutil.copy(autoencoder_run / "assets" / "latents.json", bare / "assets")
    (bare / "weights.safetensors").unlink()
    refused(config, "bare: is not finished: train it to its end")
    # Pictures of another size, and of another number of channels.
    config.data.latents = str(autoencoder_run)
    for shape, text in (((6, 8, 8, 1), "8x8x1"), ((6, 16, 16, 3), "16x16x3")):
        np.savez(tmp_path / "other.npz", images=np.zeros(shape, np.uint8))
        config.data.path = str(tmp_path / "other.npz")
        config.data.balanced = False
        refused(config, rf"its pictures are 8x8x3 .*, those of the data {text}")


def test_weights_that_are_not_those_that_were_measured(config, autoencoder_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(autoencoder_run, other)
    flat = trees.load(other / "weights.safetensors")
    name = sorted(flat)[0]
    flat[name] = flat[name] + 1
    trees.save(flat, other / "weights.safetensors")
    config.data.latents = str(other)
    refused(config, "other: the autoencoder's weights are not those that were measured")


@pytest.mark.parametrize(
    "change, fragment",
    [
        (lambda about: about.pop("network"), "does not say network, mean and std"),
        (lambda about: about.update(mean=[0.0]), "does not say network, mean and std"),
        (lambda about: about.update(mean=["a", "b"]), "does not say network, mean and std"),
        (lambda about: about.update(std=[1.0, 1.5]), "weights are not those that were measured"),
    ],
)
def test_assets_that_are_not_what_they_were(latent_run, tmp_path, change, fragment):
    assets = load_assets(latent_run)
    assets["latents"] = dict(assets["latents"])
    change(assets["latents"])
    with pytest.raises(UserError, match=fragment):
        systems.make(cli.read_config(latent_run), assets)


def test_a_channel_that_says_nothing_is_named(autoencoder_run, config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(autoencoder_run, other)
    about = json.loads((other / "assets" / "latents.json").read_text())
    about["std"][1] = 0.0
    about["fingerprint"] = latents._mark(about, trees.load(other / "weights.safetensors"))
    (other / "assets" / "latents.json").write_text(json.dumps(about))
    config.data.latents = str(other)
    refused(config, "channel 1 of the latents is the same for every picture")


def test_fields_that_make_no_sense_in_latents(words, config_of_relay):
    refused(config_of(words, "augment.probability=0.1"), "augment.probability 0.1: moves pixels")
    films = config_of(words)
    films.unlock()
    films.data.frames = 4
    films.data.path = "dots"
    refused(films, "of pictures, and config.data.frames is 4")
    large = config_of(words, "network.patch=4")
    refused(large, r"latents of 2x2x2 do not fit the network .* 1 levels\)\); configs/latents.py")
    refused(config_of_relay, "data.latents some: relay trains in pixels")


@pytest.fixture
def config_of_relay(root):
    made = cli.load_config(str(root / "configs" / "relay_tiny.py"))
    made.unlock()
    made.data.latents = "some"
    return made
