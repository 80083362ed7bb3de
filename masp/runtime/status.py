"""`status.json`: what became of a run, for tools, since launchers replace exit codes (torchrun turns any into 1)."""

from __future__ import annotations

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

from masp.errors import DataError, InputError, MaspError, OtherRankFailed, StoppedEarly
from masp.files import typed
from masp.files.atomic import write_bytes
from masp.files.regular import is_directory
from masp.files.text import reason
from masp.files.typed import plain
from masp.runtime.run_lock import RunInUse

LOG = logging.getLogger(__name__)

FILE = "status.json"
_MAX_BYTES = 16 << 20


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
        message: One line for a person.
        kind: `Status`, or the subclass of it that `read_status` is to return.
        more: Further fields of `kind`, such as `step`.

    Raises:
        OSError: The file cannot be written.
    """
    status = kind(RunState(state), exit_code, message, time.time(), socket.gethostname(), os.getpid(), **more)
    fields = {"state": status.state, "exit_code": exit_code, **plain(status, omit_none=True)}  # null, not left out
    write_bytes(directory / FILE, json.dumps(fields, indent=1).encode())


@overload
def read_status(directory: Path) -> Status | None: ...
@overload
def read_status(directory: Path, kind: type[S]) -> S | None: ...
def read_status(directory: Path, kind: type[Status] = Status) -> Status | None:
    """Read the status of a run; None if there is none, or if the file is damaged.

    A damaged status is like none because the run itself does not depend on it and replaces it: it must neither stop
    a run nor hide why one failed.

    Args:
        directory: Run directory.
        kind: `Status`, or the subclass of it that was written.

    Raises:
        InputError: The file may not be read or is not a regular file.
    """
    try:
        return typed.read(kind, directory / FILE, max_bytes=_MAX_BYTES, surrogates=True)
    except DataError:
        return None


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
        earlier = read_status(directory)
        if not is_cause and earlier and earlier.state == RunState.FAILED and earlier.time >= entered:
            return
        if earlier and earlier.state == RunState.FINISHED:
            if earlier.time >= entered:  # by another rank of this call
                return
            state = RunState.FINISHED
        write_status(directory, state, exit_code, message)
    except (OSError, InputError) as error:  # most likely what ended the run, whose own message must get through
        LOG.warning("%s cannot be written: %s", directory / FILE, reason(error))
