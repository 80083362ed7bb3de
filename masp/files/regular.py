"""Opening regular files of bounded size, and checking whether a path exists, without trusting what a path names.

Whatever a user or a file names is opened by `open_descriptor`, here or through one of the readers that build on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from masp.errors import InputError
from masp.files.text import reason

MAX_BYTES = 256 << 20
"""Default size limit: far above what MASP writes, far below the memory of a node."""


class UnsuitableFile(OSError):
    """What a path names is not a regular file, or is too large; the `strerror` says which."""


def open_descriptor(path: str | Path, flags: int = os.O_RDONLY, *, max_bytes: int | None = None) -> int:
    """Open a regular file as `os.open` does; nothing is waited for, where a FIFO would have no other end.

    Args:
        path: Path of a regular file.
        flags: Of `os.open`.
        max_bytes: Largest size; None for any.

    Returns:
        The descriptor, which is not inherited by programs that this process starts.

    Raises:
        UnsuitableFile: Not a regular file, or a larger one; for writing, a link to one, which may be anybody's.
        OSError: Whatever the system refuses.
    """
    is_written = bool(flags & (os.O_WRONLY | os.O_RDWR))
    try:
        follow = os.O_NOFOLLOW if is_written else 0
        descriptor = os.open(path, flags | follow | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and is_written and os.path.islink(path):
            raise UnsuitableFile(errno.EINVAL, "a symbolic link, which is not written to", str(path)) from None
        if error.errno == errno.ENXIO:  # a socket, or a FIFO that is opened for writing
            raise UnsuitableFile(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise UnsuitableFile(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is not None and status.st_size > max_bytes:
            problem = f"{status.st_size:,} bytes; must be at most {max_bytes:,}"
            raise UnsuitableFile(errno.EINVAL, problem, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_binary(path: str | Path, *, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading; arguments and errors as of `open_descriptor`."""
    return open(open_descriptor(path, max_bytes=max_bytes), "rb")


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
    with _opened(path, what, max_bytes) as file:
        if file is None:
            return None
        return file.read(_size(file))  # bytes appended meanwhile are left to the next call


def read_tail(path: Path, num_bytes: int) -> bytes | None:
    """Read the end of a file of any size, at most so many bytes; None if there is none.

    Raises:
        InputError: The file may not be read or is not a regular file.
    """
    with _opened(path, str(path)) as file:
        if file is None:
            return None
        file.seek(max(0, _size(file) - num_bytes))
        return file.read(num_bytes)


def file_size(path: Path, *, max_bytes: int = MAX_BYTES, key: str = "") -> int | None:
    """Size of a regular file that a library will open by its path; None if there is none.

    Raises:
        InputError: The file may not be read, is not a regular file, or is larger than `max_bytes`.
    """
    what = f"{key}: {path}" if key else f"{path}"
    with _opened(path, what, max_bytes) as file:
        return None if file is None else _size(file)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def opened(path: Path, *, key: str = "") -> Iterator[BinaryIO | None]:
    """Open a regular file of any size to read it piece by piece; None if there is none.

    Raises:
        InputError: The file may not be read or is not a regular file.
    """
    with _opened(path, f"{key}: {path}" if key else str(path)) as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path, what: str, max_bytes: int | None = None) -> Iterator[BinaryIO | None]:
    """A regular file, open for reading; None if there is none. Whatever the system refuses is an `InputError`."""
    try:
        file = open_binary(path, max_bytes=max_bytes)
    except FileNotFoundError:
        yield None
        return
    except IsADirectoryError:
        raise InputError(f"{what} cannot be read: not a regular file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{what} cannot be read: {reason(error)}") from None
    with file:
        try:
            yield file
        except OSError as error:
            raise InputError(f"{what} cannot be read: {reason(error)}") from None


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
