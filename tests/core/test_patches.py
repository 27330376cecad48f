"""The DCT of patches, damping, block noise: the original's arrays, and what must hold anyway."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from diffjax.core import patches
from diffjax.errors import UserError


def nhwc(a):
    return jnp.moveaxis(jnp.asarray(a), -3, -1)


def nchw(a):
    return np.moveaxis(np.asarray(a), -1, -3)


@pytest.mark.parametrize("patch", [4, 16])
def test_dct_of_the_original(patch, relay_golden, within):
    g = relay_golden("blur")
    within(nchw(patches.dct(nhwc(g["x_sq"]), patch)), g[f"dct_sq_p{patch}"], 3e-6)


@pytest.mark.parametrize("patch", [(3, 5), (2, 10), 1, (6, 20)])
def test_dct_is_scipys(patch, within):
    x = np.random.default_rng(0).normal(size=(2, 6, 20, 3)).astype(np.float32)
    height, width = patches.sides(patch)
    apart = np.float64(x).reshape(2, 6 // height, height, 20 // width, width, 3)
    wanted = scipy.fft.dctn(apart, axes=(2, 4), norm="ortho").reshape(x.shape)
    within(patches.dct(x, patch), wanted, 3e-6)
    within(patches.idct(patches.dct(x, patch), patch), x, 3e-6)


@pytest.mark.parametrize(
    "shape, patch", [("sq", p) for p in (2, 4, 8, 16)] + [("rect", 2), ("rect", 4)]
)
def test_blur_of_the_original(shape, patch, relay_golden, within):
    g = relay_golden("blur")
    for i, sigma_b in enumerate(g["sigma_B"]):
        gain = patches.damping(np.float64(sigma_b), patch)
        within(
            nchw(patches.damp(gain, nhwc(g[f"x_{shape}"]))), g[f"blur_{shape}_p{patch}"][i], 3e-6
        )


def test_blur_without_a_floor_and_one_a_picture(relay_golden, within):
    g = relay_golden("blur")
    x = nhwc(g["x_sq"])
    for i, sigma_b in enumerate(g["sigma_B"]):
        gain = patches.damping(np.float64(sigma_b), 4, floor=0.0)
        within(nchw(patches.damp(gain, x)), g["blur_sq_p4_min0"][i], 3e-6)
    gain = patches.damping(jnp.asarray(g["per_sample_sigma_B"]), 4)
    assert gain.shape == (2, 1, 1, 1, 4, 4)
    within(nchw(patches.damp(gain, x)), g["blur_sq_p4_per_sample"], 3e-6)


def test_blur_keeps_means_and_ends_at_them(within):
    x = np.random.default_rng(1).normal(size=(2, 12, 8, 3)).astype(np.float32)
    blur = lambda sigma_b, floor=0.001: patches.damp(patches.damping(sigma_b, (3, 4), floor), x)
    within(blur(0.0), x, 3e-6)
    for sigma_b in 0.7, 3.0:
        within(patches.means(blur(sigma_b), (3, 4)), patches.means(x, (3, 4)), 3e-6)
    flat = patches.upsample(patches.means(x, (3, 4)), (3, 4))
    within(blur(50.0, 0.0), flat, 3e-6)
    within(patches.upsample(x[:, :4, :2], (3, 4))[:, ::3, ::4], x[:, :4, :2], 0)


def test_blur_is_heat_flow(within):
    # An independent path: many small explicit steps of the heat equation with reflecting edges.
    p, sigma_b, steps = 6, 1.5, 20_000
    x = np.random.default_rng(2).normal(size=(p, p))
    # The DCT's frequencies are the continuous ones, so the space derivative is taken exactly.
    f = np.pi * np.arange(p) / p
    laplace = patches.dct_matrix(p).T @ np.diag(-(f**2)) @ patches.dct_matrix(p)
    y, dt = x.copy(), sigma_b**2 / 2 / steps
    for _ in range(steps):
        y = y + dt * (laplace @ y + y @ laplace.T)
    got = patches.damp(patches.damping(sigma_b, p, 0.0), jnp.asarray(x[..., None], jnp.float32))
    within(got[..., 0], y, 1e-3)


@pytest.mark.parametrize(
    "shape, size", [*(("sq", s) for s in (1, 2, 3, 4, 8)), *(("rect", s) for s in (2, 4, 5))]
)
def test_block_noise_of_the_original(shape, size, relay_golden, within):
    g = relay_golden("block_noise")
    got = patches.block_noise(nhwc(g[f"white_{shape}"]), size)
    within(nchw(got), g[f"block_{shape}_s{size}"], 2e-6)


def test_block_noise_looks_back_around_the_edges(relay_golden, within):
    g = relay_golden("block_noise")
    within(nchw(patches.block_noise(nhwc(g["impulse"]), 4)), g["impulse_s4"], 0)
    x = np.random.default_rng(3).normal(size=(5, 4, 1))
    wanted = sum(np.roll(x, (i, j), (0, 1)) for i in range(7) for j in range(3)) / np.sqrt(21)
    within(patches.block_noise(jnp.asarray(x, jnp.float32), (7, 3)), wanted, 2e-6)  # 7 > the height


def test_block_noise_has_its_covariance():
    white = jax.random.normal(jax.random.key(0), (20_000, 12, 12, 1))
    n = np.float64(patches.block_noise(white, 4))[..., 0]
    away = lambda a, b: max(0, 4 - min(abs(a - b), 12 - abs(a - b)))
    for y, x in (0, 0), (0, 1), (1, 1), (3, 3), (4, 0), (9, 0), (11, 10):
        got = np.mean(n[:, 0, 0] * n[:, y, x])
        assert abs(got - away(0, y) * away(0, x) / 16) < 5 / np.sqrt(20_000), (y, x)


def test_block_noise_of_a_sharp_size_is_white_noise_upsampled():
    # Mean spectra: the box's gain at every frequency is that of s x s repeated white values.
    size, s = 16, 4
    white = jax.random.normal(jax.random.key(1), (4000, size, size, 1))
    low = jax.random.normal(jax.random.key(2), (4000, size // s, size // s, 1))
    power = lambda x: np.mean(np.abs(np.fft.fft2(np.asarray(x)[..., 0])) ** 2, 0)
    a, b = power(patches.block_noise(white, s)), power(patches.upsample(low, s))
    # A mean over 4,000 draws is known to 1/sqrt(4,000), a ratio of two to 0.022: 5 of these.
    np.testing.assert_allclose(a[:5, :5], b[:5, :5], rtol=0.11, atol=1e-9 * a.max())


@pytest.mark.parametrize(
    "wrong, fragment",
    [
        (lambda x: patches.dct(x, 3), "8x12 is not tiled by patches of 3x3"),
        (lambda x: patches.means(x, (4, 5)), "patches of 4x5"),
        (lambda x: patches.dct(x, 0), "patch 0"),
        (lambda x: patches.block_noise(x, 2.5), "patch 2.5"),
        (lambda x: patches.damp(np.ones((2, 4, 4)), x), "does not broadcast"),
    ],
)
def test_refusals(wrong, fragment):
    with pytest.raises(UserError, match=fragment):
        wrong(np.zeros((2, 8, 12, 3), np.float32))
