"""Submitting: check first, keep what is submitted, hand it over, say where everything is."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from launch.job.config import ClusterConfig
from launch.job.jobs import StageName
from launch.job.members import write_runs
from launch.job.parts import Command, Part, PartName, make_parts
from launch.paths import check_start_directory, check_submission_path
from launch.preflight import check_executor, check_slurm, check_writable, preflight
from launch.submission import local_driver
from launch.submission.record import (
    CONFIG,
    FILE,
    JOBS,
    Record,
    Submitted,
    job_name,
    make_directory,
    new_record,
    new_tag,
    run_name,
    submissions,
    submissions_of,
    write_record,
)
from launch.submission.slurm_scripts import Interrupted, PartsLeft, scripts
from launch.submission.slurm_scripts import submit as submit_to_slurm
from launch.submission.snapshot import write_snapshot
from launch.submission.state import active
from launch.watch import watch
from masp.config import Config
from masp.errors import InputError
from masp.experiments.study.run import Study
from masp.files.locks import holding
from masp.files.text import reason
from masp.runtime.log import say_error, show
from masp.sweep.members import Sweep

LOG = logging.getLogger(__name__)

_LOCK = ".lock"


def dry_run(
    command: Command, stage: StageName | None, config: Config, cluster: ClusterConfig, runs: Sweep | Study | None = None
) -> None:
    """Print the sbatch scripts, and check all that is checked before a submission; submit and write nothing.

    Without Slurm on this machine, all but Slurm itself is checked.

    Raises:
        InputError, DataError: it would not run; the scripts are printed first.
    """
    directory = submissions_of(config) / f"<time>-{command}"
    check_submission_path(config, cluster)
    parts = make_parts(command, stage, config, cluster, directory / CONFIG, runs)
    if cluster.executor == "local":
        for part in parts:
            show(f"{part.name}: {len(part.jobs)} x {part.tasks_per_node} processes on this machine: {part.result}")
    else:
        for name, text in scripts(parts, cluster, run_name(config), directory).items():
            show(f"# {'-' * 8} {name} {'-' * 8}", *text.split("\n"))
    sys.stdout.flush()
    check_writable("output_dir", str(directory.parent))
    asks_slurm = cluster.executor == "slurm" and shutil.which("sbatch") is not None
    if asks_slurm:
        check_executor(cluster)
        _refuse_twice(directory.parent, parts, config)
    _check(parts, config, cluster, directory.parent, asks_slurm)
    if cluster.executor == "slurm" and not asks_slurm:
        LOG.info("Slurm was not asked whether it would take the jobs: this machine has no sbatch")


def _check(parts: list[Part], config: Config, cluster: ClusterConfig, parent: Path, asks_slurm: bool) -> None:
    """What is checked once nobody else can submit the same run; tells the notes."""
    check_start_directory(parts, config, cluster)
    if asks_slurm:  # quick to ask, and what is most often wrong
        check_slurm(parts, config, cluster, parent)
    for note in preflight(parts, config, cluster).notes:
        LOG.info("%s", note)


def submit(
    command: Command,
    stage: StageName | None,
    config: Config,
    cluster: ClusterConfig,
    without: Collection[PartName] = (),
    wait: bool = False,
    runs: Sweep | Study | None = None,
) -> int:
    """Submit a command.

    Args:
        command: see `launch.job.parts.make_parts`.
        stage: see there.
        config: Configuration of the run.
        cluster: Cluster settings.
        without: parts that have finished already.
        wait: wait until everything has ended, showing a table.
        runs: The sweep or study, for `sweep` and `study`.

    Returns:
        The exit code: 0, or with `wait` 1 if a part failed.

    Raises:
        InputError: it would not run, is running already, or was refused; nothing stays in the queue.
    """
    parent = submissions_of(config)
    check_submission_path(config, cluster)
    check_writable("output_dir", str(parent))
    check_executor(cluster)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir: {parent} cannot be written: {reason(error)}") from None
    taken = f"output_dir: {config.output_dir}: another `launch` is submitting it at this moment; wait for it"
    with holding(parent / _LOCK, taken, key="output_dir"):
        _refuse_twice(parent, _parts(command, stage, config, cluster, parent, without, runs), config)
        parts = _parts(command, stage, config, cluster, parent, without, runs)
        _check(parts, config, cluster, parent, asks_slurm=cluster.executor == "slurm")
        directory = make_directory(command, config, cluster)
        try:
            write_snapshot(directory)
            if runs is not None:
                write_runs(directory, runs)
            parts = _parts(command, stage, config, cluster, directory, without, runs)
            record = new_record(command, stage, cluster.executor, _planned(parts))
            text = _hand_over(record, parts, config, cluster, directory)
        except BaseException:
            if not (directory / FILE).exists():  # nothing was submitted
                shutil.rmtree(directory, ignore_errors=True)  # the first error is the one to report
            raise
    show(*text.split("\n"))
    problems: list[str] = []
    if wait:
        problems = watch(directory).problems
    for problem in problems:
        say_error(problem)
    show(f"launch: logs in {directory / JOBS}; result: {parts[-1].result}")
    return 1 if problems else 0


def _parts(
    command: Command,
    stage: StageName | None,
    config: Config,
    cluster: ClusterConfig,
    directory: Path,
    without: Collection[PartName],
    runs: Sweep | Study | None,
) -> list[Part]:
    every = make_parts(command, stage, config, cluster, directory / CONFIG, runs)
    return [part for part in every if part.name not in without]


def _planned(parts: list[Part]) -> tuple[Submitted, ...]:
    return tuple(Submitted(part.name, len(part.jobs), part.num_ranks, str(part.result)) for part in parts)


def _refuse_twice(parent: Path, parts: list[Part], config: Config) -> None:
    """Refuse a part that another submission of this run has queued or runs: both would write the same files."""
    wanted = {part.name for part in parts}
    for directory in reversed(submissions(parent)):
        if both := [name for name in active(directory) if name in wanted]:
            raise InputError(
                f"output_dir: {config.output_dir}: {', '.join(both)} is queued or running already, submitted as"
                f" {directory}; `python -m launch status {_short(directory)}` shows it, `cancel` stops it"
            )


def _hand_over(record: Record, parts: list[Part], config: Config, cluster: ClusterConfig, directory: Path) -> str:
    """Submit the parts to Slurm, or start a driver in the background; returns what to tell the user."""
    if cluster.executor == "local":
        write_record(directory, record)
        try:
            pid = local_driver.start(directory)
        except InputError:
            os.unlink(directory / FILE)
            raise
        return f"started: process {pid} runs {', '.join(part.name for part in parts)} in the background"

    run, tag = run_name(config), new_tag()
    named = (replace(part, job_name=job_name(run, part.name, tag)) for part in record.parts)
    record = replace(record, parts=tuple(named))
    # before anything is queued: whatever happens to this process, the jobs can be found by their names
    write_record(directory, record)

    def tell(name: PartName, job_id: str) -> None:
        nonlocal record
        record = record.with_jobs(name, job_id)
        write_record(directory, record)

    try:
        submit_to_slurm(parts, cluster, run, tag, directory, tell)
    except PartsLeft:
        raise  # the record is how the user finds them
    except (InputError, Interrupted):
        (directory / FILE).unlink(missing_ok=True)
        raise
    jobs = ", ".join(
        f"{part.job_ids[0]} ({part.name}{f', {part.num_jobs} tasks' if part.num_jobs > 1 else ''})"
        for part in record.parts
    )
    return f"submitted: jobs {jobs}"


def _short(directory: Path) -> str:
    """The directory as a user would type it."""
    relative = os.path.relpath(directory)
    return relative if len(relative) < len(str(directory)) else str(directory)
