"""Where aspects look: maps that a scoring process keeps beside its ledger until all records are merged.

A ledger is text, and a map is a few thousand numbers; so each process appends its maps to a file of its own, *before*
the record that points to them. A kill between the two leaves bytes that nothing points to, never a record without map.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from masp.errors import DataError
from masp.files.atomic import write_all
from masp.files.regular import open_binary, open_descriptor
from masp.files.text import reason
from masp.results.ledger_format import SUFFIX as LEDGER_SUFFIX
from masp.results.ledger_format import MapPlace

SUFFIX = ".attention"


class AttentionFile:
    """The maps of one process, open for appending. Close it: only then are they sure to be on the disk.

    Args:
        directory: Directory of the evaluation's ledgers.
        name: Name of this process's ledger.
    """

    def __init__(self, directory: str | Path, name: str):
        self.name = name
        self._file = open_descriptor(Path(directory) / (name + SUFFIX), os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def append(self, weights: np.ndarray) -> MapPlace:
        """Keep the maps of one sample.

        Args:
            weights: `[A, height, width]`; each aspect's sum to one.

        Returns:
            Where they are, for the sample's record.
        """
        data = np.ascontiguousarray(weights, dtype="<f4").tobytes()
        offset = os.fstat(self._file).st_size
        write_all(self._file, data)
        num_aspects, height, width = weights.shape
        return MapPlace(self.name, offset, (num_aspects, height, width), zlib.crc32(data))

    def close(self) -> None:
        """Write everything to the disk and let go of the file."""
        os.fsync(self._file)
        os.close(self._file)


def read_attention(directory: str | Path, place: MapPlace) -> np.ndarray:
    """The maps that a record points to, `[A, height, width]` fp32.

    Raises:
        DataError: the file is missing or damaged; the line says what to do.
    """
    path = Path(directory) / (place.file + SUFFIX)
    num_aspects, height, width = place.shape
    size = 4 * num_aspects * height * width
    try:
        with open_binary(path) as file:
            # a size that no file of ours has would take that much memory before it is missed
            is_there = place.offset + size <= os.fstat(file.fileno()).st_size
            data = os.pread(file.fileno(), size, place.offset) if is_there else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}; {_remedy(path)}") from None
    if len(data) != size or zlib.crc32(data) != place.crc32:
        raise DataError(f"{path} is damaged at byte {place.offset}; {_remedy(path)}")
    return np.frombuffer(data, dtype="<f4").reshape(place.shape)


def _remedy(path: Path) -> str:
    return f"delete it and {path.with_suffix(LEDGER_SUFFIX).name} and run `masp evaluate` again"
