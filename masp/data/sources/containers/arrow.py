"""Directories that `datasets` writes with `save_to_disk`: arrow files, and JSON files that say which and of what split.
Where there are no such JSON files, as in the cache of `load_dataset`, the arrow files alone.

The images in them lie one after another as they are, so each is read like a file of its own, without Arrow. The files
are mapped into memory only while they are listed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from masp.data.image_files.cells import Linked
from masp.data.image_files.stored import Section, StoredImage
from masp.data.reading import read_json
from masp.data.sample import directory_prefix
from masp.data.sources.containers.arrow_columns import column_of, kind_of, label_names, require_pyarrow
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
from masp.data.sources.containers.arrow_images import ArrowImages, images_in
from masp.data.sources.containers.arrow_stream import check_stream
from masp.data.sources.containers.identities import identities_of
from masp.data.sources.containers.listed_files import (
    ListedFile,
    listed_files,
    missing_files,
    open_listed,
    split_names,
)
from masp.data.sources.folders import is_litter
from masp.data.sources.rows import ColumnBuilder, Header, Rows
from masp.data.sources.split_words import split_word
from masp.errors import InputError
from masp.files.regular import exists
from masp.files.text import all_lines, reason, shown

if TYPE_CHECKING:
    import pyarrow as pa

DICT_FILE, STATE_FILE, INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"


@dataclass(frozen=True)
class ArrowPlaces:
    """Where images in arrow files are."""

    containers: tuple[str, ...]
    root: str
    """Directory of the dataset, with a slash at its end."""
    container: np.ndarray
    """`[N]` int32, into `containers`."""
    row: np.ndarray
    """`[N]` int64: row in the file."""
    images: ArrowImages

    def __getitem__(self, number: int, /) -> StoredImage:
        """An image."""
        container, name = self.containers[self.container[number]], f"row {self.row[number]}"
        offset, size = int(self.images.offsets[number]), int(self.images.sizes[number])
        if size >= 0:
            return Section(container, name, offset, size)
        return Linked(container, name, self.root, self.images.paths[offset] if offset >= 0 else None)

    def part(self, rows: np.ndarray) -> ArrowPlaces:
        """Those of some rows."""
        return ArrowPlaces(self.containers, self.root, self.container[rows], self.row[rows], self.images.part(rows))


@dataclass(frozen=True)
class _Part:
    """A directory with one dataset."""

    directory: Path
    split: str | None
    """What it is called, or says itself."""
    names: tuple[str, ...]
    """Names of its files."""
    labels: dict[str, tuple[str, ...]] | None
    """Names of labels that its description has; None if it has no description."""


@dataclass(frozen=True)
class _File(FileColumns):
    """What a file says of itself, and where it belongs."""

    split: str | None


class ArrowSource:
    """A directory that `datasets` wrote with `save_to_disk`, or arrow files."""

    kind = "arrow files"

    def __init__(self, root: Path, files: Sequence[Path] = ()):
        """Take a directory; nothing is read yet.

        Args:
            root: Directory with `dataset_dict.json`, and a directory per split, or with `state.json`; or directory that
                `files` are in or below.
            files: Arrow files; if there are none, those that the JSON files name.

        Raises:
            InputError: pyarrow is not installed.
        """
        require_pyarrow(f"{root}: arrow files")
        self._path, self._root, self._paths = root, directory_prefix(root), files
        self._files: list[_File] | None = None

    def header(self) -> Header:
        """Columns and names of labels, from the beginnings of the files; errors as of `RowSource.header`."""
        return common_columns(self._read_schemas())

    def read(self, columns: Sequence[str], image: str | None, identity: str | None) -> Rows:
        """Read columns of all rows; arguments and errors as of `RowSource.read`."""
        files = self._read_schemas()
        common_columns(files)
        is_path = has_paths(files, image)
        assert image is not None
        wanted = [*columns, *([identity] if identity else []), *([image] if is_path else [])]
        check_readable(files, wanted)
        builders = {name: ColumnBuilder() for name in wanted}
        found_images = self._read_files(files, builders, None if is_path else image)
        counts = [images.num_rows for images in found_images]
        where = RowNames([file.listed.path for file in files], counts)
        found = {name: builder.column() for name, builder in builders.items()}
        if identity:
            identities = identities_of(found[identity], identity, where)
        else:
            numbered = zip(files, counts, strict=True)
            identities = [f"{file.listed.name}/{row:08d}" for file, count in numbered for row in range(count)]
        rows = Rows(identities, {name: found[name] for name in columns}, where)
        rows.split_names = split_names([file.split or split_word(file.listed.name) for file in files], counts)
        rows.findings = missing_files([file.listed for file in files])
        if is_path:
            rows.paths, missing = images_on_disk(self._root, image_paths(found[image], image, where))
            rows.findings += missing
        else:
            rows.places = self._places(files, found_images)
        return rows

    def places(self, image: str) -> ArrowPlaces | None:
        """Where the images of a column are, without a name for each row; None where it holds paths.

        Raises:
            InputError: As of `read`.
        """
        files = self._read_schemas()
        common_columns(files)
        return None if has_paths(files, image) else self._places(files, self._read_files(files, {}, image))

    @staticmethod
    def _read_files(
        files: Sequence[_File], builders: Mapping[str, ColumnBuilder], image: str | None
    ) -> list[ArrowImages]:
        progress = tqdm(files, desc="arrow files", unit="file", delay=1.0, leave=False, disable=None)
        return [_read_file(file, builders, image) for file in progress]

    def _places(self, files: Sequence[_File], images: Sequence[ArrowImages]) -> ArrowPlaces:
        counts = [found.num_rows for found in images]
        numbers = [np.arange(count, dtype=np.int64) for count in counts]
        containers = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        paths = tuple(file.listed.path for file in files)
        return ArrowPlaces(paths, self._root, containers, np.concatenate(numbers), ArrowImages.join(images))

    def _read_schemas(self) -> list[_File]:
        if self._files is None:
            self._files = _read_schemas(self._path, self._paths)
        return self._files


def _read_schemas(root: Path, files: Sequence[Path]) -> list[_File]:
    if files:
        owners_of = {directory: _read_part(directory, "") for directory in {file.parent for file in files}}
        parts = [replace(owners_of[file.parent], names=(file.name,)) for file in files]
    else:
        parts = [_read_part(root / name if name else root, name) for name in _split_directories(root)]
    listed = listed_files(root, [part.directory / name for part in parts for name in part.names], ".arrow")
    owners = [part for part in parts for _ in part.names]
    return [_read_schema(file, part) for file, part in zip(listed, owners, strict=True)]


def _split_directories(root: Path) -> list[str]:
    """The directories of splits; one without a name if there are none."""
    path = root / DICT_FILE
    if not exists(path, key="dataset.root"):
        return [""]
    found = _read_object(path)
    splits = found.get("splits")
    if not isinstance(splits, list) or not splits or len({str(s) for s in splits}) < len(splits):
        raise InputError(f"{path}: splits = {shown(splits)}: must be a list of different names of directories")
    return [_plain_name(name, f"{path}: splits") for name in splits]


def _read_part(directory: Path, split: str) -> _Part:
    path = directory / STATE_FILE
    if not exists(path, key="dataset.root") and (names := _arrow_files(directory)):
        return _Part(directory, split or None, names, _described_labels(directory))
    state = _read_object(path)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"{path}: its rows are in an order of their own, as old versions of datasets saved them; load and save it "
            "with the present one: `datasets.load_from_disk(OLD).save_to_disk(NEW)`"
        )
    files = state.get("_data_files")
    if not isinstance(files, list) or not files:
        raise InputError(f"{path}: _data_files = {shown(files)}: must be a list of files")
    entries = [entry.get("filename") if isinstance(entry, dict) else entry for entry in files]
    names = tuple(_plain_name(name, f"{path}: _data_files") for name in entries)
    own = state.get("_split")
    labels = _described_labels(directory)
    return _Part(directory, split or (own if isinstance(own, str) and own else None), names, labels)


def _arrow_files(directory: Path) -> tuple[str, ...]:
    """The arrow files in a directory, sorted; none if it cannot be listed."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return ()
    return tuple(name for name in names if name.lower().endswith(".arrow") and not is_litter(name))


