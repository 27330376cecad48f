"""EDM on films: the loss by hand, samples, files, what is refused; APT on such a base."""

import copy
import json

import apt_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
import train
from diffjax import evaluate, nets, systems
from diffjax.data import films
from diffjax.errors import UserError
from diffjax.run import cli, sampling, update
from diffjax.run import mesh as meshes

FRAMES, SIZE = 4, 8
ABOUT = {"image_shape": [FRAMES, SIZE, SIZE, 3], "class_names": ["a", "b"], "fingerprint": ""}
SMALL = {
    "steps": 4,
    "batch_size": 8,
    "checkpoint_every": 2,
    "log_every": 2,
    "sample_every": 100,
    "num_samples": 4,
    "data.frames": FRAMES,
    "data.image_size": SIZE,
    "network.width": 24,
    "network.depth": 1,
    "network.heads": 2,
    "sampling.steps": 2,
    "sampling.sigma_max": 2.0,
}


@pytest.fixture(scope="module")
def words(root):
    """train.py's words, but --workdir, for a run of seconds."""
    flags = [f"--config.{field}={value}" for field, value in SMALL.items()]
    return ["--config", str(root / "configs" / "film_tiny.py"), *flags]


@pytest.fixture
def config(words):
    _, overrides = cli.split_overrides(words[2:])
    return cli.apply_overrides(cli.load_config(words[1]), overrides)


@pytest.fixture(scope="module")
def film_run(words, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("films") / "run"
    assert train.main([*words, "--workdir", str(workdir)]) == 0
    return workdir


class Probe:
    """A network that answers 0 and remembers what it was told."""

    def apply(self, variables, x, c_noise, label, **told):
        self.x, self.c_noise, self.label = x, c_noise, label
        return jnp.zeros_like(x)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_loss_by_hand(config, monkeypatch, stratified):
    # The network is told ln(sigma)/4 and sees c_in (x0 + sigma n); with F = 0, D is c_skip x. The
    # loss of rectified flow's levels is |D - x0|^2/t^2 with t = sigma/(1 + sigma).
    probe = Probe()
    monkeypatch.setattr(nets, "make", lambda *args, **kwargs: probe)
    config.diffusion.stratified, config.diffusion.sigma_data = stratified, 0.5
    system = systems.make(config, {"data": ABOUT})
    random = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(random.integers(0, 256, (8, FRAMES, SIZE, SIZE, 3), np.uint8)),
        "label": jnp.asarray(random.integers(0, 2, 8), jnp.int32),
        "row": jnp.arange(8, dtype=jnp.int32),
    }
    loss, _ = system.loss({}, batch, jax.random.key(2))
    sigma = np.exp(4 * np.asarray(probe.c_noise, np.float64))
    assert sigma.shape == (8,) and len(np.unique(sigma)) == 8
    sigma = sigma.reshape(8, 1, 1, 1, 1)
    x0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    x = np.asarray(probe.x) * np.sqrt(0.25 + sigma**2)
    n = (x - x0) / sigma
    assert abs(n.mean()) < 0.05 and n.std() == pytest.approx(1, abs=0.05)
    # Noise of its own in every frame.
    assert abs(np.mean(n[:, 1:] * n[:, :-1])) < 0.05
    d, t = x * 0.25 / (0.25 + sigma**2), sigma / (1 + sigma)
    assert loss == pytest.approx(np.mean((d - x0) ** 2 / t**2), rel=1e-4)


