"""Without Slurm: a process in the background that runs the parts of a submission in order, through submitit's local
executor, which itself has neither order nor limits.

    python -m launch.submission.local_driver DIRECTORY

It survives the terminal. SIGTERM to it stops the parts cleanly: they can be resumed by submitting again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from launch.job.config import load_cluster
from launch.job.members import read_runs
from launch.job.parts import Part, PartName, State, make_parts, task_command
from launch.job.pickles import has_succeeded, owners_pickles
from launch.submission.record import CLUSTER, CONFIG, JOBS, explain, read_record
from launch.submission.state import DRIVER_LOCK, DriverStatus, PartStatus, read_driver_status
from masp.config import load_config
from masp.errors import InputError, MaspError, StoppedEarly
from masp.files.locks import holding, is_held
from masp.runtime.log import say_error, show
from masp.runtime.log import setup as set_up_logging
from masp.runtime.run_directory import RunState, write_status
from masp.runtime.stop import StopFlag

_POLL_S = 0.2


class PartFailed(MaspError):
    """A part failed.

    Args:
        part: Part.
        why: what its processes or their logs say.
    """

    def __init__(self, part: PartName, why: str):
        super().__init__(f"{part}: {why}")
        self.why = why


class PartStopped(StoppedEarly):
    """A part was stopped on request, and can be resumed; arguments as for `PartFailed`."""

    def __init__(self, part: PartName, why: str):
        super().__init__(f"{part}: {why}")
        self.why = why


def start(directory: Path) -> int:
    """Start the driver of a submission; returns its process id.

    Raises:
        InputError: it ended at once.
    """
    with open(directory / "driver.log", "ab") as file:
        command = [sys.executable, "-m", "launch.submission.local_driver", str(directory)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    # from its first status on, it can be seen and cancelled
    while read_driver_status(directory) is None and process.poll() is None:
        time.sleep(_POLL_S / 4)
    if read_driver_status(directory) is None:
        raise InputError(f"the driver did not start: see {directory / 'driver.log'}")
    return process.pid


def cancel(directory: Path, timeout_s: float = 90) -> bool:
    """Stop a driver and its parts, which keep what they have; returns whether they ended in time.

    Raises:
        InputError: it runs on another machine.
    """
    status = read_driver_status(directory)
    host = os.uname().nodename
    if status is None or status.host != host:
        where = "another machine" if status is None else status.host
        raise InputError(f"{directory} is run by a process on {where}: cancel it there")
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(status.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while is_held(directory / DRIVER_LOCK):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


class _Board:
    """`status.json` of a submission: how far each part is."""

    def __init__(self, directory: Path, names: list[PartName]):
        self.directory = directory
        self.parts = {name: PartStatus() for name in names}
        self._began: dict[PartName, float] = {}

    def begin(self, name: PartName) -> None:
        """Note that a part starts."""
        self._began[name] = time.monotonic()
        self.note(name, state=State.RUNNING)

    def note(self, name: PartName, **more: Any) -> None:
        """Note what changed about a part."""
        self.parts[name] = replace(self.parts[name], **more)
        write_status(self.directory, RunState.RUNNING, kind=DriverStatus, part=name, parts=self.parts)

    def end(self, name: PartName, state: State, message: str = "") -> None:
        """Note how a part ended."""
        seconds = round(time.monotonic() - self._began[name])
        elapsed = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        self.note(name, state=state, message=message, elapsed=elapsed)


def drive(directory: Path) -> None:
    """Run all parts; `status.json` in the directory always says how far this is.

    Raises:
        PartFailed, PartStopped: the parts after it have not been started.
    """
    write_status(directory, RunState.RUNNING)
    record = read_record(directory)
    cluster, config = load_cluster(directory / CLUSTER), load_config(directory / CONFIG)
    names = [part.name for part in record.parts]
    runs = read_runs(record.command, directory, directory / CONFIG)
    every = make_parts(record.command, record.stage, config, cluster, directory / CONFIG, runs)
    parts = [part for part in every if part.name in names]
    board = _Board(directory, names)
    try:
        with StopFlag() as stop:
            for part in parts:
                board.begin(part.name)
                show(f"{part.name}: starting {len(part.jobs)} x {part.tasks_per_node} processes")
                try:
                    _run(part, directory, cluster.signal_delay_s, stop, partial(board.note, part.name))
                except MaspError as error:
                    state = State.STOPPED if isinstance(error, StoppedEarly) else State.FAILED
                    why = error.why if isinstance(error, PartFailed | PartStopped) else str(error)
                    board.end(part.name, state, why)
                    raise
                board.end(part.name, State.FINISHED)
    except Exception as error:
        outcome = RunState.STOPPED if isinstance(error, StoppedEarly) else RunState.FAILED
        if isinstance(error, MaspError):
            code, text = error.exit_code, str(error)
        else:
            code, text = 1, f"{type(error).__name__}: {error}"
        write_status(directory, outcome, code, text, DriverStatus, parts=board.parts)
        raise
    write_status(directory, RunState.FINISHED, 0, f"all parts: {', '.join(names)}", DriverStatus, parts=board.parts)


def _run(part: Part, directory: Path, signal_delay_s: int, stop: StopFlag, tell: Callable[..., None]) -> None:
    """Run one part, its jobs in parallel up to its limit.

    Args:
        tell: called with `job_ids` and `num_done` when they change.
    """

    class Executor(submitit.LocalExecutor):
        """Starts tasks by way of `launch.job.task`."""

        @property
        def _submitit_command_str(self) -> str:
            return task_command(self.folder)

        def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[submitit.Job]:
            return super()._internal_process_submissions(owners_pickles(delayed_submissions))

    executor = Executor(directory / JOBS)
    executor.update_parameters(
        timeout_min=part.resources.timeout_min,
        signal_delay_s=signal_delay_s,
        tasks_per_node=part.tasks_per_node,
        gpus_per_node=part.resources.gpus_per_task * part.tasks_per_node,
        stderr_to_stdout=True,
    )
    waiting = deque(part.jobs)
    running: list[submitit.Job] = []
    job_ids: list[str] = []
    num_done = 0
    failure: str | None = None
    told_to_stop = False
    while running or (waiting and not stop and failure is None):
        while waiting and len(running) < part.max_parallel and not stop and failure is None:
            running.append(executor.submit(waiting.popleft()))
            job_ids.append(running[-1].job_id)
            tell(job_ids=tuple(job_ids))
        if (stop or failure is not None) and not told_to_stop:
            told_to_stop = True
            for job in running:  # its id is that of the process that passes signals on to the job's ranks
                os.kill(int(job.job_id), signal.SIGTERM)
        for job in [job for job in running if job.done()]:
            running.remove(job)
            problem = _failure(job, directory)
            failure = failure or problem
            if problem is None:
                num_done += 1
                tell(num_done=num_done)
        time.sleep(_POLL_S)
    if stop:
        if failure is None and not waiting:  # it finished before it noticed the request
            return
        raise PartStopped(part.name, "stopped on request; `launch resume` goes on")
    if failure is not None:
        raise PartFailed(part.name, failure)


def _failure(job, directory: Path) -> str | None:
    """Why a finished job failed; None if it succeeded: every rank left a result and no error."""
    for rank in range(job.num_tasks):
        result = job.task(rank).paths.result_pickle
        # without a result the process ended with an exit code, and its log says why
        if not result.exists() or not has_succeeded(result):
            return explain(directory, job.job_id) or "it left neither result nor log"
    return None


def main() -> int:
    """Run the driver; returns the exit code."""
    directory = Path(sys.argv[1])
    set_up_logging()
    try:
        with holding(directory / DRIVER_LOCK, f"{directory} has a driver already", key="output_dir"):
            drive(directory)
    except MaspError as error:
        say_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
