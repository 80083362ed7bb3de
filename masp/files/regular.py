"""Reading regular files of bounded size, and checking whether a path exists, without trusting what a path names."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from masp.errors import InputError
from masp.files.text import reason

MAX_BYTES = 256 << 20
"""Default size limit: far above what MASP writes, far below the memory of a node."""


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES, key: str = "") -> bytes | None:
    """Read a whole file; None if there is none.

    Args:
        path: Path of a regular file; reading a FIFO or a device might never end.
        max_bytes: Largest size.
        key: Setting or option that the path comes from, for errors.

    Raises:
        InputError: The file may not be read, is not a regular file, or is larger than `max_bytes`.
    """
    what = f"{key}: {path}" if key else f"{path}"
    with _opened(path, what) as file:
        if file is None:
            return None
        return file.read(_size(file, what, max_bytes))  # bytes appended meanwhile are left to the next call


def read_tail(path: Path, num_bytes: int) -> bytes | None:
    """Read the end of a file of any size, at most so many bytes; None if there is none.

    Raises:
        InputError: The file may not be read or is not a regular file.
    """
    with _opened(path, str(path)) as file:
        if file is None:
            return None
        file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
        return file.read(num_bytes)


def file_size(path: Path, *, max_bytes: int = MAX_BYTES, key: str = "") -> int | None:
    """Size of a regular file that a library will open by its path; None if there is none.

    Raises:
        InputError: The file may not be read, is not a regular file, or is larger than `max_bytes`.
    """
    what = f"{key}: {path}" if key else f"{path}"
    with _opened(path, what) as file:
        return None if file is None else _size(file, what, max_bytes)


def _size(file: BinaryIO, what: str, max_bytes: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise InputError(f"{what} cannot be read: {size:,} bytes; must be at most {max_bytes:,}")
    return size


@contextlib.contextmanager
def opened(path: Path, *, key: str = "") -> Iterator[BinaryIO | None]:
    """Open a regular file of any size to read it piece by piece; None if there is none.

    Raises:
        InputError: The file may not be read or is not a regular file.
    """
    with _opened(path, f"{key}: {path}" if key else str(path)) as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[BinaryIO | None]:
    """A regular file, open for reading; None if there is none. Whatever the system refuses is an `InputError`."""
    try:
        # without O_NONBLOCK, opening a FIFO waits for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{what} cannot be read: {reason(error)}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{what} cannot be read: not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise InputError(f"{what} cannot be read: {reason(error)}") from None
    finally:
        os.close(descriptor)


def exists(path: Path, *, key: str = "") -> bool:
    """Whether a path exists.

    `Path.exists` raises `OSError` if a directory may not be searched, a name is too long or a network disk fails; here
    that is one line for the user.

    Args:
        path: Any path.
        key: Setting or option that the path comes from, for errors.

    Raises:
        InputError: The file system does not say.
    """
    return _mode(path, key) is not None


def is_file(path: Path, *, key: str = "") -> bool:
    """Whether a path is a regular file; arguments and errors as of `exists`."""
    mode = _mode(path, key)
    return mode is not None and stat.S_ISREG(mode)


def is_directory(path: Path, *, key: str = "") -> bool:
    """Whether a path is a directory; arguments and errors as of `exists`."""
    mode = _mode(path, key)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path, key: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{f'{key}: ' if key else ''}{path} cannot be examined: {reason(error)}") from None
