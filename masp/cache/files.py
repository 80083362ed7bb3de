"""Writing and reading small files so that a reader sees a whole file or none, and a flipped byte is noticed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from masp.errors import DataError, InputError

CHUNK = 1 << 20
"""Bytes read at a time while digesting a file."""


def canonical_json(value) -> bytes:
    """One spelling per value: sorted keys, no spaces, ASCII (paths may hold bytes that are no UTF-8)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value) -> str:
    """SHA-256 of a JSON value's canonical spelling, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`, otherwise remove it.

    The name is this process's own, so several may replace one file at once: each rename is a whole file, the last wins.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    _remove_leftovers(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files beside `path` that processes of this machine left when they were killed."""
    start = f".{path.name}.{os.uname().nodename}."
    for left in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        number = left.name.removeprefix(start).removesuffix(".tmp")
        if number.isdigit() and not _is_running(int(number)):
            left.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextlib.contextmanager
def plain_write_errors(folder: Path) -> Iterator[None]:
    """Turn what a file system refuses while the cache `folder` is written into one line for the user.

    Raises:
        InputError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "no space is left" if full else f"writing failed ({error.strerror or error})"
        then = "free some space" if full else "make it writable"
        raise InputError(
            f"cache.dir: {folder}: {why}; finished shards are kept: {then} and run the same command again"
        ) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sealed(value: dict) -> bytes:
    """Spell a JSON object together with its own digest, so that any later change of a byte shows."""
    value = {**value, "digest": digest_of(value)}
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def unseal(data: bytes, name: str) -> dict:
    """Undo `sealed`.

    Raises:
        DataError: the text is no JSON object or does not match its digest.
    """
    try:
        value = json.loads(data)
    except ValueError:
        raise DataError(f"{name} is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{name} is damaged: it holds no JSON object")
    found = value.pop("digest", None)
    if found != digest_of(value) or sealed(value) != data:
        raise DataError(f"{name} is damaged: its content does not match its digest")
    return value


def read_sealed(path: Path) -> dict | None:
    """Read a sealed file; None if there is none.

    Raises:
        DataError: the file is damaged. InputError: it may not be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return unseal(data, str(path))


def create_sealed(path: Path, value: dict) -> bool:
    """Write a sealed file unless another process was first; true if this call wrote it."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(sealed(value))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.link(temporary, path)  # fails if the name is taken, on network file systems too
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True


@contextlib.contextmanager
def locked(path: Path, ranges: Iterable[tuple[int, int]], wait: bool = False) -> Iterator[bool]:
    """Hold byte ranges of a lock file; yields whether all were free, which they are in the end if it waits.

    POSIX record locks: they go when the process goes, however that happens, and forked DataLoader workers do not
    inherit them, so a killed job never leaves the folder locked. A process must not nest two calls on one file, since
    closing it anywhere drops all locks.

    Args:
        path: the lock file, created if missing.
        ranges: `(first byte, number of bytes)`; a number of 0 means to the end, whatever that is.
        wait: until each of them is free.

    Raises:
        InputError: the file system cannot lock or the folder cannot be written.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115 - closed below, where the lock ends
    except OSError as error:
        raise InputError(f"cache.dir: {path.parent} cannot be written: {error.strerror}") from None
    with file:
        free = True
        for start, length in ranges:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise InputError(f"cache.dir: {path} cannot be locked: {error.strerror}") from None
                free = False
                break
        yield free
