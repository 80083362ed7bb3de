"""Reading the files of a dataset, which may be anything and are often on a shared disk."""

import os
from pathlib import Path
from typing import Any, BinaryIO

from masp.errors import MaspError
from masp.files.json_text import parse_json
from masp.files.regular import UnsuitableFile, open_binary, open_descriptor
from masp.files.retry import retry_io
from masp.files.text import all_lines, reason

MAX_BYTES = 2**30
"""Size limit of an image, an annotation or an index file."""


def opened(path: str | Path) -> BinaryIO:
    """Open a regular file of at most `MAX_BYTES` for reading.

    Raises:
        UnsuitableFile: Something else, or larger.
        OSError: It cannot be opened.
    """
    return open_binary(path, max_bytes=MAX_BYTES)


def read_whole(path: str | Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Raises:
        UnsuitableFile: Something else, or larger.
        OSError: It cannot be read, also after several tries.
    """

    return retry_io(lambda: _read_once(path))


def _read_once(path: str | Path) -> bytes:
    """As `opened(path).read()`, without the file object: datasets have millions of annotations."""
    descriptor = open_descriptor(path, max_bytes=MAX_BYTES)
    try:
        data = part = os.read(descriptor, os.fstat(descriptor).st_size + 1)
        while part:
            part = os.read(descriptor, 1 << 20)
            data += part
        return data
    finally:
        os.close(descriptor)


def read_json(path: str | Path, error: type[MaspError]) -> Any:
    """Read a JSON file, with or without a byte order mark; no object in it may have a key twice.

    Args:
        path: Path of the file.
        error: What to raise if its content is not valid.

    Returns:
        Its value, as Python's json module gives it; floats may be NaN or infinite.

    Raises:
        MaspError: `error`, which names the file.
        OSError: It cannot be read, also after several tries.
    """
    try:
        return parse_json(read_whole(path).decode("utf-8-sig"), finite=False)
    except UnsuitableFile as problem:
        raise error(f"{path}: cannot be read: {reason(problem)}") from None
    except ValueError as problem:
        raise error(f"{path}: is not valid JSON: {all_lines(problem)}") from None
