"""POSIX record locks: they end with the process that holds them, however it ends, and also work between machines.

Forked DataLoader workers, which outlive a killed run for a few seconds, do not inherit them as they would `flock`, so a
killed job never leaves anything locked. Closing *any* descriptor of the file releases all locks that this process holds
on it: lock a file that is opened nowhere else, and do not nest two calls on one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from masp.errors import FilesInUse, InputError
from masp.files.regular import open_binary, open_descriptor
from masp.files.text import reason

_TAKEN = (errno.EACCES, errno.EAGAIN)


def try_lock(descriptor: int, start: int = 0, length: int = 0, *, wait: bool = False, shared: bool = False) -> bool:
    """Lock a range of an open file; every lock of MASP goes through this function.

    Args:
        descriptor: File opened for writing, or with `shared` for reading.
        start: First byte.
        length: Number of bytes; 0 means up to the end, even if the file grows.
        wait: Wait until the range is free.
        shared: Take a shared lock, which excludes exclusive ones only.

    Returns:
        False if another process holds a lock on the range.

    Raises:
        OSError: The file system does not support locks.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.lockf(descriptor, operation, length, start)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def unlock(descriptor: int, start: int = 0, length: int = 0) -> None:
    """Give up a lock of this process; arguments as of `try_lock`."""
    fcntl.lockf(descriptor, fcntl.LOCK_UN, length, start)


@contextlib.contextmanager
def locked(path: Path, ranges: Iterable[tuple[int, int]], *, key: str, wait: bool = False) -> Iterator[bool]:
    """Hold byte ranges of a lock file; yields whether all of them were free, which is always true with `wait`.

    Args:
        path: Lock file, created if missing.
        ranges: Pairs of first byte and number of bytes; 0 bytes means up to the end, even if the file grows.
        key: Setting that the directory of the file comes from, for errors, such as `cache.dir`.
        wait: Wait until each range is free.

    Raises:
        InputError: The file system does not support locks, or the directory cannot be written.
    """
    try:
        descriptor = open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        raise InputError(f"{key}: {path.parent} cannot be written: {reason(error)}") from None
    try:
        try:
            free = all(try_lock(descriptor, start, length, wait=wait) for start, length in ranges)
        except OSError as error:
            raise InputError(f"{key}: {path} cannot be locked: {reason(error)}") from None
        yield free
    finally:
        os.close(descriptor)  # ends the lock


@contextlib.contextmanager
def holding(path: Path, taken: str, *, key: str) -> Iterator[None]:
    """Hold a whole lock file; other processes can ask with `is_held`.

    Args:
        path: Lock file, created if missing.
        taken: Message if another process holds it.
        key: Setting that the directory of the file comes from, for errors, such as `output_dir`.

    Raises:
        FilesInUse: Another process holds it.
        InputError: The file system does not support locks, or the directory cannot be written.
    """
    with locked(path, [(0, 0)], key=key) as free:
        if not free:
            raise FilesInUse(taken)
        yield


def is_held(path: Path) -> bool:
    """Whether another process holds a lock file; needs only permission to read it.

    Raises:
        InputError: The file cannot be opened, or the file system does not support locks.
    """
    try:
        with open_binary(path) as file:
            return not try_lock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be examined: {reason(error)}") from None
