"""Pickles of jobs and of their results: whoever can write one could run anything as the user whose job reads it."""

from __future__ import annotations

import io
import os
import pickle
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission

from masp.errors import DataError, InputError
from masp.files.regular import open_descriptor, read_bytes
from masp.files.text import first_line, reason

OWNERS = 0o755
"""Mode of the directories of a submission, and but for the execution bits of its pickles: the umask takes more away,
never gives others the right to write. Logs have the mode that the umask gives them."""

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MAX_RESULT_BYTES = 16 << 20


class OwnersPickle:
    """A job to submit, whose pickle only its owner can ever write, whatever the umask.

    submitit knows it by these methods. The umask itself stays as it is: jobs inherit it, for their results.
    """

    def __init__(self, submission: DelayedSubmission):
        self._submission = submission

    def set_timeout(self, *arguments: int) -> None:
        """See submitit."""
        self._submission.set_timeout(*arguments)

    def dump(self, path: str | Path) -> None:
        """Write the pickle."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNERS & 0o666))
        self._submission.dump(path)


def owners_pickles(submissions: Sequence[DelayedSubmission]) -> list[Any]:
    """What submitit gets in place of the jobs themselves."""
    return [OwnersPickle(submission) for submission in submissions]


def check_pickle(path: Path) -> None:
    """Refuse a pickle that somebody else could have written: it, or a directory of the submission that it is in.

    Raises:
        InputError: It is not a regular file, not this user's (or root's), or others may write it; says which.
    """
    try:
        descriptor = open_descriptor(path)
        try:
            _check_owner(path, os.fstat(descriptor))
        finally:
            os.close(descriptor)
        for directory in (path.parent, path.parent.parent):
            _check_owner(directory, os.stat(directory))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise InputError(f"{path} is refused: it belongs to user {status.st_uid}, not to you; submit the job again")
    if status.st_mode & _BY_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise InputError(
            f"{path} is refused: others than its owner may write it (mode {mode:o}), and what it holds is run; "
            "`chmod go-w` it if nobody has changed it, or submit the job again"
        )


def has_succeeded(path: Path) -> bool:
    """Whether the result that submitit keeps of a process is one of success; nothing in it is run.

    Raises:
        DataError: It is damaged. InputError: It may not be read.
    """
    data = read_bytes(path, max_bytes=_MAX_RESULT_BYTES)
    try:
        outcome, _ = _Plain(io.BytesIO(data or b"")).load()
    except Exception as error:  # any bytes can be there, and pickle raises nearly anything
        raise DataError(f"{path} is damaged: {first_line(error)}") from None
    return outcome == "success"


class _Plain(pickle.Unpickler):
    """Loads strings, numbers and containers: jobs return the path of what they make."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")
