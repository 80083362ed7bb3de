"""The typed reader: decodes a JSON file into a frozen dataclass, or raises one error of one line.

Past this border no code asks whether a key is there. Types are strict (`1.0` and `"1"` are not integers; a float may be
written `1`), unknown keys are refused, and numbers must be finite. Checks of values belong in the `__post_init__` of
the dataclass, which raises `ValueError("must be …")`. Fields have immutable types: tuples rather than lists, `Literal`
or an enumeration for a few values, `Json` for any JSON value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

from pydantic import AfterValidator, ConfigDict, JsonValue, TypeAdapter, ValidationError

from masp.errors import DataError, MaspError, one_line
from masp.files.json_text import parse_json
from masp.files.regular import MAX_BYTES, read_bytes
from masp.files.text import MAX_REASON, shortened, shown

T = TypeVar("T")

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must hold finite numbers only")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(item)
    return value


Json = Annotated[JsonValue, AfterValidator(_finite)]
"""Type of a field that may be any JSON value, as Python's json module returns it."""


def decode(
    kind: type[T],
    data: bytes,
    name: str,
    *,
    error: type[MaspError] = DataError,
    unique_keys: bool = True,
    surrogates: bool = False,
) -> T:
    """Decode JSON text into a dataclass.

    Args:
        kind: The (frozen) dataclass.
        data: JSON text in UTF-8.
        name: Name of the text in errors, usually the path.
        error: Class of the error.
        unique_keys: Refuse an object that contains a key twice, which takes a second pass over the text.
        surrogates: Accept lone surrogates, which file names that are not UTF-8 contain.

    Raises:
        MaspError: `error`, in one line: not JSON, nested too deeply, or not a valid `kind`. It names key and value and
            says what would be valid.
    """
    try:
        value = _adapter(kind).validate_json(data)
    except ValidationError as problem:
        if surrogates and "hex escape" in problem.errors(include_url=False, include_input=False)[0]["msg"]:
            return _decode_with_surrogates(kind, data, name, error, unique_keys)
        raise error(_line(kind, name, problem)) from None
    if value is None:
        raise error(f"{name}: must be an object, not null")
    if unique_keys:
        try:
            parse_json(data, finite=False)
        except ValueError as problem:
            raise error(f"{name}: not valid JSON: {problem}") from None
    return value


def read(
    kind: type[T],
    path: Path,
    *,
    max_bytes: int = MAX_BYTES,
    key: str = "",
    error: type[MaspError] = DataError,
    surrogates: bool = False,
) -> T | None:
    """Read a JSON file into a dataclass; None if the file does not exist.

    Args:
        kind: The (frozen) dataclass.
        path: Path of a regular file.
        max_bytes: Largest size.
        key: Setting or option that the path comes from, for errors.
        error: Class of the error if the content is not valid.
        surrogates: See `decode`.

    Raises:
        InputError: The file may not be read, is not a regular file or is too large.
        MaspError: `error`, see `decode`.
    """
    data = read_bytes(path, max_bytes=max_bytes, key=key)
    name = f"{key}: {path}" if key else str(path)
    return None if data is None else decode(kind, data, name, error=error, surrogates=surrogates)


def encode(value: Any, *, omit_none: bool = False) -> bytes:
    """Canonical JSON of a dataclass: sorted keys, no spaces, ASCII; `decode` gives an equal value.

    Args:
        value: The dataclass.
        omit_none: Leave out keys whose value is None.

    Raises:
        ValueError: A number is not finite.
    """
    return canonical_json(plain(value, omit_none=omit_none))


def plain(value: Any, *, omit_none: bool = False) -> Any:
    """Convert a dataclass to dicts, lists, strings and numbers, which JSON has."""
    return _adapter(type(value)).dump_python(value, mode="json", exclude_none=omit_none)


def canonical_json(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces, ASCII (paths may contain bytes that are not UTF-8).

    Raises:
        ValueError: A number is not finite.
    """
    return _CANONICAL.encode(value).encode()


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:  # creating one takes milliseconds
        # Optional, because pydantic accepts no config for a dataclass itself, but applies that of its container to it
        _ADAPTERS[kind] = TypeAdapter(Optional[kind], config=_CONFIG)  # noqa: UP045 - not all types know `|`
    return _ADAPTERS[kind]


def _decode_with_surrogates(kind: type[T], data: bytes, name: str, error: type[MaspError], unique_keys: bool) -> T:
    """Decode text with lone surrogates, which pydantic's parser refuses.

    Types are checked on a copy with question marks instead; then the original is converted without strict checks.
    """
    try:
        found = parse_json(data, finite=False, unique_keys=unique_keys)
        copy = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError) as problem:
        raise error(f"{name}: not valid JSON: {problem}") from None
    decode(kind, copy, name, error=error, unique_keys=False)
    try:
        return _adapter(kind).validate_python(found, strict=False)
    except ValidationError as problem:  # a check of `__post_init__` that the copy passed
        raise error(_line(kind, name, problem)) from None


def _line(kind: type, name: str, problem: ValidationError) -> str:
    """The first error of pydantic as one line: file, key, value, and what would be valid."""
    first = problem.errors(include_url=False, include_context=False)[0]
    what = first["msg"]
    if first["type"] == "json_invalid":
        return f"{name}: not valid JSON: {what.removeprefix('Invalid JSON: ')}"
    location = first["loc"]
    where = f"{name}: {_dotted(location)}" if location else name
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown key{_valid_keys(kind, location[:-1])}"
    what = what.removeprefix("Value error, ").replace("Input should be", "must be")
    sign = " = " if location else ": "
    return f"{where}{sign}{shown(first['input'])}: {shortened(one_line(what), MAX_REASON)}"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{one_line(shortened(part))}" for part in location)
    return text.removeprefix(".")


def _valid_keys(kind: Any, location: tuple[int | str, ...]) -> str:
    """The valid keys of the object at a location; empty if a union makes them depend on the value."""
    for part in location:
        kind = _without_none(kind)
        arguments = typing.get_args(kind)
        if dataclasses.is_dataclass(kind) and isinstance(part, str):
            kind = typing.get_type_hints(kind).get(part)
        elif typing.get_origin(kind) is tuple and isinstance(part, int):
            kind = arguments[0] if arguments[-1] is Ellipsis else arguments[part]
        elif arguments and typing.get_origin(kind) in (list, dict):
            kind = arguments[-1]
        else:
            return ""
    kind = _without_none(kind)
    if not dataclasses.is_dataclass(kind):
        return ""
    return f"; valid keys: {', '.join(field.name for field in dataclasses.fields(kind))}"


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        others = [other for other in typing.get_args(kind) if other is not type(None)]
        return others[0] if len(others) == 1 else None
    return kind


def is_text(string: str) -> bool:
    """Whether a string is text: JSON and file names may hold halves of surrogate pairs, which no tokenizer takes."""
    return string.isascii() or not any("\ud800" <= character <= "\udfff" for character in string)


def as_json(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists.

    Raises:
        ValueError: A number is not finite.
    """
    return parse_json(json.dumps(value, allow_nan=False))
