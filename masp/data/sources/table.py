"""Tables: `.csv`, `.tsv` and `.jsonl` files with a row per image, which names the image's file."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from masp.config.schema import DatasetConfig
from masp.data.image_files.paths import is_url, path_inside, why_not_inside
from masp.data.sources.columns import USUAL
from masp.data.sources.folders import has_image
from masp.data.sources.hub import is_metadata
from masp.data.sources.index_files import FilesOnDisk, missing_images
from masp.data.sources.rows import Column, ColumnBuilder, Header, Rows, Value
from masp.data.sources.split_words import SPLIT_WORDS, split_word, words_of_directories
from masp.errors import InputError
from masp.files.json_text import parse_json
from masp.files.regular import UnsuitableFile, open_binary
from masp.files.text import nfc, reason, shown

MAX_LINE = 1 << 20
"""Longest line or field of a table, in characters."""

EXTENSIONS = (".csv", ".tsv", ".jsonl")
IMAGE_DIRECTORIES = ("", "images/", "image/", "imgs/", "img/", "data/")
"""Where the images of a table are, relative to its directory."""
_DIRECTORY = "directory of the image"
"""Column of the labels that are those of directories."""
_NUM_TRIED = 100
"""Rows by which the one of them is chosen that has most of their images."""


class TableSource:
    """Rows of tables that have the same columns."""

    kind = "tables"

    def __init__(self, root: Path, files: Sequence[Path], aspects: Collection[str]):
        """Tables that are not read yet.

        Args:
            root: Directory of the dataset.
            files: The tables, in it or below it.
            aspects: Names of the aspects that columns may hold.
        """
        self.root, self.files, self.aspects = root, files, aspects

    def header(self) -> Header:
        """The columns of all tables."""
        columns: tuple[str, ...] | None = None
        for file in self.files:
            found = tuple(table_columns(file))
            if columns is not None and set(columns) != set(found):
                odd = sorted(set(columns) ^ set(found))[0]
                raise InputError(f"{file}: has other columns than {self.files[0]}, for example {shown(odd)}")
            columns = columns or found
        assert columns is not None, "there are tables"
        if any(_has_labels_in_directories(file, columns, self.aspects) for file in self.files):
            return Header((*columns, _DIRECTORY), label=_DIRECTORY)
        return Header(columns)

    def read(self, columns: Sequence[str], image: str | None, identity: str | None) -> Rows:
        """Read all rows; see `RowSource.read`."""
        assert image is not None, "a table has a column of paths"
        builders = {name: ColumnBuilder() for name in columns}
        on_disk = FilesOnDisk(self.root)
        identities: list[str] = []
        found: list[str] = []
        missing: list[str] = []
        firsts: list[int] = []
        lines: list[int] = []
        words: list[str | None] = []
        for file in self.files:
            firsts.append(len(lines))
            place = file.parent.relative_to(self.root).as_posix()
            place = "" if place == "." else f"{place}/"
            paths: list[str] = []
            for line, row in table_rows(file, {image, identity, *columns}):
                paths.append(_path(row.get(image), place, f"{file} line {line}: {image}"))
                lines.append(line)
                if identity is not None:
                    identities.append(_identity(row.get(identity), f"{file} line {line}: {identity}"))
                for name, builder in builders.items():
                    builder.append(_category_directory(paths[-1], place) if name == _DIRECTORY else row.get(name))
            found += self._find_images(on_disk, paths, place, missing)
            if identity is None:
                prefix = f"{os.path.abspath(self.root)}/"
                identities += [path.removeprefix(prefix).lstrip("/") for path in paths]
            word = split_word(file.relative_to(self.root).as_posix())
            words += [word] * len(paths) if word else words_of_directories(paths)
        return Rows(
            identities=identities,
            columns={name: builder.column() for name, builder in builders.items()},
            where=_Where(self.files, np.array(firsts), np.array(lines, dtype=np.int32)),
            paths=found,
            split_names=Column.of(words),
            findings=missing_images(missing, len(found)),
        )

    def _find_images(self, on_disk: FilesOnDisk, paths: Sequence[str], place: str, missing: list[str]) -> list[str]:
        """The files that the paths of a table name, whose names on disk may be in another Unicode form. One that does
        not exist keeps the path that it is listed with.

        Args:
            on_disk: The files that exist.
            paths: Paths relative to the root, or absolute.
            place: Directory of the table, relative to the root, with a slash at its end.
            missing: Where paths that do not exist are added.
        """

        def below(directory: str, path: str) -> str:
            is_beside = not path.startswith("/") and path.startswith(place)
            return f"{place}{directory}{path[len(place) :]}" if is_beside else path

        first = [path for path in paths[:_NUM_TRIED] if not path.startswith("/")]
        directory = max(  # of several with the same number, the first one
            IMAGE_DIRECTORIES, key=lambda each: sum(on_disk.find(below(each, path)) is not None for path in first)
        )
        found: list[str] = []
        for path in paths:
            listed = below(directory, path)
            there = on_disk.find(listed)
            if there is None:
                missing.append(path)
            there = there or listed
            found.append(there if there.startswith("/") else f"{self.root}/{there}")
        return found


def lists_images(file: Path, config: DatasetConfig, aspects: Collection[str]) -> bool:
    """Whether a table has columns that seem to hold paths of images and labels, as many tables beside images have not;
    columns that the configuration names count, so that what is wrong with them is said later."""
    return not _lacking((), config) or why_no_table(file, config, aspects) is None


def why_no_table(file: Path, config: DatasetConfig, aspects: Collection[str]) -> str | None:
    """Why a file cannot be used as a table of images, in one line that names it; None if it can."""
    try:
        columns = table_columns(file)
    except InputError as error:
        return str(error)
    for key in _lacking(columns, config):
        if key == "label" and _has_labels_in_directories(file, columns, aspects):
            continue
        what = {"image": "the paths of images", "label": "the labels"}[key]
        return (
            f"{file}: no column seems to hold {what}; name it, as in dataset.columns.{key}={columns[0]}; there are "
            f"{', '.join(columns)}"
        )
    return None


def _lacking(columns: Sequence[str], config: DatasetConfig) -> list[str]:
    """Which of images and labels neither a usual name nor the configuration finds."""
    lower = {name.lower() for name in columns}
    named = {"label"} if config.distribution else set()
    named |= (config.columns or {}).keys()
    return [key for key in ("image", "label") if key not in named and not lower & set(USUAL[key])]


def _has_labels_in_directories(file: Path, columns: Sequence[str], aspects: Collection[str]) -> bool:
    """Whether directories say what the labels are: those beside a table of the Hub that has only aspects."""
    lower = {name.lower() for name in columns}
    if not is_metadata(file) or lower & set(USUAL["label"]) or lower.isdisjoint(aspect.lower() for aspect in aspects):
        return False
    try:
        return any(item.is_dir() and has_image(Path(item.path)) for item in os.scandir(file.parent))
    except OSError as error:
        raise InputError(f"{file.parent}: cannot list this directory: {reason(error)}") from None


def _category_directory(path: str, place: str) -> str | None:
    """The directory that is the category of an image: the first one below that of the table, or of the split.

    Args:
        path: Path of the image, relative to the root.
        place: Directory of the table, relative to the root, with a slash at its end.
    """
    directories = path.removeprefix(place).split("/")[:-1]
    others = (each for each in directories if each.lower() not in SPLIT_WORDS)
    return next((each for each in others if f"{each.lower()}/" not in IMAGE_DIRECTORIES), None)


class _Where:
    """Names a row by its table and line."""

    def __init__(self, files: Sequence[Path], firsts: np.ndarray, lines: np.ndarray):
        self._files, self._firsts, self._lines = files, firsts, lines

    def __call__(self, row: int) -> str:
        file = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return f"{self._files[file]} line {self._lines[row]}"


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[TextIO]:
    """A table as text; what is wrong with it is one line."""
    try:
        with io.TextIOWrapper(open_binary(file), encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not text in UTF-8 ({error.reason}); save it in this encoding") from None
    except UnsuitableFile as error:
        raise InputError(f"{file}: {reason(error)}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason(error)}") from None


def table_columns(file: Path) -> list[str]:
    """Names of the columns of a table.

    Raises:
        InputError: Not a table.
    """
    with _reading(file) as text:
        return [*filter(None, _columns(file, text))]


def _columns(file: Path, text: TextIO) -> list[str]:
    if file.suffix.lower() == ".jsonl":
        keys = dict.fromkeys(name for _, row in _objects(file, text) for name in row)  # not every row has every key
        if not keys:
            raise InputError(f"{file}: holds no row")
        return list(keys)
    names = [name.strip() for name in next(_table_lines(file, text), (0, []))[1]]
    if not any(names):
        raise InputError(f"{file}: the first line must name the columns, for example image,label")
    # spreadsheets leave columns without a name at the end
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"{file}: has the column {shown(twice[0])} twice")
    return names


def table_rows(file: Path, used: Collection[str | None]) -> Iterator[tuple[int, Mapping[str, Value]]]:
    """Number of the line and values of each row; values of the columns that are used must be on one line.

    Raises:
        InputError: Not a table, or a row of it is not as its first line requires.
    """
    with _reading(file) as text:
        if file.suffix.lower() == ".jsonl":
            yield from _objects(file, text)
            return
        names = _columns(file, text)
        text.seek(0)
        lines = _table_lines(file, text)
        next(lines)
        for line, values in lines:
            if len(values) != len(names):
                raise InputError(
                    f"{file} line {line}: has {len(values)} values, but there are {len(names)} columns; values that "
                    "contain the separator must be in quotes"
                )
            for name, value in zip(names, values, strict=True):
                if ("\n" in value or "\r" in value) and name in used:
                    raise InputError(
                        f"{file} line {line}: {name} = {shown(value)}: must be on one line; a quote may not be closed"
                    )
            yield line, {name: value.strip() or None for name, value in zip(names, values, strict=True)}


def _table_lines(file: Path, text: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and values of each row that is not empty, the line of the names too."""
    first = text.readline(MAX_LINE)
    separators = "\t" if file.suffix.lower() == ".tsv" else ",;\t"
    separator = max(separators, key=first.count)
    text.seek(0)
    reader = csv.reader(_bounded(file, text), delimiter=separator, strict=True)
    line = 1
    try:
        for values in reader:
            is_blank = not any(map(str.strip, values)) and (len(values) < 2 or separator.isspace())
            if not is_blank:
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file} line {line}: {error}; a quote may not be closed, or not be doubled") from None


