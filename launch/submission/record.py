"""The folder of a submission: what was submitted, with which settings, as which jobs.

<output_dir>/launch/<time>-<command>/
    submission.json   command, working directory, and the parts with their job ids
    config.yaml       the resolved configuration, which the jobs read
    cluster.yaml      the resolved cluster settings
    environment.json  code version, packages, machine and variables at submission (launch.snapshot)
    jobs/             what submitit keeps: scripts, pickles, and a log per process (<job>_<rank>_log.out); of one that
                      failed also why (<job>_<rank>_failure.json)
    status.json       local executor only: how far its driver is; with driver.log and driver.lock
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.job.config import ClusterConfig
from launch.job.jobs import FailureKind, read_failure
from masp.config import Config, save_config
from masp.errors import DataError, InputError
from masp.files.atomic import write_bytes

FILE, CONFIG, CLUSTER, JOBS = "submission.json", "config.yaml", "cluster.yaml", "jobs"


_BYSTANDERS = ("srun: ", "slurmstepd", "submitit ")
"""How the lines of others begin in a job's log: those of Slurm (22.05) and of submitit (1.5), which write into the same
file about what the job did."""


@dataclass(frozen=True)
class Submitted:
    """A part as it was handed over."""

    name: str
    num_jobs: int
    """Tasks of the array, or 1."""

    num_ranks: int
    """Processes of each."""

    result: str
    """What it leaves behind."""

    job_ids: tuple[str, ...] = ()
    """As the scheduler calls them: one on Slurm, also of an array; none before it was handed over. Those of the local
    executor stand in its driver's status."""


@dataclass(frozen=True)
class Record:
    """What `submission.json` holds."""

    command: str
    stage: str | None
    executor: str
    parts: tuple[Submitted, ...]
    working_directory: str
    """Where relative paths of the configuration begin."""
    host: str
    time: float
    """When it was submitted, in seconds since 1970."""

    def with_jobs(self, name: str, *job_ids: str) -> Record:
        """The same with the job ids of one part."""
        parts = tuple(replace(part, job_ids=job_ids) if part.name == name else part for part in self.parts)
        return replace(self, parts=parts)


def new_record(command: str, stage: str | None, executor: str, parts: tuple[Submitted, ...]) -> Record:
    """The record of a submission that this process makes now."""
    return Record(command, stage, executor, parts, os.getcwd(), socket.gethostname(), time.time())


def submissions_of(config: Config) -> Path:
    """The folder that holds all submissions of a run."""
    return Path(config.output_dir).absolute() / "launch"


def make_folder(command: str, config: Config, cluster: ClusterConfig) -> Path:
    """A new folder with the resolved settings in it.

    Raises:
        InputError: it cannot be written.
    """
    parent = submissions_of(config)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(parent, name)
        (folder / JOBS).mkdir()
        save_config(config, folder / CONFIG)
        save_config(cluster, folder / CLUSTER)
    except OSError as error:
        raise InputError(f"output_dir: {parent} cannot be written: {error.strerror}") from None
    return folder


def _new_folder(parent: Path, name: str) -> Path:
    """Two submissions within a second get folders of their own."""
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise InputError(f"output_dir: {parent} holds a thousand submissions of this second")


def write_record(folder: Path, record: Record) -> None:
    """Write `submission.json`: complete or not at all."""
    write_bytes(folder / FILE, json.dumps(asdict(record), indent=1).encode() + b"\n")


def read_record(folder: Path) -> Record:
    """What `write_record` wrote.

    Raises:
        InputError: it is not there. DataError: it is damaged.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts = tuple(Submitted(**part | {"job_ids": tuple(part["job_ids"])}) for part in found["parts"])
        return Record(**found | {"parts": parts})
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def submissions(parent: Path) -> list[Path]:
    """The submissions in a run's `launch` folder, oldest first."""
    return sorted((path.parent for path in parent.glob(f"*/{FILE}")), key=lambda folder: read_record(folder).time)


def find_folder(run: str) -> Path:
    """The submission that a user means.

    Args:
        run: a submission's folder, or a run's `output_dir`, which stands for its newest submission.

    Raises:
        InputError: there is none.
    """
    path = Path(run).absolute()
    if (path / FILE).is_file():
        return path
    found = submissions(path / "launch")
    if not found:
        raise InputError(
            f"RUN = {run!r}: neither a run's output_dir with a submission under launch/, nor a submission's folder"
        )
    return found[-1]


def log_paths(folder: Path, job_id: str) -> list[Path]:
    """The logs of a job, one per process, in the order of tasks and ranks."""
    paths = (folder / JOBS).glob(f"{job_id}_*_log.out")
    return sorted(paths, key=lambda path: [int(n) for n in path.name.split("_") if n.isdigit()])


def explain(folder: Path, job_id: str) -> str | None:
    """Why a job failed: what its processes noted, or else the last line of a log, and in which; None if it wrote none.

    Raises:
        DataError: such a note is damaged.
    """
    paths = log_paths(folder, job_id)
    found = [(failure, path) for path in paths if (failure := read_failure(path)) is not None]
    for kind in FailureKind:  # causes first
        for failure, path in found:
            if failure.kind == kind:
                return f"{failure.message} ({path})"
    for path in paths:  # it was killed, or never began
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if own := [line for line in lines if not line.startswith(_BYSTANDERS)]:
            return f"{own[-1].removeprefix('error: ')} ({path})"
    return f"it said nothing ({paths[0]})" if paths else None


def run_name(config: Config) -> str:
    """What jobs are called after."""
    return Path(config.output_dir).absolute().name
