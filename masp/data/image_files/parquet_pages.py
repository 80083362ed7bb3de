"""Headers of the pages of a parquet file, read before the pages are decoded.

What a page takes once it is decoded is in its own header, and a damaged or malicious file can claim any size there:
kilobytes that become gigabytes. Arrow decodes such pages without asking, and gives no access to their headers. They are
structures of Thrift's compact protocol, of which only the integers are needed here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

MAX_CHUNK_BYTES = 1 << 30
"""Largest size of a column in one row group, not compressed."""
MAX_CHUNK_VALUES = 1 << 26
"""Most values of a column in one row group."""
MAX_DELTA_BYTES = 4 << 20
"""Largest size of a page whose strings share beginnings, which are much longer once they are decoded."""
DELTA_ROWS = 256
"""Rows of such pages that are decoded at a time."""

_MAX_HEADER = 1 << 20
_WINDOW = 16 << 10
_DATA_PAGES = {0: 5, 3: 8}
"""Type of a page with values -> field of its header that has their number and encoding."""
_DICTIONARY_PAGE, _DICTIONARY_FIELD = 2, 7
_DELTA_BYTE_ARRAY = 7


@dataclass(frozen=True)
class PageTotals:
    """What the pages of a column in one row group claim."""

    num_bytes: int
    """Size, not compressed."""
    dictionary_bytes: int
    """Size of the dictionary page: no value in it is longer."""
    has_deltas: bool
    """Whether strings share beginnings."""


def check_pages(descriptor: int, start: int, length: int, num_values: int) -> PageTotals:
    """Read the headers of the pages of a column in one row group.

    Args:
        descriptor: The open file.
        start: Where the first page begins.
        length: Bytes that the pages take in the file.
        num_values: Values that they have together; pages behind these are not looked at, as no reader does.

    Returns:
        What they claim.

    Raises:
        ValueError: A header is damaged, or they claim more than is decoded.
        OSError: The file cannot be read.
    """
    window, base = b"", start
    place, end, seen = start, start + length, 0
    num_bytes = dictionary_bytes = 0
    has_deltas = False
    while seen < num_values:
        if place >= end:
            raise ValueError(f"its pages have {seen:,} values; the file says {num_values:,}")
        try:
            header, stop = _structure(window, place - base, 0)
        except IndexError:  # behind the window, or across its end
            window, base = os.pread(descriptor, min(_WINDOW, end - place), place), place
            header, stop = _parse_first(descriptor, window, place, end)
        claimed, stored = _integer(header, 2), _integer(header, 3)
        kind = _integer(header, 1)
        if kind in _DATA_PAGES:
            details = header.get(_DATA_PAGES[kind])
            if not isinstance(details, dict):
                raise ValueError("a page has no values")
            seen += _integer(details, 1)
            if _integer(details, 4 if kind == 3 else 2) == _DELTA_BYTE_ARRAY:
                has_deltas = True
                if claimed > MAX_DELTA_BYTES:
                    raise ValueError(f"a page with delta encoding takes {claimed:,} bytes; at most {MAX_DELTA_BYTES:,}")
        elif kind == _DICTIONARY_PAGE:
            dictionary_bytes = max(dictionary_bytes, claimed)
            if _integer(header.get(_DICTIONARY_FIELD, {}), 1) > MAX_CHUNK_VALUES:
                raise ValueError("its dictionary claims too many values")
        num_bytes += claimed
        if num_bytes > MAX_CHUNK_BYTES:
            raise ValueError(f"its pages claim more than {MAX_CHUNK_BYTES >> 30} GiB once decompressed")
        if seen > MAX_CHUNK_VALUES:
            raise ValueError(f"its pages claim more than {MAX_CHUNK_VALUES:,} values")
        place = base + stop + stored
    return PageTotals(num_bytes, dictionary_bytes, has_deltas)


def _integer(header: dict[int, Any], field: int) -> int:
    value = header.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError("the header of a page is damaged")
    return value


def _parse_first(descriptor: int, window: bytes, place: int, end: int) -> tuple[dict[int, Any], int]:
    """The header at the beginning of a window, which is made larger if it must be, and where in it the header ends."""
    try:
        return _structure(window, 0, 0)
    except IndexError:
        window = os.pread(descriptor, min(_MAX_HEADER, end - place), place)
    try:
        return _structure(window, 0, 0)
    except IndexError:
        raise ValueError("the header of a page is cut short or damaged") from None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("the header of a page is damaged")


def _structure(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Fields by number: integers and structures; of other fields only where they end.

    Returns:
        The fields, and where the structure ends.

    Raises:
        IndexError: It ends behind the data. ValueError: It is not a header of a page.
    """
    if depth > 8:
        raise ValueError("the header of a page is damaged")
    fields: dict[int, Any] = {}
    number = 0
    while byte := data[at]:
        at += 1
        if delta := byte >> 4:
            number += delta
        else:
            zigzag, at = _varint(data, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        fields[number], at = _value(data, at, byte & 0x0F, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # a boolean, which is its kind
        return None, at
    if kind == 3:
        return None, at + 1
    if kind in (4, 5, 6):
        zigzag, at = _varint(data, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _structure(data, at, depth + 1)
    raise ValueError("the header of a page is damaged")  # lists and maps, which no header of a page has
