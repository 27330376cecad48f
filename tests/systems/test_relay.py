"""The relay room: its loss by hand, what stages hand over, pictures of one's own, the commands."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
import train
from diffjax import nets, systems
from diffjax.core import patches, samplers
from diffjax.errors import UserError
from diffjax.run import cli, sampling
from diffjax.run import mesh as meshes
from diffjax.systems.relay import postprocess, starts
from diffjax.weights import trees

GOLDEN = Path(__file__).parents[1] / "golden" / "relay"
SIGMA_DATA, QUANTILE, BLOCK, DROPOUT = 0.4, 0.8, 0.5, 0.25
SHAPE = (8, 8, 3)
NAMES = ["red", "green", "blue"]


class Affine:
    """F(x, c_noise, label) = 0.3 x - 0.2 c_noise + shift[label], and what it was told."""

    shift = np.array([0.1, -0.05, 0.2, 0.4])  # red, green, blue, no class

    def __init__(self):
        self.calls = []

    def lazy_init(self, key, *args):
        return {"params": {"unused": jnp.zeros(())}}

    def apply(self, variables, x, c_noise, label, **told):
        self.calls.append((x, c_noise, label))
        shift = jnp.asarray(self.shift, jnp.float32)[label]
        return 0.3 * x + (shift - 0.2 * c_noise)[:, None, None, None]


@pytest.fixture
def affine(monkeypatch):
    net = Affine()
    monkeypatch.setattr(nets, "make", lambda *args, **kwargs: net)
    return net


@pytest.fixture(scope="session")
def flags(root, tiny_data):
    """flags(stage, **more) -> train.py's words for a run of seconds of one of the tiny stages."""

    def make(stage, **more):
        small = {
            "steps": 4,
            "batch_size": 8,
            "checkpoint_every": 2,
            "log_every": 1,
            "num_samples": 4,
            "data.path": tiny_data,
            "data.image_size": {"relay_tiny_base": 4}.get(stage, 0),
            "network.widths": "(8,)",
            "network.embedding": 16,
            **{name.replace("__", "."): value for name, value in more.items()},
        }
        words = [f"--config.{name}={value}" for name, value in small.items()]
        return ["--config", str(root / "configs" / f"{stage}.py"), *words]

    return make


@pytest.fixture(scope="session")
def config_of(flags):
    def make(stage="relay_tiny", **more):
        words = flags(stage, **more)
        return cli.apply_overrides(cli.load_config(words[1]), cli.split_overrides(words[2:])[1])

    return make


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture
def system(affine, config_of):
    fields = {"sigma_data": SIGMA_DATA, "quantile": QUANTILE, "block": BLOCK}
    fields |= {"label_dropout": DROPOUT, "patch": 4, "blur_max": 3.0, "block_size": 2}
    return systems.make(config_of(**{f"diffusion__{k}": v for k, v in fields.items()}))


@pytest.fixture
def batch():
    random = np.random.default_rng(3)
    return {
        "image": jnp.asarray(random.integers(0, 256, (512, *SHAPE), dtype=np.uint8)),
        "label": jnp.asarray(random.integers(0, 3, 512), jnp.int32),
        "row": jnp.arange(512, dtype=jnp.int32),
    }


