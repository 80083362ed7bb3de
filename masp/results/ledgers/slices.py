"""Who scores what: every N-th image, and the log in which processes say so before they begin.

`slices.log` is in the directory of the ledgers: a line with the identity of the evaluation, then a line when a process
begins with a slice and another one when all of its records are there. It spares looking through all ledgers: a process
reads those alone whose slices have images in common with its own, and merges only where every slice is done. It proves
nothing, which the merge does from the records themselves; where it is missing or damaged, all ledgers are read.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from masp.errors import DataError
from masp.files.atomic import write_all, write_bytes
from masp.files.jsonl import whole_lines
from masp.files.regular import open_descriptor, read_bytes
from masp.files.typed import Json, decode
from masp.results.ledger_format import encode_line, unsealed_line

LOG = logging.getLogger(__name__)

FILE = "slices.log"

T = TypeVar("T")


@dataclass(frozen=True)
class Slice:
    """The images that one process scores: every `size`-th, from number `rank` on.

    Slices are cut from all images, not from those that lack records: processes that start at different times see
    different ledgers, and only what does not depend on them is the same for all.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"must have a rank from 0 to below its size, not {self.rank} of {self.size}")

    @property
    def name(self) -> str:
        """Name of the ledger that its records are appended to."""
        return f"rank-{self.rank}"

    def of(self, images: Sequence[T]) -> Sequence[T]:
        """Its part of all images; slices of one size are disjoint and differ by at most one in length."""
        return images[self.rank :: self.size]

    def holds(self, number: int) -> bool:
        """Whether it has the image of a number."""
        return number % self.size == self.rank

    def meets(self, other: Slice) -> bool:
        """Whether an image may be in both."""
        return (self.rank - other.rank) % math.gcd(self.size, other.size) == 0


@dataclass(frozen=True)
class _Header:
    slices: Literal[1]
    identity: dict[str, Json]


Event = Literal["found", "begun", "done"]
"""`found`: a ledger was there that the log does not know, so it may hold any records."""


@dataclass(frozen=True)
class _Entry:
    event: Event
    rank: int
    size: int

    @property
    def slice(self) -> Slice:
        return Slice(self.rank, self.size)


class SliceLog:
    """The log as it is now. To be used under the lock of the directory.

    Args:
        directory: Directory of the ledgers.
        identity: What is evaluated. A log of another evaluation counts as none.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]):
        self.path, self.identity = directory / FILE, identity
        self.is_there = False
        """Whether there is a log of this evaluation."""
        self.begun: dict[str, list[Slice]] = {}
        """Ledger -> the slices that were begun with it, the last one last."""
        self._entries: list[_Entry] = []
        self._num_bytes = 0
        data = read_bytes(self.path)
        if data is None:
            return
        lines, self._num_bytes = whole_lines(data)
        try:
            self._read(lines)
        except (DataError, ValueError) as error:
            LOG.warning("%s is damaged (%s): all ledgers are read instead", self.path, error)
            self._forget()

    def _read(self, lines: list[bytes]) -> None:
        if not lines:
            return
        texts = [unsealed_line(line)[0] for line in lines]
        if decode(_Header, texts[0], "line 1", unique_keys=False, surrogates=True).identity != self.identity:
            return
        for number, text in enumerate(texts[1:], start=2):
            self._take(decode(_Entry, text, f"line {number}", unique_keys=False))
        self.is_there = True

    def _forget(self) -> None:
        self.is_there, self.begun, self._entries, self._num_bytes = False, {}, [], 0

    def _take(self, entry: _Entry) -> None:
        self._entries.append(entry)
        if entry.event != "done":
            begun = Slice() if entry.event == "found" else entry.slice
            self.begun.setdefault(entry.slice.name, []).append(begun)

    def create(self) -> None:
        """Begin a log of this evaluation in place of whatever is there."""
        self._forget()
        line = encode_line({"slices": 1, "identity": self.identity})
        write_bytes(self.path, line)
        self.is_there, self._num_bytes = True, len(line)

    def live(self, is_live: Callable[[str], bool], among: Callable[[Slice], bool]) -> Iterator[Slice]:
        """The slices that processes are scoring now.

        Args:
            is_live: Whether a process has the ledger of this name.
            among: Asked first: whether it matters.
        """
        return (slices[-1] for name, slices in self.begun.items() if among(slices[-1]) and is_live(name))

    def remove(self) -> None:
        """Remove what the merge has found to be wrong."""
        self._forget()
        self.path.unlink(missing_ok=True)

    def append(self, event: Event, slice_: Slice) -> None:
        """Add a line, and bring it to the disk: records follow it."""
        line = encode_line({"event": event, "rank": slice_.rank, "size": slice_.size})
        file = open_descriptor(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.ftruncate(file, self._num_bytes)  # what a kill has cut off
            write_all(file, line)
            os.fsync(file)
        finally:
            os.close(file)
        self._num_bytes += len(line)
        self._take(_Entry(event, slice_.rank, slice_.size))

    def not_done(self, num_images: int) -> np.ndarray:
        """The images that are in no slice that is done, bool `[num_images]`."""
        left = np.ones(num_images, dtype=bool)
        for entry in self._entries:
            if entry.event != "found":
                left[entry.rank :: entry.size] = entry.event == "begun"
        return left
