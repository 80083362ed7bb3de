"""What became of a submission: its parts, from the scheduler and from the run's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.job.parts import PartName, State
from launch.submission import slurm_client
from launch.submission.progress import progress
from launch.submission.record import CONFIG, Record, Submitted, check_job_ids, explain, read_record
from masp.config import Config, load_config
from masp.errors import DataError
from masp.files import typed
from masp.files.locks import is_held
from masp.runtime.run_directory import STATUS_FILE as STATUS
from masp.runtime.run_directory import Status

DRIVER_LOCK = "driver.lock"
"""Held by the driver of a local submission for as long as it lives."""

OPEN = (State.WAITING, State.RUNNING)
"""States that a part leaves by itself."""

# The state of a part is the first of these that one of its tasks has.
_ORDER = (
    State.RUNNING,
    State.WAITING,
    State.FAILED,
    State.CANCELLED,
    State.STOPPED,
    State.UNKNOWN,
    State.FINISHED,
)


@dataclass(frozen=True)
class PartStatus:
    """How far a part of a local submission is."""

    state: State = State.WAITING
    job_ids: tuple[str, ...] = ()
    """Process ids of submitit's controllers, one per job."""
    num_done: int = 0
    """Jobs that have finished."""
    message: str | None = None
    """Why it stopped or failed."""
    elapsed: str | None = None
    """How long it took: `h:mm:ss`."""

    def __post_init__(self) -> None:
        check_job_ids(self.job_ids)


@dataclass(frozen=True)
class DriverStatus(Status):
    """`status.json` of a local submission."""

    part: PartName | None = None
    """The part that changed last."""
    parts: dict[PartName, PartStatus] | None = None
    """None before the first part starts."""

    def __post_init__(self) -> None:
        if not 1 < self.pid < 1 << 31:  # it gets signals, and 0 and negative numbers mean many processes
            raise ValueError("pid must be that of one process")


@dataclass(frozen=True)
class PartState:
    """One part of a submission, as it is shown."""

    name: PartName
    state: State
    job_ids: tuple[str, ...] = ()
    tasks: str = ""
    """How many tasks of an array have finished: `3/8`."""

    num_restarts: int = 0
    """Restarts of the task that was restarted most often."""

    elapsed: str = ""
    has_run: bool = False
    """Whether it has taken any time on Slurm."""

    nodes: str = ""
    progress: str = ""
    message: str = ""
    """Why it waits or failed."""


@dataclass(frozen=True)
class Overview:
    """A submission and the state of its parts."""

    directory: Path
    record: Record
    config: Config
    parts: tuple[PartState, ...]

    @property
    def is_open(self) -> bool:
        """Whether something of it is still queued or running."""
        return any(part.state in OPEN for part in self.parts)

    @property
    def state(self) -> State:
        """State of the whole."""
        return next(state for state in _ORDER if any(part.state == state for part in self.parts))

    @property
    def problems(self) -> list[str]:
        """Why it did not finish, a line per part; parts that never started are named only if no other is."""
        bad = [part for part in self.parts if part.state not in (*OPEN, State.FINISHED)]
        told = [part for part in bad if part.state != State.CANCELLED or part.has_run] or bad
        return [f"{part.name}: {part.state}{f': {part.message}' if part.message else ''}" for part in told]


def overview(directory: Path) -> Overview:
    """Look at a submission.

    Raises:
        InputError: its files are missing or may not be read, or the scheduler does not answer.
        DataError: one of its files is damaged.
    """
    record, config = with_found_jobs(read_record(directory)), load_config(directory / CONFIG)
    look = _slurm if record.executor == "slurm" else _local
    return Overview(directory, record, config, tuple(look(directory, record, config)))


def active(directory: Path) -> list[PartName]:
    """The parts of a submission that are still queued or running, without a look at what they have done.

    Raises:
        InputError: the scheduler does not answer.
    """
    record = with_found_jobs(read_record(directory))
    if record.executor == "local":
        return [part.name for part in record.parts] if is_held(directory / DRIVER_LOCK) else []
    found = slurm_client.look([job_id for part in record.parts for job_id in part.job_ids])
    return [part.name for part in record.parts if any(s.in_queue for i in part.job_ids for s in found[i].values())]


