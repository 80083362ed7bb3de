"""Image sizes that earlier calls read from headers, remembered for each dataset in the user's cache directory.

A size is found again by a 128-bit digest over the path, size, times, inode and device of its file, so another file, or
one that was touched, is not found. The memory is a line of JSON, then rows of fixed shape, whose digest the line has: a
memory that is damaged, or of another version of MASP or Pillow, is as good as none and costs the time to read headers.
It is replaced in one step, so a kill at any time leaves the old one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from masp.errors import MaspError
from masp.files.atomic import write_bytes
from masp.files.fields import Count, Sha256
from masp.files.regular import read_bytes
from masp.files.text import reason
from masp.files.typed import decode, encode

LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever MASP determines the size of some image differently."""
MAX_BYTES = 4 << 30
SETTLED_NS = 2_000_000_000
"""Age from which a file is remembered: within a clock tick it could change again without a trace."""

_ROW = np.dtype([("id", "<u8"), ("check", "<u8"), ("width", "<i4"), ("height", "<i4")])


@dataclass(frozen=True)
class _Head:
    """The first line."""

    format_version: int
    pillow: str
    max_side: int | None
    """`vlm.max_side` that the sizes were limited to."""
    num_rows: Count
    sha256: Sha256
    """Digest of the rows."""


def memory_path(root: Path, max_side: int | None) -> Path:
    """File of the memory of a dataset."""
    name = hashlib.sha256(f"{root.absolute()}\0{max_side}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "masp" / f"headers-{name}.bin"


def examine(paths: Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray]:
    """Digest what identifies each of some image files, which are not opened.

    Returns:
        The digests, uint64 `[N, 2]`; and which files are settled, bool `[N]`. One that cannot be examined is not, so
        that it is never found, and reading it explains why.
    """
    now = time.time_ns()
    ids = bytearray()
    settled = np.zeros(len(paths), dtype=bool)
    for number, path in enumerate(paths):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            ids += bytes(16)
            continue
        settled[number] = max(found.st_mtime_ns, found.st_ctime_ns) + SETTLED_NS < now
        times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
        text = f"{found.st_size} {times} {found.st_ino} {found.st_dev} {path}".encode("utf-8", "surrogateescape")
        ids += hashlib.blake2b(text, digest_size=16).digest()
    return np.frombuffer(bytes(ids), dtype="<u8").reshape(-1, 2), settled


class HeaderMemory:
    """The sizes of some image files, as far as they are remembered. Look at them, fill in what was missing, save."""

    def __init__(self, path: Path, max_side: int | None, ids: np.ndarray, settled: np.ndarray):
        """Look up image files.

        Args:
            path: File of the memory, see `memory_path`.
            max_side: `vlm.max_side`, which sizes depend on.
            ids: What `examine` returned of the files.
            settled: As well.
        """
        self._path, self._max_side = path, max_side
        self._ids, self._settled = ids, settled
        self.sizes = np.zeros((len(ids), 2), dtype=np.int32)
        """`[N, 2]`: width and height; zeros where they are not remembered."""
        self._look_up(_read(path, max_side))
        self.is_known = self.sizes[:, 0] > 0
        """`[N]` bool: whose sizes are remembered."""

    def _look_up(self, known: np.ndarray) -> None:
        if not len(known):
            return
        place = np.minimum(np.searchsorted(np.ascontiguousarray(known["id"]), self._ids[:, 0]), len(known) - 1)
        same = (known["id"][place] == self._ids[:, 0]) & (known["check"][place] == self._ids[:, 1]) & self._settled
        for column, name in enumerate(("width", "height")):
            self.sizes[:, column] = np.where(same, known[name][place], 0)

    def save(self) -> None:
        """Replace the memory by the sizes of these files, if any is new; where that fails, say so and go on."""
        kept = self._settled & (self.sizes[:, 0] > 0)
        if not (kept & ~self.is_known).any():
            return
        rows = np.zeros(int(kept.sum()), dtype=_ROW)
        order = np.argsort(self._ids[kept, 0])
        rows["id"], rows["check"] = self._ids[kept][order].T
        rows["width"], rows["height"] = self.sizes[kept][order].T
        data = rows.tobytes()
        head = _Head(FORMAT_VERSION, PIL.__version__, self._max_side, len(rows), hashlib.sha256(data).hexdigest())
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, encode(head) + b"\n" + data)
        except OSError as error:
            LOG.info("%s cannot be written (%s); image sizes are not kept", self._path, reason(error))


def _read(path: Path, max_side: int | None) -> np.ndarray:
    """The rows of a memory, sorted; none if it is missing, damaged, or of other software or settings."""
    none = np.zeros(0, dtype=_ROW)
    try:
        data = read_bytes(path, max_bytes=MAX_BYTES)
        if data is None:
            return none
        line, _, rows = data.partition(b"\n")
        head = decode(_Head, line, str(path))
    except MaspError as error:
        LOG.debug("no image sizes are remembered: %s", error)
        return none
    wanted = _Head(FORMAT_VERSION, PIL.__version__, max_side, head.num_rows, hashlib.sha256(rows).hexdigest())
    if head != wanted or len(rows) != head.num_rows * _ROW.itemsize:
        LOG.debug("no image sizes are remembered: %s is damaged, or of another version", path)
        return none
    return np.frombuffer(rows, dtype=_ROW)
