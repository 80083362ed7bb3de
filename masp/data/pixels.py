"""Decoded pixels as the VLM sees them: 8-bit RGB, upright."""

import functools
import struct

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from masp.config.schema import Transparency

_ORIENTATION = 0x0112
# What EXIF's orientation says must be done to the stored pixels to see them upright.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises on EXIF data that is not valid.
_BROKEN_EXIF = (
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)
SIDES_SWAPPED = (5, 6, 7, 8)
"""Orientations that exchange width and height."""

_WHITE = (255, 255, 255, 255)


def to_rgb(image: Image.Image, transparency: Transparency = "white") -> Image.Image:
    """Convert a decoded image to mode RGB.

    What is transparent becomes white: the page that such images are drawn for. Dropping the transparency instead, as
    Pillow's own conversion does, shows whatever color an editor left under it, mostly black.

    More than 8 bits are scaled, not cut off: a 16-bit photograph would otherwise be plain white. Color profiles are
    not applied; the VLMs were trained without.

    Args:
        image: Decoded image, of any mode of Pillow.
        transparency: `white` for the above; `drop` for what Pillow's `convert("RGB")` returns, bit for bit, as the
            published code calls it.

    Returns:
        The image in mode RGB, of the same size.

    Raises:
        ValueError: Pillow cannot convert this mode to RGB, or a floating-point image holds no finite value.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if transparency == "drop":
        # Pillow converts this mode, which no decoder returns, only by way of its plain form.
        return (image.convert("LA") if image.mode == "La" else image).convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode == "LAB":
        converted = ImageCms.applyTransform(image, _lab_to_rgb())
        assert converted is not None  # only a conversion in place returns none
        return converted
    if image.has_transparency_data:
        # Pillow converts both premultiplied modes to RGBA only by way of their plain form.
        straight = {"La": "LA"}.get(image.mode)
        with_alpha = (image if straight is None else image.convert(straight)).convert("RGBA")
        page = Image.new("RGBA", with_alpha.size, _WHITE)
        page.alpha_composite(with_alpha)
        return page.convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Convert a gray image of 16 or 32 bits per pixel."""
    values = np.asarray(image).astype(np.float64 if image.mode == "F" else np.float32)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ValueError("no pixel has a finite value")
    low, high = float(finite.min()), float(finite.max())
    # Integers are 16-bit brightness, floats 0 to 1, as files of these kinds mostly are. Outside that range the scale is
    # unknown, and the darkest and the brightest pixel become black and white.
    full = 1.0 if image.mode == "F" else 65535.0
    if low >= 0 and high <= full:
        low, high = 0.0, full
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    gray = (values - low) * (255.0 / ((high - low) or 1.0))
    return Image.fromarray(np.rint(gray).astype(np.uint8)).convert("RGB")


@functools.cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def orientation_of(image: Image.Image, header_only: bool) -> int:
    """The orientation that an image's EXIF data gives, 1 where there is none.

    Args:
        image: Opened image.
        header_only: Look for it only where Pillow need not decode the image for that.
    """
    if header_only:
        # Pillow decodes a whole PNG in search of EXIF that comes after the pixels.
        if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
            return 1
        # Pillow turns TIFFs upright by itself: their size already is, and decoding removes the orientation.
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _BROKEN_EXIF:
        # Broken EXIF data does not make the pixels unreadable; every viewer shows such files as stored.
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn stored pixels as their orientation says."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image
