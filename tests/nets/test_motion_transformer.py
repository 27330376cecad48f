"""MDM's transformers against the released code's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import TINY, load, manifest, ours, params_of, theirs

from diffjax.nets.motion_transformer import MotionTransformer, sinusoids

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def g():
    return load("nets")


def frames_mask(g):
    return jnp.asarray(g["mask"][:, 0, 0])


def clip(g):
    """The text of the golden arrays as one token each."""
    tokens = jnp.asarray(g["text_embed"].swapaxes(0, 1))
    return tokens, jnp.ones(tokens.shape[:2], bool)


def run(net, shapes, x, t, condition, **given):
    params = params_of(net, shapes, x, t, condition, **given)
    return jax.jit(net.apply)({"params": params}, x, t, condition, **given)


DROPS = {"cond": None, "uncond": [True] * 3, "dropmask101": [True, False, True]}


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("masked", [0, 1])
def test_encoder(g, masked, drop, near):
    net = MotionTransformer(13, mask_frames=bool(masked), **TINY)
    drop_ = None if DROPS[drop] is None else jnp.asarray(DROPS[drop])
    given = {"mask": frames_mask(g), "drop": drop_}
    got = run(net, manifest("tiny")["enc_text"], ours(g["x"]), g["t"], clip(g), **given)
    want = g[f"enc_text_mf{masked}_{drop}"]
    near(theirs(got, want), want, TOLERANCE)
