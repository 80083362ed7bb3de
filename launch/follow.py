"""After submitting: status, logs, cancel, resume. A run is known by its directory alone."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from launch.job.config import load_cluster
from launch.job.members import read_runs
from launch.job.parts import PartName, State, make_parts
from launch.preflight import check_changes
from launch.submission import local_driver, slurm_client
from launch.submission.record import CLUSTER, CONFIG, find_directory, log_paths, read_record
from launch.submission.state import OPEN, Overview, overview, table
from launch.submit import submit
from launch.watch import watch
from masp.config import load_config
from masp.errors import InputError
from masp.files.regular import exists, opened
from masp.files.text import first_line
from masp.runtime.log import say_error, show

_MAX_LINE = 1 << 16
"""Characters of a log's line; a longer one is printed as several."""


def enter(run: str) -> Path:
    """Find the submission that `run` names, and make its working directory this process's.

    Raises:
        InputError: there is none, or its working directory cannot be entered.
    """
    directory = find_directory(run)
    try:
        os.chdir(read_record(directory).working_directory)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InputError(f"{directory}: its working directory cannot be entered: {first_line(error)}") from None
    return directory


def status(run: str, wait: bool = False) -> int:
    """Print what became of a run; returns 0, or 1 if it ended without finishing.

    Args:
        run: Run.
        wait: wait until it has ended.
    """
    directory = enter(run)
    if wait:
        found = watch(directory)
    else:
        found = overview(directory)
        show(f"{found.state}: {directory}")
        show(*table(found.parts))
    for problem in found.problems:
        say_error(problem)
    return 0 if found.is_open or found.state == State.FINISHED else 1


def logs(run: str, part: str | None, rank: int | None, num_lines: int) -> int:
    """Print logs of a run.

    Args:
        run: Run.
        part: Part; None for the one that is running or ran last.
        rank: Rank of training or evaluation, task of extraction; None for all of them.
        num_lines: how many lines of each process, from its end; 0 for all.

    Raises:
        InputError: The part or process does not exist, has written no log, or its log may not be read.
    """
    directory = enter(run)
    found = overview(directory)
    paths = _logs_of(found, part)
    if part is None:
        name = next((p.name for p in reversed(found.parts) if paths[p.name]), found.parts[0].name)
    else:
        name = PartName(part)
    chosen = paths[name]
    if not chosen:
        raise InputError(f"{directory}: {name} has written no log: it has not started yet")
    if rank is not None and not 0 <= rank < len(chosen):
        raise InputError(f"--rank {rank}: {name} has logs of {len(chosen)} processes, 0 to {len(chosen) - 1}")
    for path in chosen if rank is None else [chosen[rank]]:
        if rank is None:
            show(f"==> {path} <==")
        _print_log(path, num_lines)
    return 0


def _print_log(path: Path, num_lines: int) -> None:
    """Print the last lines of a log, 0 for all: what a terminal would take for commands is escaped."""
    with opened(path) as file:
        if file is None:
            raise InputError(f"{path} cannot be read: No such file or directory")
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace")  # a return ends a line too: progress bars
        lines = iter(lambda: text.readline(_MAX_LINE), "")
        for line in deque(lines, num_lines) if num_lines else lines:
            show(line.removesuffix("\n").expandtabs())


def _logs_of(found: Overview, part: str | None) -> dict[PartName, list[Path]]:
    names = [p.name for p in found.parts]
    if part is not None and part not in names:
        raise InputError(f"--part {part}: this submission has {', '.join(names)}")
    return {p.name: [path for i in p.job_ids for path in log_paths(found.directory, i)] for p in found.parts}


def cancel(run: str) -> int:
    """Stop a run for good, keeping what it has done; returns 0, or 1 if something has not ended yet.

    Raises:
        InputError: no part of it is queued or running, or the scheduler does not answer.
    """
    directory = enter(run)
    found = overview(directory)
    if not found.is_open:
        raise InputError(f"{directory}: nothing to cancel: it is {found.state}")
    if found.record.executor == "local":
        left = [] if local_driver.cancel(directory) else ["its driver"]
    else:
        left = slurm_client.cancel([i for part in found.parts if part.state in OPEN for i in part.job_ids])
    if left:
        show(f"asked to stop, but still ending: {', '.join(left)}; `launch status` tells when it is done")
        return 1
    show(f"cancelled: {directory}; `python -m launch resume {run}` goes on from what is there")
    return 0


def resume(run: str, overrides: Sequence[str], cluster_overrides: Sequence[str], wait: bool) -> int:
    """Submit again what a run has not finished, with the settings that it was submitted with.

    Args:
        run: Run.
        overrides: settings of the run to change, `key=value`.
        cluster_overrides: settings of the cluster to change.
        wait: wait until it has ended.

    Raises:
        InputError: it is still queued or running, would not run, or a setting cannot be changed any more.
    """
    directory = enter(run)
    found = overview(directory)
    if found.is_open:
        raise InputError(
            f"{directory}: nothing to resume: it is {found.state}; `python -m launch cancel {run}` stops it"
        )
    config, cluster = load_config(directory / CONFIG, overrides), load_cluster(directory / CLUSTER, cluster_overrides)
    record = found.record
    done: list[PartName] = []
    for part, made in zip(found.parts, record.parts, strict=True):
        if part.state != State.FINISHED or not exists(Path(made.result)):
            break
        done.append(part.name)
    check_changes(done, found.config, config, all_done=len(done) == len(found.parts))
    if len(done) == len(found.parts):
        show(f"nothing to resume: {directory} has finished; result: {record.parts[-1].result}")
        return 0
    submitted = {part.name for part in found.parts}
    runs = read_runs(record.command, directory, directory / CONFIG, overrides)
    every = make_parts(record.command, record.stage, config, cluster, directory / CONFIG, runs)
    without = {*done, *(part.name for part in every if part.name not in submitted)}
    if done:
        show(f"finished already: {', '.join(done)}")
    return submit(record.command, record.stage, config, cluster, without, wait, runs)
