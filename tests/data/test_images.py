import io

import numpy as np
import pytest
from PIL import Image

from diffjax.data import images
from diffjax.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    return images.to_array(images.decode(encoded(image, kind, **options), "test"))


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_rgb_is_left_alone(rgb):
    np.testing.assert_array_equal(decoded(Image.fromarray(rgb)), rgb)


def test_grey_and_bits():
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    np.testing.assert_array_equal(decoded(Image.fromarray(grey)), grey[..., None])
    bits = decoded(Image.fromarray(grey).point(lambda v: 255 * (v > 16), "1"))
    np.testing.assert_array_equal(bits[..., 0], np.where(grey > 16, 255, 0))


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 128, 129, 257, 65406, 65407, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decoded(Image.fromarray(values), kind)[0, :, 0]
        assert found.tolist() == [0, 0, 1, 1, 254, 255, 255]


def test_alpha_is_over_white(rgb):
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    found = decoded(Image.fromarray(np.concatenate([rgb, alpha], -1)))
    expected = rgb * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(found, expected, atol=1)
    grey = decoded(Image.fromarray(np.concatenate([rgb[..., :1], alpha], -1), "LA"))
    expected = rgb[..., :1] * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(grey, np.repeat(expected, 3, -1), atol=1)


def test_palette_with_transparency():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert decoded(image)[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    clear = decoded(image, transparency=1)
    assert clear[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_cmyk():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decoded(image, "JPEG", quality=95)
    np.testing.assert_allclose(found.mean((0, 1)), [255, 0, 0], atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(rgb, orientation):
    # What a viewer does, from the EXIF 2.3 table: where the stored row 0 and column 0 belong.
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation](rgb)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decoded(Image.fromarray(rgb), exif=exif), upright)


@pytest.mark.parametrize(("shape", "box"), [((9, 4), (2, 0)), ((4, 9), (0, 2)), ((4, 4), (0, 0))])
def test_crop_is_the_centre(shape, box):
    array = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = box
    found = images.crop_resize(array, 4)
    np.testing.assert_array_equal(found, array[top : top + 4, left : left + 4])


def lanczos(signal: np.ndarray, size: int) -> np.ndarray:
    """Antialiased Lanczos-3 along axis 0, from its definition."""
    scale = len(signal) / size
    width = 3 * max(scale, 1)
    rows = []
    for i in range(size):
        centre = (i + 0.5) * scale
        x = (np.arange(len(signal)) + 0.5 - centre) / max(scale, 1)
        weight = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        weight[np.abs(np.arange(len(signal)) + 0.5 - centre) > width] = 0
        rows.append(np.tensordot(weight / weight.sum(), signal, 1))
    return np.stack(rows)


@pytest.mark.parametrize("size", [5, 8, 20])
def test_resize_is_antialiased_lanczos(size):
    array = np.random.default_rng(2).integers(60, 190, (12, 12, 3), dtype=np.uint8)
    by_rows = lanczos(array.astype(float), size)
    expected = lanczos(by_rows.swapaxes(0, 1), size).swapaxes(0, 1)
    np.testing.assert_allclose(images.crop_resize(array, size), expected, atol=1.5)


def test_crop_resize_takes_any_kind(rgb):
    grey = rgb[..., 0]
    for array in (grey, grey[..., None], rgb, np.concatenate([rgb, rgb[..., :1]], -1)):
        found = images.crop_resize(array, 3)
        assert found.shape == (3, 3, 3) and found.dtype == np.uint8
    again = images.crop_resize(Image.fromarray(grey), 5)
    np.testing.assert_array_equal(again, np.repeat(grey[:, 1:6, None], 3, -1))


def test_pixels_without_a_range_are_refused():
    for image in (Image.new("F", (2, 2)), Image.fromarray(np.full((2, 2), 70000, np.int32))):
        with pytest.raises(UserError, match="^a.tif: its pixels"):
            images.decode(encoded(image, "TIFF"), "a.tif")