def _bounded(file: Path, text: TextIO) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{file} line {number}: is longer than {MAX_LINE:,} characters")
        if "\0" in line:
            raise InputError(f"{file} line {number}: holds a NUL byte; a table is text in UTF-8")
        yield line


def _objects(file: Path, text: TextIO) -> Iterator[tuple[int, Mapping[str, Value]]]:
    for number, line in enumerate(_bounded(file, text), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{file} line {number}: not valid JSON: {reason(error)}") from None
        if not isinstance(row, dict):
            raise InputError(f'{file} line {number}: must be an object such as {{"image": "0001.jpg", "label": "joy"}}')
        yield number, {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Value:
    """A value of JSON as a value of a column; objects, which no column of ours holds, count as none."""
    if isinstance(value, list):
        return tuple(map(_value, value))
    return None if isinstance(value, dict) else value


def _path(value: Value, place: str, where: str) -> str:
    """The path of an image file in its shortest form, checked.

    Args:
        value: As the table has it, relative to the directory of the table, or absolute.
        place: That directory, relative to the root, with a slash at its end.
        where: Names the value in errors.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{where}: must be the path of an image file, not {'empty' if value is None else shown(value)}"
        )
    path = path_inside(value, place=place, absolute=True)
    if path is None:
        raise InputError(f"{where}: {shown(value)}: {why_not_inside(value)}{'' if is_url(value) else ', or absolute'}")
    return path


def _identity(value: Value, where: str) -> str:
    if value is None or isinstance(value, tuple) or not str(value).strip():
        raise InputError(f"{where}: must name the image, not {'empty' if value is None else shown(value)}")
    return nfc(str(value).strip())
