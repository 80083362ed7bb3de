"""What every source of labeled images gives: rows, whose columns say what is known of each image."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from masp.data.findings import Finding, Ignored
from masp.data.image_files.stored import Location
from masp.data.sample import Blocks, Places

Value = str | int | float | bool | None | tuple["Value", ...]
"""A value in a row; lists of a source become tuples."""


@dataclass(frozen=True)
class Column:
    """The values of a column: each different value once, since millions of rows have few."""

    codes: np.ndarray
    """`[N]` int32: the value of each row, into `values`; -1 where the row has none."""

    values: Sequence[Value]
    """The different values, none of them None."""

    @staticmethod
    def of(values: Iterable[Value]) -> Column:
        """A column of the values of all rows, in order."""
        builder = ColumnBuilder()
        for value in values:
            builder.append(value)
        return builder.column()

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> Value:
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def part(self, rows: np.ndarray) -> Column:
        """Those of some rows."""
        return Column(self.codes[rows], self.values)


class ColumnBuilder:
    """Collects a column value by value. 1, 1.0 and True are three values, in tuples too."""

    def __init__(self) -> None:
        """No value yet."""
        self._codes = array("i")
        self._places: dict[Hashable, int] = {}
        self._values: list[Value] = []

    def append(self, value: Value) -> None:
        """Add the value of the next row."""
        if value is None:
            self._codes.append(-1)
            return
        place = self._places.setdefault(_identity(value), len(self._values))
        if place == len(self._values):
            self._values.append(value)
        self._codes.append(place)

    def extend(self, piece: Column) -> None:
        """Add the values of the next rows."""
        places = np.full(len(piece.values) + 1, -1, dtype=np.int32)  # the last one is that of code -1
        for number, value in enumerate(piece.values):
            place = places[number] = self._places.setdefault(_identity(value), len(self._values))
            if place == len(self._values):
                self._values.append(value)
        self._codes.frombytes(places[piece.codes].tobytes())

    def column(self) -> Column:
        """The column of all values."""
        return Column(np.array(self._codes, dtype=np.int32), self._values)


def _identity(value: Value) -> Hashable:
    """What is equal for the same value only; all NaN are one value."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_identity, value))
    return type(value), value if value == value else None


@dataclass
class Rows:
    """The images that a source lists, in columns and in the order of the source."""

    identities: list[str]
    """A name per image that is different from all others and stays when rows are added: a relative path, or the name of
    a file and a number in it. Sample keys are made of it."""

    columns: dict[str, Column]
    """Columns that were asked for, by their names in the source."""

    where: Callable[[int], str]
    """Names a row in errors: file and line, row or member."""

    places: Places | None = None
    """Where the images are, if inside larger files."""

    paths: list[str] | None = None
    """Paths of the image files, otherwise."""

    blocks: Blocks | None = None
    """Which images are read together, if any."""

    split_names: Column | None = None
    """What the names of files and directories say of the split, as they say it (`validation`)."""

    ignored: tuple[Ignored, ...] = ()
    """What is not part of the dataset."""

    findings: tuple[Finding, ...] = ()
    """What the source itself shows."""

    def __len__(self) -> int:
        return len(self.identities)

    def image(self, row: int) -> Location:
        """Where the image of a row is."""
        if self.places is not None:
            return self.places[row]
        assert self.paths is not None, "rows have places or paths"
        return self.paths[row]


@dataclass(frozen=True)
class Header:
    """What a source says of itself before its rows are read."""

    columns: tuple[str, ...]
    """Names of its columns, in its order; an image column too."""

    image_columns: tuple[str, ...] = ()
    """Those that hold the bytes of images, or can say where images are inside larger files."""

    rows_are_images: bool = False
    """Whether every row is an image by itself, so that no column has to say where it is."""

    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> names of the numbers 0, 1, 2 … in it, where the source knows them."""

    distribution: tuple[str, ...] = ()
    """Columns with votes or probabilities, where the source knows them."""

    label: str | None = None
    """Column of the labels where none is called as usual."""


class RowSource(Protocol):
    """A dataset whose images are listed in rows."""

    kind: str
    """What it is, for messages: `parquet files`."""

    def header(self) -> Header:
        """What it says of itself; reads no rows.

        Raises:
            InputError: It is damaged, or its files do not have the same columns.
        """
        ...

    def read(self, columns: Sequence[str], image: str | None, identity: str | None) -> Rows:
        """Read all rows, without the bytes of images.

        Args:
            columns: Columns to return, all of them in the header.
            image: Column of the images; None for a source whose rows are images.
            identity: Column whose values name the images; None for the source's own names.

        Raises:
            InputError: It is damaged, or a row has no identity, or one that another row has.
        """
        ...
