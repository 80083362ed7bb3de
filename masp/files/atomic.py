"""Writing a file so that a reader, at any time and after any kill, sees all of it or none."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def fsync_directory(directory: Path) -> None:
    """Make renames inside a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; on success fsync it and rename it to `path`, otherwise remove it.

    The temporary name is this process's own, so several may replace one file at once: each rename is a whole file, the
    last wins. The file has the permissions of the umask, even where a library made it private (safetensors does).

    Raises:
        OSError: the file cannot be written. Whatever the block raises leaves unchanged, even if the temporary file
            cannot be removed then.
    """
    _remove_leftovers(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with open(temporary, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file unless there is one already; true if this call wrote it.

    Of several processes that call this at once, exactly one gets true, on network file systems too.

    Raises:
        OSError: it cannot be written.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # fails if the name is taken
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return True


def temporary_path(path: Path) -> Path:
    """Where this process writes what will become `path`."""
    return path.with_name(f"{_start(path)}{os.getpid()}.tmp")


def _start(path: Path) -> str:
    return f".{path.name}.{os.uname().nodename}."


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files beside `path` that processes of this machine left when they were killed."""
    start = _start(path)
    for left in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        number = left.name.removeprefix(start).removesuffix(".tmp")
        if number.isdecimal() and not _is_running(int(number)):
            with contextlib.suppress(OSError):  # of another user: not in the way of this call
                left.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; not the name of a process
        return True
    return True
