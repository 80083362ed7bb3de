"""A list of millions of images: names and places in a few arrays instead of objects, which are made when needed."""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from masp.data.image_files.stored import Section
from masp.data.sample import Places
from masp.inference.images import NamedImage


class _Block(Protocol):
    """Images that come one after another and are listed in the same way."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> NamedImage: ...

    def digest(self) -> bytes:
        """SHA-256 of what is listed, so that another list is recognized."""
        ...


class Names:
    """Strings, their bytes one after another; file names that are not UTF-8 too."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("Q")

    def append(self, name: str) -> None:
        """Add one."""
        self._bytes += os.fsencode(name)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def encoded(self, number: int) -> bytes:
        """One, as the file system has it."""
        return bytes(self._bytes[self._ends[number - 1] if number else 0 : self._ends[number]])

    def __getitem__(self, number: int) -> str:
        return os.fsdecode(self.encoded(number))

    def taken(self, order: Iterable[int]) -> Names:
        """All of them, in another order."""
        found = Names()
        for number in order:
            found._bytes += self.encoded(number)
            found._ends.append(len(found._bytes))
        return found

    def drop(self, numbers: np.ndarray) -> None:
        """Remove some, in place: what is behind them moves up.

        Args:
            numbers: Which, in rising order; at least one.
        """
        num_kept = int(numbers[0])
        num_bytes = self._ends[num_kept - 1] if num_kept else 0
        with memoryview(self._bytes) as data, memoryview(self._ends) as all_ends:
            ends = np.frombuffer(all_ends, dtype=np.uint64)
            for place, number in enumerate(map(int, numbers)):
                until = int(numbers[place + 1]) if place + 1 < len(numbers) else len(ends)
                start, stop, count = int(ends[number]), int(ends[until - 1]), until - number - 1
                data[num_bytes : num_bytes + stop - start] = data[start:stop]
                ends[num_kept : num_kept + count] = ends[number + 1 : until] - np.uint64(start - num_bytes)
                num_kept, num_bytes = num_kept + count, num_bytes + stop - start
            del ends
        del self._bytes[num_bytes:], self._ends[num_kept:]

    def digest(self) -> bytes:
        """SHA-256 of all of them."""
        found = hashlib.sha256(self._ends.tobytes())
        found.update(self._bytes)
        return found.digest()


@dataclass
class PathBlock:
    """Image files."""

    paths: Names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> NamedImage:
        path = self.paths[number]
        return NamedImage(path, path)

    def digest(self) -> bytes:
        return self.paths.digest()


@dataclass
class TarBlock:
    """Members of a tar."""

    container: str
    version: tuple[int, int]
    """Size of the tar in bytes and its modification time in ns."""
    names: Names
    offsets: array
    sizes: array

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> NamedImage:
        place = Section(self.container, self.names[number], self.offsets[number], self.sizes[number])
        return NamedImage(str(place), place)

    def digest(self) -> bytes:
        return _digest([self.container, *self.version], self.names.digest(), self.offsets.tobytes())


@dataclass
class CellBlock:
    """Rows of a parquet or arrow file."""

    container: str
    version: tuple[int, int]
    """As of a tar."""
    column: str
    places: Places
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> NamedImage:
        place = self.places[number]
        return NamedImage(str(place), place)

    def digest(self) -> bytes:
        return _digest([self.container, *self.version, self.column, self.count])


def _digest(fields: Sequence[object], *parts: bytes) -> bytes:
    found = hashlib.sha256(repr(fields).encode("utf-8", "surrogatepass"))
    for part in parts:
        found.update(part)
    return found.digest()


