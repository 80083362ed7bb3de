"""Which samples a ledger has records of, as numbers: what one process has found out, others need not read again.

`.<ledger>.index` holds the positions of the records among all that the evaluation needs, four bytes each. It is made by
the first process that needs to know and brought up to date by later ones, never by the process that appends records.
Removing it costs time and nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.regular import opened, read_bytes
from masp.results.ledger_format import Record
from masp.results.ledgers.reader import LedgerReader, check_identity, read_header

_HEAD = struct.Struct("<8s32sQQII")
"""Magic bytes, digest of the evaluation, bytes of the ledger, number of positions, checksum of the end of those bytes,
checksum of the positions."""
_MAGIC = b"MASPIDX1"
_END = 4096
"""Bytes before the end of what was read, by which a ledger is known to be the same file with more lines."""
_MAX_BYTES = 64 << 30
_MIN_TAIL = 1 << 16
"""An index is not written again for fewer bytes of new lines."""


def index_path(ledger: Path) -> Path:
    """Where the index of a ledger is."""
    return ledger.with_name(f".{ledger.stem}.index")


class LedgerIndex:
    """The positions of a ledger's records.

    Args:
        ledger: Ledger file.
        identity: What is evaluated; a ledger of something else is refused.
        digest: Its SHA-256, 32 bytes: positions of another evaluation are worthless.
        position: Position of a record, whose number of its line is given; raises what is wrong with it.
    """

    def __init__(self, ledger: Path, identity: dict, digest: bytes, position: Callable[[Path, int, Record], int]):
        self.ledger, self.identity, self.digest, self.position = ledger, identity, digest, position

    def positions(self) -> np.ndarray:
        """The positions, uint32, as of now; lines that no index knows yet are read.

        Raises:
            InputError: the ledger cannot be read, or belongs to another evaluation. DataError: it is damaged.
        """
        num_bytes, known = self._load()
        try:
            return self._read(num_bytes, known)
        except DataError:
            if num_bytes == 0:
                raise
            return self._read(0, known[:0])  # from the beginning, so that damage is named by the number of its line

    def _read(self, num_bytes: int, known: np.ndarray) -> np.ndarray:
        if num_bytes == 0:
            check_identity(self.ledger, read_header(self.ledger), self.identity)
        reader = LedgerReader(self.ledger, num_bytes)
        parts = [known]
        for chunk in reader.chunks():
            found = (self.position(self.ledger, number, record) for number, record in chunk)
            parts.append(np.fromiter(found, dtype=np.uint32, count=len(chunk)))
        positions = np.concatenate(parts)
        if reader.num_valid_bytes - num_bytes >= _MIN_TAIL:
            self._save(reader.num_valid_bytes, positions)
        return positions

    def is_current(self) -> bool:
        """Whether next to nothing would have to be read."""
        with opened(self.ledger) as file:
            size = 0 if file is None else file.seek(0, 2)
        return size < _MIN_TAIL or size - self._load()[0] < _MIN_TAIL

    def _load(self) -> tuple[int, np.ndarray]:
        """Number of bytes of the ledger that are known, and the positions in them."""
        nothing = 0, np.empty(0, dtype=np.uint32)
        data = read_bytes(index_path(self.ledger), max_bytes=_MAX_BYTES)
        if data is None or len(data) < _HEAD.size:
            return nothing
        magic, digest, num_bytes, count, end, checksum = _HEAD.unpack_from(data)
        body = memoryview(data)[_HEAD.size :]
        if magic != _MAGIC or digest != self.digest or len(body) != 4 * count or zlib.crc32(body) != checksum:
            return nothing
        if self._end(num_bytes) != end:
            return nothing
        return num_bytes, np.frombuffer(body, dtype="<u4").astype(np.uint32)

    def _save(self, num_bytes: int, positions: np.ndarray) -> None:
        body = positions.astype("<u4").tobytes()
        end = self._end(num_bytes) or 0
        head = _HEAD.pack(_MAGIC, self.digest, num_bytes, len(positions), end, zlib.crc32(body))
        write_bytes(index_path(self.ledger), head + body)

    def _end(self, num_bytes: int) -> int | None:
        """Checksum of the last bytes before a place in the ledger; None if it ends before."""
        with opened(self.ledger) as file:
            if file is None or file.seek(0, 2) < num_bytes:
                return None
            start = max(0, num_bytes - _END)
            file.seek(start)
            return zlib.crc32(file.read(num_bytes - start))
