"""From an image file to the RGB picture that the VLM sees, or to the reason why there is none."""

import contextlib
import errno
import functools
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin, TiffImagePlugin

from masp.data.rgb import to_rgb
from masp.errors import DataError
from masp.files.retry import PERMANENT_ERRORS, retry_io

# Named, because Pillow would otherwise try everything it knows, and for some formats starts other programs.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

# Beyond this, one picture takes more than half a gigabyte in memory; Pillow itself refuses from here on.
MAX_PIXELS = 178_956_970
MAX_FILE_BYTES = 2**30

# The image processors of the Qwen family refuse longer pictures.
MAX_ASPECT_RATIO = 200.0

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
# What Pillow raises over EXIF that is no EXIF.
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
_SIDES_SWAPPED = (5, 6, 7, 8)

_REASONS = {
    errno.ENOENT: "file not found",
    errno.ENOTDIR: "file not found",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EISDIR: "is a folder",
}


class UnreadableImage(DataError):
    """A file that gives no picture, whoever reads it and whenever."""

    def __init__(self, reason: str, path: str | Path | None = None):
        super().__init__(reason if path is None else f"{path}: cannot read this image: {reason}")
        self.reason = reason

    def __reduce__(self):
        # The default would pickle the message as the reason; worker processes send these errors home.
        return _rebuild, (self.reason, self.args[0])


def _rebuild(reason: str, message: str) -> UnreadableImage:
    error = UnreadableImage(reason)
    error.args = (message,)
    return error


def load_image(
    path: str | Path, max_side: int | None = None, max_aspect_ratio: float | None = MAX_ASPECT_RATIO
) -> Image.Image:
    """Read a picture: the first frame, upright, RGB, scaled down to `max_side`.

    Args:
        path: the image file.
        max_side: see `limited_size`.
        max_aspect_ratio: the longest shape that the VLM takes; None takes any.

    Returns:
        A picture of mode RGB that holds no file open.

    Raises:
        UnreadableImage: the file is missing, cannot be opened, is no image, or damaged, too large or too long.
        OSError: the disk failed, also after several tries; nothing is known about the image.
    """
    data = read_image_file(path)
    try:
        return decode_image(data, max_side, max_aspect_ratio)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from error.__cause__


def read_image_file(path: str | Path) -> bytes:
    """Read an image file's bytes, for `decode_image` and for digests.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        UnreadableImage: there is no such file, no permission, or it is no ordinary file, empty or too large.
        OSError: the disk failed, also after several tries.
    """

    def read() -> bytes:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("is no ordinary file", path)
            if status.st_size > MAX_FILE_BYTES:
                raise UnreadableImage(f"file of {status.st_size} bytes, at most {MAX_FILE_BYTES} are read", path)
            return file.read()

    try:
        data = retry_io(read)
    except OSError as error:
        raise _classified(error, path) from None
    if not data:
        raise UnreadableImage("empty file", path)
    return data


def decode_image(
    data: bytes, max_side: int | None = None, max_aspect_ratio: float | None = MAX_ASPECT_RATIO
) -> Image.Image:
    """Decode an image file's bytes as `load_image` does.

    Args:
        data: the file's content.
        max_side, max_aspect_ratio: see `load_image`.

    Returns:
        A picture of mode RGB.

    Raises:
        UnreadableImage: these bytes are no image, or a damaged, too large or too long one.
    """
    with _quiet():
        return _decoded(data, max_side, max_aspect_ratio)


def _decoded(data: bytes, max_side: int | None, max_aspect_ratio: float | None) -> Image.Image:
    image = _opened(io.BytesIO(data))
    _check_pixels(image)
    try:
        # Pillow decodes here; a file that ends early or is damaged fails here and not before.
        image.load()
        picture = to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, ValueError …
        raise UnreadableImage(f"damaged: {_one_line(error)}") from error
    orientation = _orientation(image, header_only=False)
    size = _final_size(image, orientation, max_side, max_aspect_ratio)
    if orientation in _TRANSPOSE:
        picture = picture.transpose(_TRANSPOSE[orientation])
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def image_size(
    path: str | Path, max_side: int | None = None, max_aspect_ratio: float | None = MAX_ASPECT_RATIO
) -> tuple[int, int]:
    """The size of the picture that `load_image` would return, from the file's header alone.

    Args:
        path: the image file.
        max_side, max_aspect_ratio: see `load_image`.

    Returns:
        Width and height. (A PNG whose orientation stands after its pixels is measured as it lies; encoders write it
        before them.)

    Raises:
        UnreadableImage: the header already shows that `load_image` would refuse.
        OSError: the disk failed, also after several tries.
    """

    def measure() -> tuple[int, int]:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("is no ordinary file")
            if status.st_size == 0:
                raise UnreadableImage("empty file")
            with _quiet(), _opened(file) as image:
                _check_pixels(image)
                return _final_size(image, _orientation(image, header_only=True), max_side, max_aspect_ratio)

    try:
        return retry_io(measure)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from None
    except OSError as error:
        raise _classified(error, path) from None


def limited_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size of an image after the limit on its longer side.

    Args:
        width, height: its size.
        max_side: the limit; None for none.

    Returns:
        The size itself if it keeps the limit. Otherwise the longer side becomes `max_side`, the other one keeps the
        proportion, rounded down, and is never less than 1: the rule of the published pipeline.
    """
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    if width >= height:
        return max_side, max(1, int(height * max_side / width))
    return max(1, int(width * max_side / height)), max_side


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings on odd metadata and on half of its pixel limit: an image is read, or refused aloud."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open_without_waiting(path: str, flags: int) -> int:
    # A named pipe in a dataset would otherwise be waited for, without end.
    return os.open(path, flags | os.O_NONBLOCK)


def _opened(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=_known_formats())
    except Image.DecompressionBombError:
        raise UnreadableImage(f"too large: more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        # Pillow's message holds a memory address, which would differ from run to run.
        raise UnreadableImage("no image, or of a format that is not supported") from None
    except MemoryError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise UnreadableImage(f"damaged: {_one_line(error)}") from error
    except Exception as error:
        raise UnreadableImage(f"damaged: {_one_line(error)}") from error


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"has no pixels: {width}x{height}")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"too large: {width}x{height}, at most {MAX_PIXELS} pixels are read")


def _final_size(
    image: Image.Image, orientation: int, max_side: int | None, max_aspect_ratio: float | None
) -> tuple[int, int]:
    width, height = image.size
    if orientation in _SIDES_SWAPPED:
        width, height = height, width
    size = limited_size(width, height, max_side)
    if max_aspect_ratio is not None and max(size) > max_aspect_ratio * min(size):
        raise UnreadableImage(f"too long: {size[0]}x{size[1]}, the sides may differ {max_aspect_ratio:g} times at most")
    return size


def _orientation(image: Image.Image, header_only: bool) -> int:
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
        # Broken EXIF does not make the pixels unreadable; such files are shown as they lie by every viewer.
        return 1


def _classified(error: OSError, path: str | Path) -> OSError | UnreadableImage:
    """The error itself if the disk failed, else what it says about the image."""
    if error.errno in PERMANENT_ERRORS:
        return UnreadableImage(_REASONS.get(error.errno, f"cannot be opened: {error.strerror}"), path)
    return error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
