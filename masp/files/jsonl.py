"""JSON lines: logs and ledgers to which a process appends, and which must survive that it is killed meanwhile.

A line is complete if it has its line end. What follows the last line end was cut off by a kill: readers drop it, and
the next append starts a new line.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from masp.errors import DataError, MaspError
from masp.files.atomic import write_all, write_bytes
from masp.files.json_text import parse_json
from masp.files.locks import try_lock
from masp.files.regular import open_descriptor, read_bytes
from masp.files.typed import decode

LOG = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 4 << 30
"""Default size limit of a file of lines: ten million records."""


def append_line(path: Path, value: dict[str, Any], *, sort_keys: bool = False) -> None:
    """Append a line; lines of several processes do not mix. A missing file is created.

    Raises:
        OSError: The file cannot be written or locked.
    """
    data = json.dumps(value, sort_keys=sort_keys).encode() + b"\n"
    descriptor = open_descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        # Without the lock, the line that another process is writing looks like one that a kill has cut off.
        try_lock(descriptor, wait=True)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


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
    """Read the complete lines of a file, each into a dataclass; None if the file does not exist.

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


def cut_lines(path: Path, step: int) -> None:
    """Remove from a log the lines that a resumed run writes again.

    Damaged lines at the end are removed too, as a power cut leaves them; a warning names them.

    Args:
        path: Log whose lines have a key `step`; a missing file is left missing.
        step: Last step whose lines are kept.

    Raises:
        DataError: A line before one that is kept is damaged.
        InputError: The log may not be read, is not a regular file or is too large.
        OSError: It cannot be written.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    if data is None:
        return
    lines = data.split(b"\n")
    steps = [_step(line) for line in lines]
    kept = [number for number, found in enumerate(steps) if found is not None and found <= step]
    # A last line without its end is what a kill leaves, not damage.
    damaged = [number for number, found in enumerate(steps[:-1]) if found is None]
    if kept and damaged and damaged[0] < kept[-1]:
        raise DataError(
            f"{path}, line {damaged[0] + 1} is damaged: must be a JSON object with an integer step; remove the line, "
            "or move the file away"
        )
    write_bytes(path, b"".join(lines[number] + b"\n" for number in kept))
    if damaged:
        LOG.warning("%s: %d damaged lines at its end were removed", path, len(damaged))


def _step(line: bytes) -> int | None:
    """The step of a log's line; None if the line is damaged."""
    entry = parse_object(line)
    step = None if entry is None else entry.get("step")
    return step if type(step) is int else None


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is not one."""
    try:
        value = parse_json(line, finite=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
