"""One process at a time: a lock that goes when its process goes, however that happens."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from masp.errors import InputError

_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def holding(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, made if it is missing.

    A POSIX record lock, which network file systems know too. Closing any handle of the file in this process would drop
    it, so `is_held` is for other processes.

    Args:
        taken: the message if another process holds it.

    Raises:
        InputError: another process holds it, or the file system cannot lock.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115 - closed below, where the lock ends
    except OSError as error:
        raise InputError(f"output_dir: {path} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            reason = taken if error.errno in _TAKEN else f"output_dir: {path} cannot be locked: {error.strerror}"
            raise InputError(reason) from None
        yield


def is_held(path: Path) -> bool:
    """Whether another process holds it; reading it is enough to ask."""
    try:
        with open(path, "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _TAKEN:
            raise InputError(f"{path} cannot be looked at: {error.strerror}") from None
        return True
    return False
