"""Images in columns of parquet files: rows of row groups, which are decoded whole and kept for a while."""

from __future__ import annotations

import errno
import io
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO

from masp.data.image_files.parquet_footer import RowGroup, read_footer
from masp.data.image_files.parquet_pages import DELTA_ROWS, MAX_CHUNK_BYTES, MAX_CHUNK_VALUES, check_pages
from masp.data.image_files.paths import path_inside, why_not_inside
from masp.data.image_files.stored import StoredImage, open_image
from masp.data.reading import opened
from masp.files.regular import UnsuitableFile, open_binary
from masp.files.text import all_lines, shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_CACHED_BYTES = 256 << 20
"""Decoded row groups that a process keeps; one is always kept, whatever its size."""
MAX_OPEN_FILES = 8
_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20

Version = tuple[int, int]
"""Size of a file in bytes and its modification time in ns."""


def version_of(descriptor: int) -> Version:
    """Which version of a file is open."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Linked(StoredImage):
    """An image that a row does not hold but names: a file of its own, or none."""

    root: str
    """Directory of the dataset, with a slash at its end."""

    path: str | None
    """Path of the image's file, relative to the root."""

    def open(self) -> BinaryIO:
        if not self.path:
            raise UnsuitableFile(errno.EINVAL, "holds no image", str(self))
        path = path_inside(self.path)
        if path is None:
            problem = f"names {shown(self.path)}; {why_not_inside(self.path)}"
            raise UnsuitableFile(errno.EINVAL, problem, str(self))
        return opened(self.root + path)


@dataclass(frozen=True, slots=True)
class Cell(StoredImage):
    """An image in a column of a parquet file."""

    column: str
    """Name of the column: bytes, or a struct of bytes and path."""

    group: int
    """Number of the row group."""

    row: int
    """Number of the row in the row group."""

    version: Version
    """The file's version when it was listed."""

    root: str
    """Directory that the path is relative to where there are no bytes, with a slash at its end."""

    def open(self) -> BinaryIO:
        value = _groups.value(self)
        if isinstance(value, bytes):
            return io.BytesIO(value)
        linked = Linked(self.container, self.name, self.root, value)
        return open_image(linked)


@dataclass(frozen=True)
class _Group:
    """A decoded row group."""

    starts: list[int]
    """First row of each batch, and the number of rows."""
    batches: list[pa.Array]
    num_bytes: int

    def value(self, row: int) -> bytes | str | None:
        """The bytes of an image, else the path that stands for it, else None."""
        if not 0 <= row < self.starts[-1]:
            raise ValueError(f"has {self.starts[-1]:,} rows")
        batch = bisect_right(self.starts, row) - 1
        value = self.batches[batch][row - self.starts[batch]].as_py()
        if isinstance(value, dict):
            return value.get("path") if value.get("bytes") is None else value["bytes"]
        return value


@dataclass(frozen=True)
class _OpenFile:
    """A parquet file, open for reading."""

    file: BinaryIO
    parquet: pq.ParquetFile
    groups: list[RowGroup]
    version: Version


