"""Reading the files of a dataset, which may be anything and are often on a shared disk."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from masp.errors import MaspError
from masp.files.retry import retry_io
from masp.files.text import all_lines

MAX_BYTES = 2**30
"""Size limit of an image, an annotation or an index file."""


class UnsuitableFile(Exception):
    """What a path names cannot be read as a whole; the message is the reason."""


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a regular file of at most `MAX_BYTES` for reading.

    Raises:
        UnsuitableFile: Something else, or larger.
        OSError: It cannot be opened.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnsuitableFile("not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnsuitableFile(f"file of {status.st_size} bytes, at most {MAX_BYTES} are read")
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    # A FIFO in a dataset would otherwise be waited for, without end.
    return os.open(path, flags | os.O_NONBLOCK)


def read_whole(path: str | Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Raises:
        UnsuitableFile: Something else, or larger.
        OSError: It cannot be read, also after several tries.
    """

    def read() -> bytes:
        with opened(path) as file:
            return file.read()

    return retry_io(read)


def read_json(path: Path, error: type[MaspError]) -> Any:
    """Read a JSON file, with or without a byte order mark.

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
        return json.loads(read_whole(path).decode("utf-8-sig"))
    except UnsuitableFile as problem:
        raise error(f"{path}: cannot be read: {problem}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: is not valid JSON: {all_lines(problem)}") from None
