"""Where aspects look: maps that a scoring process keeps beside its ledger until all records are merged.

A ledger is text, and a map is a few thousand numbers; so each process appends its maps to a file of its own, *before*
the record that points to them. A kill between the two leaves bytes that nothing points to, never a record without map.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from masp.errors import DataError
from masp.files.jsonl import write_all

_SUFFIX = ".attention"


class AttentionFile:
    """The maps of one process, open for appending. Use it as a context manager.

    Args:
        folder: of the evaluation's ledgers.
        name: of this process's ledger.
    """

    def __init__(self, folder: str | Path, name: str):
        self.name = name
        self._file = os.open(Path(folder) / (name + _SUFFIX), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, weights: np.ndarray) -> dict[str, Any]:
        """Keep the maps of one sample.

        Args:
            weights: `[A, height, width]`; each aspect's sum to one.

        Returns:
            Where they are, for the sample's record.
        """
        data = np.ascontiguousarray(weights, dtype="<f4").tobytes()
        offset = os.fstat(self._file).st_size
        write_all(self._file, data)
        return {"file": self.name, "offset": offset, "shape": list(weights.shape), "crc32": zlib.crc32(data)}

    def __enter__(self) -> AttentionFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file)
        os.close(self._file)


def read_attention(folder: str | Path, where: dict[str, Any]) -> np.ndarray:
    """The maps that a record points to, `[A, height, width]` fp32.

    Raises:
        DataError: the file is missing or damaged; the line says what to do.
    """
    path = Path(folder) / (where["file"] + _SUFFIX)
    size = 4 * int(np.prod(where["shape"]))
    try:
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), size, where["offset"])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {_remedy(path)}") from None
    if len(data) != size or zlib.crc32(data) != where["crc32"]:
        raise DataError(f"{path} is damaged at byte {where['offset']}; {_remedy(path)}")
    return np.frombuffer(data, dtype="<f4").reshape(where["shape"])


def _remedy(path: Path) -> str:
    return f"delete it and {path.with_suffix('.jsonl').name} and run `masp evaluate` again"
