"""After submitting: status, logs, cancel, resume. A run is a directory; nothing else has to be remembered."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from launch.job.config import load_cluster
from launch.job.parts import State, make_parts
from launch.submission import local_driver, slurm_client
from launch.submission.record import CLUSTER, CONFIG, find_folder, log_paths, read_record
from launch.submission.state import OPEN, Overview, overview, table
from launch.submit import submit
from launch.watch import watch
from masp.config import load_config
from masp.errors import InputError


def enter(run: str) -> Path:
    """The submission that `run` means, made the place where its relative paths begin.

    Raises:
        InputError: there is none, or its working directory is gone.
    """
    folder = find_folder(run)
    try:
        os.chdir(read_record(folder).working_directory)
    except OSError as error:
        raise InputError(f"{folder}: its working directory cannot be entered: {error}") from None
    return folder


def status(run: str, wait: bool = False) -> int:
    """Print what became of a run; returns 0, or 1 if it has ended and not finished.

    Args:
        wait: until it has ended.
    """
    folder = enter(run)
    if wait:
        found = watch(folder)
    else:
        found = overview(folder)
        print(f"{found.state}: {folder}")
        print("\n".join(table(found.parts)))
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 0 if found.is_open or found.state == State.FINISHED else 1


def logs(run: str, part: str | None, rank: int | None, num_lines: int) -> int:
    """Print logs of a run.

    Args:
        part: whose; None for the one that runs or ran last.
        rank: of training and evaluation the rank, of extraction the task; None for all of them.
        num_lines: the last ones of each process; 0 for all.
    """
    folder = enter(run)
    found = overview(folder)
    paths = _logs_of(found, part)
    name = part or next((p.name for p in reversed(found.parts) if paths.get(p.name)), found.parts[0].name)
    chosen = paths[name]
    if not chosen:
        raise InputError(f"{folder}: {name} has written no log: it has not started yet")
    if rank is not None and not 0 <= rank < len(chosen):
        raise InputError(f"--rank {rank}: {name} has logs of {len(chosen)} processes, 0 to {len(chosen) - 1}")
    for path in chosen if rank is None else [chosen[rank]]:
        if rank is None:
            print(f"==> {path} <==")
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in deque(file, num_lines) if num_lines else file:
                print(line, end="" if line.endswith("\n") else "\n")
    return 0


def _logs_of(found: Overview, part: str | None) -> dict[str, list[Path]]:
    names = [p.name for p in found.parts]
    if part is not None and part not in names:
        raise InputError(f"--part {part}: this submission has {', '.join(names)}")
    return {p.name: [path for i in p.job_ids for path in log_paths(found.folder, i)] for p in found.parts}


def cancel(run: str) -> int:
    """Stop a run for good; what it has done is kept. Returns 0, or 1 if something has not ended yet.

    Raises:
        InputError: nothing of it is queued or running, or the scheduler does not answer.
    """
    folder = enter(run)
    found = overview(folder)
    if not found.is_open:
        raise InputError(f"{folder}: nothing to cancel: it is {found.state}")
    if found.record.executor == "local":
        left = [] if local_driver.cancel(folder) else ["its driver"]
    else:
        left = slurm_client.cancel([i for part in found.parts if part.state in OPEN for i in part.job_ids])
    if left:
        print(f"asked to stop, but still ending: {', '.join(left)}; `launch status` tells when it is done")
        return 1
    print(f"cancelled: {folder}; `python -m launch resume {run}` goes on from what is there")
    return 0


def resume(run: str, overrides: Sequence[str], cluster_overrides: Sequence[str], wait: bool) -> int:
    """Submit again what a run has not finished, with the settings that it was submitted with.

    Args:
        overrides, cluster_overrides: settings to change.

    Raises:
        InputError: it is still queued or running, or would not run.
    """
    folder = enter(run)
    found = overview(folder)
    if found.is_open:
        raise InputError(f"{folder}: nothing to resume: it is {found.state}; `python -m launch cancel {run}` stops it")
    config, cluster = load_config(folder / CONFIG, overrides), load_cluster(folder / CLUSTER, cluster_overrides)
    record = found.record
    done: list[str] = []
    for part, made in zip(found.parts, record.parts, strict=True):
        if part.state != State.FINISHED or not Path(made.result).exists():
            break
        done.append(part.name)
    if len(done) == len(found.parts):
        print(f"nothing to resume: {folder} has finished; result: {record.parts[-1].result}")
        return 0
    everything = {p.name for p in make_parts(record.command, record.stage, config, cluster, folder / CONFIG)}
    without = done + [name for name in everything if name not in {part.name for part in found.parts}]
    if done:
        print(f"finished already: {', '.join(done)}")
    return submit(record.command, record.stage, config, cluster, without, wait)
