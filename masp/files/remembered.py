"""What was found out about many files, remembered in the user's cache directory until a file changes.

A file is found again by a 128-bit digest over its path, size, times, inode and device, so another file, or one that was
touched, is not found. The memory is a line of JSON, then rows of fixed shape, whose digest the line has: a memory that
is damaged, or was made by other software or settings, is as good as none and costs the time to find everything out
again. It is replaced in one step, so a kill at any time leaves the old one.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from masp.errors import MaspError
from masp.files.atomic import write_bytes
from masp.files.fields import Count, Sha256
from masp.files.regular import read_bytes
from masp.files.text import reason
from masp.files.typed import Json, decode, encode

LOG = logging.getLogger(__name__)

MAX_BYTES = 16 << 30
SETTLED_NS = 2_000_000_000
"""Age from which a file is remembered: within a clock tick it could change again without a trace."""

_IDENTITY = (("id", "<u8"), ("check", "<u8"))

Columns = Sequence[tuple[str, str] | tuple[str, str, tuple[int, ...]]]
"""Name and type of each column, as numpy spells them."""


@dataclass(frozen=True)
class _Head:
    """The first line."""

    made_by: dict[str, Json]
    """Software and settings that what is remembered depends on."""
    num_rows: Count
    sha256: Sha256
    """Digest of the rows."""


def user_cache() -> Path:
    """MASP's directory in the user's cache directory; it need not exist yet.

    A user without a home, as in containers that run under any number, has none: nothing can be written there then.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "masp"
    except RuntimeError:
        return Path(os.devnull) / "masp"


def memory_file(kind: str, *parts: object) -> Path:
    """File of the memory of one kind of things, for example sizes of images, about one dataset.

    Args:
        kind: Beginning of the name.
        parts: Directory of the dataset and settings, which the rest of the name is a digest of.
    """
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return user_cache() / f"{kind}-{hashlib.sha256(text).hexdigest()[:24]}.bin"


class PartOfFile(Protocol):
    """A part of a file, which changes when the file does; its `repr` says which part."""

    @property
    def container(self) -> str:
        """Path of the file."""
        ...


Examined = tuple[np.ndarray, np.ndarray]
"""What `examine` returns."""


def examine(files: Sequence[str | Path | PartOfFile]) -> Examined:
    """Digest what identifies each of some files, which are not opened.

    Returns:
        The digests, uint64 `[N, 2]`; and which files are settled, bool `[N]`. One that cannot be examined is not, so
        that it is never found, and reading it explains why.
    """
    now = time.time_ns()
    ids = bytearray()
    settled = np.zeros(len(files), dtype=bool)
    status = functools.lru_cache(64)(os.stat)  # thousands of parts are in one file
    for number, file in enumerate(files):
        try:
            if isinstance(file, str | Path):
                name, found = str(file), os.stat(file)
            else:
                name, found = repr(file), status(file.container)
        except (OSError, ValueError):
            ids += bytes(16)
            continue
        settled[number] = max(found.st_mtime_ns, found.st_ctime_ns) + SETTLED_NS < now
        times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
        text = f"{found.st_size} {times} {found.st_ino} {found.st_dev} {name}".encode("utf-8", "surrogateescape")
        ids += hashlib.blake2b(text, digest_size=16).digest()
    return np.frombuffer(bytes(ids), dtype="<u8").reshape(-1, 2), settled


class Remembered:
    """What is remembered of some files: ask which are known, set the rows of the others, save.

    Args:
        path: File of the memory, see `memory_file`.
        made_by: Software and settings that what is remembered depends on.
        columns: Columns of what is remembered of a file.
        files: The files or parts of files, which are examined but not opened; or what `examine` returned of them.
    """

    def __init__(
        self,
        path: Path,
        made_by: Mapping[str, Json],
        columns: Columns,
        files: Sequence[str | Path | PartOfFile] | Examined,
    ):
        ids, self._settled = files if isinstance(files, tuple) else examine(files)
        self.path, self.made_by = path, dict(made_by)
        self.rows = np.zeros(len(ids), dtype=row_type(columns))
        """`[N]` rows: the given columns, and the identity of each file."""
        self.rows["id"], self.rows["check"] = ids.T
        self.is_known = self._look_up(read_rows(path, made_by, columns))
        """`[N]` bool: whose rows are remembered."""

    def _look_up(self, known: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.zeros(len(self.rows), dtype=bool)
        place = np.minimum(np.searchsorted(np.ascontiguousarray(known["id"]), self.rows["id"]), len(known) - 1)
        same = (known["id"][place] == self.rows["id"]) & (known["check"][place] == self.rows["check"]) & self._settled
        self.rows[same] = known[place[same]]
        return same

    def save(self, is_found: np.ndarray) -> None:
        """Replace the memory by the rows of these files; where that fails, say so and go on.

        Args:
            is_found: `[N]` bool: which rows hold something.
        """
        rows = self.rows[self._settled & is_found]
        rows = rows[np.argsort(rows["id"])]  # much faster than sorting rows
        data = rows.tobytes()
        head = _Head(self.made_by, len(rows), hashlib.sha256(data).hexdigest())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, encode(head) + b"\n" + data)
        except OSError as error:
            LOG.info("%s cannot be written (%s); what was found out is not kept", self.path, reason(error))


def row_type(columns: Columns) -> np.dtype:
    """Type of a row: the identity of a file, then the columns."""
    return np.dtype([*_IDENTITY, *columns])


def read_rows(path: Path, made_by: Mapping[str, Json], columns: Columns) -> np.ndarray:
    """The rows of a memory, sorted by `id`; none if it is missing, damaged, or of other software or settings."""
    kind = row_type(columns)
    none = np.zeros(0, dtype=kind)
    try:
        data = read_bytes(path, max_bytes=MAX_BYTES)
        if data is None:
            return none
        line, _, rows = data.partition(b"\n")
        head = decode(_Head, line, str(path))
    except MaspError as error:
        LOG.debug("nothing is remembered: %s", error)
        return none
    wanted = _Head(dict(made_by), head.num_rows, hashlib.sha256(rows).hexdigest())
    if head != wanted or len(rows) != head.num_rows * kind.itemsize:
        LOG.debug("nothing is remembered: %s is damaged, or was made by other software or settings", path)
        return none
    return np.frombuffer(rows, dtype=kind)
