"""Headers of the pages of a parquet file, read before the pages are decoded.

What a page takes once it is decoded is in its own header, and a damaged or malicious file can claim any size there:
kilobytes that become gigabytes. Arrow decodes such pages without asking, and gives no access to their headers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from masp.data.image_files.thrift import read_structure

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
            header, stop = read_structure(window, place - base)
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
        return read_structure(window, 0)
    except IndexError:
        window = os.pread(descriptor, min(_MAX_HEADER, end - place), place)
    try:
        return read_structure(window, 0)
    except IndexError:
        raise ValueError("the header of a page is cut short or damaged") from None
