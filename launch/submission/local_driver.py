"""Without Slurm: a process in the background that runs the parts of a submission in order, through submitit's local
executor, which itself knows neither order nor limits.

    python -m launch.submission.local_driver FOLDER

It survives the terminal. SIGTERM to it stops the parts cleanly: they can be resumed by submitting again.
"""

from __future__ import annotations

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

from launch.job.config import load_cluster
from launch.job.parts import Part, State, make_parts, task_command
from launch.submission.record import CLUSTER, CONFIG, JOBS, explain, read_record
from launch.submission.state import DRIVER_LOCK, DriverStatus, PartStatus
from masp.config import load_config
from masp.errors import InputError, MaspError, StoppedEarly
from masp.files.locks import holding, is_held
from masp.runtime.log import setup as set_up_logging
from masp.runtime.status import RunState, read_status, write_status
from masp.runtime.stop import StopFlag

_POLL_S = 0.2


class PartFailed(MaspError):
    """A part did not do its work.

    Args:
        part: its name.
        why: what its processes or their logs say.
    """

    def __init__(self, part: str, why: str):
        super().__init__(f"{part}: {why}")
        self.why = why


class PartStopped(StoppedEarly):
    """A part was stopped on request, and can be resumed; arguments as for `PartFailed`."""

    def __init__(self, part: str, why: str):
        super().__init__(f"{part}: {why}")
        self.why = why


def start(folder: Path) -> int:
    """Start the driver of a submission; returns its process id.

    Raises:
        InputError: it ended at once.
    """
    with open(folder / "driver.log", "ab") as log:
        command = [sys.executable, "-m", "launch.submission.local_driver", str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    # Once it has said so, everybody can see that it lives.
    while read_status(folder, DriverStatus) is None and process.poll() is None:
        time.sleep(_POLL_S / 4)
    if read_status(folder, DriverStatus) is None:
        raise InputError(f"the driver did not start: see {folder / 'driver.log'}")
    return process.pid


def cancel(folder: Path, timeout_s: float = 90) -> bool:
    """Stop a driver and its parts, which keep what they have; returns whether they ended in time.

    Raises:
        InputError: it runs on another machine.
    """
    status = read_status(folder, DriverStatus)
    host = os.uname().nodename
    if status is None or status.host != host:
        where = "another machine" if status is None else status.host
        raise InputError(f"{folder} is run by a process on {where}: cancel it there")
    os.kill(status.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while is_held(folder / DRIVER_LOCK):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


class _Board:
    """`status.json` of a submission: how far each part is."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder = folder
        self.parts = {name: PartStatus() for name in names}
        self._began: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """A part starts."""
        self._began[name] = time.monotonic()
        self.note(name, state=State.RUNNING)

    def note(self, name: str, **more: Any) -> None:
        """Something about a part changed."""
        self.parts[name] = replace(self.parts[name], **more)
        write_status(self.folder, RunState.RUNNING, kind=DriverStatus, part=name, parts=self.parts)

    def end(self, name: str, state: State, message: str = "") -> None:
        """A part ended."""
        seconds = round(time.monotonic() - self._began[name])
        elapsed = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        self.note(name, state=state, message=message, elapsed=elapsed)


def drive(folder: Path) -> None:
    """Run all parts; `status.json` in the folder always says how far this is.

    Raises:
        PartFailed, PartStopped: the parts after it have not been started.
    """
    write_status(folder, RunState.RUNNING)
    record = read_record(folder)
    cluster, config = load_cluster(folder / CLUSTER), load_config(folder / CONFIG)
    names = [part.name for part in record.parts]
    parts = [p for p in make_parts(record.command, record.stage, config, cluster, folder / CONFIG) if p.name in names]
    board = _Board(folder, names)
    try:
        with StopFlag() as stop:
            for part in parts:
                board.begin(part.name)
                print(f"{part.name}: starting {len(part.jobs)} x {part.tasks_per_node} processes", flush=True)
                try:
                    _run(part, folder, cluster.signal_delay_s, stop, partial(board.note, part.name))
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
        write_status(folder, outcome, code, text, DriverStatus, parts=board.parts)
        raise
    write_status(folder, RunState.FINISHED, 0, f"all parts: {', '.join(names)}", DriverStatus, parts=board.parts)


def _run(part: Part, folder: Path, signal_delay_s: int, stop: StopFlag, tell: Callable[..., None]) -> None:
    """Run one part, its jobs in parallel up to its limit.

    Args:
        tell: called with `job_ids` and `num_done` when they change.
    """

    class Executor(submitit.LocalExecutor):
        """Starts tasks by way of `launch.job.task`."""

        @property
        def _submitit_command_str(self) -> str:
            return task_command(self.folder)

    executor = Executor(folder / JOBS)
    executor.update_parameters(
        timeout_min=part.resources.timeout_min,
        signal_delay_s=signal_delay_s,
        tasks_per_node=part.tasks_per_node,
        gpus_per_node=part.resources.gpus_per_task * part.tasks_per_node,
        stderr_to_stdout=True,
    )
    limit = getattr(part.resources, "max_parallel", 1)
    waiting = deque(part.jobs)
    running: list[submitit.Job] = []
    job_ids: list[str] = []
    num_done = 0
    failure: str | None = None
    told = False  # the running ones, to stop
    while running or (waiting and not stop and failure is None):
        while waiting and len(running) < limit and not stop and failure is None:
            running.append(executor.submit(waiting.popleft()))
            job_ids.append(running[-1].job_id)
            tell(job_ids=tuple(job_ids))
        if (stop or failure is not None) and not told:
            told = True
            for job in running:  # its number is the process that passes signals on to the job's ranks
                os.kill(int(job.job_id), signal.SIGTERM)
        for job in [job for job in running if job.done()]:
            running.remove(job)
            problem = _failure(job, folder)
            failure = failure or problem
            if problem is None:
                num_done += 1
                tell(num_done=num_done)
        time.sleep(_POLL_S)
    if stop:
        if failure is None and not waiting:  # it was done before it heard
            return
        raise PartStopped(part.name, "stopped on request; `launch resume` goes on")
    if failure is not None:
        raise PartFailed(part.name, failure)


def _failure(job, folder: Path) -> str | None:
    """Why a finished job is no success; None if it is one: every rank left a result, and no error."""
    for rank in range(job.num_tasks):
        task = job.task(rank)
        # Without a result the process left with an exit code, and its log says why.
        if not task.paths.result_pickle.exists() or task.exception() is not None:
            return explain(folder, job.job_id) or "it left neither result nor log"
    return None


def main() -> int:
    """Run the driver; returns the exit code."""
    folder = Path(sys.argv[1])
    set_up_logging()
    try:
        with holding(folder / DRIVER_LOCK, f"{folder} has a driver already", key="output_dir"):
            drive(folder)
    except MaspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
