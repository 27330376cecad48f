"""A network of motions as a base: what it is fed, and frames that are padding."""

import apt_runs
import jax
import jax.numpy as jnp
import mdm_runs
import numpy as np
import pytest

from diffjax import nets, systems
from diffjax.errors import UserError
from diffjax.run import cli
from diffjax.run.system import save_assets
from diffjax.systems.apt import bases
from diffjax.systems.mdm import conditions

FRAMES, LENGTHS = 32, np.array([32, 20, 12], np.int32)


@pytest.fixture(scope="module")
def config(root):
    return mdm_runs.config_of(root)


@pytest.fixture(scope="module")
def base(config):
    return systems.make(config, mdm_runs.assets_of(config))


@pytest.fixture(scope="module")
def params(base):
    random = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)
    return jax.tree.map(random, base.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch(base, config):
    fields = mdm_runs.fields_of(config, base)
    random = np.random.default_rng(0)
    made = {name: np.zeros((3, *shape), dtype) for name, (shape, dtype) in fields.items()}
    made["motion"] = random.standard_normal(made["motion"].shape).astype(np.float32)
    for one, length in zip(made["motion"], LENGTHS, strict=True):
        one[length:] = 0
    made |= {"length": LENGTHS, "row": np.arange(3, dtype=np.int32)}
    if "text" in made:
        made["text"][:, 0], made["text_mask"][:, 0] = 2, True
    return jax.tree.map(jnp.asarray, made)


def test_fed_as_it_was_trained(base, config):
    x, t = jnp.ones((3, 4, 2)), jnp.array([0.0, 0.49, 1.0])
    for a, b in zip(base.backbone.feed(x, t), bases.feed_index(8)(x, t), strict=True):
        np.testing.assert_array_equal(a, b)
    assert base.backbone.feed(x, t)[1].tolist() == [0, 3, 7]


def test_the_generator_is_the_network(base, config, params, batch):
    _, cond = base.backbone.examples(batch, jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (3, FRAMES, batch["motion"].shape[-1]))
    denoise = lambda x, t: base.denoiser(params, x, t, cond)
    got = bases.generator(denoise, *base.backbone.start)(z)
    # The same with the schedule's own words: the index T - 1, told to a network that answers x0.
    net = nets.make_motion(config.network, features=z.shape[-1], condition="text")
    conditioner = conditions.make(config, mdm_runs.assets_of(config))
    how = {"mask": cond["mask"], "drop": cond["drop"]}
    answer = conditioner.told(params, cond)
    wanted = net.apply({"params": params["motion"]}, z, jnp.full(3, 7.0), answer, **how)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    nobody = base.backbone.unconditional(cond)
    free = bases.generator(lambda x, t: base.denoiser(params, x, t, nobody), 8.0)(z)
    assert np.abs(got - free).max() > 1e-3


def test_padding_counts_nowhere(base, params, batch):
    cond = base.backbone.examples(batch, jax.random.key(0))[1]
    mask = base.backbone.mask(cond)
    real = mask[..., 0].sum(-1)  # cut at random to a multiple of 4
    assert np.all((real <= LENGTHS) & (real >= LENGTHS - 4) & (real % 4 == 0))
    look, select = base.backbone.tapped((1,))
    own = select(params)
    assert set(params["motion"]) - set(own["motion"]) == {"output_process"}
    x = jax.random.normal(jax.random.key(2), (3, FRAMES, batch["motion"].shape[-1]))
    one, (counted,) = look(own, x, jnp.zeros(3), cond)
    other, _ = look(own, jnp.where(mask, x, 5.0), jnp.zeros(3), cond)
    seen = lambda tokens: np.where(counted[..., None], tokens[0], 0)
    assert one[0].shape == (3, FRAMES, 16)
    np.testing.assert_allclose(seen(one), seen(other), atol=1e-6)
    third, _ = look(own, jnp.where(mask, x + 1, x), jnp.zeros(3), cond)
    assert np.abs(seen(one) - seen(third)).max() > 1e-3


def test_a_model_with_a_context_is_refused(root, tmp_path):
    config = mdm_runs.config_of(root, diffusion__context=4, diffusion__predict=8)
    assert systems.make(config, mdm_runs.assets_of(config)).backbone is None
    save_assets(mdm_runs.assets_of(config), tmp_path)
    (tmp_path / "config.json").write_text(cli.config_json(config))
    with pytest.raises(UserError, match="a run of mdm cannot be post-trained"):
        systems.make(apt_runs.of(tmp_path))
