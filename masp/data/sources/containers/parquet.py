"""Parquet files, as the Hugging Face Hub has them: a column of images and columns of what is known of them."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from tqdm import tqdm

from masp.data.image_files.cells import Cell, Version, check_chunks, leaves_of, version_of
from masp.data.image_files.parquet_footer import RowGroup, read_footer
from masp.data.image_files.parquet_pages import MAX_CHUNK_BYTES
from masp.data.sample import Blocks, directory_prefix
from masp.data.sources.containers.arrow_columns import column_of, is_extension, kind_of, require_pyarrow
from masp.data.sources.containers.arrow_files import (
    FileColumns,
    RowNames,
    check_readable,
    common_columns,
    has_paths,
    image_paths,
    images_on_disk,
    labels_in,
    shifted,
)
from masp.data.sources.containers.identities import identities_of
from masp.data.sources.containers.listed_files import (
    ListedFile,
    listed_files,
    missing_files,
    named_splits,
    not_of_this_kind,
    open_listed,
)
from masp.data.sources.hub import is_metadata
from masp.data.sources.rows import Column, ColumnBuilder, Header, Rows
from masp.data.sources.split_words import words_of_directories
from masp.errors import InputError
from masp.files.text import all_lines, reason, shown

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_BATCH_ROWS = 1 << 16
_MIN_CHARACTERS = 256 << 20
"""So much text may be in any file; text of images takes more only in large files."""


@dataclass(frozen=True)
class CellFile:
    """What `CellPlaces` needs of a file."""

    path: str
    version: Version
    starts: np.ndarray
    """`[groups + 1]` int64: first row of each row group, and the number of rows."""


@dataclass(frozen=True)
class CellPlaces:
    """Where images in columns of parquet files are."""

    files: tuple[CellFile, ...]
    column: str
    root: str
    """Directory of the dataset, with a slash at its end."""
    file: np.ndarray
    """`[N]` int32, into `files`."""
    row: np.ndarray
    """`[N]` int64: row in the file."""

    def __getitem__(self, number: int, /) -> Cell:
        """An image."""
        file, row = self.files[self.file[number]], int(self.row[number])
        group = int(np.searchsorted(file.starts, row, side="right")) - 1
        return Cell(file.path, f"row {row}", self.column, group, row - int(file.starts[group]), file.version, self.root)

    def part(self, rows: np.ndarray) -> CellPlaces:
        """Those of some rows, without the files that these do not need."""
        used, numbers = np.unique(self.file[rows], return_inverse=True)
        files = tuple(self.files[number] for number in used.tolist())
        return CellPlaces(files, self.column, self.root, numbers.astype(np.int32), self.row[rows])


@dataclass(frozen=True)
class _Footer(FileColumns):
    """What a file says of itself."""

    version: Version
    starts: np.ndarray
    """First row of each row group, and the number of rows."""
    coded: frozenset[str]
    """Columns of text that can be read with each different value once."""

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])


class ParquetSource:
    """Parquet files that have the same columns."""

    kind = "parquet files"

    def __init__(self, root: Path, files: Sequence[Path]):
        """Take files; none is opened yet.

        Args:
            root: Directory of the dataset.
            files: Paths of files in or below it, in the order of rows.

        Raises:
            InputError: pyarrow is not installed, or there are no files.
        """
        self._root = directory_prefix(root)
        self._files = listed_files(root, files, ".parquet")
        require_pyarrow(f"{self._files[0].path}: a parquet file")
        self._footers: list[_Footer] | None = None

    def header(self) -> Header:
        """Columns and names of labels, from the ends of the files; errors as of `RowSource.header`."""
        return common_columns(self._read_footers())

    def read(self, columns: Sequence[str], image: str | None, identity: str | None) -> Rows:
        """Read columns of all rows; arguments and errors as of `RowSource.read`."""
        footers = self._read_footers()
        common_columns(footers)
        is_path = has_paths(footers, image)
        assert image is not None
        counts = [footer.num_rows for footer in footers]
        where = RowNames([file.path for file in self._files], counts)
        wanted = [*columns, *([identity] if identity else []), *([image] if is_path else [])]
        check_readable(footers, wanted)
        builders = {name: ColumnBuilder() for name in wanted}
        with tqdm(total=sum(counts), desc="rows", unit="row", delay=1.0, leave=False, disable=None) as progress:
            for number, footer in enumerate(footers):
                of_file = shifted(where, int(where.starts[number]))
                _read_file(footer, builders, None if is_path else image, of_file)
                progress.update(footer.num_rows)
        found = {name: builder.column() for name, builder in builders.items()}
        if identity:
            identities = identities_of(found[identity], identity, where)
        else:
            identities = [f"{f.listed.name}/{row:08d}" for f in footers for row in range(f.num_rows)]
        rows = Rows(identities, {name: found[name] for name in columns}, where)
        rows.split_names = named_splits(self._files, counts)
        rows.findings = missing_files(self._files)
        if is_path:
            paths = self._image_paths(found[image], image, where)
            rows.paths, missing = images_on_disk(self._root, paths)
            rows.findings += missing
            if rows.split_names is None:
                rows.split_names = Column.of(words_of_directories(paths))
        else:
            rows.places = _places(footers, self._root, image)
            rows.blocks = _blocks(footers)
        return rows

    def places(self, image: str) -> CellPlaces | None:
        """Where the images of a column are, without a name for each row; None where it holds paths.

        Raises:
            InputError: As of `read`.
        """
        footers = self._read_footers()
        common_columns(footers)
        if has_paths(footers, image):
            return None
        for footer in footers:
            _read_file(footer, {}, image, str)
        return _places(footers, self._root, image)

    def _image_paths(self, column: Column, name: str, where: RowNames) -> list[str]:
        """The paths of a column; those in `metadata.parquet` are relative to its directory."""
        places = [file.name[: file.name.rfind("/") + 1] if is_metadata(Path(file.path)) else "" for file in self._files]
        counts = np.diff(where.starts)
        paths: list[str] = []
        for place, files in itertools.groupby(zip(places, counts.tolist(), strict=True), key=operator.itemgetter(0)):
            start, count = len(paths), sum(num_rows for _, num_rows in files)
            rows = column.part(np.arange(start, start + count))
            paths += image_paths(rows, name, shifted(where, start), place)
        return paths

    def _read_footers(self) -> list[_Footer]:
        if self._footers is None:
            self._footers = [_read_footer(file) for file in self._files]
        return self._footers


@contextlib.contextmanager
def _opened(listed: ListedFile, **options: object) -> Iterator[tuple[BinaryIO, pq.ParquetFile]]:
    """Open a parquet file; whatever is wrong with it is an `InputError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_listed(listed.path) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise not_of_this_kind(file, listed.path, "a parquet file")
        file.seek(0)
        try:
            yield file, pq.ParquetFile(file, pre_buffer=False, **options)
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
            problem = reason(error) if isinstance(error, OSError) and error.errno else all_lines(error)
            raise InputError(f"{listed.path}: damaged, or not a parquet file that can be read: {problem}") from None


def _read_footer(listed: ListedFile) -> _Footer:
    with _opened(listed) as (file, parquet):
        schema, version, groups = parquet.schema_arrow, version_of(file.fileno()), read_footer(file.fileno())
        names = list(schema.names)
        if len(set(names)) < len(names):
            raise ValueError(f"column {shown(next(n for n in names if names.count(n) > 1))} is there twice")
        if any(len(group.chunks) != len(parquet.schema) for group in groups):
            raise ValueError("a row group does not have all columns")
        kinds = {field.name: kind_of(field.type) for field in schema}
        starts = np.cumsum([0, *(group.num_rows for group in groups)], dtype=np.int64)
        labels = labels_in(schema.metadata, listed.path)
        return _Footer(listed, kinds, labels, version, starts, _coded(groups, parquet))


def _read_file(
    footer: _Footer, builders: Mapping[str, ColumnBuilder], image: str | None, where: Callable[[int], str]
) -> None:
    """Add the rows of a file to columns.

    Args:
        footer: The file.
        builders: The columns, by their names.
        image: Column of images, whose sizes are checked; None if there is none.
        where: Names a row of the file.
    """
    path, wanted = footer.listed.path, list(builders)
    coded = [name for name in wanted if name in footer.coded]
    with _opened(footer.listed, read_dictionary=coded) as (file, parquet):
        if version_of(file.fileno()) != footer.version:
            raise InputError(f"{path}: has changed while it was read; run the same command again")
        groups = read_footer(file.fileno())
        if image is not None:
            _check_image_sizes(path, groups, leaves_of(parquet.schema, [image]))
        if not wanted:
            return
        leaves, coded_leaves = leaves_of(parquet.schema, wanted), leaves_of(parquet.schema, coded)
        batch_rows = _BATCH_ROWS
        for group in groups:
            batch_rows = min(batch_rows, check_chunks(file.fileno(), group, leaves, coded_leaves))
        num_rows = num_characters = 0
        for batch in parquet.iter_batches(batch_rows, columns=wanted, use_threads=False):
            start = num_rows
            for name in wanted:
                column = column_of(batch.column(name), name, shifted(where, start))
                builders[name].extend(column)
                num_characters += sum(len(value) for value in column.values if isinstance(value, str))
            if num_characters > max(_MIN_CHARACTERS, 16 * footer.version[0]):
                raise ValueError(f"{', '.join(wanted)}: a file of {footer.version[0]:,} bytes makes gigabytes of text")
            num_rows += len(batch)
        if num_rows != footer.num_rows:
            raise ValueError(f"it claims {footer.num_rows:,} rows and has {num_rows:,}")


def _coded(groups: Sequence[RowGroup], parquet: pq.ParquetFile) -> frozenset[str]:
    """Columns of text of which Arrow can keep each different value once, as they are written."""
    schema = parquet.schema
    leaves = {schema.column(number).path: number for number in range(len(schema))}
    return frozenset(
        field.name
        for field in parquet.schema_arrow
        if kind_of(field.type) == "text"
        and not is_extension(field.type)
        and (leaf := leaves.get(field.name)) is not None
        and all(group.chunks[leaf].is_coded for group in groups)
    )


def _check_image_sizes(path: str, groups: Sequence[RowGroup], leaves: Sequence[int]) -> None:
    """Refuse row groups that are too large to decode, which is how they are read."""
    for number, group in enumerate(groups):
        size = sum(group.chunks[leaf].num_plain_bytes for leaf in leaves)
        if size > MAX_CHUNK_BYTES:
            raise InputError(
                f"{path}: row group {number} has {size:,} bytes of images, which are decoded together; at most "
                f"{MAX_CHUNK_BYTES:,}: rewrite the file with smaller row groups, as "
                "`pyarrow.parquet.write_table(pyarrow.parquet.read_table(OLD), NEW, row_group_size=1000)`"
            )


def _places(footers: Sequence[_Footer], root: str, image: str) -> CellPlaces:
    files = tuple(CellFile(footer.listed.path, footer.version, footer.starts) for footer in footers)
    counts = [footer.num_rows for footer in footers]
    rows = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    return CellPlaces(files, image, root, np.repeat(np.arange(len(files), dtype=np.int32), counts), rows)


def _blocks(footers: Sequence[_Footer]) -> Blocks:
    names = [f"{footer.listed.name}#{group}" for footer in footers for group in range(len(footer.starts) - 1)]
    sizes = np.concatenate([np.diff(footer.starts) for footer in footers])
    return Blocks(names, np.repeat(np.arange(len(names), dtype=np.int32), sizes))
