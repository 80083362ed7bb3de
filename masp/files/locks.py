"""POSIX record locks: they end with the process that holds them, however it ends, and reach other machines.

Forked DataLoader workers, which outlive a killed run for a few seconds, do not inherit them (`flock` would be), so a
killed job never leaves anything locked. Closing *any* handle of the file drops all locks that this process holds on it:
lock a file that is opened nowhere else, and do not nest two calls on one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterable, Iterator
from pathlib import Path

from masp.errors import InputError
from masp.files.text import reason

_TAKEN = (errno.EACCES, errno.EAGAIN)


def try_lock(descriptor: int, start: int = 0, length: int = 0, *, wait: bool = False, shared: bool = False) -> bool:
    """Lock a range of an open file; the one call beneath every lock of MASP.

    Args:
        descriptor: the open file: for writing, or with `shared` for reading.
        start: first byte.
        length: number of bytes; 0 means to the end, whatever that is.
        wait: until it is free.
        shared: only against those who lock it alone.

    Returns:
        False if another process holds it.

    Raises:
        OSError: the file system cannot lock.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.lockf(descriptor, operation, length, start)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


@contextlib.contextmanager
def locked(path: Path, ranges: Iterable[tuple[int, int]], *, key: str, wait: bool = False) -> Iterator[bool]:
    """Hold byte ranges of a lock file; yields whether all were free, which they are in the end if it waits.

    Args:
        path: the lock file, created if missing.
        ranges: `(first byte, number of bytes)`; a number of 0 means to the end, whatever that is.
        key: the setting that the file's directory comes from, for errors: `cache.dir`.
        wait: until each of them is free.

    Raises:
        InputError: the file system cannot lock or the directory cannot be written.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115 - closed below, where the lock ends
    except OSError as error:
        raise InputError(f"{key}: {path.parent} cannot be written: {reason(error)}") from None
    with file:
        try:
            free = all(try_lock(file.fileno(), start, length, wait=wait) for start, length in ranges)
        except OSError as error:
            raise InputError(f"{key}: {path} cannot be locked: {reason(error)}") from None
        yield free


@contextlib.contextmanager
def holding(path: Path, taken: str, *, key: str) -> Iterator[None]:
    """Hold a whole lock file; for other processes `is_held` tells.

    Args:
        path: the lock file, created if missing.
        taken: the message if another process holds it.
        key: the setting that the file's directory comes from, for errors: `output_dir`.

    Raises:
        InputError: another process holds it, the file system cannot lock, or the directory cannot be written.
    """
    with locked(path, [(0, 0)], key=key) as free:
        if not free:
            raise InputError(taken)
        yield


def is_held(path: Path) -> bool:
    """Whether another process holds a lock file; reading it is enough to ask.

    Raises:
        InputError: the file system gives no answer.
    """
    try:
        with open(path, "rb") as file:
            return not try_lock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be examined: {reason(error)}") from None
