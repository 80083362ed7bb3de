"""Writing a file or a directory so that a reader, at any time and after any kill, sees all of it or nothing."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
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

    The temporary name belongs to this process, so several processes may replace one file at once: each rename is a
    whole file, and the last one wins. The file has the permissions of the umask, even if a library made it private, as
    safetensors does.

    Raises:
        OSError: The file cannot be written.
        BaseException: Whatever the block raises, even if the temporary file cannot be removed then.
    """
    _remove_leftovers(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        publish(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def creating_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success fsync its files and rename it to `path`, else remove it.

    Args:
        path: The directory, which does not exist or is empty, not a link; directories above it are made.

    Raises:
        OSError: It cannot be written, or is no longer empty when it would get its name.
        BaseException: Whatever the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        fsync_directory(temporary)
        os.rename(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # the first error is the one to report
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, so that both survive a power cut.

    Args:
        temporary: File in the directory of `path`, closed.
        path: Final name; a file of that name is replaced.

    Raises:
        OSError: It cannot be written; `path` is unchanged, except if fsync of the directory fails. A device, FIFO or
            socket in its place, or behind a link in its place, is not replaced.
    """
    with contextlib.suppress(FileNotFoundError):  # also a link that leads nowhere
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # renaming refuses directories itself
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())  # network file systems report late write errors here, so before the rename
    os.replace(temporary, path)
    fsync_directory(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step.

    Raises:
        OSError: It cannot be written; the old file stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data: on a nearly full disk `os.write` writes only a part, and raises at the next call.

    Raises:
        OSError: The file cannot be written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file unless it exists already; true if this call wrote it.

    If several processes call this at once, exactly one of them gets true, on network file systems too.

    Raises:
        OSError: It cannot be written.
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
    """Path of the temporary file in which this process writes `path`."""
    return path.with_name(f"{_start(path)}{os.getpid()}.tmp")


def _start(path: Path) -> str:
    return f".{path.name}.{os.uname().nodename}."


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and directories of `path` that killed processes of this machine left behind."""
    start = _start(path)
    for left in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        number = left.name.removeprefix(start).removesuffix(".tmp")
        if number.isdecimal() and not _is_running(int(number)):
            with contextlib.suppress(OSError):  # of another user: this call does not need the name
                shutil.rmtree(left) if stat.S_ISDIR(left.lstat().st_mode) else left.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; not a process id
        return True
    return True