def _described_labels(directory: Path) -> dict[str, tuple[str, ...]] | None:
    """Names of labels by `dataset_info.json`; None where it does not describe the columns, or is not there."""
    path = directory / INFO_FILE
    info = _read_object(path) if exists(path, key="dataset.root") else {}
    return label_names(info["features"], str(path)) if info.get("features") is not None else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, InputError)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {reason(error)}; a directory that `save_to_disk` of datasets wrote has it"
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be a JSON object, not {shown(found)}")
    return found


def _plain_name(name: object, where: str) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(f"{where} = {shown(name)}: must be names in this directory")
    return name


@contextlib.contextmanager
def _mapped(listed: ListedFile) -> Iterator[pa.Buffer]:
    """A file in memory; whatever is wrong with it is an `InputError`.

    Its size is that of the moment in which it is mapped, so nothing that it claims leads behind its end.
    """
    import pyarrow as pa

    with open_listed(listed.path) as file:
        # It is unmapped with the last array that is in it.
        buffer = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            check_stream(buffer, file, listed.path)
            yield buffer
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, EOFError) as error:
            problem = reason(error) if isinstance(error, OSError) and error.errno else all_lines(error)
            raise InputError(f"{listed.path}: damaged, or not an arrow file that can be read: {problem}") from None


def _read_schema(listed: ListedFile, part: _Part) -> _File:
    import pyarrow as pa

    with _mapped(listed) as buffer:
        schema = pa.ipc.open_stream(pa.BufferReader(buffer)).schema
        names = list(schema.names)
        if len(set(names)) < len(names):
            raise ValueError(f"column {shown(next(n for n in names if names.count(n) > 1))} is there twice")
        labels = labels_in(schema.metadata, listed.path) if part.labels is None else part.labels
        kinds = {field.name: kind_of(field.type) for field in schema}
        return _File(listed, kinds, labels, part.split)


def _read_file(file: _File, builders: Mapping[str, ColumnBuilder], image: str | None) -> ArrowImages:
    """Add the rows of a file to columns.

    Args:
        file: The file.
        builders: The columns, by their names.
        image: Column of images; None if there is none.

    Returns:
        Where its images are, or only how many there are.
    """
    import pyarrow as pa

    found = []
    with _mapped(file.listed) as buffer:
        start = 0
        for batch in pa.ipc.open_stream(pa.BufferReader(buffer)):
            if batch.num_rows > 8 * buffer.size:
                raise ValueError(f"it claims {batch.num_rows:,} rows, more than it has bits")
            where = shifted(RowNames([file.listed.path], [1 << 62]), start)
            for name, builder in builders.items():
                builder.extend(column_of(batch.column(name), name, where))
            if image is None:
                found.append(ArrowImages.none(batch.num_rows))
            else:
                found.append(images_in(batch.column(image), image, buffer, where))
            start += batch.num_rows
            del batch
    return ArrowImages.join(found)
