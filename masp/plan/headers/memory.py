"""Image sizes that earlier calls read from headers, remembered for each dataset in the user's cache directory.

A size is found again by a 128-bit digest over the path, size, times, inode and device of its file, so another file, or
one that was touched, is not found. The memory is a line of JSON, then rows of fixed shape, whose digest the line has: a
memory that is damaged, or of another version of MASP or Pillow, is as good as none and costs the time to read headers.
It is replaced in one step, so a kill at any time leaves the old one.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from masp.data.image_files.stored import Location, StoredImage
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

Size = tuple[int, int]


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


class HeaderMemory:
    """The sizes of some image files, as far as they are remembered. Ask for them, set what was missing, save."""

    def __init__(self, path: Path, max_side: int | None, images: Sequence[Location]):
        """Look up image files.

        Args:
            path: File of the memory, see `memory_path`.
            max_side: `vlm.max_side`, which sizes depend on.
            images: Where the images are; their files are examined but not opened.
        """
        self._path, self._max_side = path, max_side
        self._rows = np.zeros(len(images), dtype=_ROW)
        self._settled = np.zeros(len(images), dtype=bool)
        self._examine(images)
        self.is_known = self._look_up(_read(path, max_side))
        """`[N]` bool: whose sizes are remembered."""
        self._fresh = False

    def _examine(self, images: Sequence[Location]) -> None:
        """Digest what identifies each file; one that cannot be examined is never found, and reading it explains why."""
        now = time.time_ns()
        ids = bytearray()
        examine = functools.lru_cache(64)(os.stat)  # thousands of images are in one container
        for number, image in enumerate(images):
            try:
                found = examine(image.container) if isinstance(image, StoredImage) else os.stat(image)
            except (OSError, ValueError):
                ids += bytes(16)
                continue
            newest = max(found.st_mtime_ns, found.st_ctime_ns)
            self._settled[number] = newest + SETTLED_NS < now
            name = repr(image) if isinstance(image, StoredImage) else image
            times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
            text = f"{found.st_size} {times} {found.st_ino} {found.st_dev} {name}".encode("utf-8", "surrogateescape")
            ids += hashlib.blake2b(text, digest_size=16).digest()
        pairs = np.frombuffer(bytes(ids), dtype="<u8").reshape(-1, 2)
        self._rows["id"], self._rows["check"] = pairs[:, 0], pairs[:, 1]

    def _look_up(self, known: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.zeros(len(self._rows), dtype=bool)
        place = np.minimum(np.searchsorted(known["id"], self._rows["id"]), len(known) - 1)
        found = known[place]
        same = (found["id"] == self._rows["id"]) & (found["check"] == self._rows["check"]) & self._settled
        for name in ("width", "height"):
            self._rows[name] = np.where(same, found[name], 0)
        return same

    def __getitem__(self, number: int) -> Size:
        row = self._rows[number]
        return int(row["width"]), int(row["height"])

    def __setitem__(self, number: int, size: Size) -> None:
        self._rows["width"][number], self._rows["height"][number] = size
        self._fresh = True

    def save(self) -> None:
        """Replace the memory by the sizes of these files, if any is new; where that fails, say so and go on."""
        if not self._fresh:
            return
        rows = np.sort(self._rows[self._settled & (self._rows["width"] > 0)], order="id")
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
