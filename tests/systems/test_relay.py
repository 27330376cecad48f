"""The relay room: its loss by hand, what stages hand over, pictures of one's own, the commands."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import nets, systems
from diffjax.core import patches
from diffjax.errors import UserError
from diffjax.systems.relay import postprocess

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


@pytest.mark.slow
def test_convolutions_are_rounded_once(config_of, monkeypatch):
    config = config_of()
    with config.unlocked():
        config.network = {"kind": "adm", "model_channels": 16, "channel_mult": (1, 2)}
        config.network.update(num_blocks=1, attn_resolutions=(4,), dropout=0.0, augment_dim=0)
        config.network.dtype = "bfloat16"
    about = {"data": {"image_shape": [8, 8, 3], "class_names": NAMES}}
    system = systems.make(config, about)
    params, seen = system.init(jax.random.key(0)), []
    real = nets.rounded
    monkeypatch.setattr(nets, "rounded", lambda *given: seen.append(real(*given)) or seen[-1])
    given = jnp.zeros(2, int), jnp.zeros((2, 4, 4, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    x = system.pixels(params, keys, given, dataclasses.replace(system.request, steps=6))
    assert x.shape == (2, 8, 8, 3) and x.dtype == jnp.float32
    (rounded,) = seen
    assert rounded["out_conv"]["kernel"].dtype == jnp.bfloat16


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


def test_classes_must_be_named_where_none_is_unknown_to_the_network(config_of):
    about = {"data": {"image_shape": [8, 8, 3], "class_names": ["a", "b", "c"]}}
    system = systems.make(config_of(diffusion__label_dropout=0.0), about)
    with pytest.raises(UserError, match="give --cond"):
        system.condition(dataclasses.replace(system.request, start="x"), np.arange(2))
