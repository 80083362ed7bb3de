"""From an image file to the RGB image that the VLM sees, or to the reason why there is none."""

import contextlib
import errno
import functools
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from masp.config.schema import Transparency
from masp.data.pixels import SIDES_SWAPPED, orientation_of, to_rgb, upright
from masp.data.reading import opened, read_whole
from masp.errors import DataError
from masp.files.regular import UnsuitableFile
from masp.files.retry import PERMANENT_ERRORS, retry_io
from masp.files.text import reason

# Named, because Pillow would otherwise try everything it knows, and for some formats starts other programs.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

# Beyond this, one image takes more than half a gigabyte in memory; Pillow itself refuses from here on.
MAX_PIXELS = 178_956_970

# The image processors of the Qwen family refuse longer images.
MAX_ASPECT_RATIO = 200.0

_REASONS = {
    errno.ENOENT: "file not found",
    errno.ENOTDIR: "file not found",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EISDIR: "is a folder",
}


class UnreadableImage(DataError):
    """A file that cannot be read as an image, whoever reads it and whenever."""

    def __init__(self, reason: str, path: str | Path | None = None):
        super().__init__(reason if path is None else f"{path}: cannot read this image: {reason}")
        self.reason = reason

    def __reduce__(self):
        # The default would pickle the message as the reason; worker processes send these errors to their parent.
        return _rebuild, (self.reason, self.args[0])


def _rebuild(reason: str, message: str) -> UnreadableImage:
    error = UnreadableImage(reason)
    error.args = (message,)
    return error


def load_image(
    path: str | Path,
    max_side: int | None = None,
    max_aspect_ratio: float | None = MAX_ASPECT_RATIO,
    transparency: Transparency = "white",
) -> Image.Image:
    """Read an image: the first frame, upright, RGB, scaled down to `max_side`.

    Args:
        path: Path of the image file.
        max_side: See `limited_size`.
        max_aspect_ratio: Largest ratio of the sides that the VLM takes; None takes any.
        transparency: See `masp.data.pixels.to_rgb`.

    Returns:
        An image of mode RGB that holds no file open.

    Raises:
        UnreadableImage: The file is missing, cannot be opened, is not an image, or is damaged, too large or too long.
        OSError: The disk failed, also after several tries; nothing is known about the image.
    """
    data = read_image_file(path)
    try:
        return decode_image(data, max_side, max_aspect_ratio, transparency)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from error.__cause__


def read_image_file(path: str | Path) -> bytes:
    """Read an image file's bytes, for `decode_image` and for digests.

    Args:
        path: Path of the file.

    Returns:
        Its content.

    Raises:
        UnreadableImage: The file is missing, not permitted, not a regular file, empty or too large.
        OSError: The disk failed, also after several tries.
    """
    try:
        data = read_whole(path)
    except UnsuitableFile as error:
        raise UnreadableImage(reason(error), path) from None
    except OSError as error:
        raise _classified(error, path) from None
    if not data:
        raise UnreadableImage("empty file", path)
    return data


def decode_image(
    data: bytes,
    max_side: int | None = None,
    max_aspect_ratio: float | None = MAX_ASPECT_RATIO,
    transparency: Transparency = "white",
) -> Image.Image:
    """Decode an image file's bytes as `load_image` does.

    Args:
        data: Content of the file.
        max_side, max_aspect_ratio, transparency: See `load_image`.

    Returns:
        An image of mode RGB.

    Raises:
        UnreadableImage: These bytes are not an image, or a damaged, too large or too long one.
    """
    with _quiet():
        return _decoded(data, max_side, max_aspect_ratio, transparency)


def _decoded(
    data: bytes, max_side: int | None, max_aspect_ratio: float | None, transparency: Transparency
) -> Image.Image:
    stored = _opened(io.BytesIO(data))
    _check_pixels(stored)
    try:
        # Pillow decodes here; a file that ends early or is damaged fails here and not before.
        stored.load()
        image = to_rgb(stored, transparency)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, ValueError …
        raise UnreadableImage(f"damaged: {_one_line(error)}") from error
    orientation = orientation_of(stored, header_only=False)
    size = _final_size(stored, orientation, max_side, max_aspect_ratio)
    image = upright(image, orientation)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def image_size(
    path: str | Path, max_side: int | None = None, max_aspect_ratio: float | None = MAX_ASPECT_RATIO
) -> tuple[int, int]:
    """The size of the image that `load_image` would return, from the file's header alone.

    Args:
        path: Path of the image file.
        max_side, max_aspect_ratio: See `load_image`.

    Returns:
        Width and height. (A PNG whose orientation comes after its pixels is measured as stored; encoders write it
        before them.)

    Raises:
        UnreadableImage: The header already shows that `load_image` would refuse.
        OSError: The disk failed, also after several tries.
    """

    def measure() -> tuple[int, int]:
        with opened(path) as file:
            if not file.seek(0, io.SEEK_END):
                raise UnreadableImage("empty file")
            file.seek(0)
            with _quiet(), _opened(file) as image:
                _check_pixels(image)
                return _final_size(image, orientation_of(image, header_only=True), max_side, max_aspect_ratio)

    try:
        return retry_io(measure)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from None
    except UnsuitableFile as error:
        raise UnreadableImage(reason(error), path) from None
    except OSError as error:
        raise _classified(error, path) from None


def limited_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size of an image after the limit on its longer side.

    Args:
        width, height: Size of the image.
        max_side: Limit on the longer side; None for none.

    Returns:
        The size itself if it is within the limit. Otherwise the longer side becomes `max_side`, the other one keeps the
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
    """Without Pillow's warnings on odd metadata and on half of its pixel limit: an image is read, or refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


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
    if orientation in SIDES_SWAPPED:
        width, height = height, width
    size = limited_size(width, height, max_side)
    if max_aspect_ratio is not None and max(size) > max_aspect_ratio * min(size):
        raise UnreadableImage(f"too long: {size[0]}x{size[1]}, the sides may differ {max_aspect_ratio:g} times at most")
    return size


def _classified(error: OSError, path: str | Path) -> OSError | UnreadableImage:
    """The error itself if the disk failed, else what it means for the image."""
    if error.errno in PERMANENT_ERRORS:
        return UnreadableImage(_REASONS.get(error.errno, f"cannot be opened: {reason(error)}"), path)
    return error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
