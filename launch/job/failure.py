"""Why a process of a job failed: `<job>_<rank>_failure.json`, beside the log that says the same to people."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from masp.errors import MaspError, OtherRankFailed, one_line
from masp.files import typed
from masp.files.atomic import write_bytes
from masp.files.text import reason

LOG = logging.getLogger(__name__)

_LOG_SUFFIX = "_log.out"


class FailureKind(StrEnum):
    """What the failure of a process says about its job."""

    CAUSE = "cause"
    """Why the job failed."""
    BUG = "bug"
    """An error that nobody expected: the cause, or a consequence of another process's end."""
    CONSEQUENCE = "consequence"
    """It ended because another one failed, which knows why."""


@dataclass(frozen=True)
class Failure:
    """The content of a failure file."""

    kind: FailureKind
    exit_code: int
    message: str
    """One line."""


def failure_of(error: Exception) -> Failure:
    """Describe the error that ended a process."""
    if isinstance(error, MaspError):
        kind = FailureKind.CONSEQUENCE if isinstance(error, OtherRankFailed) else FailureKind.CAUSE
        return Failure(kind, error.exit_code, one_line(str(error)))
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return Failure(FailureKind.BUG, MaspError.exit_code, one_line(text))


def write_failure(log: Path, error: Exception) -> None:
    """Keep why a process failed; if that cannot be written (the disk is full, for one), a note says so.

    Args:
        log: Log of the process.
        error: What ended it.
    """
    path = failure_path(log)
    try:
        write_bytes(path, json.dumps(asdict(failure_of(error)), indent=1).encode() + b"\n")
    except OSError as problem:
        LOG.info("%s cannot be written: %s", path, reason(problem))


def read_failure(log: Path) -> Failure | None:
    """Read why a process failed; None if it did not, or ended before it could say so.

    Args:
        log: Log of the process.

    Raises:
        DataError: the file is damaged. InputError: it may not be read.
    """
    return typed.read(Failure, failure_path(log), surrogates=True)


def failure_path(log: Path) -> Path:
    """`<job>_<rank>_log.out` -> `<job>_<rank>_failure.json`."""
    return log.with_name(f"{log.name.removesuffix(_LOG_SUFFIX)}_failure.json")
