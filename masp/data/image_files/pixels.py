"""Decoded pixels as the VLM sees them: 8-bit RGB, upright."""

import functools
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import GifImagePlugin, Image, ImageCms, PngImagePlugin, TiffImagePlugin

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
# Larger images are converted in strips of about this size.
_STRIP_PIXELS = 2**20
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_T = TypeVar("_T")


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
    if _is_opaque_bitmap(image):
        return image.convert("RGB")
    convert = _deep_converter(image) if image.mode.startswith("I") or image.mode == "F" else _to_white
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return convert(image)
    # In strips, which give the same pixels: several copies of a whole image could fill the memory.
    whole = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        whole.paste(convert(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def sixteen_bit_key(image: Image.Image) -> tuple[int, int, int] | None:
    """The color that a 16-bit RGB PNG calls transparent; None for all other images.

    It has 16 bits per channel, and Pillow keeps 8 of them: colors that differ in the others would be transparent too.

    Args:
        image: Opened image, not decoded.
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    is_deep = isinstance(image, PngImagePlugin.PngImageFile) and tiles and tiles[0].args == "RGB;16B"
    return key if is_deep and isinstance(key, tuple) else None


def scale_gray_key(image: Image.Image) -> None:
    """Give the transparent gray of a PNG of 2 or 4 bits per pixel the scale that Pillow gives its pixels, 0 to 255.

    Args:
        image: Opened image, not decoded.
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if isinstance(image, PngImagePlugin.PngImageFile) and tiles and isinstance(key, int):
        factor = {"L;2": 85, "L;4": 17}.get(str(tiles[0].args), 1)
        image.info["transparency"] = key * factor


def first_frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF that its first frame covers: left, top, right, bottom; None for images of other formats.

    Args:
        image: Opened image, not decoded.
    """
    tiles = image.tile if isinstance(image, GifImagePlugin.GifImageFile) else None
    return tiles[0].extents if tiles else None


def whiten_outside(image: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Make what a GIF's first frame does not cover white: viewers show nothing there, Pillow the palette's first color.

    Args:
        image: RGB image, which is changed.
        box: What the frame covers.
    """
    left, top, right, bottom = box
    width, height = image.size
    for outside in (
        (0, 0, width, top),
        (0, bottom, width, height),
        (0, top, left, bottom),
        (right, top, width, bottom),
    ):
        image.paste(_WHITE[:3], outside)


def whiten_key(high: Image.Image, low: Image.Image, key: tuple[int, int, int]) -> None:
    """Make a transparent color of 16 bits per channel white.

    Args:
        high: RGB image of the upper 8 bits, which is changed.
        low: RGB image of the lower 8 bits.
        key: The color.
    """
    width, height = high.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        upper, lower = (np.asarray(each.crop(box)) for each in (high, low))
        is_key = (upper == [value >> 8 for value in key]) & (lower == [value & 255 for value in key])
        high.paste(_WHITE[:3], box, Image.fromarray(is_key.all(axis=2)))
    del high.info["transparency"]


def _is_opaque_bitmap(image: Image.Image) -> bool:
    """Whether the alpha of a BMP is 0 everywhere: its writer left the fourth byte empty, and viewers ignore it."""
    return image.format in ("BMP", "DIB") and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def _to_white(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits per channel; what is transparent becomes white."""
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


def _deep_converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What converts a strip of this gray image of 16 or 32 bits per pixel."""
    # Pillow reads integers of 32 bits as signed ones, whatever a TIFF says: the brightest would be the darkest.
    is_long = image.mode == "I" and _tiff_value(image, _BITS_PER_SAMPLE, {32: True}, False)
    is_unsigned = is_long and not _tiff_value(image, _SAMPLE_FORMAT, {_SIGNED: True}, False)
    low, high = _range_of(image, is_unsigned)
    # Integers are 16-bit brightness (or 12-bit, where a TIFF says so), floats 0 to 1, as files of these kinds mostly
    # are. Outside that range the scale is unknown, and the darkest and the brightest pixel become black and white.
    full = 1.0 if image.mode == "F" else float(2 ** _tiff_value(image, _BITS_PER_SAMPLE, {12: 12}, 16) - 1)
    if low >= 0 and high <= full:
        low, high = 0.0, full
    is_negative = _tiff_value(image, _PHOTOMETRIC, {_WHITE_IS_ZERO: True}, False)
    clear = image.info.get("transparency")

    def convert(strip: Image.Image) -> Image.Image:
        values = _values(strip, is_unsigned)
        numbers = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        gray = np.rint((numbers - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)
        if is_negative:
            gray = 255 - gray
        if isinstance(clear, int):
            gray[values == clear] = 255
        return Image.fromarray(gray).convert("RGB")

    return convert


def _range_of(image: Image.Image, is_unsigned: bool) -> tuple[float, float]:
    """The smallest and the largest finite value."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    lows, highs = [], []
    for top in range(0, height, rows):
        values = _values(image.crop((0, top, width, min(top + rows, height))), is_unsigned)
        finite = values[np.isfinite(values)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    if not lows:
        raise ValueError("no pixel has a finite value")
    return min(lows), max(highs)


def _values(image: Image.Image, is_unsigned: bool) -> np.ndarray:
    values = np.asarray(image)
    if is_unsigned:
        return values.view(np.uint32).astype(np.float64)
    return values.astype(np.float64 if image.mode == "F" else np.float32)


def _tiff_value(image: Image.Image, tag: int, meanings: dict[int, _T], otherwise: _T) -> _T:
    """What a tag of a TIFF means; `otherwise` for other values and other formats."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return otherwise
    value: Any = image.tag_v2.get(tag)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return meanings.get(value, otherwise)


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
