"""From an image file to the RGB image that the VLM sees, or to the reason why there is none."""

import contextlib
import errno
import functools
import hashlib
import io
import warnings
from collections.abc import Iterator
from typing import IO

from PIL import Image, TiffImagePlugin

from masp.config.schema import Transparency
from masp.data.image_files.memory import MAX_BYTES, MAX_METADATA_BYTES, decoding_bytes, fault_before_opening
from masp.data.image_files.other_formats import other_format
from masp.data.image_files.pixels import (
    SIDES_SWAPPED,
    first_frame,
    orientation_of,
    scale_gray_key,
    sixteen_bit_key,
    to_rgb,
    upright,
    whiten_key,
    whiten_outside,
)
from masp.data.image_files.repairs import Repair, repair_of
from masp.data.image_files.stored import Location, StoredImage, open_image
from masp.data.reading import read_whole
from masp.errors import DataError
from masp.files.regular import UnsuitableFile
from masp.files.retry import PERMANENT_ERRORS, retry_io
from masp.files.text import reason

# Named, because Pillow would otherwise try everything it knows, and for some formats starts other programs.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

# Pillow itself refuses from here on; most kinds of images are refused earlier, for the memory that they take.
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

    def __init__(self, reason: str, path: Location | None = None):
        super().__init__(reason if path is None else f"{path}: cannot read this image: {reason}")
        self.reason = reason

    def __reduce__(self):
        # The default would pickle the message as the reason; worker processes send these errors to their parent.
        return _rebuild, (self.reason, self.args[0])


def _rebuild(reason: str, message: str) -> UnreadableImage:
    error = UnreadableImage(reason)
    error.args = (message,)
    return error


class _Damaged(UnreadableImage):
    """Perhaps to be repaired."""


def load_image(
    image: Location,
    max_side: int | None = None,
    max_aspect_ratio: float | None = MAX_ASPECT_RATIO,
    transparency: Transparency = "white",
) -> Image.Image:
    """Read an image: the first frame, upright, RGB, scaled down to `max_side`.

    Args:
        image: Where the image is.
        max_side: See `limited_size`.
        max_aspect_ratio: Largest ratio of the sides that the VLM takes; None takes any.
        transparency: See `masp.data.image_files.pixels.to_rgb`.

    Returns:
        An image of mode RGB that holds no file open.

    Raises:
        UnreadableImage: The file is missing, cannot be opened, is not an image, or is damaged, too large or too long.
        OSError: The disk failed, also after several tries; nothing is known about the image.
    """
    data = read_image_file(image)
    try:
        return decode_image(data, max_side, max_aspect_ratio, transparency)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, image) from error.__cause__


def read_image_file(image: Location) -> bytes:
    """Read an image's bytes, for `decode_image` and for digests.

    Args:
        image: Where the image is.

    Returns:
        Its bytes as they are stored.

    Raises:
        UnreadableImage: The file is missing, not permitted, not a regular file, empty or too large.
        OSError: The disk failed, also after several tries.
    """
    try:
        data = retry_io(image.read) if isinstance(image, StoredImage) else read_whole(image)
    except UnsuitableFile as error:
        raise UnreadableImage(reason(error), image) from None
    except OSError as error:
        raise _classified(error, image) from None
    if not data:
        raise UnreadableImage("empty file", image)
    return data


def decode_image(
    data: bytes,
    max_side: int | None = None,
    max_aspect_ratio: float | None = MAX_ASPECT_RATIO,
    transparency: Transparency = "white",
    repairs: list[str] | None = None,
) -> Image.Image:
    """Decode an image file's bytes as `load_image` does.

    Args:
        data: Content of the file.
        max_side, max_aspect_ratio, transparency: See `load_image`.
        repairs: Receives what had to be repaired to read the image, in words.

    Returns:
        An image of mode RGB.

    Raises:
        UnreadableImage: These bytes are not an image, or a damaged, too large or too long one.
    """
    with _quiet():
        try:
            return _decoded(_lean(data), len(data), max_side, max_aspect_ratio, transparency)
        except _Damaged:
            repair = repair_of(data)
            if repair is None or not _is_complete(repair):
                raise
        num_bytes = len(data) + len(repair.data)
        image = _decoded(repair.data, num_bytes, max_side, max_aspect_ratio, transparency)
    if repairs is not None:
        repairs.append(repair.what)
    return image


def _lean(data: bytes) -> bytes:
    """The file itself; a PNG of an unusual size without its metadata, of which Pillow would make copies."""
    if len(data) <= MAX_METADATA_BYTES or not data.startswith(b"\x89PNG"):
        return data
    repair = repair_of(data)
    return data if repair is None else repair.data


def _is_complete(repair: Repair) -> bool:
    """Whether no pixel of a repaired image is made up."""
    if not repair.alternatives:
        return True
    try:
        return len({_digest(data) for data in (repair.data, *repair.alternatives)}) == 1
    except _Damaged:
        return False


def _digest(data: bytes) -> bytes:
    """A digest of the pixels as stored."""
    with _opened(io.BytesIO(data)) as stored:
        _check_size(stored, len(data), None)
        _load(stored)
        digest = hashlib.sha256()
        width, height = stored.size
        for top in range(0, height, 256):
            digest.update(stored.crop((0, top, width, min(top + 256, height))).tobytes())
        return digest.digest()


