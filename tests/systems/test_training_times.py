"""Noise levels and weights that config.diffusion.times names, against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from diffjax import nets, systems
from diffjax.run import mesh as meshes

SD, MEAN, STD, ROWS = 0.4, -0.9, 1.1, 512
ABOUT = {"image_shape": [8, 8, 3], "class_names": ["red", "green", "blue"]}


class Probe:
    """F(x) = 0.3 x; remembers what it was told."""

    def lazy_init(self, key, *args):
        return {"params": {"unused": jnp.zeros(())}}

    def apply(self, variables, x, c_noise, label, **told):
        self.seen = x, c_noise
        return 0.3 * x


def vp_share(sigma):
    """The share of VP's uniform times in (1e-5, 1] that have less noise."""
    t = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(sigma**2)) - 0.1) / 19.9
    return (t - 1e-5) / (1 - 1e-5)


# times -> (share of draws below sigma, weight of |D - x0|^2 at sigma)
FORMS = {
    "lognormal": (
        lambda s: stats.norm.cdf((np.log(s) - MEAN) / STD),
        lambda s: (s**2 + SD**2) / (s * SD) ** 2,
    ),
    # t = sigma/(1 + sigma) on the straight path; 1/t^2 makes it the error of n - x0.
    "logitnormal": (
        lambda s: stats.norm.cdf((special.logit(s / (1 + s)) - MEAN) / STD),
        lambda s: (1 + 1 / s) ** 2,
    ),
    "uniform": (lambda s: s / (1 + s), lambda s: (1 + 1 / s) ** 2),
    "vp": (vp_share, lambda s: s**-2),
    "ve": (lambda s: np.log(s / 0.02) / np.log(5000), lambda s: s**-2),
}


@pytest.fixture
def trained_at(monkeypatch, make_config):
    """trained_at(times, stratified) -> (the system, its network)."""

    def make(times, stratified, *overrides):
        net = Probe()
        monkeypatch.setattr(nets, "make", lambda *args, **kwargs: net)
        fields = {"sigma_data": SD, "p_mean": MEAN, "p_std": STD, "label_dropout": 0.0}
        fields |= {"times": times, "stratified": stratified}
        words = [f"diffusion.{name}={value}" for name, value in fields.items()]
        config = make_config(*words, f"batch_size={ROWS}", *overrides)
        return systems.make(config, {"data": ABOUT}), net

    return make


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(3)
    return {
        "image": jnp.asarray(random.integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)),
        "label": jnp.zeros(ROWS, jnp.int32),
        "row": jnp.arange(ROWS, dtype=jnp.int32),
    }


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("times", FORMS)
def test_levels_and_weights(times, stratified, trained_at, batch):
    (system, net), (share, weight) = trained_at(times, stratified), FORMS[times]
    loss, _ = system.loss({}, batch, jax.random.key(5))
    told, c_noise = (np.float64(a) for a in net.seen)
    sigma = np.exp(4 * c_noise)  # EDM's c_noise, whatever the times
    u = share(sigma)
    if stratified:  # one draw in each of as many equal parts, in random order
        parts = np.floor(ROWS * np.clip(u, 0, 1 - 1e-9))
        assert np.abs(np.sort(parts) - np.arange(ROWS)).max() <= 1
        assert abs(np.corrcoef(parts, np.arange(ROWS))[0, 1]) < 5 / np.sqrt(ROWS)
        within = np.sort(u) * ROWS - np.arange(ROWS)
        assert within.std() > 0.2
    else:
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        assert np.abs(np.sort(u) * ROWS - np.arange(ROWS)).max() > 2

    # The loss of D = c_skip x + c_out F(c_in x) on x = x0 + sigma n, whose x the network saw.
    sigma = sigma[:, None, None, None]
    total = np.sqrt(sigma**2 + SD**2)
    x0, x = np.float64(batch["image"]) / 127.5 - 1, told * total
    n = (x - x0) / sigma
    assert abs(n[:, 0].mean()) < 0.02 and 0.9 < n[sigma[:, 0, 0, 0] > 0.01].std() < 1.1
    d = SD**2 / total**2 * x + sigma * SD / total * 0.3 * told
    error = weight(sigma) * (d - x0) ** 2
    assert np.all(np.isfinite(error))
    np.testing.assert_allclose(loss, error.mean(), rtol=2e-3 if times == "uniform" else 1e-4)


@pytest.mark.slow
def test_stratified_levels_belong_to_rows(trained_at, batch):
    """Of the batch's rows by number: slices, orders and devices see the same."""
    system, net = trained_at("lognormal", True)
    key = jax.random.key(5)
    whole, _ = system.loss({}, batch, key)
    levels = np.asarray(net.seen[1])
    parts = []
    for rows in np.split(np.random.default_rng(0).permutation(ROWS), 4):
        parts.append(system.loss({}, {name: a[rows] for name, a in batch.items()}, key)[0])
        np.testing.assert_array_equal(net.seen[1], levels[rows])
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-5)
    other, _ = system.loss({}, batch, jax.random.key(6))
    assert np.corrcoef(net.seen[1], levels)[0, 1] < 0.3

    cut = jax.device_put(batch, meshes.rows(meshes.make_mesh({"data": 8})))
    on_eight = jax.jit(lambda b: system.loss({}, b, key)[0])(cut)
    np.testing.assert_allclose(on_eight, whole, rtol=1e-5)


def test_stratified_batches_differ_less(trained_at, batch):
    """What it is for: the mean level of a batch hardly changes from step to step."""
    spread = []
    for stratified in False, True:
        system, net = trained_at("lognormal", stratified)
        levels = []
        for step in range(6):
            system.loss({}, batch, jax.random.key(step))
            levels.append(np.mean(net.seen[1]))
        spread.append(np.std(levels))
    assert spread[1] < spread[0] / 5
