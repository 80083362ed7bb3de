"""A run directory: `status.json` says what became of the run, and a lock lets one run at a time write there.

The status is for tools, since launchers replace exit codes (torchrun turns any into 1). The lock ends with the process
that holds it, however that ends.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, overload

from masp.errors import DataError, FilesInUse, InputError, MaspError, OtherRankFailed, StoppedEarly, one_line
from masp.files import typed
from masp.files.atomic import write_all, write_bytes
from masp.files.locks import try_lock
from masp.files.regular import is_directory, open_binary, open_descriptor
from masp.files.text import reason, shortened
from masp.files.typed import decode, plain
from masp.runtime.stop import StopNow

LOG = logging.getLogger(__name__)

STATUS_FILE = "status.json"
LOCK_FILE = ".lock"
_MAX_BYTES = 16 << 20


class RunInUse(FilesInUse):
    """Another live run uses this directory; its files, the status included, are left alone."""


class RunState(StrEnum):
    """What became of a run."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """It can be resumed."""
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """The content of `status.json`. A subclass may add fields; those that are None are left out of the file."""

    state: RunState
    exit_code: int | None
    """Exit code of the process (0, 1, 2, 3, 75 or 130); None while it is running."""
    message: str
    """One line for a person."""
    time: float
    """When it was written, in seconds since 1970."""
    host: str
    pid: int
    step: int | None = None
    """Training: steps taken when the status was written."""
    num_steps: int | None = None
    """Training: steps of the whole stage."""
    warning: str | None = None
    """Training: what to look at although the stage is finished."""
    subset: str | None = None
    """Training: how many of the training images it sees, where that is not all."""

    def __post_init__(self) -> None:
        if not 0 < self.pid < 1 << 31:  # 0 and negative numbers mean many processes, which is not for a file to say
            raise ValueError("pid must be that of one process")


S = TypeVar("S", bound=Status)


def write_status(
    directory: Path,
    state: RunState,
    exit_code: int | None = None,
    message: str = "",
    kind: type[Status] = Status,
    **more: Any,
) -> None:
    """Replace the status of a run.

    Args:
        directory: Run directory.
        state: What became of the run so far.
        exit_code: Exit code of the process; None while it is running.
        message: For a person; kept as one line of printable characters, since it may name files.
        kind: `Status`, or the subclass of it that `read_status` is to return.
        more: Further fields of `kind`, such as `step`.

    Raises:
        OSError: The file cannot be written.
    """
    status = kind(
        RunState(state), exit_code, _printable(message), time.time(), socket.gethostname(), os.getpid(), **more
    )
    fields = {"state": status.state, "exit_code": exit_code, **plain(status, omit_none=True)}  # null, not left out
    write_bytes(directory / STATUS_FILE, json.dumps(fields, indent=1).encode())


def _printable(message: str) -> str:
    """A message on one line, escaped; bytes of a file name that are not UTF-8 stay, which JSON escapes itself."""
    return "".join(c if "\ud800" <= c <= "\udfff" else one_line(c) for c in message)


@overload
def read_status(directory: Path) -> Status | None: ...
@overload
def read_status(directory: Path, kind: type[S]) -> S | None: ...
def read_status(directory: Path, kind: type[Status] = Status) -> Status | None:
    """Read the status of a run; None if there is none, or if the file is damaged.

    A run that is said to be running, but whose process on this machine has ended, is returned as failed: it was killed,
    or the disk was so full that it could not say how it ended.

    A damaged status is like none because the run itself does not depend on it and replaces it: it must neither stop
    a run nor hide why one failed.

    Args:
        directory: Run directory.
        kind: `Status`, or the subclass of it that was written.

    Raises:
        InputError: The file may not be read or is not a regular file.
    """
    status = _read_as_written(directory, kind)
    if status is None or status.state != RunState.RUNNING or not _is_gone(status):
        return status
    message = f"process {status.pid} ended without a word: it was killed, or could not write its status"
    return dataclasses.replace(status, state=RunState.FAILED, exit_code=1, message=message)


def _read_as_written(directory: Path, kind: type[Status] = Status) -> Status | None:
    try:
        return typed.read(kind, directory / STATUS_FILE, max_bytes=_MAX_BYTES, surrogates=True)
    except DataError:
        return None


def _is_gone(status: Status) -> bool:
    """Whether the process that wrote a status has certainly ended; only its own machine can tell."""
    if status.host != socket.gethostname():
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    try:
        # What is left of a process until its parent has asked for its exit code still takes signals.
        with open_binary(f"/proc/{status.pid}/stat") as file:
            fields = file.read(_MAX_BYTES).rpartition(b")")[2].split()
    except OSError:  # has ended meanwhile, or this is not Linux
        return False
    return fields[:1] in ([b"Z"], [b"X"])


@contextmanager
def noting_failure(directory: Path) -> Iterator[None]:
    """Write to the status which error ends the block; every rank enters it.

    The rank that meets the cause writes it before it leaves. The others then fail because that rank left, which is
    only written if no cause is there already. A finished run stays finished: a rank that fails after another one has
    finished the run changes nothing, and a later call that is refused changes only `exit_code` and `message`.

    Args:
        directory: Run directory; nothing is written while it does not exist.
    """
    entered = time.time()
    try:
        yield
    except (OtherRankFailed, RunInUse):  # the rank that met the cause writes it; a run in use is not ours
        raise
    except MaspError as error:
        state = RunState.STOPPED if isinstance(error, StoppedEarly) else RunState.FAILED
        _note(directory, entered, state, error.exit_code, str(error))
        raise
    except StopNow:
        _note(directory, entered, RunState.STOPPED, StoppedEarly.exit_code, "stopped on request")
        raise
    except KeyboardInterrupt:
        _note(directory, entered, RunState.STOPPED, 130, "interrupted")
        raise
    except Exception as error:
        _note(directory, entered, RunState.FAILED, 1, f"{type(error).__name__}: {error}", is_cause=False)
        raise


def _note(
    directory: Path, entered: float, state: RunState, exit_code: int, message: str, is_cause: bool = True
) -> None:
    """Write a status, unless it may only be a consequence and a cause was written since `entered`."""
    try:
        if not is_directory(directory):
            return
        earlier = _read_as_written(directory)
        if not is_cause and earlier and earlier.state == RunState.FAILED and earlier.time >= entered:
            return
        if earlier and earlier.state == RunState.FINISHED:
            if earlier.time >= entered:  # by another rank of this call
                return
            state = RunState.FINISHED
        write_status(directory, state, exit_code, message)
    except (OSError, InputError) as error:  # most likely what ended the run, whose own message must get through
        LOG.warning("%s cannot be written: %s", directory / STATUS_FILE, reason(error))


@dataclass(frozen=True)
class _Holder:
    """Content of the lock file: the process that holds the lock."""

    host: str
    pid: int


class RunLock:
    """The right to write into a run directory, held by rank 0 for all ranks. Use as a context manager.

    The lock is one of `masp.files.locks`, so a killed run leaves nothing locked. The file names the holder, for the
    error message.

    Args:
        directory: Run directory; as long as it does not exist, `take` does nothing.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK_FILE
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock if the directory exists; nothing happens if it is held already.

        Raises:
            RunInUse: Another live process holds it.
            InputError: The lock file cannot be written or locked.
        """
        if self._descriptor is not None or not is_directory(self.path.parent, key="output_dir"):
            return
        try:
            descriptor = open_descriptor(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise self._not_written(error) from None
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor  # if this process closed any other descriptor of the file, the lock would end

    def _lock(self, descriptor: int) -> None:
        try:
            free = try_lock(descriptor)
        except OSError as error:
            raise InputError(
                f"output_dir: {self.path} cannot be locked ({reason(error)}), so two runs could write here at once; "
                "give an output_dir on a file system with locks"
            ) from None
        if not free:
            raise RunInUse(
                f"output_dir: {self.path.parent} is in use by {self._described(os.read(descriptor, 4096))}; wait until "
                "it ends or stop it, or give another output_dir"
            )
        holder = _Holder(socket.gethostname(), os.getpid())
        try:
            os.ftruncate(descriptor, 0)
            write_all(descriptor, json.dumps(dataclasses.asdict(holder)).encode())
        except OSError as error:
            raise self._not_written(error) from None

    def _not_written(self, error: OSError) -> InputError:
        return InputError(f"output_dir: {self.path} cannot be written: {reason(error)}")

    def _described(self, content: bytes) -> str:
        """Who holds the lock, according to its file."""
        try:
            holder = decode(_Holder, content, str(self.path))
        except DataError:  # its holder has only just taken it, or a person wrote into it; it is locked all the same
            return "another run"
        return f"another run, process {holder.pid} on {one_line(shortened(holder.host))}"

    def release(self) -> None:
        """Release the lock. The file stays: if it were removed, two other runs could each lock a file of that name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
