"""Motion without an end: what happens where one prediction goes on from another."""

import dataclasses

import jax
import jax.numpy as jnp
import mdm_runs
import numpy as np
import pytest

from diffjax import systems
from diffjax.data.motion import features
from diffjax.errors import UserError
from diffjax.systems.mdm import motions
from diffjax.systems.mdm import request as requests

CONTEXT, PREDICT, BLEND = 4, 8, 3


@pytest.fixture(scope="module")
def system(root):
    sizes = {"diffusion__context": CONTEXT, "diffusion__predict": PREDICT}
    config = mdm_runs.config_of(root, **sizes, conditioning="none")
    random = np.random.default_rng(0)
    assets = mdm_runs.assets_of(config)
    prefixes = random.standard_normal((2, CONTEXT, len(assets["mean"]))).astype(np.float32)
    return systems.make(config, {**assets, "prefixes": prefixes}), assets, prefixes


def sampled(system, **flags):
    """Normalised motions of two prefixes, from random weights."""
    system, assets, _ = system
    request = dataclasses.replace(system.request, seconds=0.0, frames=2 * PREDICT, **flags)
    index = np.arange(2, dtype=np.int32)
    keys = jax.vmap(jax.random.key)(index)
    made = system.sample(
        system.init(jax.random.key(0)), keys, system.condition(request, index), request
    )
    return (np.asarray(made["motion"], np.float64) - assets["mean"]) / assets["std"]


def test_a_jump_is_spread_by_a_closed_form(system):
    plain, blended = sampled(system, blend=0), sampled(system, blend=BLEND)
    prefix, body = system[2].astype(np.float64), motions.described(system[1])
    where = np.flatnonzero(motions.places(body))
    assert not np.allclose(plain[:, 0, where], prefix[:, -1, where], atol=0.1)  # there is a jump
    # The first prediction, frame by frame; the same noise and prefix lead to it in both.
    for row in range(2):
        for channel in where:
            old, new = prefix[row, :, channel], plain[row, :PREDICT, channel].copy()
            aimed = old[-1] + (old[-1] - old[-2] + new[1] - new[0]) / 2
            jump = new[0] - aimed
            for frame in range(BLEND):
                new[frame] -= jump * (1 + np.cos(np.pi * frame / BLEND)) / 2
            np.testing.assert_allclose(blended[row, :PREDICT, channel], new, atol=2e-5)
    others = np.setdiff1d(np.arange(body.size), where)
    assert (blended[:, :PREDICT, others] == plain[:, :PREDICT, others]).all()
    # The second goes on from what the first became.
    last = np.s_[:, PREDICT - 2 : PREDICT + 2]
    assert not np.allclose(blended[last], plain[last], atol=1e-3)


def test_what_goes_on_evenly_is_left_alone():
    line = jnp.arange(12.0)[None, :, None] * jnp.array([1.0, -2.0, 0.5])
    prefix, new = line[:, :4], line[:, 4:]
    np.testing.assert_allclose(requests.joined(prefix, new, 5, np.ones(3, bool)), new, atol=1e-6)
    away = new + 3.0
    np.testing.assert_allclose(requests.joined(prefix, away, 5, np.zeros(3, bool)), away)
    mended = requests.joined(prefix, away, 5, np.ones(3, bool))
    np.testing.assert_allclose(mended[:, 0], new[:, 0], atol=1e-6)  # as if it had never jumped
    np.testing.assert_allclose(mended[:, 5:], away[:, 5:])  # and the rest is the network's


def test_places_are_height_positions_and_rotations(system):
    body = motions.described(system[1])
    joints = len(body.skeleton)
    found = motions.places(body)
    assert found.sum() == 1 + 9 * (joints - 1) and found[3] and not found[:3].any()
    assert found[features.channels(joints)["rotations"]].all() and not found[-4:].any()


def test_guidance_grows_from_nothing():
    scale = requests.eased(2.5, 4, 6)
    np.testing.assert_allclose(scale[:, 0], [0, 0.625, 1.25, 1.875, 2.5, 2.5])
    cond, uncond = lambda *_: 3.0, lambda *_: 1.0
    both = lambda x, t, given: jnp.stack([jnp.full((6, 1), cond()), jnp.full((6, 1), uncond())])
    given = {"drop": jnp.zeros(1, bool)}
    x = requests.guided(both, given, scale)(jnp.zeros((1, 6, 1)), 1.0)
    np.testing.assert_allclose(x[0, :, 0], 1 + 2 * scale[:, 0], atol=1e-6)


@pytest.mark.parametrize("flag", ["ease", "blend"])
def test_models_without_a_context_have_no_seams(flag, root):
    config = mdm_runs.config_of(root, conditioning="none")
    system = systems.make(config, mdm_runs.assets_of(config))
    request = dataclasses.replace(system.request, **{flag: 3})
    with pytest.raises(UserError, match=f"--{flag} 3: this model goes on from no known frames"):
        system.condition(request, np.arange(1))
