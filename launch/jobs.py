"""What runs on a node: one small picklable class per kind of job. Importing this module imports nothing heavy.

submitit starts each process, unpickles the job and calls it. Its own signal handlers, which leave from inside the
handler on one rank, are replaced for the whole call by a flag: the work stops where it can, with all ranks agreed and a
checkpoint written, and only then is the job put back into the queue.
"""

from __future__ import annotations

import abc
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masp.config import Config
    from masp.stopping import StopFlag

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_WAIT_FOR_END_S = 120


@dataclass(frozen=True)
class Job(abc.ABC):
    """What all jobs have in common: reading the configuration, stopping, errors, queueing again."""

    config_path: str
    """The resolved configuration in the submission's folder."""

    max_requeues: int
    """How often the job may start again."""

    def __call__(self) -> str | None:
        """Do the work.

        Returns:
            What it made; None if other processes have yet to finish it.

        Raises:
            SystemExit: with the exit code of `masp` for the same error.
        """
        from masp.stopping import StopFlag

        with StopFlag() as stop:
            # launch.task held it back until somebody listens
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
            from masp.config import load_config
            from masp.errors import MaspError, StoppedEarly

            _announce_ranks()
            try:
                _check_restarts(self.max_requeues)
                made = self.work(load_config(self.config_path), stop)
            except StoppedEarly as error:
                print(f"stopped: {error}", file=sys.stderr, flush=True)
                if signal.SIGUSR2 in stop.received:
                    _requeue(self.max_requeues)
                sys.exit(error.exit_code)
            except MaspError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                sys.exit(error.exit_code)
        return None if made is None else str(made)

    @abc.abstractmethod
    def work(self, config: Config, stop: StopFlag) -> Path | None:
        """The command itself."""


@dataclass(frozen=True)
class ExtractJob(Job):
    """One task of the extraction's array."""

    num_tasks: int = 1
    task_index: int = 0

    def work(self, config: Config, stop: StopFlag) -> Path:
        from masp.extract import extract

        return extract(config, num_tasks=self.num_tasks, task_index=self.task_index, stop=stop)


@dataclass(frozen=True)
class TrainJob(Job):
    """One rank of a stage's training."""

    stage: str = "stage1"

    def work(self, config: Config, stop: StopFlag) -> Path:
        from masp.train import train

        return train(config, self.stage, stop=stop)


@dataclass(frozen=True)
class EvaluateJob(Job):
    """One rank of the evaluation."""

    def work(self, config: Config, stop: StopFlag) -> Path | None:
        from masp.evaluate import evaluate

        return evaluate(config, stop=stop)


def _announce_ranks() -> None:
    """Let `masp.distributed.read_ranks` see this job's ranks, and no others.

    On Slurm it reads srun's own variables. Those of torchrun would win over them, and whoever submits may have some in
    the shell, so they go. submitit's local executor announces ranks in its own words.
    """
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        os.environ["RANK"] = os.environ["SUBMITIT_LOCAL_GLOBALID"]
        os.environ["WORLD_SIZE"] = os.environ["SUBMITIT_LOCAL_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ["SUBMITIT_LOCAL_LOCALID"]
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        # As in masp.distributed: below the ports of outgoing connections. The job's number is a process id.
        os.environ["MASTER_PORT"] = str(20000 + int(os.environ["SUBMITIT_LOCAL_JOB_ID"]) * 17 % 12000)


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _check_restarts(max_requeues: int) -> None:
    from masp.errors import InputError

    if _restarts() > max_requeues:
        raise InputError(
            f"max_requeues = {max_requeues}: this job has started again {_restarts()} times; its log says why"
        )


def _requeue(max_requeues: int) -> None:
    """Queue this job again and wait for Slurm to end it; returns where that is not possible.

    Only rank 0 asks. The others wait, since a rank that ends with an error would end the job before it is queued.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    if _restarts() >= max_requeues:
        print(f"not queued again: max_requeues = {max_requeues} is reached", file=sys.stderr, flush=True)
        return
    if os.environ.get("SLURM_PROCID", "0") == "0":
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if asked.returncode:
            print(f"not queued again: {asked.stderr.strip()}", file=sys.stderr, flush=True)
            return
        print(f"job {job} is queued again", file=sys.stderr, flush=True)
    time.sleep(_WAIT_FOR_END_S)
