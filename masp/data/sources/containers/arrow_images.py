"""Where the bytes of images are in an arrow file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from masp.data.sources.containers.arrow_columns import column_of, kind_of
from masp.errors import InputError
from masp.files.text import all_lines, shown

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ArrowImages:
    """Where images are, in columns."""

    offsets: np.ndarray
    """`[N]` int64: where the bytes of an image begin; without bytes a number of `paths`, or -1."""
    sizes: np.ndarray
    """`[N]` int64: how many bytes there are; -1 if the row holds none."""
    paths: list[str]
    """Paths of images that rows do not hold."""

    @property
    def num_rows(self) -> int:
        return len(self.sizes)

    @staticmethod
    def none(num_rows: int) -> ArrowImages:
        """Rows without images."""
        return ArrowImages(np.full(num_rows, -1, dtype=np.int64), np.full(num_rows, -1, dtype=np.int64), [])

    @staticmethod
    def join(parts: Sequence[ArrowImages]) -> ArrowImages:
        """One after another."""
        offsets, paths = [np.empty(0, dtype=np.int64)], list[str]()
        for part in parts:
            offsets.append(np.where((part.sizes < 0) & (part.offsets >= 0), part.offsets + len(paths), part.offsets))
            paths += part.paths
        return ArrowImages(
            np.concatenate(offsets), np.concatenate([np.empty(0, dtype=np.int64), *(p.sizes for p in parts)]), paths
        )

    def part(self, rows: np.ndarray) -> ArrowImages:
        """Those of some rows."""
        offsets, sizes = self.offsets[rows], self.sizes[rows]
        linked = np.flatnonzero((sizes < 0) & (offsets >= 0))
        paths = [self.paths[number] for number in offsets[linked].tolist()]
        offsets[linked] = np.arange(len(linked))
        return ArrowImages(offsets, sizes, paths)


def images_in(array: pa.Array, name: str, buffer: pa.Buffer, where: Callable[[int], str]) -> ArrowImages:
    """Where the images of a column are.

    Args:
        array: Bytes, or structs of bytes and path, whose values are in `buffer`.
        name: Name of the column, for errors.
        buffer: The file that the array was read from.
        where: Names a row of the array in errors.

    Raises:
        InputError: It is damaged, or of a type whose bytes are not in one piece.
    """
    import pyarrow as pa
    from pyarrow import types

    try:
        array.validate()
    except pa.ArrowInvalid as error:
        raise InputError(f"{where(0)}: column {shown(name)} is damaged: {all_lines(error)}") from None
    is_null = array.is_null().to_numpy(zero_copy_only=False)
    values, paths = array, None
    if types.is_struct(array.type):
        values = array.field("bytes")
        paths = array.field("path") if array.type.get_field_index("path") >= 0 else None
    if types.is_null(values.type):
        found = ArrowImages.none(len(array))
    else:
        found = _sections(values, name, buffer, where)
        found.sizes[is_null | values.is_null().to_numpy(zero_copy_only=False)] = -1
    empty = found.sizes < 0
    found.offsets[empty] = -1
    if paths is None or not empty.any():
        return found
    column = column_of(paths, name, where)
    linked = np.flatnonzero(empty & ~is_null & (column.codes >= 0))
    found.offsets[linked] = np.arange(len(linked))
    return ArrowImages(found.offsets, found.sizes, [str(column.values[code]) for code in column.codes[linked].tolist()])


def _sections(values: pa.Array, name: str, buffer: pa.Buffer, where: Callable[[int], str]) -> ArrowImages:
    import pyarrow as pa
    from pyarrow import types

    if not (types.is_binary(values.type) or types.is_large_binary(values.type)):
        stored = f"{kind_of(values.type)} stored as {values.type}"
        raise InputError(f"{where(0)}: column {shown(name)} has {stored}; must be binary or large_binary")
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where(0)}: column {shown(name)} is damaged: {all_lines(error)}") from None
    _, ends_buffer, data = values.buffers()
    if not len(values) or ends_buffer is None:
        return ArrowImages.none(len(values))
    dtype = np.int32 if types.is_binary(values.type) else np.int64
    ends = np.frombuffer(ends_buffer, dtype)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    sizes = np.diff(ends)
    start = data.address - buffer.address if data is not None and data.size else 0
    if not 0 <= start <= start + int(ends[-1]) <= buffer.size:
        raise InputError(f"{where(0)}: column {shown(name)} is damaged: its bytes are not in the file")
    return ArrowImages(start + ends[:-1], sizes, [])
