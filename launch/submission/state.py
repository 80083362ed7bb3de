"""What became of a submission: its parts, from the scheduler and from the run's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.job.parts import State
from launch.submission import slurm_client
from launch.submission.progress import progress
from launch.submission.record import CONFIG, Record, Submitted, explain, read_record
from masp.config import Config, load_config
from masp.files.locks import is_held
from masp.runtime.status import Status, read_status

DRIVER_LOCK = "driver.lock"
"""Held by the driver of a local submission for as long as it lives."""

OPEN = (State.WAITING, State.RUNNING)
"""States that a part leaves by itself."""

# Of several tasks, the first of these that one of them is in is the part's.
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
    num_done: int = 0
    message: str | None = None
    elapsed: str | None = None


@dataclass(frozen=True)
class DriverStatus(Status):
    """`status.json` of a local submission."""

    part: str | None = None
    """The part that was started last."""
    parts: dict[str, PartStatus] | None = None


@dataclass(frozen=True)
class PartState:
    """One part of a submission."""

    name: str
    state: State
    job_ids: tuple[str, ...] = ()
    tasks: str = ""
    """Of an array, how many tasks have finished."""

    num_restarts: int = 0
    """Of the task that started again most often."""

    elapsed: str = ""
    has_run: bool = False
    """Whether it has taken any time on Slurm."""

    nodes: str = ""
    progress: str = ""
    message: str = ""
    """Why it waits or failed."""


@dataclass(frozen=True)
class Overview:
    """A submission."""

    folder: Path
    record: Record
    config: Config
    parts: tuple[PartState, ...]

    @property
    def is_open(self) -> bool:
        """Whether something of it is still queued or running."""
        return any(part.state in OPEN for part in self.parts)

    @property
    def state(self) -> State:
        """Of the whole."""
        return next(state for state in _ORDER if any(part.state == state for part in self.parts))

    @property
    def problems(self) -> list[str]:
        """Why it did not finish, a line per part; of parts that never started only if there is nothing else."""
        bad = [part for part in self.parts if part.state not in (*OPEN, State.FINISHED)]
        told = [part for part in bad if part.state != State.CANCELLED or part.has_run] or bad
        return [f"{part.name}: {part.state}{f': {part.message}' if part.message else ''}" for part in told]


def overview(folder: Path) -> Overview:
    """Look at a submission.

    Raises:
        InputError: its files are missing, or the scheduler does not answer.
    """
    record, config = read_record(folder), load_config(folder / CONFIG)
    look = _slurm if record.executor == "slurm" else _local
    return Overview(folder, record, config, tuple(look(folder, record, config)))


def active(folder: Path) -> list[str]:
    """The parts of a submission that are still queued or running, without looking at what they have done.

    Raises:
        InputError: the scheduler does not answer.
    """
    record = read_record(folder)
    if record.executor == "local":
        return [part.name for part in record.parts] if is_held(folder / DRIVER_LOCK) else []
    found = slurm_client.look([job_id for part in record.parts for job_id in part.job_ids])
    return [part.name for part in record.parts if any(s.in_queue for i in part.job_ids for s in found[i].values())]


def _slurm(folder: Path, record: Record, config: Config) -> list[PartState]:
    found = slurm_client.look([job_id for part in record.parts for job_id in part.job_ids])
    return [_slurm_part(folder, part, config, found) for part in record.parts]


def _slurm_part(
    folder: Path, part: Submitted, config: Config, found: dict[str, dict[str, slurm_client.JobState]]
) -> PartState:
    tasks = [(i, task, state) for i in part.job_ids for task, state in found[i].items()]
    if not tasks:
        why = "Slurm does not know its job" if part.job_ids else "it was never submitted"
        return PartState(part.name, State.UNKNOWN, part.job_ids, progress=progress(part.name, config), message=why)
    states = [found.state for _, _, found in tasks]
    state = next(state for state in _ORDER if state in states)
    message = ""
    # Those in the part's own state speak for it.
    job, task, chosen = next(entry for entry, own in zip(tasks, states, strict=True) if own == state)
    if state == State.FAILED:
        cause = explain(folder, f"{job}_{task}" if task else job)
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
        progress=progress(part.name, config),
        message=message,
    )


def _local(folder: Path, record: Record, config: Config) -> list[PartState]:
    status = read_status(folder, DriverStatus)
    alive = is_held(folder / DRIVER_LOCK)
    known = (status.parts if status else None) or {}
    parts = []
    for part in record.parts:
        own = known.get(part.name, PartStatus())
        state, message = own.state, own.message or ""
        if not alive and state == State.RUNNING:
            state, message = State.FAILED, f"its driver died: see {folder / 'driver.log'}"
        elif not alive and state == State.WAITING:
            state = State.CANCELLED  # what stood before it did not finish
        parts.append(
            PartState(
                part.name,
                state,
                own.job_ids,
                tasks=f"{own.num_done}/{part.num_jobs}" if part.num_jobs > 1 else "",
                elapsed=own.elapsed or "",
                nodes=status.host if status and state == State.RUNNING else "",
                progress=progress(part.name, config),
                message=message,
            )
        )
    return parts


HEADINGS = ("part", "state", "jobs", "tasks", "restarts", "time", "nodes", "progress", "")


def table(parts: Sequence[PartState]) -> list[str]:
    """The parts as lines of text, columns aligned; a column in which nothing stands is left out."""
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
