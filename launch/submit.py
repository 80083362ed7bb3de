"""Submitting: look first, keep what is submitted, hand it over, say where everything is."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from launch.job.config import ClusterConfig
from launch.job.parts import Part, make_parts
from launch.preflight import check_executor, check_slurm, check_writable, preflight
from launch.submission import local_driver
from launch.submission.record import (
    CONFIG,
    FILE,
    JOBS,
    Record,
    Submitted,
    make_folder,
    new_record,
    run_name,
    submissions,
    submissions_of,
    write_record,
)
from launch.submission.slurm_scripts import scripts
from launch.submission.snapshot import DIFF, snapshot
from launch.submission.snapshot import FILE as ENVIRONMENT
from launch.submission.state import active
from launch.watch import watch
from masp.config import Config
from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.locks import holding

_LOCK = ".lock"


def dry_run(command: str, stage: str | None, config: Config, cluster: ClusterConfig) -> None:
    """Print the sbatch scripts; submit and write nothing."""
    folder = submissions_of(config) / f"<time>-{command}"
    parts = make_parts(command, stage, config, cluster, folder / CONFIG)
    if cluster.executor == "local":
        for part in parts:
            print(f"{part.name}: {len(part.jobs)} x {part.tasks_per_node} processes on this machine: {part.result}")
        return
    for name, text in scripts(parts, cluster, run_name(config), folder).items():
        print(f"# {'-' * 8} {name} {'-' * 8}\n{text}")


def submit(
    command: str,
    stage: str | None,
    config: Config,
    cluster: ClusterConfig,
    without: Collection[str] = (),
    wait: bool = False,
) -> int:
    """Submit a command.

    Args:
        command, stage: see `launch.job.parts.make_parts`.
        config: of the run.
        cluster: where, and what each part asks for.
        without: parts that have finished already.
        wait: until everything has ended, showing a table.

    Returns:
        The exit code: 0, or with `wait` 1 if a part failed.

    Raises:
        InputError: it would not run, is running already, or was refused; nothing stays in the queue.
    """
    parent = submissions_of(config)
    check_writable("output_dir", str(parent))
    check_executor(cluster)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir: {parent} cannot be written: {error.strerror}") from None
    taken = f"output_dir: {config.output_dir}: another `launch` is submitting it at this moment; wait for it"
    with holding(parent / _LOCK, taken, key="output_dir"):
        _refuse_twice(parent, _parts(command, stage, config, cluster, parent, without), config)
        parts = _parts(command, stage, config, cluster, parent, without)
        if cluster.executor == "slurm":  # quick to ask, and what is most often wrong
            check_slurm(parts, config, cluster, parent)
        for note in preflight(parts, config, cluster).notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        folder = make_folder(command, config, cluster)
        try:
            _keep_snapshot(folder)
            parts = _parts(command, stage, config, cluster, folder, without)
            record = new_record(command, stage, cluster.executor, _planned(parts))
            text = _hand_over(record, parts, config, cluster, folder)
        except BaseException:
            if not (folder / FILE).exists():  # nothing was submitted
                shutil.rmtree(folder)
            raise
    print(text, flush=True)
    problems: list[str] = []
    if wait:
        problems = watch(folder).problems
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"launch: logs in {folder / JOBS}; result: {parts[-1].result}")
    return 1 if problems else 0


def _parts(command, stage, config, cluster, folder: Path, without: Collection[str]) -> list[Part]:
    return [p for p in make_parts(command, stage, config, cluster, folder / CONFIG) if p.name not in without]


def _planned(parts: list[Part]) -> tuple[Submitted, ...]:
    return tuple(
        Submitted(part.name, len(part.jobs), part.num_nodes * part.tasks_per_node, str(part.result)) for part in parts
    )


def _keep_snapshot(folder: Path) -> None:
    value, diff = snapshot()
    write_bytes(folder / ENVIRONMENT, json.dumps(value, indent=1).encode() + b"\n")
    if diff:
        write_bytes(folder / DIFF, diff.encode(errors="replace"))


def _refuse_twice(parent: Path, parts: list[Part], config: Config) -> None:
    """A part of a run is done by one submission at a time: two would write the same files."""
    wanted = {part.name for part in parts}
    for folder in reversed(submissions(parent)):
        if both := [name for name in active(folder) if name in wanted]:
            raise InputError(
                f"output_dir: {config.output_dir}: {', '.join(both)} is queued or running already, submitted as"
                f" {folder}; `python -m launch status {_short(folder)}` shows it, `cancel` stops it"
            )


def _hand_over(record: Record, parts: list[Part], config: Config, cluster: ClusterConfig, folder: Path) -> str:
    """Give the parts to Slurm, or to a driver in the background; returns what to tell the user."""
    if cluster.executor == "local":
        write_record(folder, record)
        try:
            pid = local_driver.start(folder)
        except InputError:
            os.unlink(folder / FILE)
            raise
        return f"started: process {pid} runs {', '.join(part.name for part in parts)} in the background"
    from launch.submission.slurm_scripts import PartsLeft, submit

    def tell(name: str, job_id: str) -> None:
        nonlocal record
        record = record.with_jobs(name, job_id)
        write_record(folder, record)  # at once: whatever happens to this process, the job is known

    try:
        submit(parts, cluster, run_name(config), folder, tell)
    except PartsLeft:
        raise  # the record is how the user finds them
    except InputError:
        (folder / FILE).unlink(missing_ok=True)
        raise
    jobs = ", ".join(
        f"{part.job_ids[0]} ({part.name}{f', {part.num_jobs} tasks' if part.num_jobs > 1 else ''})"
        for part in record.parts
    )
    return f"submitted: jobs {jobs}"


def _short(folder: Path) -> str:
    """The folder as a user would type it."""
    relative = os.path.relpath(folder)
    return relative if len(relative) < len(str(folder)) else str(folder)
