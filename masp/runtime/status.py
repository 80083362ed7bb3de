"""`status.json`: what became of a run, for tools. Launchers replace exit codes (torchrun turns each failure into 1)."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from masp.errors import MaspError, OtherRankFailed, StoppedEarly
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.runtime.run_lock import RunInUse

FILE = "status.json"


class RunState(StrEnum):
    """What became of a run."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """It can be resumed."""
    FAILED = "failed"


def write_status(folder: Path, state: RunState, exit_code: int | None = None, message: str = "", **more) -> None:
    """Replace the status of the run in `folder`.

    Args:
        state: what became of the run so far.
        exit_code: of the process (0, 1, 2, 3 or 75); None while running.
        message: one line for a person.
        more: counters, such as `step`.
    """
    host, pid = socket.gethostname(), os.getpid()
    status = {"state": state, "exit_code": exit_code, "message": message, "time": time.time(), "host": host, "pid": pid}
    write_bytes(folder / FILE, json.dumps({**status, **more}, indent=1).encode())


def read_status(folder: Path) -> dict | None:
    """The status of the run in `folder`; None if none was written, or what stands there is no status."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        status = json.loads(path.read_bytes())
    except ValueError:  # a disk that was full, or another program; the next status replaces it
        return None
    whole = isinstance(status, dict) and isinstance(status.get("state"), str)
    return status if whole and isinstance(status.get("time"), int | float) else None


@contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Write to the status what ends the block other than normally; every rank enters it.

    A rank that meets a cause writes it before it leaves; the others then fail because it left, which is only noted
    where no cause stands already. What is finished stays finished: a rank that fails after another one has completed
    the run changes nothing, and a later call that is refused changes only `exit_code` and `message`.
    """
    entered = time.time()
    try:
        yield
    except (OtherRankFailed, RunInUse):  # the cause is noted by whoever met it; a run in use is another's
        raise
    except MaspError as error:
        state = RunState.STOPPED if isinstance(error, StoppedEarly) else RunState.FAILED
        _note(folder, entered, state, error.exit_code, str(error))
        raise
    except KeyboardInterrupt:
        _note(folder, entered, RunState.STOPPED, 130, "interrupted")
        raise
    except Exception as error:
        _note(folder, entered, RunState.FAILED, 1, f"{type(error).__name__}: {error}", is_cause=False)
        raise


def _note(folder: Path, entered: float, state: RunState, exit_code: int, message: str, is_cause: bool = True) -> None:
    """Write a status; one that may only be a consequence does not replace a cause that was noted since `entered`."""
    if folder.is_dir():
        try:
            earlier = read_status(folder)
            if not is_cause and earlier and earlier["state"] == RunState.FAILED and earlier["time"] >= entered:
                return
            if earlier and earlier["state"] == RunState.FINISHED:
                if earlier["time"] >= entered:  # by another rank of this call
                    return
                state = RunState.FINISHED
            write_status(folder, state, exit_code, message)
        except OSError as error:  # a full disk, most likely what ended the run: its own message must get through
            print(f"note: {folder / FILE} cannot be written: {reason(error)}")