class _Groups:
    """Open files and decoded row groups of this process, the least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of everything, decoding too: readers of one group wait for it anyway
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._groups: OrderedDict[tuple[str, Version, str, int], _Group | str] = OrderedDict()

    def value(self, cell: Cell) -> bytes | str | None:
        """What a cell holds; errors as of `StoredImage.open`."""
        key = (cell.container, cell.version, cell.column, cell.group)
        with self._lock:
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = self._read(cell)
                self._make_room()
            self._groups.move_to_end(key)
        problem = group
        if isinstance(group, _Group):
            try:
                return group.value(cell.row)
            except ValueError as error:  # no such row, a path that is not UTF-8
                problem = all_lines(error)
        raise UnsuitableFile(errno.EINVAL, f"row group {cell.group} is damaged: {problem}", cell.container)

    def _make_room(self) -> None:
        """Forget groups until the others, but at least the last one, are small enough."""
        sizes = {key: group.num_bytes if isinstance(group, _Group) else 0 for key, group in self._groups.items()}
        total = sum(sizes.values())
        for key in list(sizes)[:-1]:
            if total <= MAX_CACHED_BYTES and len(self._groups) <= _BATCH_ROWS:
                return
            total -= sizes[key]
            del self._groups[key]

    def _read(self, cell: Cell) -> _Group | str:
        """A row group; what is wrong with it if it is damaged, so that this is found out once for all its rows."""
        import pyarrow as pa

        try:
            file = self._opened(cell)
            group = _decoded(file, cell)
            if version_of(file.file.fileno()) != cell.version:
                raise _changed(cell)
            return group
        except (pa.ArrowException, ValueError, KeyError, IndexError) as error:
            return all_lines(error)
        except OSError as error:
            if error.errno is not None:  # the disk, not the data
                raise
            return all_lines(error)

    def _opened(self, cell: Cell) -> _OpenFile:
        import pyarrow.parquet as pq

        found = self._files.get(cell.container)
        if found is None or found.version != cell.version or version_of(found.file.fileno()) != cell.version:
            self._files.pop(cell.container, None)
            file = open_binary(cell.container)
            version = version_of(file.fileno())
            if version != cell.version:
                file.close()
                raise _changed(cell)
            groups = read_footer(file.fileno())
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            found = _OpenFile(file, parquet, groups, version)
            self._files[cell.container] = found
        self._files.move_to_end(cell.container)
        while len(self._files) > MAX_OPEN_FILES:
            self._files.popitem(last=False)
        return found


def _changed(cell: Cell) -> OSError:
    return OSError(errno.ESTALE, "has changed since it was listed", cell.container)


def _decoded(file: _OpenFile, cell: Cell) -> _Group:
    leaves = leaves_of(file.parquet.schema, [cell.column])
    batch_rows = check_chunks(file.file.fileno(), file.groups[cell.group], leaves)
    batch_rows = min(batch_rows, _BATCH_ROWS)
    found = file.parquet.iter_batches(batch_rows, row_groups=[cell.group], columns=[cell.column], use_threads=False)
    batches, total = [], 0
    for batch in found:
        batches.append(batch.column(cell.column))
        total += batches[-1].nbytes
        if total > MAX_CHUNK_BYTES:
            raise ValueError(f"its images take more than {MAX_CHUNK_BYTES >> 30} GiB once decoded")
    return _Group([0, *accumulate(map(len, batches))], batches, total)


def leaves_of(schema: pq.ParquetSchema, columns: list[str]) -> list[int]:
    """Numbers of the physical columns that make up some columns; those called `NAME.…` may be among them, too."""
    starts = tuple(f"{name}." for name in columns)
    paths = (schema.column(number).path for number in range(len(schema)))
    return [number for number, path in enumerate(paths) if path in columns or path.startswith(starts)]


def check_chunks(descriptor: int, group: RowGroup, leaves: list[int], coded: Collection[int] = ()) -> int:
    """Check what the pages of some columns claim, before they are decoded.

    Args:
        descriptor: The open file.
        group: The row group.
        leaves: Numbers of the physical columns.
        coded: Those of which each different value is kept once, so that their rows take little.

    Returns:
        How many rows may be decoded at a time.

    Raises:
        ValueError: They claim too much, or are damaged.
        OSError: The file cannot be read.
    """
    batch_rows = MAX_CHUNK_VALUES
    for number in leaves:
        chunk = group.chunks[number]
        totals = check_pages(descriptor, chunk.start, chunk.num_bytes, chunk.num_values)
        if number in coded:
            continue
        # Each row may be the largest value of the dictionary.
        batch_rows = min(batch_rows, max(1, MAX_CHUNK_BYTES // 4 // max(1, totals.dictionary_bytes)))
        if totals.has_deltas:
            batch_rows = min(batch_rows, DELTA_ROWS)
    return batch_rows


_groups = _Groups()


def _forget() -> None:
    """Start anew after a fork: the lock may be held, and a file position is shared with the parent."""
    global _groups
    _groups = _Groups()


os.register_at_fork(after_in_child=_forget)
