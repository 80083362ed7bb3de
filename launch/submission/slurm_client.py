"""What Slurm says about jobs: the queue first, and the accounting about those that left it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from launch.job.parts import State
from masp.errors import InputError
from masp.files.text import shown

_TIMEOUT_S = 60
_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "Reason", "TimeUsed", "NodeList", "RestartCnt")
_PREFIX = re.compile(r"^(s[a-z]+: )?((error|fatal): )?")

# Words of slurm-wlm 22.05.8: instead of an empty column, and where the exit code is 1 as for any other failure.
_NO_TASK = ("N/A", "")
_NO_REASON = "None"
_NO_NODES = "None assigned"
_UP = re.compile(r"Slurmctld\(\w+\) at \S+ is UP")
_WHOLE_ARRAY_EXPRESSION = {"SLURM_BITSTR_LEN": "0"}
"""Without it, Slurm cuts off the list of an array's tasks after 64 characters."""
_MAX_TASKS = 4_000_000
"""Slurm's own limit of an array's task ids."""
_TASK_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_UNKNOWN_JOB = re.compile(r"^(slurm_load_jobs error: )?Invalid job id", re.MULTILINE)

_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_FAILED = ("BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")
_STATES = dict.fromkeys(_WAITING, State.WAITING) | dict.fromkeys(_FAILED, State.FAILED)
_STATES |= {"COMPLETED": State.FINISHED, "CANCELLED": State.CANCELLED}
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


class SlurmError(InputError):
    """A command of Slurm failed, or did not answer.

    Args:
        message: for the user.
        words: Slurm's own part of the message; None: all of it.
    """

    def __init__(self, message: str, words: str | None = None):
        super().__init__(message)
        self.words = message if words is None else words


class UnknownJob(SlurmError):
    """Slurm does not know the job, or no longer does."""


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array."""

    word: str
    """State in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED …"""

    reason: str = ""
    """Why it is pending, in Slurm's words."""

    elapsed: str = ""
    """How long its last run has taken, as Slurm writes durations."""

    nodes: str = ""
    num_restarts: int = 0
    """How often it was restarted."""
    in_queue: bool = False
    """Whether Slurm may still start it, or has not ended it yet."""

    @property
    def state(self) -> State:
        """State in our words; running includes CONFIGURING, COMPLETING, SUSPENDED …"""
        return _STATES.get(self.word, State.RUNNING)

    @property
    def on_nodes(self) -> bool:
        """Whether its processes run at this moment."""
        return self.word == "RUNNING"

    @property
    def has_run(self) -> bool:
        """Whether it has taken any time."""
        return bool(self.elapsed.strip("0:"))


def look(job_ids: Sequence[str]) -> dict[str, dict[str, JobState]]:
    """Ask for the state of jobs.

    Returns:
        By job id, by task of its array (`""` if it is not an array). A job that Slurm does not know has no tasks.

    Raises:
        SlurmError: Slurm does not answer.
    """
    found: dict[str, dict[str, JobState]] = {job_id: {} for job_id in job_ids}
    if not job_ids:
        return found
    queued = _squeue(job_ids)
    past = _sacct(job_ids)
    for job_id in job_ids:
        # The accounting lags behind for those that are still queued, and is all there is about the others.
        found[job_id] = past.get(job_id, {}) | queued.get(job_id, {})
    return found


def _squeue(job_ids: Sequence[str]) -> dict[str, dict[str, JobState]]:
    layout = ",".join(f"{name}:|" for name in _FIELDS)
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(job_ids)}", f"--Format={layout}"]
    try:
        lines = ask(*command).splitlines()
    except UnknownJob:  # it has forgotten all of them
        return {}
    found: dict[str, dict[str, JobState]] = {}
    for line in lines:
        job, task, word, reason, elapsed, nodes, restarts = _columns("squeue", line, len(_FIELDS))
        if restarts and not restarts.isdecimal():
            raise _not_understood("squeue", line)
        state = JobState(
            word, "" if reason == _NO_REASON else reason, elapsed, nodes, int(restarts or 0), word not in _ENDED
        )
        found.setdefault(job, {})["" if task in _NO_TASK else task] = state
    return found


