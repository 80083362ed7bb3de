"""Reading a regular file of bounded size, and asking whether a path exists: what a path names may be anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from masp.errors import InputError
from masp.files.text import reason

MAX_BYTES = 256 << 20
"""Size limit where the caller gives none: far above what MASP writes, far below what fills a node's memory."""


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES, key: str = "") -> bytes | None:
    """Read a whole file; None if there is none.

    Args:
        path: must name a regular file: a FIFO or a device could be read for ever.
        max_bytes: largest size.
        key: the setting or option that the path comes from, for errors.

    Raises:
        InputError: not a regular file, larger than `max_bytes`, or it may not be read.
    """
    what = f"{key}: {path}" if key else f"{path}"
    try:
        # without O_NONBLOCK, opening a FIFO waits for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{what} cannot be read: {reason(error)}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{what} cannot be read: not a regular file")
        if status.st_size > max_bytes:
            raise InputError(f"{what} cannot be read: {status.st_size:,} bytes; must be at most {max_bytes:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)  # what is appended meanwhile is for the next call
    except OSError as error:
        raise InputError(f"{what} cannot be read: {reason(error)}") from None
    finally:
        os.close(descriptor)


def exists(path: Path, *, key: str = "") -> bool:
    """Whether there is anything at a path.

    `Path.exists` raises `OSError` where a directory may not be searched, a name is too long or a network disk has
    lost it; here that is one line for the user.

    Raises:
        InputError: the file system gives no answer.
    """
    return _mode(path, key) is not None


def is_file(path: Path, *, key: str = "") -> bool:
    """Whether there is a regular file at a path; raises as `exists`."""
    mode = _mode(path, key)
    return mode is not None and stat.S_ISREG(mode)


def is_directory(path: Path, *, key: str = "") -> bool:
    """Whether there is a directory at a path; raises as `exists`."""
    mode = _mode(path, key)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path, key: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{f'{key}: ' if key else ''}{path} cannot be examined: {reason(error)}") from None
