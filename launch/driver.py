"""Without Slurm: a process in the background that runs the parts of a submission in order, through submitit's local
executor, which itself knows neither order nor limits.

    python -m launch.driver FOLDER

It survives the terminal. SIGTERM to it stops the parts cleanly: they can be resumed by submitting again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from launch.parts import Part, make_parts
from launch.record import CLUSTER, CONFIG, JOBS, Submitted, explain, read_record, write_record
from launch.schema import load_cluster
from masp.config import load_config
from masp.errors import MaspError, StoppedEarly
from masp.status import read_status, write_status
from masp.stopping import StopFlag

_POLL_S = 0.2


class PartFailed(MaspError):
    """A part did not do its work; the message names it and says what its log says last."""


def start(folder: Path) -> int:
    """Start the driver of a submission; returns its process id."""
    with open(folder / "driver.log", "ab") as log:
        command = [sys.executable, "-m", "launch.driver", str(folder)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).pid


def drive(folder: Path) -> None:
    """Run all parts; `status.json` in the folder always says how far this is.

    Raises:
        PartFailed, StoppedEarly: the parts after it have not been started.
    """
    record = read_record(folder)
    cluster, config = load_cluster(folder / CLUSTER), load_config(folder / CONFIG)
    submitted: list[Submitted] = []
    with StopFlag() as stop:
        for part in make_parts(record["command"], record["stage"], config, cluster, folder / CONFIG):
            write_status(folder, "running", part=part.name)
            print(f"{part.name}: starting {len(part.jobs)} x {part.tasks_per_node} processes", flush=True)
            job_ids = _run(part, folder, cluster.signal_delay_s, stop)
            submitted += [Submitted(part.name, job_id, 1, part.tasks_per_node) for job_id in job_ids]
            write_record(folder, record["command"], record["stage"], submitted, driver_pid=os.getpid())
    write_status(folder, "finished", 0, f"all parts: {', '.join(part.name for part in submitted)}")


def _run(part: Part, folder: Path, signal_delay_s: int, stop: StopFlag) -> list[str]:
    """Run one part, its jobs in parallel up to its limit; returns their ids."""
    import submitit

    executor = submitit.LocalExecutor(folder / JOBS)
    executor.update_parameters(
        timeout_min=part.resources.timeout_min,
        signal_delay_s=signal_delay_s,
        tasks_per_node=part.tasks_per_node,
        gpus_per_node=part.resources.gpus_per_task * part.tasks_per_node,
        stderr_to_stdout=True,
    )
    limit = getattr(part.resources, "max_parallel", 1)
    waiting, running, done = deque(part.jobs), [], []
    failure: str | None = None
    told = False  # the running ones, to stop
    while running or (waiting and not stop and failure is None):
        while waiting and len(running) < limit and not stop and failure is None:
            running.append(executor.submit(waiting.popleft()))
        if (stop or failure is not None) and not told:
            told = True
            for job in running:  # its number is the process that passes signals on to the job's ranks
                os.kill(int(job.job_id), signal.SIGTERM)
        for job in [job for job in running if job.done()]:
            running.remove(job)
            done.append(job)
            failure = failure or _failure(job, folder)
        time.sleep(_POLL_S)
    if stop:
        raise StoppedEarly(f"{part.name}: stopped on request; submit again to go on")
    if failure is not None:
        raise PartFailed(f"{part.name}: {failure}")
    return [job.job_id for job in done]


def _failure(job, folder: Path) -> str | None:
    """Why a finished job is no success; None if it is one: every rank left a result, and no error."""
    for rank in range(job.num_tasks):
        task = job.task(rank)
        # Without a result the process left with an exit code, and its log says why.
        if not task.paths.result_pickle.exists() or task.exception() is not None:
            return explain(folder, job.job_id) or "it left neither result nor log"
    return None


def wait(folder: Path, pid: int) -> dict:
    """Wait until the driver has gone; returns its last status."""
    while _is_running(pid):
        time.sleep(_POLL_S)
    status = read_status(folder)
    if status is None or status["state"] == "running":
        return {"state": "failed", "exit_code": 1, "message": f"the driver died: see {folder / 'driver.log'}"}
    return status


def _is_running(pid: int) -> bool:
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    except ChildProcessError:  # started by another process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def main() -> int:
    """Run the driver; returns the exit code."""
    folder = Path(sys.argv[1])
    try:
        drive(folder)
    except MaspError as error:
        state = "stopped" if isinstance(error, StoppedEarly) else "failed"
        write_status(folder, state, error.exit_code, str(error))
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        write_status(folder, "failed", 1, f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
