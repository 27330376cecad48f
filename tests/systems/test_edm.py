"""The EDM room against the paper's formulas, with a network that can be worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import nets, systems
from diffjax.data.sources import ArraySource
from diffjax.errors import UserError

SIGMA_DATA, P_MEAN, P_STD, DROPOUT = 0.4, -0.9, 1.1, 0.25
SHAPE = (8, 8, 3)


class Affine:
    """F(x, c_noise, label) = 0.3 x - 0.2 c_noise + shift[label], and what it was told."""

    shift = np.array([0.1, -0.05, 0.2, 0.4])  # red, green, blue, no class

    def __init__(self):
        self.calls = []

    def lazy_init(self, key, *args):
        return {"params": {"unused": jnp.zeros(())}}

    def apply(self, variables, x, c_noise, label, **training):
        self.training = training
        self.calls.append((x, c_noise, label))
        shift = jnp.asarray(self.shift, jnp.float32)[label]
        return 0.3 * x + (shift - 0.2 * c_noise)[:, None, None, None]


@pytest.fixture
def affine(monkeypatch):
    net = Affine()
    monkeypatch.setattr(nets, "make", lambda *args, **kwargs: net)
    return net


@pytest.fixture
def config(make_config):
    return make_config(
        f"diffusion.sigma_data={SIGMA_DATA}",
        f"diffusion.p_mean={P_MEAN}",
        f"diffusion.p_std={P_STD}",
        f"diffusion.label_dropout={DROPOUT}",
    )


@pytest.fixture
def system(affine, config):
    return systems.make(config)


def coefficients(sigma):
    """Karras et al. 2022, Table 1, "Ours"."""
    total = sigma**2 + SIGMA_DATA**2
    skip, out = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / np.sqrt(total)
    return skip, out, 1 / np.sqrt(total), np.log(sigma) / 4


def by_hand(x, sigma, label):
    """D(x; sigma), equation 7, in float64."""
    skip, out, scale, noise = coefficients(sigma)
    f = 0.3 * scale * x - 0.2 * noise + Affine.shift[label][:, None, None, None]
    return skip * x + out * f


@pytest.fixture
def batch():
    random = np.random.default_rng(3)
    return {
        "image": jnp.asarray(random.integers(0, 256, (512, *SHAPE), dtype=np.uint8)),
        "label": jnp.asarray(random.integers(0, 3, 512), jnp.int32),
        "row": jnp.arange(512, dtype=jnp.int32),
    }


def test_loss_is_equation_8(system, affine, batch):
    # Outside jit the network sees numbers: from them come the noise levels and the noise.
    loss, _ = system.loss(system.init(jax.random.key(0)), batch, jax.random.key(7))
    ((told, c_noise, label),) = affine.calls
    sigma = np.exp(4 * np.float64(c_noise))[:, None, None, None]
    _, out, scale, _ = coefficients(sigma)
    x0 = np.float64(batch["image"]) / 127.5 - 1
    n = (np.float64(told) / scale - x0) / sigma

    # ln sigma ~ N(p_mean, p_std^2), n ~ N(0, 1): 512 levels, 512 x 192 draws, five deviations.
    z = (np.log(sigma) - P_MEAN) / P_STD
    assert abs(z.mean()) < 5 / np.sqrt(512) and abs(z.std() - 1) < 5 / np.sqrt(2 * 512)
    assert abs(n.mean()) < 5 / np.sqrt(n.size) and abs(n.var() - 1) < 5 * np.sqrt(2 / n.size)
    assert np.abs(np.corrcoef(n.reshape(512, -1)[:40])[~np.eye(40, dtype=bool)]).max() < 0.4
    assert abs(np.corrcoef(z.ravel(), n.reshape(512, -1).mean(1))[0, 1]) < 0.25

    # No class, as often as it should be; otherwise the picture's own.
    dropped = np.asarray(label) == 3
    assert abs(dropped.mean() - DROPOUT) < 5 * np.sqrt(DROPOUT * (1 - DROPOUT) / 512)
    np.testing.assert_array_equal(label[~dropped], batch["label"][~dropped])

    error = by_hand(x0 + sigma * n, sigma, np.asarray(label)) - x0
    weight = 1 / out**2  # lambda = 1/c_out^2, appendix B.6
    np.testing.assert_allclose(loss, np.mean(weight * error**2), rtol=1e-5)


def test_loss_of_a_row_is_its_own(system, batch):
    # By its number, not by its place: that is what makes slices and devices agree.
    params, key, loss = system.init(jax.random.key(0)), jax.random.key(7), jax.jit(system.loss)
    part = lambda rows: {name: np.asarray(value)[rows] for name, value in batch.items()}
    rows = np.array([5, 0, 9, 2])
    together, _ = loss(params, part(rows), key)
    alone = [loss(params, part(rows[i : i + 1]), key)[0] for i in range(4)]
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-6)
    assert len({float(a) for a in alone}) == 4


def test_denoiser(system):
    random = np.random.default_rng(0)
    x = random.normal(size=(4, *SHAPE)).astype(np.float32)
    label = np.array([0, 1, 2, 3], np.int32)
    for sigma in 0.01, 0.4, 30.0:
        got = system.denoiser(system.init(jax.random.key(0)), x, np.float32(sigma), label)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, by_hand(x, sigma, label), rtol=1e-5, atol=1e-6)


def test_new_network_is_the_skip(config):
    # Its head starts at zero: D = c_skip x at every level, and the loss of unit-variance targets.
    system = systems.make(config)
    params = jax.jit(system.init)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    for sigma in 0.02, 5.0:
        got = system.denoiser(params, x, np.float32(sigma), np.array([0, 3], np.int32))
        np.testing.assert_allclose(got, coefficients(sigma)[0] * x, rtol=1e-6)


@pytest.fixture
def image(system):
    """image(**request fields) -> float64 samples of four keys, labels 0, 1, 2, 0."""
    params, keys = system.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 4)
    calm = {"sigma_min": 0.01, "sigma_max": 0.5, "guidance": 1.0, "steps": 4}

    def go(**fields):
        request = dataclasses.replace(system.request, **{**calm, **fields})
        label = system.condition(request, np.arange(4))
        return np.float64(system.sample(params, keys, label, request)["image"])

    return go


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_guidance_is_equation_6(image, scale):
    # One Euler step from sigma_max to 0 is D itself, and D_c - D_null = c_out (shift difference).
    conditional = image(steps=1, sampler="euler")
    guided = image(steps=1, sampler="euler", guidance=scale)
    _, out, _, _ = coefficients(0.5)
    gap = out * (Affine.shift[[0, 1, 2, 0]] - Affine.shift[3])[:, None, None, None]
    wanted = conditional + 127.5 * (scale - 1) * gap
    inside = (wanted > 2) & (wanted < 253) & (conditional > 0) & (conditional < 255)
    assert inside.mean() > 0.5
    assert np.abs(guided - wanted)[inside].max() <= 1  # both were cut to whole levels


def test_guidance_of_one_asks_for_no_null_label(image, affine):
    image()
    assert affine.calls and all(label.shape == (4,) for _, _, label in affine.calls)
    before = len(affine.calls)
    image(guidance=1.5)
    assert len(affine.calls) - before == 2 * before


def test_sampler_names(image):
    euler, heun, ddim, ancestral = (
        image(sampler=name) for name in ("euler", "heun", "ddim", "ancestral")
    )
    # On x = x0 + sigma n DDIM is Euler's method, and ancestral sampling DDIM with eta = 1.
    assert np.abs(euler - ddim).max() <= 1
    np.testing.assert_array_equal(ancestral, image(sampler="ddim", eta=1.0))
    assert np.abs(heun - euler).max() > 1 and np.abs(ancestral - euler).max() > 20
    # Heun's error falls as steps^-2: 12 steps of it and 400 of Euler's meet.
    assert np.abs(image(sampler="heun", steps=12) - image(sampler="euler", steps=400)).max() <= 2
    assert np.abs(image(sampler="heun", churn=2.0) - heun).max() > 5


def test_multistep_sampler_names(image):
    exact = image(sampler="heun", steps=40)
    dpmpp, sde, unipc = (image(sampler=name) for name in ("dpmpp", "dpmpp_sde", "unipc"))
    # Both follow the ODE, at one evaluation a step.
    assert np.abs(image(sampler="dpmpp", steps=40) - exact).max() <= 2
    assert np.abs(image(sampler="unipc", steps=40) - exact).max() <= 2
    assert np.abs(dpmpp - unipc).max() > 0
    np.testing.assert_array_equal(sde, image(sampler="dpmpp", eta=1.0))
    assert np.abs(sde - dpmpp).max() > 20
    assert np.all([np.std(picture) > 5 for picture in (dpmpp, sde, unipc)])  # pictures, not flats


@pytest.mark.parametrize(
    "fields, fragment",
    [
        ({"sampler": "huen"}, "did you mean 'heun'"),
        ({"steps": 0}, "--steps 0"),
        ({"sigma_min": 0.0}, "--sigma_min"),
        ({"sigma_max": 0.001}, "--sigma_max"),
        ({"sigma_max": float("inf")}, "--sigma_max"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"rho": 0.0}, "--rho"),
        ({"rho": float("nan")}, "--rho"),
        ({"churn": -1.0}, "--churn"),
        ({"eta": 1.5}, "--eta"),
        ({"cond": "rde"}, "did you mean 'red'"),
        ({"cond": "3"}, "no class '3'"),
        ({"cond": "red,,blue"}, "no class ''"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_requests_that_cannot_be_met(system, fields, fragment):
    request = dataclasses.replace(system.request, **fields)
    with pytest.raises(UserError, match=fragment):
        system.condition(request, np.arange(2))


def test_conditions(system):
    ask = lambda cond, n: system.condition(
        dataclasses.replace(system.request, cond=cond), np.arange(n)
    ).tolist()
    assert ask("", 5) == [0, 1, 2, 0, 1]
    assert ask("blue", 2) == [2, 2]
    assert ask(" green , 0", 4) == [1, 0, 1, 0]


def test_conditions_like_the_data(system, tiny_arrays):
    source = system.data("train")
    labels = system.condition_like(system.request, source, np.arange(40))
    np.testing.assert_array_equal(np.sort(labels), np.sort(tiny_arrays["labels"]))
    assert (labels[:9] != tiny_arrays["labels"][:9]).any()  # of any 9, not of the first 9
    again = system.condition_like(system.request, source, np.arange(45, 50))
    np.testing.assert_array_equal(again, labels[5:10])
    other = ArraySource(tiny_arrays["images"], tiny_arrays["labels"], ("a", "b", "c"), "other")
    with pytest.raises(UserError, match="other has other classes"):
        system.condition_like(system.request, other, np.arange(2))


def test_without_labels(affine, make_config, tiny_arrays, tmp_path):
    path = tmp_path / "plain.npz"
    np.savez(path, images=tiny_arrays["images"])
    system = systems.make(make_config(f"data.path={path}", "data.balanced=True"))
    assert not system.balanced and system.assets["data"]["class_names"] == []
    batch = {"image": jnp.asarray(tiny_arrays["images"][:4]), "row": jnp.arange(4)}
    loss, _ = system.loss({}, batch, jax.random.key(0))
    assert np.isfinite(loss)
    labels = system.condition(system.request, np.arange(3))
    assert labels.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="no classes"):
        system.condition(dataclasses.replace(system.request, cond="red"), np.arange(3))


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced(affine, make_config, balanced):
    system = systems.make(make_config(f"data.balanced={balanced}"))
    assert system.balanced is balanced
