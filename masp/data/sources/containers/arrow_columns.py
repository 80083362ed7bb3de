"""Columns of Arrow, which parquet and arrow files are read into, as columns of rows.

pyarrow takes a moment to import, so it is imported where it is used. It is not built for every machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from masp.data.sources.containers.listed_files import MAX_TEXT_BYTES
from masp.data.sources.rows import Column, Value
from masp.errors import InputError
from masp.files.text import all_lines, shortened, shown

if TYPE_CHECKING:
    import pyarrow as pa


def require_pyarrow(what: str) -> None:
    """Check that pyarrow is installed.

    Args:
        what: What it is needed for, for the error.

    Raises:
        InputError: It is not.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{what}: this needs pyarrow; install it with `pip install pyarrow`")


def kind_of(kind: pa.DataType) -> str:
    """What the values of a type are, in a word that does not depend on how they are stored.

    Returns:
        `text`, `bytes`, `integers`, `numbers`, `booleans`, `nothing` (a column of nulls), `images` (a struct of bytes
        and path), `lists of …`, or the name of any other type.
    """
    from pyarrow import types

    if is_extension(kind):
        return kind_of(kind.storage_type)
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"lists of {kind_of(kind.value_type)}"
    if types.is_struct(kind) and is_image_struct(kind):
        return "images"
    for word, tests in _KINDS.items():
        if any(getattr(types, f"is_{test}")(kind) for test in tests):
            return word
    return shortened(str(kind))


READABLE = ("text", "integers", "numbers", "booleans", "bytes", "decimals", "times", "nothing")
"""Kinds of values that can be read, and lists of which."""
_KINDS = {
    "text": ("string", "large_string", "string_view"),
    "bytes": ("binary", "large_binary", "binary_view"),
    "integers": ("integer",),
    "numbers": ("floating",),
    "booleans": ("boolean",),
    "nothing": ("null",),
    "decimals": ("decimal",),
    "times": ("temporal",),
}


def is_extension(kind: pa.DataType) -> bool:
    """Whether a type gives another one a meaning of its own, as `arrow.json` does."""
    import pyarrow as pa

    return isinstance(kind, pa.BaseExtensionType)


def is_image_struct(kind: pa.StructType) -> bool:
    """Whether a struct is that of an image: bytes, and perhaps a path."""
    names = [field.name for field in kind]
    if names.count("bytes") != 1 or set(names) - {"bytes", "path"}:
        return False
    kinds = {field.name: kind_of(field.type) for field in kind}
    return kinds["bytes"] in ("bytes", "nothing") and kinds.get("path", "text") in ("text", "nothing")


def label_names(features: Any, where: str) -> dict[str, tuple[str, ...]]:
    """The names of the numbers in columns of type ClassLabel, or of lists of it.

    Args:
        features: Column -> type, as `datasets` writes it.
        where: Where it is from, for errors.

    Raises:
        InputError: They are not a list of different strings.
    """
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        while True:
            if isinstance(feature, list) and len(feature) == 1:
                feature = feature[0]
            elif isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
                feature = feature.get("feature")
            else:
                break
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel" or feature.get("names") is None:
            continue
        names = feature["names"]
        is_valid = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
        if not is_valid or len(set(names)) < len(names):
            raise InputError(
                f"{where}: the names of column {shown(column)} = {shown(names)}: must be different strings"
            )
        found[column] = tuple(names)
    return found


def column_of(array: pa.Array, name: str, where: Callable[[int], str]) -> Column:
    """The values of an array, which may be damaged.

    Args:
        array: Text, integers, floats, booleans, decimals or times (these two become text), or lists of them.
        name: Name of the column, for errors.
        where: Names a row of the array in errors.

    Raises:
        InputError: It is of another type, damaged, not UTF-8, or has a value of more than `MAX_TEXT_BYTES`.
    """
    import pyarrow as pa

    try:
        return _checked(array)
    except pa.ArrowNotImplementedError:
        raise InputError(f"{where(0)}: column {shown(name)} has {kind_of(array.type)}; must have {_VALID}") from None
    except _damage() as error:
        row, problem = _first_damaged(array, error)
        raise InputError(f"{where(row)}: column {shown(name)} is damaged: {all_lines(problem)}") from None


