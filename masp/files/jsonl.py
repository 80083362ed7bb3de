"""JSON lines: logs and ledgers to which a process appends, and which must survive that it is killed meanwhile.

A line is complete if it has its line end. What follows the last line end was cut off by a kill: readers drop it, and
the next append starts a new line.
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
"""Default size limit of a file of lines: ten million records."""


def append_line(path: Path, value: dict[str, Any], *, sort_keys: bool = False) -> None:
    """Append a line in one write, so that lines of several processes do not mix; a missing file is created.

    Raises:
        OSError: The file cannot be written.
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
    """Write all of the data: on a nearly full disk `os.write` writes only a part, and raises at the next call.

    Raises:
        OSError: The file cannot be written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def whole_lines(data: bytes) -> tuple[list[bytes], int]:
    """Split off the complete lines: the lines without their ends, and their number of bytes with them."""
    *lines, rest = data.split(b"\n")
    return lines, len(data) - len(rest)


def decode_lines(
    kind: type[T], data: bytes, name: str, *, error: type[MaspError] = DataError, surrogates: bool = False
) -> Iterator[T]:
    """Decode the complete lines of JSON lines, each into a dataclass.

    Args:
        kind: The (frozen) dataclass.
        data: Content of the file.
        name: Name of the file in errors, which add the line number.
        error: Class of the error.
        surrogates: See `masp.files.typed.decode`.

    Raises:
        MaspError: `error`, if a line is not a valid `kind`.
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
    """Read the complete lines of a file, each into a dataclass; None if there is no such file.

    Args:
        kind: The (frozen) dataclass.
        path: Path of a regular file.
        skip_damaged: Skip lines that are not a valid `kind`, for logs that are only displayed.
        max_bytes: Largest size.
        key: Setting or option that the path comes from, for errors.
        error: Class of the error if a line is not a valid `kind`.
        surrogates: See `masp.files.typed.decode`.

    Raises:
        InputError: The file may not be read, is not a regular file or is too large.
        MaspError: `error`, if a line is not a valid `kind`.
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
    """Read the lines of a log that are JSON objects, with any keys; an empty list if there is no such file.

    Raises:
        InputError: The file may not be read, is not a regular file or is too large.
    """
    data = read_bytes(path, max_bytes=max_bytes) or b""
    return [value for line in data.split(b"\n") if (value := parse_object(line)) is not None]


def cut_lines(path: Path, step: int) -> None:
    """Remove from a log the lines that a resumed run writes again, and damaged ones.

    Args:
        path: Log whose lines have a key `step`; nothing happens if there is no such file.
        step: Last step whose lines are kept.

    Raises:
        InputError: The log may not be read, is not a regular file or is too large.
        OSError: It cannot be written.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    if data is None:
        return
    kept = [line for line in data.split(b"\n") if _is_up_to(parse_object(line), step)]
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def _is_up_to(entry: dict[str, Any] | None, step: int) -> bool:
    return entry is not None and type(entry.get("step")) is int and entry["step"] <= step


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is not one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
