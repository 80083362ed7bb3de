"""Images in whatever form a caller has them, as places that the encoder reads from."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from masp.data.image_files.stored import Location, StoredImage
from masp.errors import InputError

ImageInput = str | os.PathLike | bytes | Image.Image | np.ndarray | StoredImage
"""A path, the bytes of an image file, a PIL image, an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]` of uint8, or a place
in a tar or a column."""

_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of PIL images that a PNG holds as they are."""


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image and what it is called."""

    name: str
    image: Location


@dataclass(frozen=True, slots=True)
class MemoryImage(StoredImage):
    """The bytes of an image file in memory."""

    data: bytes

    def __str__(self) -> str:
        return self.name

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


def named_images(images: Sequence[ImageInput]) -> list[NamedImage]:
    """Images as places to read from; what has no name of its own is called by its number, from 0.

    Args:
        images: In any form; see `ImageInput`.

    Raises:
        InputError: One is in another form; names its number. Or they are one image instead of several.
    """
    is_one = isinstance(images, str | bytes | os.PathLike | Image.Image | StoredImage)
    if is_one or (isinstance(images, np.ndarray) and images.ndim < 4):
        raise InputError("images: one image; give a list of images, such as [image]")
    return [_named(number, image) for number, image in enumerate(images)]


def _named(number: int, image: ImageInput) -> NamedImage:
    name = f"image {number}"
    if isinstance(image, StoredImage):
        return NamedImage(str(image), image)
    if isinstance(image, bytes | bytearray | memoryview):
        return NamedImage(name, MemoryImage("", name, bytes(image)))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if "\0" in str(path):
            raise InputError(f"{name}: {str(path)!r} cannot be a path: it holds a NUL byte")
        return NamedImage(str(image), path)
    if isinstance(image, Image.Image):
        return NamedImage(name, MemoryImage("", name, _bytes_of(image, name)))
    if isinstance(image, np.ndarray):
        return NamedImage(name, MemoryImage("", name, _bytes_of(_from_array(image, name), name)))
    raise InputError(
        f"{name}: {type(image).__name__} is not an image; give a path, the bytes of a file, a PIL image or an array"
    )


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise InputError(
            f"{name}: an array {list(array.shape)} of {array.dtype}; must be [H, W], [H, W, 3] or [H, W, 4] of uint8 "
            "(0 to 255), not empty"
        )
    return Image.fromarray(array)


def _bytes_of(image: Image.Image, name: str) -> bytes:
    """An image file with the same pixels, and the orientation that the image states, not compressed.

    Raises:
        InputError: No file format holds it.
    """
    file = io.BytesIO()
    try:
        if image.mode in _IN_PNG:
            image.save(file, "PNG", compress_level=0, exif=image.getexif().tobytes())
        else:
            # keeps CMYK and the like; their orientation is that of a tag which the file would have twice
            ImageOps.exif_transpose(image).save(file, "TIFF")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: a PIL image of mode {image.mode} cannot be read: {error}; convert it to RGB"
        ) from None
    return file.getvalue()