def _damage() -> tuple[type[Exception], ...]:
    """What reading damaged arrays raises."""
    import pyarrow as pa

    return pa.ArrowException, ValueError, IndexError


def _first_damaged(array: pa.Array, error: Exception) -> tuple[int, Exception]:
    """The first damaged row of an array, and what is wrong with it; the first one where all of it is damaged."""
    from pyarrow import types

    if types.is_dictionary(array.type):
        value, error = _first_damaged(array.dictionary, error)
        rows = np.flatnonzero(array.indices.to_numpy(zero_copy_only=False) == value)
        return (int(rows[0]) if len(rows) else 0), error
    start = 0
    while len(array) > 1:
        half = len(array) // 2
        try:
            _checked(array.slice(0, half))
            array, start = array.slice(half), start + half
        except _damage() as found:
            array, error = array.slice(0, half), found
    try:
        _checked(array)
    except _damage() as found:
        return start, found
    return 0, error


_VALID = "text, integers, floats, booleans or lists of them"


def _checked(array: pa.Array) -> Column:
    column = _encoded(array)
    for value in column.values:
        if isinstance(value, str) and len(value) > MAX_TEXT_BYTES // 4 and len(value.encode()) > MAX_TEXT_BYTES:
            raise ValueError(f"{shown(value[:20])} … is longer than {MAX_TEXT_BYTES >> 20} MiB")
    return column


def _encoded(array: pa.Array) -> Column:
    import pyarrow as pa
    from pyarrow import types

    kind = array.type
    if is_extension(kind):
        return _encoded(array.storage)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _encoded_lists(array)
    array.validate(full=True)
    if types.is_dictionary(kind):
        inner = _encoded(array.dictionary)
        numbers = array.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        return Column(np.append(inner.codes, np.int32(-1))[numbers], inner.values)
    if types.is_null(kind):
        return Column(np.full(len(array), -1, dtype=np.int32), [])
    word = kind_of(kind)
    if word not in READABLE:
        raise pa.ArrowNotImplementedError(word)
    if word in ("bytes", "decimals", "times") or types.is_string_view(kind):
        array = array.cast(pa.large_string())
    elif types.is_float16(kind):
        array = array.cast(pa.float32())
    encoded = array.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return Column(codes, encoded.dictionary.to_pylist())


def _encoded_lists(array: pa.Array) -> Column:
    from pyarrow import types

    array.validate()  # of the offsets; the values are checked below
    size = len(array)
    if types.is_fixed_size_list(array.type):
        width = array.type.list_size
        ends = np.arange(size + 1, dtype=np.int64) * width
        values = array.values.slice(array.offset * width, size * width)
    else:
        ends = array.offsets.to_numpy().astype(np.int64)
        if (np.diff(ends) < 0).any() or (size and not 0 <= ends[0] <= ends[-1] <= len(array.values)):
            raise ValueError("the lengths of its lists are damaged")
        first = int(ends[0]) if len(ends) else 0
        values = array.values.slice(first, (int(ends[-1]) if len(ends) else 0) - first)
        ends -= first
    inner = _encoded(values)
    is_null = array.is_null().to_numpy(zero_copy_only=False)
    data, places = inner.codes.tobytes(), dict[bytes, int]()
    codes = np.empty(size, dtype=np.int32)
    bounds = (ends * inner.codes.itemsize).tolist()
    for row in range(size):
        codes[row] = -1 if is_null[row] else places.setdefault(data[bounds[row] : bounds[row + 1]], len(places))
    lists = (np.frombuffer(key, dtype=np.int32).tolist() for key in places)
    values_of: list[Value] = [tuple(None if code < 0 else inner.values[code] for code in found) for found in lists]
    return Column(codes, values_of)
