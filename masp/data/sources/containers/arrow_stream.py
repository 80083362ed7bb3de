"""Whether an arrow file is whole, and its buffers are as they are written, before Arrow reads anything of it.

Arrow decompresses buffers as soon as it meets them, to whatever size they claim, and has no way to ask first. Where the
messages of a file say that buffers are compressed is in structures of FlatBuffers, of which little is needed here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

from masp.data.sources.containers.listed_files import not_of_this_kind
from masp.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)
_HEADER_TYPE, _HEADER = 1, 2
"""Fields of a message: which kind it is, and the rest of it."""
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_COMPRESSION, _DATA = 3, 1
"""Field of a record batch; field of a dictionary batch that is a record batch."""


def check_stream(buffer: pa.Buffer, file: BinaryIO, path: str) -> None:
    """Check that a file is a stream of Arrow from its beginning to its end, without compression.

    Args:
        buffer: All of it.
        file: The same, open.
        path: Its path.

    Raises:
        InputError: It is of another kind, cut short, or compressed.
        ValueError: It is damaged.
    """
    import pyarrow as pa

    start = buffer.slice(0, min(8, buffer.size)).to_pybytes()
    if start[:6] == b"ARROW1":
        raise InputError(f"{path}: is a Feather file (Arrow for random access); must be a stream, as datasets saves it")
    if start[:4] != _CONTINUATION:
        raise not_of_this_kind(file, path, "an arrow file as datasets saves it")
    source = pa.BufferReader(buffer)
    number = 0
    while source.tell() < buffer.size:
        place = source.tell()
        if buffer.slice(place, min(8, buffer.size - place)).to_pybytes() == _END:
            if place + 8 < buffer.size:
                raise ValueError(f"{buffer.size - place - 8:,} bytes come after its end")
            return
        message = pa.ipc.read_message(source)
        if _is_compressed(message.metadata.to_pybytes()):
            raise InputError(
                f"{path}: its values are compressed; save it without: `datasets.load_from_disk(OLD).save_to_disk(NEW)`"
            )
        number += 1
    raise InputError(f"{path}: is cut short: it ends after {number:,} messages without the mark of its end")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message has compressed buffers."""
    try:
        message = struct.unpack_from("<I", metadata)[0]
        at = _field(metadata, message, _HEADER_TYPE)
        kind = metadata[at] if at else 0
        header = _table(metadata, _field(metadata, message, _HEADER))
        if kind == _DICTIONARY_BATCH:
            header = _table(metadata, _field(metadata, header, _DATA))
        elif kind != _RECORD_BATCH:
            return False
        return bool(_field(metadata, header, _COMPRESSION))
    except (struct.error, IndexError):
        raise ValueError("a message is damaged") from None


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table is; 0 if the table does not have it."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    if fields < 0:
        raise ValueError("a message is damaged")
    if 4 + 2 * number >= struct.unpack_from("<H", data, fields)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _table(data: bytes, at: int) -> int:
    """The table that a field refers to."""
    if not at:
        raise ValueError("a message is damaged")
    return at + int(struct.unpack_from("<I", data, at)[0])
