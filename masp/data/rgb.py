"""Every kind of pixel as 8-bit RGB."""

import functools

import numpy as np
from PIL import Image, ImageCms

_WHITE = (255, 255, 255, 255)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to mode RGB.

    What is transparent becomes white: the page that such pictures are drawn for. Dropping the transparency instead, as
    Pillow's own conversion does, shows whatever colour an editor left under it, mostly black.

    More than 8 bits are scaled, not cut off: a 16-bit photograph would otherwise be plain white. Colour profiles are
    not applied; the VLMs were trained without.

    Args:
        image: of any mode of Pillow, decoded.

    Returns:
        The image in mode RGB, of the same size.

    Raises:
        ValueError: Pillow knows no way from this mode to RGB, or a floating-point image holds no finite value.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode == "LAB":
        converted = ImageCms.applyTransform(image, _lab_to_rgb())
        assert converted is not None  # only a conversion in place returns none
        return converted
    if image.has_transparency_data:
        # Both premultiplied modes lead to RGBA only by way of their plain form.
        straight = {"La": "LA"}.get(image.mode)
        with_alpha = (image if straight is None else image.convert(straight)).convert("RGBA")
        page = Image.new("RGBA", with_alpha.size, _WHITE)
        page.alpha_composite(with_alpha)
        return page.convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits per pixel."""
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
    grey = (values - low) * (255.0 / ((high - low) or 1.0))
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


@functools.cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