def with_found_jobs(record: Record) -> Record:
    """The record with the ids of jobs that Slurm has, and that the process that submitted them did not live to note.

    Raises:
        SlurmError: the scheduler does not answer.
    """
    unknown = {part.job_name: part.name for part in record.parts if part.job_name and not part.job_ids}
    for job_name, job_ids in slurm_client.find(list(unknown), record.time).items():
        record = record.with_jobs(unknown[job_name], *job_ids)
    return record


def _slurm(directory: Path, record: Record, config: Config) -> list[PartState]:
    found = slurm_client.look([job_id for part in record.parts for job_id in part.job_ids])
    return [_slurm_part(directory, part, config, found) for part in record.parts]


def _slurm_part(
    directory: Path, part: Submitted, config: Config, found: dict[str, dict[str, slurm_client.JobState]]
) -> PartState:
    tasks = [(i, task, state) for i in part.job_ids for task, state in found[i].items()]
    if not tasks:
        why = "Slurm does not know its job" if part.job_ids else "it was never submitted"
        return PartState(
            part.name, State.UNKNOWN, part.job_ids, progress=progress(part.name, config, part.result), message=why
        )
    states = [found.state for _, _, found in tasks]
    state = next(state for state in _ORDER if state in states)
    message = ""
    # the first task that is in the part's state
    job, task, chosen = next(entry for entry, own in zip(tasks, states, strict=True) if own == state)
    if state == State.FAILED:
        cause = explain(directory, f"{job}_{task}" if task else job)
        message = f"Slurm says {chosen.word}" + (f"; {cause}" if cause else "; it wrote no log")
    elif state == State.WAITING:
        message = chosen.reason
    running = sorted({found.nodes for _, _, found in tasks if found.nodes and found.on_nodes})
    return PartState(
        part.name,
        state,
        part.job_ids,
        tasks=f"{states.count(State.FINISHED)}/{part.num_jobs}" if part.num_jobs > 1 else "",
        num_restarts=max(found.num_restarts for _, _, found in tasks),
        elapsed=chosen.elapsed if state != State.WAITING else "",
        has_run=chosen.has_run,
        nodes=",".join(running),
        progress=progress(part.name, config, part.result),
        message=message,
    )


def read_driver_status(directory: Path) -> DriverStatus | None:
    """Read the status of a local submission; None if its driver has not written one.

    Raises:
        DataError: it is damaged. InputError: it may not be read.
    """
    try:
        return typed.read(DriverStatus, directory / STATUS, surrogates=True)
    except DataError as error:
        raise DataError(f"{error}; remove the file, and its parts count as cancelled") from None


def _local(directory: Path, record: Record, config: Config) -> list[PartState]:
    status = read_driver_status(directory)
    alive = is_held(directory / DRIVER_LOCK)
    known = (status.parts if status else None) or {}
    parts = []
    for part in record.parts:
        own = known.get(part.name, PartStatus())
        state, message = own.state, own.message or ""
        if not alive and state == State.RUNNING:
            state, message = State.FAILED, f"its driver died: see {directory / 'driver.log'}"
        elif not alive and state == State.WAITING:
            state = State.CANCELLED  # the part before it did not finish
        parts.append(
            PartState(
                part.name,
                state,
                own.job_ids,
                tasks=f"{own.num_done}/{part.num_jobs}" if part.num_jobs > 1 else "",
                elapsed=own.elapsed or "",
                nodes=status.host if status and state == State.RUNNING else "",
                progress=progress(part.name, config, part.result),
                message=message,
            )
        )
    return parts


HEADINGS = ("part", "state", "jobs", "tasks", "restarts", "time", "nodes", "progress", "")


def table(parts: Sequence[PartState]) -> list[str]:
    """The parts as lines of text, columns aligned; empty columns are left out."""
    rows = [
        (
            part.name,
            part.state,
            ",".join(part.job_ids),
            part.tasks,
            str(part.num_restarts or ""),
            part.elapsed,
            part.nodes,
            part.progress,
            part.message,
        )
        for part in parts
    ]
    columns = [column for column in zip(HEADINGS, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return ["  ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)).rstrip() for line in lines]
