"""JSON lines: logs and ledgers that one process appends to and may be killed while it does.

A line is whole when its line end is there. What follows the last line end was cut short by a kill: readers drop it, and
whoever appends next starts on a new line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from masp.errors import DataError, MaspError
from masp.files.atomic import write_bytes
from masp.files.regular import read_bytes
from masp.files.typed import decode

T = TypeVar("T")

MAX_BYTES = 4 << 30
"""Size limit of a file of lines where the caller gives none: ten million records."""


def append_line(path: Path, value: dict[str, Any], *, sort_keys: bool = False) -> None:
    """Append a line in one write, so that those of several processes do not mix; the file is made if it is missing.

    Raises:
        OSError: it cannot be written.
    """
    data = json.dumps(value, sort_keys=sort_keys).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it: a nearly full disk takes a part, and raises at the next try.

    Raises:
        OSError: it cannot be written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def whole_lines(data: bytes) -> tuple[list[bytes], int]:
    """The lines that are whole, without their ends, and the number of bytes that they take with them."""
    *lines, rest = data.split(b"\n")
    return lines, len(data) - len(rest)


def decode_lines(
    kind: type[T], data: bytes, name: str, *, error: type[MaspError] = DataError, surrogates: bool = False
) -> Iterator[T]:
    """Decode the whole lines of a text, each into a dataclass.

    Args:
        kind: the (frozen) dataclass.
        data: the text.
        name: what it is, for errors, which add the number of the line.
        error: what to raise.
        surrogates: see `masp.files.typed.decode`.

    Raises:
        MaspError: `error`: a line is not a `kind`.
    """
    for number, line in enumerate(whole_lines(data)[0], start=1):
        yield decode(kind, line, f"{name}, line {number}", error=error, unique_keys=False, surrogates=surrogates)


def read_lines(
    kind: type[T],
    path: Path,
    *,
    skip_damaged: bool = False,
    max_bytes: int = MAX_BYTES,
    key: str = "",
    error: type[MaspError] = DataError,
    surrogates: bool = False,
) -> list[T] | None:
    """Read the whole lines of a file, each into a dataclass; None if there is no such file.

    Args:
        kind: the (frozen) dataclass.
        path: must name a regular file.
        skip_damaged: leave out lines that are not a `kind`: for logs that are only looked at.
        max_bytes: largest size.
        key: the setting or option that the path comes from, for errors.
        error: what to raise if a line is not a `kind`.
        surrogates: see `masp.files.typed.decode`.

    Raises:
        InputError: the file may not be read, is not a regular file or is too large. MaspError: `error`.
    """
    data = read_bytes(path, max_bytes=max_bytes, key=key)
    if data is None:
        return None
    name = f"{key}: {path}" if key else str(path)
    if not skip_damaged:
        return list(decode_lines(kind, data, name, error=error, surrogates=surrogates))
    found = []
    for line in whole_lines(data)[0]:
        try:
            found.append(decode(kind, line, name, unique_keys=False, surrogates=surrogates))
        except DataError:
            continue
    return found


def read_objects(path: Path, *, max_bytes: int = MAX_BYTES) -> list[dict[str, Any]]:
    """The lines of a log that are JSON objects, of any shape; none if there is no such file.

    Raises:
        InputError: the file may not be read, is not a regular file or is too large.
    """
    data = read_bytes(path, max_bytes=max_bytes) or b""
    return [value for line in data.split(b"\n") if (value := _object(line)) is not None]


def cut_lines(path: Path, step: int) -> None:
    """Drop from a log what a resumed run writes again, and what is damaged.

    Args:
        path: a log whose lines have a `step`; nothing happens if there is none.
        step: the last step whose lines stay.

    Raises:
        InputError: the log may not be read, is not a regular file or is too large. OSError: it cannot be written.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    if data is None:
        return
    kept = [line for line in data.split(b"\n") if _is_up_to(_object(line), step)]
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def _is_up_to(entry: dict[str, Any] | None, step: int) -> bool:
    return entry is not None and type(entry.get("step")) is int and entry["step"] <= step


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
