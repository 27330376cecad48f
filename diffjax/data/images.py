"""Pictures of any kind -> uint8 arrays of one kind: upright, 8 bits, on white, grey or RGB."""

import io

import numpy as np
from PIL import Image, ImageOps

from diffjax.data.reading import MAX_PIXELS, reading
from diffjax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# Named, since some of Pillow's other formats hand the file to outside programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def flatten(image: Image.Image) -> Image.Image:
    """Returns an image turned by its EXIF orientation, in mode "L" if it is grey, else "RGB".

    Transparency is composited over white; 16 bits become 8 by division by 257; CMYK, palettes and
    the rest go through Pillow's conversions.

    Raises:
      UserError: pixels of no known range (32-bit or floating-point).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise UserError("its pixels have more than 16 bits")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise UserError("its pixels are floating-point numbers of no known range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def decode(data: bytes, name: object) -> Image.Image:
    """Returns the picture in an encoded file, flattened.

    Raises:
      UserError: not a picture, a damaged one, or one of more than MAX_PIXELS (found before its
        pixels are decoded); the line starts with `name`.
    """
    with reading(name):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError:
            known = ", ".join(FORMATS)
            raise UserError(f"{name}: not a picture (known formats: {known})") from None
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{name}: {image.width}x{image.height} pixels, the limit is {MAX_PIXELS} in all"
            )
        image.load()
        try:
            return flatten(image)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def to_array(image: Image.Image) -> np.ndarray:
    """Returns a flattened image as uint8 [H, W, 1] (mode "L") or [H, W, 3]."""
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def crop_resize(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Returns the centre square of an image, scaled: uint8 [size, size, 3].

    Args:
      image: a Pillow image of any mode (see `flatten`), or uint8 [H, W], [H, W, 1], [H, W, 3] (RGB)
        or [H, W, 4] (RGBA).
      size: pixels a side, 1 or more.

    Crops to the shorter side, then scales with Pillow's antialiased LANCZOS filter, as the EDM
    repository prepares ImageNet. Raises `UserError` as `flatten` does.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    image = flatten(image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS))