def test_what_a_run_leaves_and_samples(film_run, tmp_path, capsys):
    assert json.loads((film_run / "assets" / "data.json").read_text())["image_shape"] == [
        4,
        8,
        8,
        3,
    ]
    assert (film_run / "samples.gif").stat().st_size and not (film_run / "samples.png").exists()
    capsys.readouterr()
    words = ["--workdir", str(film_run), "--num", "8", "--out"]
    assert sample.main([*words, str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as found:
        made, labels = found["image"], found["label"]
    system, _ = systems.load(film_run)
    save = lambda out: sampling.save(system, {"image": made, "label": labels}, tmp_path / out)
    assert made.shape == (8, 4, 8, 8, 3) and made.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    # The grid: rows of classes, all films at once, each pixel a square.
    assert save("x.gif").startswith("8 samples in ")
    with Image.open(tmp_path / "x.gif") as grid:
        assert grid.n_frames == 4 and grid.info["duration"] == 120
        for t in range(4):
            grid.seek(t)
            seen = np.asarray(grid.convert("RGB"))
            right = seen[9 + 4 : 9 + 72 : 9, -(72 + 9) + 4 : -9 : 9]  # row 0, last column
            # 256 colours for all: a pixel's error is small, but not 0.
            error = np.abs(right.astype(int) - made[4, t])
            assert error.mean() < 25 and right.shape == (8, 8, 3)
    # The strip: a film a row, as it is.
    save("x.png")
    strip = np.asarray(Image.open(tmp_path / "x.png"))
    assert strip.shape == (8 * 8, 4 * 8, 3)
    np.testing.assert_array_equal(strip[8:16, 16:24], made[1, 2])
    # Single films are data for a run.
    save("folder")
    read = films.open_films(str(tmp_path / "folder"), 4)
    assert len(read) == 8 and read.image_shape == (4, 8, 8, 3)
    assert np.abs(read[5]["image"].astype(int) - made[5]).mean() < 25
    capsys.readouterr()
    assert evaluate.main(["--workdir", str(film_run), "--num", "8", "--batch", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"kid_frames", "kid_motion"} and found["num_real"] == 256
    score = found["scores"]["kid_frames"]
    assert score["value"] > 0.1 > 5 * abs(score["floor"])


def test_weights_of_a_run_on_pictures_are_weights_for_films(config):
    # With patches of one frame nothing in the network knows how many frames there are.
    config.network.patch_frames = 1
    shapes = []
    for frames, shape in ((0, [SIZE, SIZE, 3]), (4, ABOUT["image_shape"])):
        own = copy.deepcopy(config)
        own.data.frames = frames
        system = systems.make(own, {"data": {**ABOUT, "image_shape": shape}})
        tree = jax.eval_shape(system.init, jax.random.key(0))
        shapes.append([(str(k), a.shape) for k, a in jax.tree_util.tree_leaves_with_path(tree)])
    assert shapes[0] == shapes[1]


REFUSED = {
    "a U-Net": ("network.kind unet_small: takes pictures, .*mmdit takes films", "unet", ABOUT),
    "frames": (
        "patch_frames 3: does not divide films of 4 frames",
        "network.patch_frames=3",
        ABOUT,
    ),
    "sides": ("8x8 do not divide by 3", "network.patch=3", ABOUT),
    "pictures": (
        "patch_frames 2: of pictures only 1",
        "data.frames=0",
        {**ABOUT, "image_shape": [8, 8, 3]},
    ),
    "other assets": ("data.frames 8: the run's films have 4", "data.frames=8", ABOUT),
    "assets of pictures": (
        r"image_shape \[8, 8, 3\] is no \[frames, height, width, channels\]",
        "data.frames=4",
        {**ABOUT, "image_shape": [8, 8, 3]},
    ),
    "augmentation": ("network of kind mmdit cannot be told", "augment.probability=0.1", ABOUT),
    "no frames": ("data.frames -3: from 2", "data.frames=-3", ABOUT),
    "one frame": ("data.frames 1: from 2 to", "data.frames=1", ABOUT),
    "no path": ("data.path is empty: give a folder of .gif", "data.path=", ABOUT),
}


@pytest.mark.parametrize("fragment, change, about", REFUSED.values(), ids=list(REFUSED))
def test_refused(config, fragment, change, about):
    if change == "unet":
        config.network = {
            "kind": "unet_small", "widths": (8,), "patch": 2, "embedding": 16, "dtype": "float32",
        }  # fmt: skip
    else:
        config = cli.apply_overrides(config, [change])
    with pytest.raises(UserError, match=fragment):
        systems.make(config, {"data": about})


def test_post_training_takes_films(film_run):
    # Both stages' steps are traced on a base of films: shapes go through, and G's are films.
    base = cli.read_config(film_run)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)
    for stage in ("distil", "adversarial"):
        # "(1,)": the tiny net here has one block.
        own = apt_runs.of(film_run, stage, adversarial__taps="(1,)", adversarial__r1_weight=1.0)
        own.mesh.data = 1
        system = systems.make(own, {"data": ABOUT, "base": {"config": base.to_dict()}})
        assert system.suffix == ".gif" and system.scores[0] == "kid_frames,kid_motion"
        state, _ = update.state_shapes(system, own, mesh)
        fields = {"image": ((FRAMES, SIZE, SIZE, 3), np.uint8), "label": ((), np.int32)}
        batch = {k: jax.ShapeDtypeStruct((8, *s), d) for k, (s, d) in fields.items()}
        beside = [] if system.beside is None else [jax.eval_shape(system.init, jax.random.key(0))]
        step = update.step_function(system, own, Passed, mesh)
        after, metrics = jax.eval_shape(step, state, batch, np.float32(0), *beside)
        assert [a.shape for a in jax.tree.leaves(after)] == [
            a.shape for a in jax.tree.leaves(state)
        ]
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    label = system.condition(system.request, np.arange(3))
    params = jax.eval_shape(system.init, jax.random.key(0))
    draw = lambda params, keys, label: system.sample(params, keys, label, system.request)
    made = jax.eval_shape(draw, params, keys, label)
    assert made["image"].shape == (3, FRAMES, SIZE, SIZE, 3)


class Passed:
    """A feed whose batch is what it is fed."""

    @staticmethod
    def take(fed, key, step):
        return fed


@pytest.mark.slow
def test_post_training_of_a_run_of_films(film_run, tmp_path):
    shifts = {"adversarial__shift": 12.0, "distillation__shift": 12.0}
    argv = apt_runs.words(film_run, adversarial__taps="(1,)", **shifts)
    assert train.main([*argv, "--workdir", str(tmp_path / "apt")]) == 0
    assert (tmp_path / "apt" / "base.gif").stat().st_size
    words = ["--workdir", str(tmp_path / "apt"), "--num", "4", "--out", str(tmp_path / "a.gif")]
    assert sample.main(words) == 0
    assert Image.open(tmp_path / "a.gif").n_frames == 4


def test_a_bad_film_is_one_line_and_leaves_nothing(words, tmp_path, capfd):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.gif").write_bytes(b"GIF89a" + bytes(40))
    data = f"--config.data.path={tmp_path / 'set'}"
    assert train.main([*words, data, "--workdir", str(tmp_path / "run")]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "a.gif: " in lines[0], lines
    assert not (tmp_path / "run").exists()
