"""How much memory it takes to decode an image, told from its header."""

import struct
from typing import IO

from PIL import Image, TiffImagePlugin

MAX_BYTES = 896 * 2**20
"""Limit on what `decoding_bytes` returns. With the libraries, and strips in the making, that is less than 1 GiB."""

# What Pillow keeps per pixel; for every mode that is not named, four bytes.
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_RGB = 4
# What decoders take per pixel besides, as measured: copies of the whole image on its way to Pillow's.
_WEBP, _AVIF, _JPEG2000_PER_BAND = 13, 13, 6
# Fields of a TIFF whose values Pillow reads into Python objects, of 4 or more bytes per byte; others stay bytes.
_PLAIN_TYPES = (1, 2, 7)
_ORIENTATION = 274
MAX_TIFF_VALUES = 2**20
"""Values in one field of a TIFF. Those with one value per strip or tile have the most; no valid image needs more."""
MAX_METADATA_BYTES = 2**26
"""Bytes of one piece of metadata, of which Pillow makes copies."""


def decoding_bytes(image: Image.Image, num_file_bytes: int, turned: bool) -> int:
    """Estimate the peak memory of decoding an image and converting it to RGB.

    Args:
        image: Opened image, not decoded.
        num_file_bytes: Size of its file, which is in memory meanwhile.
        turned: Whether it must be turned upright, which takes a copy.

    Returns:
        Bytes, rather too many than too few.
    """
    width, height = image.size
    num_pixels = width * height
    stored = num_pixels * _STORED.get(image.mode, 4)
    converted = 0 if image.mode == "RGB" and "transparency" not in image.info else num_pixels * _RGB
    turning = 2 * num_pixels * _RGB if turned else 0
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_ORIENTATION, 1) != 1:
        turning = 2 * stored  # Pillow turns TIFFs itself, before anything is converted
    return num_file_bytes + max(stored + _scratch(image), stored + converted, turning)


def _scratch(image: Image.Image) -> int:
    """What a decoder takes besides the image that it fills."""
    num_pixels = image.size[0] * image.size[1]
    if image.format in ("JPEG", "MPO"):
        return _coefficients(image, num_pixels)
    if image.format == "WEBP":
        return num_pixels * _WEBP
    if image.format == "AVIF":
        return num_pixels * _AVIF
    if image.format == "JPEG2000":
        return num_pixels * _JPEG2000_PER_BAND * len(image.getbands())
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tile and image.tile[0][0] == "libtiff":
        return _tiff_buffer(image)
    return 0


def _coefficients(image: Image.Image, num_pixels: int) -> int:
    """A JPEG with several scans is kept as coefficients of two bytes until the last scan is read."""
    components = getattr(image, "layer", [])
    if not components or not (image.info.get("progressive") or _scans_are_separate(image)):
        return 0
    per_block = sum(across * down for _, across, down, _ in components)
    widest = max(across for _, across, _, _ in components) * max(down for _, _, down, _ in components)
    return 2 * num_pixels * per_block // max(1, widest)


def _scans_are_separate(image: Image.Image) -> bool:
    """Whether the first scan of a JPEG holds fewer components than the image."""
    # Pillow stops reading the header behind the marker of the first scan, whose third byte is their number.
    file = getattr(image, "fp", None)
    if file is None:
        return False
    before = file.tell()
    header = file.read(3)
    file.seek(before)
    return len(header) == 3 and header[2] < len(getattr(image, "layer", []))


def _tiff_buffer(image: TiffImagePlugin.TiffImageFile) -> int:
    """One strip or tile of a compressed TIFF, whole."""
    tags = image.tag_v2
    width, height = image.size
    across = _number(tags.get(TiffImagePlugin.TILEWIDTH), width)
    rows = min(height, _number(tags.get(TiffImagePlugin.ROWSPERSTRIP), height))
    down = _number(tags.get(TiffImagePlugin.TILELENGTH), rows)
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
    num_bits = sum(bits) if isinstance(bits, tuple) else bits
    # four bytes where libtiff itself converts to RGBA
    return across * down * max(4, -(-num_bits // 8))


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def fault_before_opening(file: IO[bytes]) -> str | None:
    """Why Pillow must not even open this file; None if it may.

    Pillow decodes icons when it opens them, and makes objects of all values in the fields of a TIFF.
    """
    file.seek(0)
    start = file.read(16)
    if start[:4] == b"\0\0\1\0":
        return _fault_of_icon(file)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is not None and len(start) == 16 and start[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return _fault_of_tiff(file, start, order)
    return None


def _fault_of_icon(file: IO[bytes]) -> str | None:
    """The images in an icon may have other sizes than its list of them says."""
    file.seek(4)
    (num_entries,) = struct.unpack("<H", file.read(2).ljust(2, b"\0"))
    entries = file.read(16 * num_entries)
    for (offset,) in struct.iter_unpack("<12xI", entries[: len(entries) // 16 * 16]):
        file.seek(offset)
        header = file.read(24).ljust(24, b"\0")
        is_png = header.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", header[16:]) if is_png else struct.unpack("<ii", header[4:12])
        # decoded as stored, converted to RGBA, and combined with a mask
        needed = 5 * _RGB * abs(width * height)
        if needed > MAX_BYTES:
            return f"this icon holds {abs(width)}x{abs(height)} pixels, which take {needed >> 20} MiB"
    return None


def _fault_of_tiff(file: IO[bytes], start: bytes, order: str) -> str | None:
    is_big = b"+" in start[2:4]
    (offset,) = struct.unpack_from(order + ("Q" if is_big else "I"), start, 8 if is_big else 4)
    count_form, entry_form = (order + "Q", order + "HHQQ") if is_big else (order + "H", order + "HHII")
    file.seek(offset)
    head = file.read(struct.calcsize(count_form))
    if len(head) < struct.calcsize(count_form):
        return None
    (num_entries,) = struct.unpack(count_form, head)
    entries = file.read(min(num_entries, 2**16) * struct.calcsize(entry_form))
    entries = entries[: len(entries) // struct.calcsize(entry_form) * struct.calcsize(entry_form)]
    for field, kind, count, _ in struct.iter_unpack(entry_form, entries):
        limit = MAX_METADATA_BYTES if kind in _PLAIN_TYPES else MAX_TIFF_VALUES
        if count > limit:
            return f"field {field} of this TIFF has {count} values, at most {limit} are read"
    return None
