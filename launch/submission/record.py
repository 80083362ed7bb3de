"""The directory of a submission: what was submitted, with which settings, as which jobs.

<output_dir>/launch/<time>-<command>/
    submission.json   command, working directory, and the parts with their job ids
    config.yaml       the resolved configuration, which the jobs read
    cluster.yaml      the resolved cluster settings
    environment.json  code version, packages, machine and variables at submission (launch.submission.snapshot)
    jobs/             what submitit keeps: scripts, pickles, and a log per process (<job>_<rank>_log.out) and, if
                      it failed, why (<job>_<rank>_failure.json)
    status.json       local executor only: how far its driver is; with driver.log and driver.lock
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from launch.job.config import ClusterConfig
from launch.job.failure import FailureKind, read_failure
from launch.job.jobs import StageName
from launch.job.parts import Command, PartName
from launch.job.pickles import OWNERS
from masp.config import Config, save_config
from masp.errors import InputError
from masp.files import typed
from masp.files.atomic import write_bytes
from masp.files.regular import is_directory, is_file, read_tail
from masp.files.text import reason, shown

FILE, CONFIG, CLUSTER, JOBS = "submission.json", "config.yaml", "cluster.yaml", "jobs"

Executor = Literal["slurm", "local"]

_JOB_NAME = re.compile(r"[A-Za-z0-9._-]+")
_MAX_RUN_NAME = 60

_FOREIGN = ("srun: ", "slurmstepd", "submitit ")
"""How lines in a job's log begin that are not the job's: those of Slurm (22.05) and of submitit (1.5), which write into
the same file."""
_TAIL_BYTES = 1 << 20
"""How much of the end of a log is searched for its last line."""


@dataclass(frozen=True)
class Submitted:
    """A part as it was submitted."""

    name: PartName
    num_jobs: int
    """Tasks of the array, or 1."""

    num_ranks: int
    """Processes of each job."""

    result: str
    """Path of what the part makes."""

    job_ids: tuple[str, ...] = ()
    """Job ids that Slurm gave: one, also for an array; none before it was submitted. Those of the local executor are in
    its driver's status."""

    job_name: str | None = None
    """Name of its job in Slurm, which no other job has: if the process that submits is killed before it has noted the
    id, the job is found by its name. None with the local executor, and in records of earlier releases."""

    def __post_init__(self) -> None:
        check_job_ids(self.job_ids)
        if self.job_name is not None and not _JOB_NAME.fullmatch(self.job_name):
            raise ValueError("must have a job_name of letters, digits, dots, dashes and underscores")


