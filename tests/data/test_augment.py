"""EDM's augmentation against the released one's arrays, and what must hold of any."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.data import augment

GOLDEN = Path(__file__).parents[1] / "golden" / "nets" / "augment.npz"
ALONE = ("yflip", "rotate_int", "translate_int", "scale", "rotate_frac", "aniso", "translate_frac")
TRAINING = {"train_p012": 0.12, "train_p050": 0.5, "train_p100": 1.0}
NOTHING = augment.Pipe(1.0, **dict.fromkeys(augment.DRAWS, 0.0))


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN) as file:
        return dict(file)


def only(name, probability=1.0):
    return dataclasses.replace(NOTHING, probability=probability, **{name: 1.0})


@pytest.mark.parametrize("case", [*ALONE, *TRAINING])
def test_golden(case, arrays):
    pipe = augment.Pipe(TRAINING[case]) if case in TRAINING else only(case)
    keys = sorted((k for k in arrays if k.startswith(f"{case}/draw")), key=number_of)
    # A draw of shape [2, B] is two draws.
    flat = iter(row for key in keys for row in arrays[key].reshape(-1, 4))
    draws = {name: tuple(next(flat) for _ in augment.DRAWS[name]) for name in pipe.operations}
    assert next(flat, None) is None
    images = arrays["images"].transpose(0, 2, 3, 1)
    out, labels = augment.transform(images, draws, pipe)
    np.testing.assert_allclose(labels, arrays[f"{case}/labels"], atol=1e-6)
    error = np.abs(np.asarray(out).transpose(0, 3, 1, 2) - arrays[f"{case}/out"]).max()
    print(f"error {error:.1e}")
    assert error <= 2e-5


def number_of(key):
    return int(key.split("/draw")[1].split("_")[0])


@pytest.fixture(scope="module")
def many():
    """512 pictures [8, 8, 1], EDM's pipe with one half: (images, keys, augmented, labels)."""
    pipe = augment.Pipe(0.5)
    images = np.random.default_rng(0).uniform(-1, 1, (512, 8, 8, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 512)
    out, labels = jax.jit(augment.augment, static_argnums=2)(keys, images, pipe)
    return images, keys, np.asarray(out), np.asarray(labels), pipe


def test_a_row_does_not_depend_on_its_batch(many):
    images, keys, out, labels, pipe = many
    run = jax.jit(augment.augment, static_argnums=2)
    for part in (slice(7, 8), slice(100, 101)):
        alone, label = run(keys[part], images[part], pipe)
        np.testing.assert_allclose(alone, out[part], atol=1e-5)
        np.testing.assert_allclose(label, labels[part], atol=1e-6)


def test_how_often_and_how_far(many):
    _, _, _, labels, pipe = many
    assert labels.shape == (512, 9) and pipe.label_dim == 9
    acted = (labels != 0).mean(0)
    # A fair coin for xflip; half of a coin for yflip; a half for the rest (five deviations).
    wanted = [0.5, 0.25, *[0.5] * 7]
    wanted[6] = 0.25  # z sin r: the angle has a coin of its own
    np.testing.assert_allclose(acted, wanted, atol=5 * 0.5 / 512**0.5)
    z = labels[labels[:, 2] != 0, 2]
    assert abs(z.mean()) < 0.35 and 0.75 < z.std() < 1.25


def test_what_no_gate_lets_through_is_unchanged(many):
    images, _, out, labels, _ = many
    still = ~labels.any(1)
    assert still.sum() > 3
    np.testing.assert_allclose(out[still], images[still], atol=1e-5)
    flipped = (labels[:, 0] == 1) & ~labels[:, 1:].any(1)
    assert flipped.sum() > 3
    np.testing.assert_allclose(out[flipped], images[flipped, :, ::-1], atol=1e-5)


def test_probability_zero_does_nothing():
    images = np.random.default_rng(0).uniform(-1, 1, (4, 6, 10, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    out, labels = jax.jit(augment.augment, static_argnums=2)(keys, images, augment.Pipe(0.0))
    np.testing.assert_allclose(out, images, atol=1e-5)
    assert labels.shape == (4, 9) and not np.any(labels)
    out, labels = augment.augment(keys, jnp.asarray(images), NOTHING)
    np.testing.assert_array_equal(out, images)
    assert labels.shape == (4, 0)


def test_directions():
    """A blob right of and above the centre: where does each operation take its peak?"""
    y, x = np.mgrid[:25, :31]
    blob = np.exp(-((x - 21.0) ** 2 + (y - 8.0) ** 2) / 8)[None, :, :, None].astype(np.float32)

    def moved(name, *values, to):
        gates = (0.0, 1.0) if name == "aniso" else (0.0,)
        draws = {name: tuple(jnp.full(1, v, jnp.float32) for v in (*values, *gates))}
        out = np.asarray(augment.transform(blob, draws, only(name))[0])[0, :, :, 0]
        # Shrinking shows mirror images too: there may be more than one peak.
        return out[12 + to[1], 15 + to[0]] > 0.97 * out.max()

    half = -1 / augment.SCALE_STD  # 2^(std z) = 1/2
    assert moved("scale", 0, to=(6, -4)) and not moved("scale", 0, to=(5, -4))
    assert moved("scale", half, to=(3, -2))
    assert moved("aniso", half, 0.5, to=(3, -8))
    assert moved("rotate_frac", 0.75, to=(-4, -6))  # +90 degrees: right goes up
    pixel = 1 / augment.TRANSLATE_FRAC_STD
    assert moved("translate_frac", 2 * pixel / 31, 3 * pixel / 25, to=(8, -1))