def test_loss_by_hand(system, affine, batch):
    loss, _ = system.loss(system.init(jax.random.key(0)), batch, jax.random.key(1))
    ((told, c_noise, label),) = affine.calls
    t = np.exp(4 * np.float64(c_noise))[:, None, None, None]
    total = t**2 + SIGMA_DATA**2
    x_t = np.float64(told) * np.sqrt(total)

    # EDM's log-normal below its quantile: a normal's quantile function of a uniform is uniform.
    from scipy.special import ndtr

    u = ndtr((np.log(t) + 1.2) / 1.2).ravel() / QUANTILE
    assert u.min() > 0 and u.max() <= 1 + 1e-5
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * 512)

    # What the blur leaves, taken away, is noise of the mixture: its variance, its neighbours.
    x0 = np.float64(batch["image"]) / 127.5 - 1
    gain = patches.damping(3.0 * np.sin(np.pi * u / 2) ** 2, 4)
    blurred = np.stack([patches.damp(g, jnp.asarray(x, jnp.float32)) for g, x in zip(gain, x0)])
    n = (x_t - blurred) / t
    within = lambda got, want: abs(got - want) < 5 * 2 / np.sqrt(n.size)
    large = t.ravel() > 0.05  # rounding of x_t is noise too
    n = n[large]
    assert within(n.var(), 1 + BLOCK**2)
    assert within(np.mean(n[:, 1:] * n[:, :-1]), BLOCK**2 / 2)  # a 2x2 box, one pixel apart
    assert within(np.mean(n[:, 2:] * n[:, :-2]), 0)
    assert within(np.mean(n[..., :1] * n[..., 1:2]), 0)  # channels are apart

    dropped = np.asarray(label) == 3
    assert abs(dropped.mean() - DROPOUT) < 5 * np.sqrt(DROPOUT * (1 - DROPOUT) / 512)
    np.testing.assert_array_equal(label[~dropped], batch["label"][~dropped])

    out, f = t * SIGMA_DATA / np.sqrt(total), 0.3 * np.float64(told)
    f = f + (Affine.shift[label] - 0.2 * np.float64(c_noise))[:, None, None, None]
    error = SIGMA_DATA**2 / total * x_t + out * f - x0
    np.testing.assert_allclose(loss, np.mean(error**2 / out**2), rtol=1e-5)


def test_loss_of_a_row_is_its_own(system, batch):
    params, key, loss = system.init(jax.random.key(0)), jax.random.key(7), jax.jit(system.loss)
    part = lambda rows: {name: np.asarray(value)[rows] for name, value in batch.items()}
    rows = np.array([5, 0, 9, 2])
    together, _ = loss(params, part(rows), key)
    alone = [loss(params, part(rows[i : i + 1]), key)[0] for i in range(4)]
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-6)
    assert len({float(a) for a in alone}) == 4


def test_what_training_shows_starts_from_its_own_pictures(system, tiny_arrays):
    index = np.arange(50)  # more than there are
    labels, small = system.condition(system.request, index), system.start.pictures(system.request)
    assert len(small) == 40
    reduced = np.stack([small[i % 40] for i in index])
    x0 = np.float32(tiny_arrays["images"]) / 127.5 - 1
    means = np.asarray(patches.means(x0, 4))
    found = [np.abs(means - r).max((1, 2, 3)).argmin() for r in reduced]
    assert len(set(found)) == 40
    np.testing.assert_allclose(reduced, means[found], atol=1e-6)
    np.testing.assert_array_equal(labels, tiny_arrays["labels"][found])


def test_without_labels(affine, config_of, tiny_arrays, tmp_path):
    np.savez(tmp_path / "plain.npz", images=tiny_arrays["images"])
    system = systems.make(config_of(data__path=tmp_path / "plain.npz"))
    batch = {"image": jnp.asarray(tiny_arrays["images"][:4]), "row": jnp.arange(4)}
    assert np.isfinite(system.loss({}, batch, jax.random.key(0))[0])
    start = dataclasses.replace(system.request, start="somewhere")
    for request in system.request, start:  # nothing to be told, whatever it starts from
        assert system.condition(request, np.arange(3)).tolist() == [0, 0, 0]
    source = system.data("train")
    assert system.condition_like(start, source, np.arange(2)).tolist() == [0, 0]


# ---- a chain -------------------------------------------------------------------------------------


def run_of(folder, config, assets, seed):
    """A run directory with random weights, as of a run that is done."""
    system = systems.make(config, assets)
    params = system.init(jax.random.key(seed))
    # A network's last layer starts at zero: so that it says something, every weight is moved.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(cli.config_json(config))
    from diffjax.run.system import save_assets

    save_assets(assets, folder)
    trees.save(jax.tree.unflatten(tree, moved), folder / sampling.WEIGHTS)
    return folder


@pytest.fixture(scope="session")
def chain(tmp_path_factory, config_of):
    """Run directories of three stages: 4x4, 8x8, 16x24 (of patches of 2x3)."""
    runs = tmp_path_factory.mktemp("chain")
    about = lambda *size: {"data": {"image_shape": [*size, 3], "class_names": NAMES}}
    first = run_of(runs / "first", config_of("relay_tiny_base"), about(4, 4), 0)
    second = run_of(runs / "second", config_of(parent=first), about(8, 8), 2)
    config = config_of(parent=second)
    with config.ignore_type():
        config.diffusion.patch = [2, 3]
    third = run_of(runs / "third", config, about(16, 24), 4)
    return first, second, third


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(meshes.LOCAL)


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
    }.items():
        with pytest.raises(UserError, match=fragment):
            ask(parent=text)


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