@dataclass(frozen=True)
class Record:
    """The content of `submission.json`."""

    command: Command
    stage: StageName | None
    executor: Executor
    parts: tuple[Submitted, ...]
    working_directory: str
    """Where relative paths of the configuration begin."""
    host: str
    time: float
    """When it was submitted, in seconds since 1970."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must not be empty")

    def with_jobs(self, name: PartName, *job_ids: str) -> Record:
        """The same record with the job ids of one part."""
        parts = tuple(replace(part, job_ids=job_ids) if part.name == name else part for part in self.parts)
        return replace(self, parts=parts)


def check_job_ids(job_ids: tuple[str, ...]) -> None:
    """Raise ValueError unless these are job ids, which go into command lines and patterns of file names."""
    if not all(job_id.isascii() and job_id.isdecimal() for job_id in job_ids):
        raise ValueError("must have job_ids of digits only")


def new_record(command: Command, stage: StageName | None, executor: Executor, parts: tuple[Submitted, ...]) -> Record:
    """Make the record of a submission by this process, now."""
    return Record(command, stage, executor, parts, os.getcwd(), socket.gethostname(), time.time())


def submissions_of(config: Config) -> Path:
    """The directory that holds all submissions of a run."""
    return Path(config.output_dir).absolute() / "launch"


def make_directory(command: Command, config: Config, cluster: ClusterConfig) -> Path:
    """Make a new directory with the resolved settings in it.

    Raises:
        InputError: it cannot be written.
    """
    parent = submissions_of(config)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = _new_directory(parent, name)
        (directory / JOBS).mkdir(OWNERS)
        save_config(config, directory / CONFIG)
        save_config(cluster, directory / CLUSTER)
    except OSError as error:
        raise InputError(f"output_dir: {parent} cannot be written: {reason(error)}") from None
    return directory


def _new_directory(parent: Path, name: str) -> Path:
    """Two submissions within a second get directories of their own."""
    for number in range(1, 1000):
        directory = parent / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir(OWNERS)
            return directory
        except FileExistsError:
            continue
    raise InputError(f"output_dir: {parent} holds a thousand submissions of this second")


def write_record(directory: Path, record: Record) -> None:
    """Write `submission.json`: whole or not at all."""
    fields = asdict(record)
    for part in fields["parts"]:
        if part["job_name"] is None:
            del part["job_name"]
    write_bytes(directory / FILE, json.dumps(fields, indent=1).encode() + b"\n")


def read_record(directory: Path) -> Record:
    """Read `submission.json`.

    Raises:
        InputError: it is not there, or may not be read. DataError: it is damaged.
    """
    record = typed.read(Record, directory / FILE, surrogates=True)
    if record is None:
        raise InputError(f"{directory / FILE} cannot be read: No such file or directory")
    return record


def submissions(parent: Path) -> list[Path]:
    """The submissions in a run's `launch` directory, oldest first.

    Raises:
        InputError, DataError: as `read_record`.
    """
    found = [path.parent for path in parent.glob(f"*/{FILE}")] if is_directory(parent) else []
    return sorted(found, key=lambda directory: read_record(directory).time)


def find_directory(run: str) -> Path:
    """Find the submission that a user means.

    Args:
        run: a submission's directory, or a run's `output_dir`, which stands for its newest submission.

    Raises:
        InputError: there is none.
    """
    path = Path(run).absolute()
    if is_file(path / FILE, key="RUN"):
        return path
    found = submissions(path / "launch")
    if not found:
        raise InputError(
            f"RUN = {shown(run)}: neither a run's output_dir with a submission under launch/, nor a submission's"
            " directory"
        )
    return found[-1]


def log_paths(directory: Path, job_id: str) -> list[Path]:
    """The logs of a job, one per process, in the order of tasks and ranks."""
    paths = (directory / JOBS).glob(f"{job_id}_*_log.out")
    return sorted(paths, key=lambda path: [int(n) for n in path.name.split("_") if n.isdecimal()])


def explain(directory: Path, job_id: str) -> str | None:
    """Why a job failed, and in which log: what its processes noted, or else the last line of a log; None without logs.

    Raises:
        DataError: such a note is damaged. InputError: a note or log may not be read.
    """
    paths = log_paths(directory, job_id)
    found = [(failure, path) for path in paths if (failure := read_failure(path)) is not None]
    for kind in FailureKind:  # causes first
        for failure, path in found:
            if failure.kind == kind:
                return f"{failure.message} ({path})"
    for path in paths:  # it was killed, or never started
        lines = [
            line for line in (read_tail(path, _TAIL_BYTES) or b"").decode(errors="replace").splitlines() if line.strip()
        ]
        if own := [line for line in lines if not line.startswith(_FOREIGN)]:
            return f"{own[-1].removeprefix('error: ')} ({path})"
    return f"it said nothing ({paths[0]})" if paths else None


def run_name(config: Config) -> str:
    """The name of a run, which its jobs are named after: that of its directory, in characters that need no quotes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(config.output_dir).absolute().name)[:_MAX_RUN_NAME]


def job_name(run_name: str, part: PartName, tag: str) -> str:
    """The name of a part's job in Slurm.

    Args:
        tag: What tells the jobs of one submission from all others; empty for jobs that are not submitted.
    """
    return "-".join(word for word in ("masp", run_name, part, tag) if word)


def new_tag() -> str:
    """What tells the jobs of one submission from all others."""
    return secrets.token_hex(4)
