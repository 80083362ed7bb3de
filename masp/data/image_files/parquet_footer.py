"""What the end of a parquet file says: its row groups, and where the columns of each are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from masp.data.image_files.thrift import read_structure

_MAGIC = b"PAR1"
_MAX_BYTES = 256 << 20
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 4: "BIT_PACKED", 8: "RLE_DICTIONARY"}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A physical column in one row group."""

    start: int
    """Where its first page begins."""
    num_bytes: int
    """Bytes that its pages take in the file."""
    num_plain_bytes: int
    """Bytes that they are said to take once decompressed."""
    num_values: int
    is_coded: bool
    """Whether values are written as they are, or once in a dictionary, and in no other way."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows that are written together."""

    num_rows: int
    chunks: list[Chunk]


def read_footer(descriptor: int) -> list[RowGroup]:
    """Read what a parquet file says of its row groups.

    Args:
        descriptor: The open file.

    Raises:
        ValueError: It is cut short or damaged, or claims more rows than it has bits.
        OSError: It cannot be read.
    """
    size = os.fstat(descriptor).st_size
    end = os.pread(descriptor, 8, size - 8) if size >= 12 else b""
    if end[4:] != _MAGIC:
        raise ValueError(
            "it does not end as a parquet file does" + (", but is encrypted" if end[4:] == b"PARE" else "")
        )
    length = int.from_bytes(end[:4], "little")
    if length > min(size - 12, _MAX_BYTES):
        raise ValueError(f"its end claims {length:,} bytes of {size:,}")
    try:
        footer, _ = read_structure(os.pread(descriptor, length, size - 8 - length), 0)
        groups = [_row_group(group, size) for group in footer.get(4, [])]
    except (IndexError, TypeError, AttributeError, KeyError):
        raise ValueError("its end is damaged") from None
    num_rows = sum(group.num_rows for group in groups)
    if num_rows != footer.get(3) or num_rows > 8 * size:
        raise ValueError(f"it claims {footer.get(3)} rows, {num_rows:,} in its row groups, in {size:,} bytes")
    return groups


def _row_group(group: dict[int, Any], size: int) -> RowGroup:
    return RowGroup(_count(group[3]), [_chunk(column[3], size) for column in group[1]])


def _chunk(column: dict[int, Any], size: int) -> Chunk:
    start, dictionary = _count(column[9]), column.get(11)
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    num_bytes = _count(column[7])
    if start + num_bytes > size:
        raise ValueError(f"a column ends at byte {start + num_bytes:,} of {size:,}")
    is_coded = all(encoding in _ENCODINGS for encoding in column[2])
    return Chunk(start, num_bytes, _count(column[6]), _count(column[5]), is_coded)


def _count(value: int) -> int:
    if value < 0:
        raise ValueError("its end claims a negative number")
    return value
