"""Image files that Pillow refuses and viewers show: what is wrong with them has nothing to do with their pixels."""

import re
import struct
import zlib
from dataclasses import dataclass

_PNG_START = b"\x89PNG\r\n\x1a\n"
# Text chunks in which programs keep the orientation.
_ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_START_OF_SCAN = 0xDA
_STANDALONE = (0x01, *range(0xD0, 0xD9))
_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
# In compressed data, FF stands before 00, a restart marker or another FF; everything else ends the scan.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FILLERS = (b"\x55" * 256, b"\xaa" * 256)


@dataclass(frozen=True)
class Repair:
    """A file with its fault removed."""

    data: bytes
    """Content of the repaired file."""
    what: str
    """What kind of file it was, for the user."""
    alternatives: tuple[bytes, ...] = ()
    """Files that decode to the same pixels as `data` if, and only if, no pixel is missing."""


def repair_of(data: bytes) -> Repair | None:
    """Repair a file that could not be decoded.

    Args:
        data: Content of the file.

    Returns:
        The repair, or None where nothing is known that could be repaired. Whether the result can be decoded must be
        tried.
    """
    if data.startswith(_PNG_START):
        return _without_metadata(data)
    if data.startswith(_JPEG_START):
        return _with_end_marker(data)
    return None


def _without_metadata(data: bytes) -> Repair | None:
    """A PNG without the chunks that its pixels, its transparency and its orientation do not depend on.

    Pillow refuses a whole file for a large or broken one of them. Like libpng, this leaves out all chunks with a wrong
    checksum except those that the pixels consist of, which Pillow judges.
    """
    kept = [_PNG_START]
    position = len(_PNG_START)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if _is_needed(kind, data[position + 4 : end]):
            kept.append(data[position:end])
        position = end
    repaired = b"".join([*kept, data[position:]])
    return None if len(repaired) == len(data) else Repair(repaired, "PNG with metadata that is damaged or too large")


def _is_needed(kind: bytes, checked: bytes) -> bool:
    """Whether a chunk stays; `checked` is its kind, its content and its checksum."""
    is_critical = not kind[0] & 0x20
    if is_critical:
        return True
    if zlib.crc32(checked[:-4]) != int.from_bytes(checked[-4:], "big"):
        return False
    return kind in (b"tRNS", b"eXIf") or (kind in _TEXT_CHUNKS and checked[4:-4].startswith(_ORIENTATION_TEXTS))


def _with_end_marker(data: bytes) -> Repair | None:
    """A JPEG whose end marker, or a part of it, was cut off or overwritten with zeros."""
    if not _lacks_only_its_end(data):
        return None
    body = data.rstrip(b"\0")
    if body.endswith(b"\xff") and len(body) < len(data):
        body += b"\0"  # compressed data may end in FF, which is written as FF 00
    if len(data) - len(body) == 1:
        body = data
    if body.endswith(b"\xff"):
        body = body[:-1]
    # What follows the last pixel is never looked at. If pixels are missing, they are made of it.
    alternatives = tuple(body + filler + _JPEG_END for filler in _FILLERS)
    return Repair(body + _JPEG_END, "JPEG without its end marker", alternatives)


def _lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG ends in its last scan, as far as its headers tell."""
    position = len(_JPEG_START)
    # Component -> how many low bits of each of its 64 coefficients are still to come; None if nothing came yet.
    missing_bits: dict[int, list[int | None]] = {}
    while match := _NEXT_MARKER.search(data, position):
        marker, position = data[match.end() - 1], match.end()
        if marker in _STANDALONE:
            continue
        if marker == _JPEG_END[1] or position + 2 > len(data):
            return False
        end = position + int.from_bytes(data[position : position + 2], "big")
        if end > len(data):
            return False
        segment = data[position + 2 : end]
        try:
            if marker in _FRAMES:
                missing_bits = {segment[6 + 3 * i]: [None] * 64 for i in range(segment[5])}
            elif marker == _START_OF_SCAN:
                first, last, low = segment[-3], segment[-2], segment[-1] & 15
                for i in range(segment[0]):
                    missing_bits[segment[1 + 2 * i]][first : last + 1] = [low] * (last + 1 - first)
        except (IndexError, KeyError):
            return False
        position = end
    return bool(missing_bits) and all(bits == [0] * 64 for bits in missing_bits.values())