def test_classes_must_be_named_where_none_is_unknown_to_the_network(config_of):
    about = {"data": {"image_shape": [8, 8, 3], "class_names": ["a", "b", "c"]}}
    system = systems.make(config_of(diffusion__label_dropout=0.0), about)
    with pytest.raises(UserError, match="give --cond"):
        system.condition(dataclasses.replace(system.request, start="x"), np.arange(2))


# ---- requests, configs, post-processing ----------------------------------------------------------


@pytest.mark.parametrize(
    "fields, fragment",
    [
        ({"steps": 0}, "--steps 0"),
        ({"guidance": 0.5}, "--guidance 0.5: must be from 1"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"eta": 1.5}, "--eta"),
        ({"truncation": 0.001}, "--truncation 0.001: no noise level is below"),
        ({"sigma_min": 90.0}, "--sigma_min 90.0 must be below"),
        ({"sigma_min": 0.0}, "--sigma_min 0.0"),
        ({"rho": 0.0}, "--rho"),
        ({"quantile": -1.0}, "--quantile"),
        ({"post": "imagnet"}, "did you mean 'imagenet'"),
        ({"cond": "rde"}, "did you mean 'red'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_requests_that_cannot_be_met(system, fields, fragment):
    with pytest.raises(UserError, match=fragment):
        system.condition(dataclasses.replace(system.request, **fields), np.arange(2))


@pytest.mark.parametrize(
    "fields, fragment",
    [
        ({"diffusion.patch": 1}, "patch 1: how many times larger"),
        ({"diffusion.patch": 3}, "images of 8x8 do not divide by config.diffusion.patch 3x3"),
        ({"diffusion.patch": "four"}, "config.diffusion.patch four: a whole number"),
        ({"diffusion.patch": [2, 2, 2]}, "a whole number, or"),
        ({"diffusion.quantile": 1.2}, "config.diffusion.quantile 1.2"),
        ({"diffusion.block": -0.1}, "config.diffusion.block -0.1"),
        ({"diffusion.floor": 2.0}, "config.diffusion.floor"),
        ({"diffusion.label_dropout": 1.0}, "config.diffusion.label_dropout"),
        ({"diffusion.blur_max": float("nan")}, "blur_max nan"),
        ({"data.path": ""}, "config.data.path is empty"),
        ({"parent": 3}, "config.parent takes str"),
        ({"sampling.step": 3}, "did you mean 'steps'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_configs_that_make_no_sense(config_of, fields, fragment):
    config = config_of()
    with config.ignore_type(), config.unlocked():
        for name, value in fields.items():
            *group, last = name.split(".")
            node = config[group[0]] if group else config
            node[last] = value
    with pytest.raises(UserError, match=fragment):
        systems.make(config)


def test_a_config_without_a_field(config_of):
    config = config_of()
    config.unlock()
    del config.diffusion.blur_max
    with pytest.raises(UserError, match="config lacks the field 'diffusion.blur_max'"):
        systems.make(config)


@pytest.mark.parametrize("recipe", ["imagenet", "celebahq"])
def test_post_processing_of_the_original(recipe):
    with np.load(GOLDEN / "postprocess.npz") as g:
        got = jax.jit(lambda image: postprocess.apply(image, recipe))(g["uint8_in"])
        np.testing.assert_array_equal(got, g[f"{recipe}_post"])


def test_eight_bits_of_the_original():
    from diffjax.systems import images

    with np.load(GOLDEN / "postprocess.npz") as g:
        x = np.moveaxis(g["model_range"], 1, -1)
        np.testing.assert_array_equal(images.to_uint8(x), g["uint8"])


# ---- the commands --------------------------------------------------------------------------------


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
        assert arrays["image"].shape == (6, *SHAPE) and arrays["label"].tolist() == [0, 1, 2] * 2
    # It is done already, and its parent may have moved since.
    words = [w.replace(str(tmp_path / "base"), "elsewhere") for w in words]
    assert train.main([*words, "--workdir", str(stage)]) == 0
    assert "was finished already" in capsys.readouterr().err