def _sacct(job_ids: Sequence[str]) -> dict[str, dict[str, JobState]]:
    command = ["sacct", "--allocations", "--duplicates", "--parsable2", "--noheader", f"--jobs={','.join(job_ids)}"]
    found: dict[str, dict[str, JobState]] = {}
    for line in ask(*command, "--format=JobID,State,Elapsed,NodeList").splitlines():
        name, words, elapsed, nodes = _columns("sacct", line, 4)
        if not words.strip():
            continue
        word = words.split()[0]  # the state of a cancelled job goes on with who did it
        job, _, task = name.partition("_")
        tasks = found.setdefault(job, {})
        nodes = "" if nodes == _NO_NODES else nodes
        if task.startswith("["):  # tasks that never started share a line
            if word in _ENDED:  # of those that wait, the queue has a line each
                for number in _tasks(line, task):
                    tasks.setdefault(number, JobState(word, "", elapsed, nodes))
            continue
        before = tasks.get(task)
        # one line per run of the job, oldest first
        tasks[task] = JobState(word, "", elapsed, nodes, 0 if before is None else before.num_restarts + 1)
    return found


def _columns(command: str, line: str, count: int) -> list[str]:
    """The columns of a line that a command of Slurm printed; what follows the last separator is dropped."""
    columns = line.split("|")
    if len(columns) < count:
        raise _not_understood(command, line)
    return columns[:count]


def _tasks(line: str, expression: str) -> list[str]:
    """The tasks of an array: `[0-2,7%4]` -> 0, 1, 2, 7."""
    parts = [_TASK_RANGE.fullmatch(part) for part in expression.strip("[]").partition("%")[0].split(",")]
    found: list[str] = []
    for part in parts:
        if part is None:
            raise _not_understood("sacct", line)
        first, last, step = int(part[1]), int(part[2] or part[1]), int(part[3] or 1)
        if not step or last >= _MAX_TASKS:
            raise _not_understood("sacct", line)
        found += [str(task) for task in range(first, last + 1, step)]
    return found


def _not_understood(command: str, line: str) -> SlurmError:
    return SlurmError(f"cluster: {command} printed a line that is not understood: {shown(line)}")


def cancel(job_ids: Sequence[str], timeout_s: float = 90) -> list[str]:
    """Cancel jobs and wait until Slurm has ended them; returns those that have not ended yet.

    Raises:
        SlurmError: Slurm does not answer.
    """
    ask("scancel", *job_ids)
    deadline = time.monotonic() + timeout_s
    while True:
        states = look(job_ids)
        left = [job_id for job_id in job_ids if any(state.in_queue for state in states[job_id].values())]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1)


def check_answers() -> None:
    """Check that a controller answers.

    Raises:
        InputError: none does.
    """
    try:
        output = ask("scontrol", "ping")  # some versions fail where no controller is up, some only say so
    except SlurmError as error:
        output = error.words
    if not _UP.search(output):
        why = output.strip().splitlines()[0].partition(";")[0] if output.strip() else "it says nothing"
        raise InputError(f"cluster: Slurm does not answer: {why}; nothing was submitted")


def ask(*command: str, text: str | None = None) -> str:
    """Run a command of Slurm; returns what it prints.

    Args:
        text: its standard input.

    Raises:
        SlurmError: it failed, in its own words, or gave no answer in time; UnknownJob where that is the reason.
    """
    environment = os.environ | _WHOLE_ARRAY_EXPRESSION
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except FileNotFoundError:
        raise SlurmError(f"cluster: this machine has no {command[0]}: ask from a node of the cluster") from None
    except OSError as error:
        raise SlurmError(f"cluster: {command[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        words = f"Slurm did not answer within {_TIMEOUT_S} s"
        raise SlurmError(f"cluster: {command[0]}: {words}", words) from None
    if done.returncode:
        output = done.stderr or done.stdout
        kind = UnknownJob if _UNKNOWN_JOB.search(output) else SlurmError
        raise kind(f"cluster: {command[0]}: {reason(output)}", reason(output))
    return done.stdout


def reason(text: str) -> str:
    """Slurm's own words, on one line and each once."""
    lines = [_PREFIX.sub("", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "it gave no reason"
