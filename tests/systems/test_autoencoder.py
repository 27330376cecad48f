"""The autoencoder as a system: its loss by hand, what a run leaves, that it learns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
import train
from diffjax import evaluate, nets, systems
from diffjax.errors import UserError
from diffjax.run import cli
from diffjax.systems.autoencoder import losses


def integral(mean, logvar):
    """KL(N(mean, e^logvar) || N(0, 1)) by the trapezium rule, without the closed form."""
    std = np.exp(logvar / 2)
    z = np.linspace(mean - 12 * std, mean + 12 * std, 200_001)
    q = -0.5 * ((z - mean) / std) ** 2 - np.log(std)
    p = -0.5 * z**2
    return np.trapezoid(np.exp(q) * (q - p), z) / np.sqrt(2 * np.pi)


def test_kl_is_the_integral():
    pairs = [(0.0, 0.0), (1.5, 0.0), (0.0, -4.0), (-2.0, 1.0), (0.3, -9.0)]
    mean, logvar = (jnp.asarray(a, jnp.float32) for a in zip(*pairs))
    found = losses.kl(mean, logvar)
    wanted = [integral(*pair) for pair in pairs]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # Numbers that one can do in one's head: mean 2: 4/2; variance e: (e - 2)/2.
    np.testing.assert_allclose(losses.kl(jnp.float32([2, 0]), jnp.float32([0, 1])), [2, 0.3591409])
    # A wide and a next to perfect posterior stay finite, and bfloat16 is computed in float32.
    assert np.all(np.isfinite(losses.kl(jnp.float32([9, 0]), jnp.float32([20, -30]))))
    assert losses.kl(jnp.bfloat16([1]), jnp.bfloat16([0])).dtype == jnp.float32


def test_psnr_by_hand():
    black, grey = jnp.full((2, 4, 4, 3), -1.0), jnp.full((2, 4, 4, 3), -0.8)
    assert losses.psnr(black, -black) == pytest.approx(0, abs=1e-5)  # all of the range off
    assert losses.psnr(black, grey) == pytest.approx(20, abs=1e-3)  # a tenth of it
    assert losses.psnr(black, black) == pytest.approx(99, abs=1e-3)


class Probe:
    """An autoencoder that makes x of everything + 1/2, its mean and log variance set."""

    def latent_shape(self, shape):
        return (2, 2, 4)

    def apply(self, variables, x, noise):
        self.x, self.noise = x, noise
        like = jnp.zeros((len(x), 2, 2, 4))
        return x + 0.5, like + 1.0, like - 2.0


@pytest.mark.parametrize("kind, error", [("l1", 0.5), ("l2", 0.25)])
def test_the_loss_by_hand(words, monkeypatch, kind, error):
    probe = Probe()
    monkeypatch.setattr(nets, "make_autoencoder", lambda *args, **kwargs: probe)
    config = config_of(words, f"loss.reconstruction={kind}", "loss.kl_weight=0.3")
    system = systems.make(config)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)), jnp.uint8)
    batch = {"image": image, "row": jnp.arange(6, dtype=jnp.int32)}
    loss, metrics = system.loss({}, batch, jax.random.key(1))
    divergence = (1 + np.exp(-2) - 1 + 2) / 2
    assert metrics["reconstruction"] == pytest.approx(error)
    assert metrics["kl"] == pytest.approx(divergence, rel=1e-5)
    assert metrics["psnr"] == pytest.approx(10 * np.log10(4 / 0.25), rel=1e-4)
    # Per picture: 16 latent numbers' divergence against 192 pixel values' error.
    assert loss == pytest.approx(error + 0.3 * divergence * 16 / 192, rel=1e-5)
    np.testing.assert_allclose(probe.x, np.asarray(image, np.float64) / 127.5 - 1, atol=1e-6)
    # A row's noise is its own: the half of a batch has the half of the noise.
    whole = np.asarray(probe.noise)
    assert abs(whole.std() - 1) < 0.2 and len(np.unique(whole)) == whole.size
    half = {name: value[3:] for name, value in batch.items()}
    system.loss({}, half, jax.random.key(1))
    np.testing.assert_array_equal(probe.noise, whole[3:])


@pytest.fixture(scope="module")
def words(autoencoder_words):
    return autoencoder_words


def config_of(words, *overrides):
    _, given = cli.split_overrides(words[2:])
    return cli.apply_overrides(cli.load_config(words[1]), [*given, *overrides])


def test_what_a_run_leaves(autoencoder_run, tiny_arrays):
    about = json.loads((autoencoder_run / "assets" / "latents.json").read_text())
    assert about["network"]["kind"] == "kl" and len(about["mean"]) == len(about["std"]) == 2
    # Measured over all training pictures, in float64, by the weights that the run ends with.
    system, config = systems.load(autoencoder_run)
    net = nets.make_autoencoder(config.network, shape=(8, 8, 3))
    params = nets_params(autoencoder_run)
    x = jnp.asarray(tiny_arrays["images"], jnp.float32) / 127.5 - 1
    mean = np.asarray(net.apply({"params": params}, x, method="encode")[0], np.float64)
    np.testing.assert_allclose(about["mean"], mean.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(about["std"], mean.std((0, 1, 2)), rtol=1e-4)
    records = [json.loads(r) for r in (autoencoder_run / "metrics.jsonl").read_text().splitlines()]
    assert {"reconstruction", "psnr", "kl", "loss"} <= set(records[-1])
    assert (autoencoder_run / "loss.png").is_file() and (autoencoder_run / "samples.png").is_file()


def nets_params(workdir):
    from diffjax.weights import trees

    return trees.unflatten(trees.load(workdir / "weights.safetensors"))


def test_samples_are_reconstructions_beside_their_pictures(
    autoencoder_run, tiny_arrays, tiny_data, tmp_path
):
    words = ["--workdir", str(autoencoder_run), "--out"]
    assert sample.main([*words, str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as found:
        made, original = found["image"], found["original"]
    assert made.shape == original.shape == (40, 8, 8, 3)  # all that it keeps, without --num
    known = {a.tobytes() for a in tiny_arrays["images"]}
    assert {a.tobytes() for a in original} == known
    # The picture: pairs, each pixel a square.
    assert sample.main([*words, str(tmp_path / "x.png"), "--num", "1"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    np.testing.assert_array_equal(sheet[1 + 4 : 1 + 72 : 9, 1 + 4 : 1 + 72 : 9], original[0])
    np.testing.assert_array_equal(sheet[1 + 4 : 1 + 72 : 9, 73 + 4 : 73 + 72 : 9], made[0])
    # Own pictures, in their order.
    own = ["--pictures", str(tiny_data), "--num", "3"]
    assert sample.main([*words, str(tmp_path / "own.npz"), *own]) == 0
    with np.load(tmp_path / "own.npz") as found:
        np.testing.assert_array_equal(found["original"], tiny_arrays["images"][:3])
    # A sample of the posterior is another picture than its mean.
    posterior = ["--posterior", "true", "--num", "40"]
    assert sample.main([*words, str(tmp_path / "p.npz"), *posterior]) == 0
    with np.load(tmp_path / "p.npz") as found:
        assert 0 < np.mean(np.abs(found["image"].astype(int) - made)) < 60


def test_scores_have_the_distance_to_the_pictures(autoencoder_run, capsys):
    words = ["--workdir", str(autoencoder_run), "--num", "40", "--batch", "20", "--metrics", "kid"]
    assert evaluate.main([*words, "--net", "pixels"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"kid"} and found["num_real"] == 40
    assert 0 < found["l1"] < 2 and 0 < found["psnr"] < 60


def test_it_learns_pictures_by_heart(words, tiny_arrays, tmp_path, capsys):
    # 16 pictures of smooth colour: what the mean picture leaves of them, and what the net does.
    place = np.linspace(0, np.pi, 8)
    random = np.random.default_rng(1)
    waves = random.uniform(-60, 60, (16, 2, 1, 1, 3)) * np.cos(place)[:, None]
    images = 128 + waves[:, 0].reshape(16, 1, 8, 3) + waves[:, 1].reshape(16, 8, 1, 3)
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=images)
    flags = {
        "data.path": tmp_path / "few.npz",
        "steps": 150,
        "batch_size": 16,
        "checkpoint_every": 150,
        "log_every": 50,
        "network.latent_channels": 4,
        "loss.kl_weight": 1e-6,
        "optimizer.learning_rate": 5e-3,
        "ema.ema.decay": 0.9,
    }
    more = [f"--config.{name}={value}" for name, value in flags.items()]
    assert train.main([*words, *more, "--workdir", str(tmp_path / "run")]) == 0
    out = ["--num", "16", "--out", str(tmp_path / "x.npz")]
    assert sample.main(["--workdir", str(tmp_path / "run"), *out]) == 0
    with np.load(tmp_path / "x.npz") as found:
        made, original = (found[name].astype(float) for name in ("image", "original"))
    error = np.mean(np.square(made - original))
    of_mean = np.mean(np.square(images - images.mean(0, keepdims=True)))
    assert error < of_mean / 10, (error, of_mean)


REFUSED = {
    "error": ("loss.reconstruction 'l3'", "loss.reconstruction=l3"),
    "weight": ("kl_weight -1.0: at least 0", "loss.kl_weight=-1.0"),
    "sides": ("images of 8x8 do not divide by 16", "network.patch=8"),
    "no data": ("data.path is empty", "data.path="),
}


@pytest.mark.parametrize("fragment, change", REFUSED.values(), ids=list(REFUSED))
def test_refused(words, fragment, change):
    with pytest.raises(UserError, match=fragment):
        systems.make(config_of(words, change))


def test_pictures_of_another_size_are_one_line(autoencoder_run, tmp_path, capfd):
    np.savez(tmp_path / "large.npz", images=np.zeros((2, 8, 12, 3), np.uint8))
    words = ["--workdir", str(autoencoder_run), "--pictures", str(tmp_path / "large.npz")]
    assert sample.main([*words, "--out", str(tmp_path / "x.png")]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "large.npz" in lines[0] and not (tmp_path / "x.png").exists()


def test_a_run_of_it_is_no_base(autoencoder_run, tmp_path, capfd, root):
    words = ["--config", str(root / "configs" / "apt_tiny.py"), f"--config.base={autoencoder_run}"]
    assert train.main([*words, "--workdir", str(tmp_path / "apt")]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "a run of autoencoder cannot be post-trained" in lines[0]
    assert not (tmp_path / "apt").exists()