def _load(stored: Image.Image) -> None:
    try:
        # Pillow decodes here; a file that ends early or is damaged fails here and not before.
        stored.load()
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, ValueError …
        raise _Damaged(f"damaged: {_one_line(error)}") from error


def _decoded(
    data: bytes, num_bytes: int, max_side: int | None, max_aspect_ratio: float | None, transparency: Transparency
) -> Image.Image:
    stored = _opened(io.BytesIO(data))
    _check_size(stored, num_bytes, max_aspect_ratio, max_side)
    key = sixteen_bit_key(stored) if transparency == "white" else None
    frame = first_frame(stored) if transparency == "white" else None
    scale_gray_key(stored)
    _load(stored)
    if key is not None:
        low = _opened(io.BytesIO(data))
        low.tile = [low.tile[0]._replace(args="RGB;16L")]  # type: ignore[attr-defined]
        _load(low)
        whiten_key(stored, low, key)
        del low
    orientation = orientation_of(stored, header_only=False)
    size = _final_size(stored, orientation, max_side, max_aspect_ratio)
    try:
        image = to_rgb(stored, transparency)
        if frame is not None:
            whiten_outside(image, frame)
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage(f"damaged: {_one_line(error)}") from error
    del stored  # turning makes another copy
    image = upright(image, orientation)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def image_size(
    image: Location, max_side: int | None = None, max_aspect_ratio: float | None = MAX_ASPECT_RATIO
) -> tuple[int, int]:
    """The size of the image that `load_image` would return, from the file's header alone.

    Args:
        image: Where the image is.
        max_side, max_aspect_ratio: See `load_image`.

    Returns:
        Width and height. (A PNG whose orientation comes after its pixels is measured as stored; encoders write it
        before them.)

    Raises:
        UnreadableImage: The header already shows that `load_image` would refuse.
        OSError: The disk failed, also after several tries.
    """

    def measure() -> tuple[int, int]:
        with open_image(image) as file:
            num_bytes = file.seek(0, io.SEEK_END)
            if not num_bytes:
                raise UnreadableImage("empty file")
            file.seek(0)
            with _quiet(), _opened_or_repaired(file) as header:
                _check_size(header, num_bytes, max_aspect_ratio, max_side)
                return _final_size(header, orientation_of(header, header_only=True), max_side, max_aspect_ratio)

    try:
        return retry_io(measure)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, image) from None
    except UnsuitableFile as error:
        raise UnreadableImage(reason(error), image) from None
    except OSError as error:
        raise _classified(error, image) from None


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
    # Pillow knows this kind only in the other byte order, in which it does not invert it: `to_rgb` does, for both.
    deep_negative = (TiffImagePlugin.MM, 0, (1,), 1, (16,), ())
    TiffImagePlugin.OPEN_INFO.setdefault(deep_negative, ("I;16B", "I;16B"))
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _opened_or_repaired(file: IO[bytes]) -> Image.Image:
    try:
        return _opened(file)
    except _Damaged:
        file.seek(0)
        repair = repair_of(file.read())
        if repair is None:
            raise
        return _opened(io.BytesIO(repair.data))


def _opened(file: IO[bytes]) -> Image.Image:
    try:
        if fault := fault_before_opening(file):
            raise UnreadableImage(f"too large: {fault}")
        file.seek(0)
        return Image.open(file, formats=_known_formats())
    except Image.DecompressionBombError:
        raise UnreadableImage(f"too large: more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        # Pillow's message holds a memory address, which would differ from run to run.
        file.seek(0)
        found = other_format(file.read(1024))
        seems = f" (this seems to be {found})" if found else ""
        raise _Damaged(f"no image, or of a format that is not supported{seems}") from None
    except (MemoryError, UnreadableImage):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _Damaged(f"damaged: {_one_line(error)}") from error
    except Exception as error:
        raise _Damaged(f"damaged: {_one_line(error)}") from error


def _check_size(
    image: Image.Image, num_file_bytes: int, max_aspect_ratio: float | None, max_side: int | None = None
) -> None:
    """Refuse an image whose header already says that it is too large or too long."""
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"has no pixels: {width}x{height}")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"too large: {width}x{height}, at most {MAX_PIXELS} pixels are read")
    _final_size(image, 1, max_side, max_aspect_ratio)
    needed = decoding_bytes(image, num_file_bytes, orientation_of(image, header_only=True) != 1)
    if needed > MAX_BYTES:
        raise UnreadableImage(
            f"too large: decoding {width}x{height} pixels of this kind ({image.format}, {image.mode}) takes "
            f"{needed / 2**20:.0f} MiB, at most {MAX_BYTES >> 20} MiB are used"
        )


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


def _classified(error: OSError, image: Location) -> OSError | UnreadableImage:
    """The error itself if the disk failed, else what it means for the image."""
    if error.errno in PERMANENT_ERRORS:
        return UnreadableImage(_REASONS.get(error.errno, f"cannot be opened: {reason(error)}"), image)
    return error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