class ImageList(Sequence[NamedImage]):
    """Images in the order in which they were named, each once. `ImageLister` makes one."""

    def __init__(self, blocks: Sequence[_Block]):
        self._blocks = [block for block in blocks if len(block)]
        self._starts = [0, *accumulate(map(len, self._blocks))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> NamedImage:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        block = bisect_right(self._starts, number) - 1
        return self._blocks[block][number - self._starts[block]]

    @property
    def digest(self) -> str:
        """SHA-256 of names and order, of larger files also of size and modification time. Files whose paths are
        relative are others in another directory."""
        found = hashlib.sha256()
        is_relative = False
        for block in self._blocks:
            found.update(type(block).__name__.encode() + block.digest())
            name = block.paths[0] if isinstance(block, PathBlock) else getattr(block, "container", "/")
            is_relative = is_relative or not name.startswith("/")
        if is_relative:
            found.update(os.fsencode(os.getcwd()))
        return found.hexdigest()


class ImageLister:
    """Collects images. What is named a second time is left out."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._containers: set[str] = set()
        self._hashes = array("q")
        """Of the absolute path of each image file, in order."""

    def add_path(self, path: str) -> None:
        """Add an image file."""
        self.add_paths([path], os.path.dirname(path))

    def add_paths(self, paths: Iterable[str], directory: str) -> None:
        """Add image files of one directory, in this order."""
        start = os.path.abspath(directory or ".").rstrip("/") + "/"
        names = self._paths()
        for path in paths:
            names.append(path)
            self._hashes.append(hash(os.fsencode(start + path.rpartition("/")[2])))

    def add(self, block: TarBlock | CellBlock) -> None:
        """Add images in a larger file."""
        self._blocks.append(block)

    def is_new(self, container: str) -> bool:
        """Whether a larger file is named for the first time; it counts as named from now on."""
        path, before = os.path.abspath(container), len(self._containers)
        self._containers.add(path)
        return len(self._containers) > before

    def _paths(self) -> Names:
        if not self._blocks or not isinstance(self._blocks[-1], PathBlock):
            self._blocks.append(PathBlock(Names()))
        block = self._blocks[-1]
        assert isinstance(block, PathBlock)
        return block.paths

    def images(self) -> ImageList:
        """All of them; nothing can be added any more."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64) if self._hashes else np.empty(0, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # as the one before it
        again, before = order[same], order[same - 1]
        del order, ordered
        if len(same):
            self._drop(again, before, np.diff(same, prepend=-1) > 1)
        return ImageList(self._blocks)

    def _drop(self, again: np.ndarray, before: np.ndarray, is_other: np.ndarray) -> None:
        """Leave out paths that were named before.

        Args:
            again: Numbers of paths, among all of them, whose hash occurred before; those of one hash follow each other,
                in rising order.
            before: Number of the last path before each that has its hash.
            is_other: Whether the hash is another than that of the one before in `again`.
        """
        blocks = [block for block in self._blocks if isinstance(block, PathBlock)]
        starts = [0, *accumulate(map(len, blocks))]

        def path_of(number: int) -> str:
            block = bisect_right(starts, number) - 1
            return os.path.abspath(blocks[block].paths[number - starts[block]])

        found, known = array("q"), set[str]()
        for number, first, is_first in zip(map(int, again), map(int, before), is_other, strict=True):
            if is_first:
                known = {path_of(first)}
            path = path_of(number)
            if path in known:
                found.append(number)
            known.add(path)  # of another one with the same hash
        dropped = np.sort(np.frombuffer(found, dtype=np.int64)) if found else np.empty(0, dtype=np.int64)
        for start, block in zip(starts[:-1], blocks, strict=True):
            of_block = dropped[np.searchsorted(dropped, start) : np.searchsorted(dropped, start + len(block))] - start
            if len(of_block):
                block.paths.drop(of_block)


def sorted_names(names: Iterable[str]) -> Names:
    """Names in the order of their bytes."""
    found = Names()
    for name in names:
        found.append(name)
    if not len(found):
        return found
    width = int(np.diff(np.frombuffer(found._ends, dtype=np.uint64), prepend=0).max())
    encoded = np.fromiter(map(found.encoded, range(len(found))), dtype=f"S{width}", count=len(found))
    return found.taken(np.argsort(encoded, kind="stable").tolist())
