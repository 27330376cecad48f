"""What training adds to EDM's loss: augmentation, dropout's key; and the paper's configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import nets, systems
from diffjax.core import ema
from diffjax.data import augment
from diffjax.errors import UserError
from diffjax.run import cli, update

ABOUT = {"image_shape": [8, 8, 3], "class_names": ["red", "green", "blue"]}


class Probe:
    """A network that answers 0 and remembers what it was told."""

    def lazy_init(self, key, *args):
        return {"params": {"unused": jnp.zeros(())}}

    def apply(self, variables, x, c_noise, label, **told):
        self.x, self.c_noise, self.label, self.told = x, c_noise, label, told
        return jnp.zeros_like(x)


@pytest.fixture
def probe(monkeypatch):
    net = Probe()
    monkeypatch.setattr(nets, "make", lambda *args, **kwargs: net)
    return net


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    return {
        "image": jnp.asarray(random.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)),
        "label": jnp.asarray(random.integers(0, 3, 16), jnp.int32),
        "row": jnp.arange(16, dtype=jnp.int32),
    }


def make(make_config, *overrides, kind="ddpmpp"):
    config = make_config(*overrides).copy_and_resolve_references()
    config.unlock()
    config.network = {"kind": kind, "augment_dim": 9, "dtype": "float32"}
    return systems.make(config, {"data": ABOUT})


@pytest.mark.slow
def test_the_network_sees_what_its_augmentation_labels_say(probe, make_config, batch):
    # Next to no noise: what the network sees is the augmented picture times c_in = 1/sigma_data.
    quiet = ("diffusion.p_mean=-20.0", "diffusion.p_std=0.01", "diffusion.sigma_data=0.5")
    system = make(make_config, "augment.probability=0.5", *quiet)
    system.loss({}, batch, jax.random.key(3))
    seen, labels = probe.x / 2, probe.told["augment"]
    assert labels.shape == (16, 9) and len(np.unique(labels, axis=0)) == 16
    x0 = np.float32(batch["image"]) / 127.5 - 1
    # Row r's draws are made from fold_in(key, r) alone.
    keys = jax.vmap(lambda r: jax.random.fold_in(jax.random.key(3), r))(batch["row"])
    keys = jax.vmap(lambda k: jax.random.fold_in(k, 2**32 - 1))(keys)
    out, wanted = augment.augment(keys, jnp.asarray(x0), augment.Pipe(0.5))
    np.testing.assert_allclose(labels, wanted, atol=1e-6)
    np.testing.assert_allclose(seen, out, atol=1e-4)
    assert np.abs(seen - x0).max() > 0.1


def test_without_augmentation_nothing_is_moved(probe, make_config, batch):
    system = make(make_config)
    system.loss({}, batch, jax.random.key(3))
    assert probe.told["augment"] is None and probe.told["train"] is True


def test_each_slice_of_a_batch_has_masks_of_its_own(probe, make_config, batch):
    system, seen = make(make_config), set()
    for key in (0, 1):
        for part in (slice(None), slice(1, None, 2)):
            rows = {name: a[part] for name, a in batch.items()}
            system.loss({}, rows, jax.random.key(key))
            seen.add(tuple(jax.random.key_data(probe.told["rngs"]["dropout"]).tolist()))
    assert len(seen) == 4


def test_sampling_is_not_training(probe, make_config):
    system = make(make_config)
    request = dataclasses.replace(system.request, steps=1)
    keys = jax.random.split(jax.random.key(0), 2)
    system.sample({}, keys, jnp.zeros(2, jnp.int32), request)
    assert probe.told == {}


@pytest.mark.parametrize("value", ["1.5", "-0.1"])
def test_probabilities_that_cannot_be(probe, make_config, value):
    with pytest.raises(UserError, match="config.augment.probability"):
        make(make_config, f"augment.probability={value}")


@pytest.mark.parametrize("kind", ["unet_small", "dit"])
def test_a_network_that_takes_no_labels_of_augmentation(probe, make_config, kind):
    make(make_config, kind=kind)
    with pytest.raises(UserError, match=f"kind {kind} cannot be told .*ddpmpp, ncsnpp, adm"):
        make(make_config, "augment.probability=0.1", kind=kind)


def test_a_network_that_cannot_be_told(root):
    config = cli.load_config(str(root / "configs" / "edm_cifar10.py"))
    config = cli.apply_overrides(config, ["data.path=x", "network.augment_dim=0"])
    with pytest.raises(UserError, match="augment_dim 0: must be 9"):
        systems.make(config, {"data": {**ABOUT, "image_shape": [32, 32, 3]}})


# config -> (classes, side, parameters, batch, images, learning rate, images to ramp it up)
PAPER = {
    "edm_cifar10": (10, 32, 55_735_299, 512, 200e6, 1e-3),
    "edm_ffhq64": (0, 64, 61_805_571, 256, 200e6, 2e-4),
    "edm_imagenet64": (1000, 64, 295_899_267, 4096, 2500e6, 1e-4),
}


@pytest.mark.parametrize("name", PAPER)
def test_configs_are_table_7(name, root):
    classes, side, count, batch, images, rate = PAPER[name]
    config = cli.load_config(str(root / "configs" / f"{name}.py"))
    assert config.name == name and config.batch_size == batch
    config = cli.apply_overrides(config, ["data.path=x"])
    about = {"image_shape": [side, side, 3], "class_names": [str(i) for i in range(classes)]}
    system = systems.make(config, {"data": about})
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert images - batch < config.steps * batch <= images
    at = lambda seen: float(update.learning_rate(config.optimizer, seen // batch, 0.0))
    assert at(0) == 0.0  # images seen before the step count
    seen = 5_000_000 // batch * batch
    assert at(seen) == pytest.approx(rate * seen / 10_000_000, rel=1e-6)
    assert at(10_000_000 + batch) == at(100_000_000) == pytest.approx(rate)
    rule = update.ema_rule("ema", config.ema.ema, batch)
    half_life = 50e6 if "imagenet" in name else 0.5e6
    assert rule(1_500_000_000 // batch) == ema.half_life(half_life, batch)(1_500_000_000 // batch)


def test_the_short_run_does_not_lose_its_first_step(root):
    config = cli.load_config(str(root / "configs" / "edm_cifar10_short.py"))
    assert float(update.learning_rate(config.optimizer, 0, 0.0)) == pytest.approx(6e-4 / 300)


def test_the_learning_rate_is_the_released_loops(root):
    """Its first 400 steps on CIFAR-10; the golden file has float64 of the original."""
    config = cli.load_config(str(root / "configs" / "edm_cifar10.py"))
    with np.load(root / "tests" / "golden" / "core" / "ema.npz") as g:
        wanted = g["edm_lr"]
    rate = jax.jit(lambda step: update.learning_rate(config.optimizer, step, 0.0))
    np.testing.assert_allclose(rate(np.arange(400)), wanted, rtol=1e-6)
    assert wanted[0] == 0 and wanted[1] == pytest.approx(1e-3 * 512 / 10e6)
