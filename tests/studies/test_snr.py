"""Spectra of pictures and noise: against drawn noise, a photograph, and the published figures."""

import json

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from diffjax.core import patches
from diffjax.studies import snr, spectra


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two photographs of 256 and more pixels: one that Matplotlib ships, and its mirror image."""
    folder = tmp_path_factory.mktemp("photographs")
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB")
    picture.save(folder / "a.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    return folder


@pytest.mark.parametrize("shape", [(16, 16), (8, 20)])
def test_noise_is_what_is_drawn(shape):
    key, draws = jax.random.key(0), 4000
    white = jax.random.normal(key, (draws, *shape, 1))
    low = jax.random.normal(key, (draws, shape[0] // 4, shape[1] // 2, 1))
    power = lambda n: spectra.picture_power([np.moveaxis(np.asarray(n)[..., 0], 0, -1)])
    close = lambda got, want: np.testing.assert_allclose(
        got, want, rtol=6 * np.sqrt(2 / draws), atol=1e-3
    )
    close(power(white), np.ones(shape))
    close(power(patches.block_noise(white, 3)), spectra.block_noise_power(*shape, 3))
    close(power(patches.upsample(low, (4, 2))), spectra.repeated_noise_power(*shape, (4, 2)))
    other = jax.random.normal(jax.random.key(1), white.shape)
    mixed = white + 0.5 * patches.block_noise(other, 4)
    close(power(mixed), spectra.mixed_noise_power(*shape, 4, 0.5, False))
    close(power(mixed) / 1.25, spectra.mixed_noise_power(*shape, 4, 0.5, True))


def test_published_figures_of_block_noise():
    # 256 pixels, four times 64: dB in octaves, and how far sizes are from the repeated noise. The
    # published ones are means over 200 draws.
    edges = spectra.bands(256)
    assert edges == [(1, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256)]
    block = spectra.decibel(spectra.in_bands(spectra.block_noise_power(256, 256, 4), edges))
    wanted = [11.98, 11.95, 11.80, 11.43, 9.82, 3.23, -6.13]
    np.testing.assert_allclose(block, wanted, atol=0.12)
    repeated = spectra.repeated_noise_power(256, 256, (4, 4))
    low = spectra.decibel(spectra.in_bands(repeated, edges))
    np.testing.assert_allclose(low, [12.17, 11.96, 11.96, 11.51, 9.91, 3.09, -6.20], atol=0.16)
    errors = {1: 10.88, 2: 5.11, 3: 2.00, 4: 0.08, 5: 1.16, 6: 2.05, 8: 4.15}
    for size, wanted in errors.items():
        block = spectra.block_noise_power(256, 256, size)
        assert abs(spectra.mismatch(block, repeated, 64) - wanted) < 0.1, size
    bins = lambda size: spectra.deviations(spectra.block_noise_power(256, 256, size), repeated, 64)
    assert bins(4).shape == (8,) and np.abs(bins(4)).max() < 0.5
    means = {size: np.abs(bins(size)).mean() for size in errors}
    assert min(means, key=means.get) == 4
    # Closed form: gain of a box at frequency 0 is its size, on each axis.
    assert spectra.block_noise_power(256, 256, 4)[0, 0] == pytest.approx(16)
    assert spectra.mixed_noise_power(256, 256, 4, 0.15, False)[0, 0] == pytest.approx(1.36)


@pytest.mark.parametrize("low", [64, 32])
def test_the_gap_is_the_factor(photographs, low):
    found = snr.study(str(photographs), 256, low, "lanczos", num=2)
    assert found["num"] == 2 and found["low"] == [low, low]
    gap = [g for g, (_, high) in zip(found["gap"], found["bands"]) if high <= low // 2]
    assert len(gap) >= 3
    np.testing.assert_allclose(gap, 20 * np.log10(256 / low), atol=0.5)
    block, small = (np.array(found["rings"][k])[: low - 1] for k in ("block", "white_low"))
    assert len(small) == low - 1
    for first in range(0, low - 8, 8):
        assert abs(np.mean(block[first : first + 8] - small[first : first + 8])) < 0.5
    assert found["suggested"]["block_size"] == 256 // low
    assert found["suggested"]["blur_max"] == 0.75 * 256 / low


def test_resolutions_that_are_no_whole_multiple(photographs):
    found = snr.study(str(photographs), 256, 96, "lanczos", num=2)
    assert found["low"] == [96, 96] and found["factor"] == pytest.approx(256 / 96)
    gap = [g for g, (_, high) in zip(found["gap"], found["bands"]) if high <= 48]
    assert len(gap) == 4
    np.testing.assert_allclose(gap, 20 * np.log10(256 / 96), atol=0.5)
    assert found["suggested"]["block_size"] == 3
    # Where it is one, both ways of enlarging leave the same ratios.
    noise, power = np.ones((8, 8)), np.random.default_rng(0).random((8, 8))
    a = spectra.enlarged(power, 32, 32)[:8, :8] / spectra.enlarged(noise, 32, 32)[:8, :8]
    np.testing.assert_allclose(a, power)


def test_suggestions_follow_the_pictures():
    # A picture of white noise of variance v has the spectrum v: every level is known.
    shape, v = (32, 32), 0.04
    powers = {"pictures": np.full(shape, v), "white": np.ones(shape)}
    powers |= {"pictures_low": 4 * powers["pictures"], "white_low": 4 * powers["white"]}
    got = snr.suggest(powers, 16, {"1": 3.0, "2": 0.1, "3": 1.0})
    assert got["truncation"] == pytest.approx(0.2 * 10 ** (-snr.HIDDEN_DB / 20), rel=0.01)
    assert got["first_stage_sigma_max"] == pytest.approx(0.2 * 10, rel=0.01)
    assert (got["block_size"], got["block"], got["blur_max"]) == (2, 0.3, 1.5)
    top = got["sigma_max_in_training"]
    from diffjax.core import objectives

    last = objectives.relay(got["quantile"]).time(jnp.ones(()))
    np.testing.assert_allclose(last, top, rtol=0.02)  # the quantile ends where it should


def test_the_command(photographs, tmp_path, capsys):
    out = tmp_path / "found"
    argv = [str(photographs), "--low", "64", "--num", "1", "--out", str(out), "--sigmas", "0.5,2"]
    assert snr.main(argv) == 0
    said = capsys.readouterr().out
    assert "1 pictures, 256x256 and 64x64" in said and "suggested block_size: 4" in said
    assert "the same sigma means 12.04 dB less noise at 256x256" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sigmas"] == [0.5, 2.0] and len(found["snr"]["high_white"]) == 7
    assert Image.open(tmp_path / "found.png").size[0] > 400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.json", "found.png"]
    assert snr.main(argv) == 2 and "found.json exists" in capsys.readouterr().err


def test_arrays_and_emoji(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", images=random.integers(0, 256, (5, 8, 12, 1), dtype=np.uint8))
    found = snr.study(str(tmp_path / "a.npz"), low=4)
    assert (found["size"], found["low"], found["num"]) == ([8, 12], [4, 6], 5)
    assert snr.study("emoji", low=12, num=20)["factor"] == 2


@pytest.mark.parametrize(
    "words, fragment",
    [
        (["--size", "4096"], "no picture has 4096 pixels a side"),
        (["--low", "100"], "--low 100 is no whole fraction of 256: add --reduce lanczos"),
        (["--low", "256"], "--low 256: must be from 4 to 255"),
        (["--low", "2"], "--low 2"),
        (["--block", "300"], "--block 300"),
        (["--sigmas", "1,two"], "--sigmas 1,two"),
        (["--sigmas", "-1"], "must be above 0"),
        (["--weight", "-1"], "--weight"),
        (["--reduce", "bx"], "did you mean 'box'"),
        (["--out", "no/where"], "--out no/where"),
    ],
)
def test_refusals(words, fragment, photographs, capsys):
    assert snr.main([str(photographs), "--num", "1", *words]) == 2
    assert fragment in capsys.readouterr().err
    assert snr.main(["nowhere"]) == 2
    assert "nowhere: no such file" in capsys.readouterr().err
