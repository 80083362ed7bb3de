"""What runs on a node: one small picklable class per kind of job. Importing this module imports nothing heavy.

submitit starts each process, unpickles the job and calls it. Its own signal handlers, which leave from inside the
handler on one rank, are replaced for the whole call by a flag: the work stops where it can, with all ranks agreed and a
checkpoint written, and only then is the job put back into the queue.
"""

from __future__ import annotations

import abc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from launch.job.requeue import check_restarts, num_restarts, requeue, requeue_after_loss

if TYPE_CHECKING:
    from masp.config import Config
    from masp.config.schema import StageName
    from masp.distributed.liveness import RankLost
    from masp.runtime.stop import StopFlag

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE_S = 600
"""So long may what a dead node was writing stay locked: leases of network file systems run out."""

T = TypeVar("T")


class FailureKind(StrEnum):
    """What the failure of a process says about its job."""

    CAUSE = "cause"
    """Why the job failed."""
    BUG = "bug"
    """An error that nobody expected: the cause, or what another process's end led to."""
    CONSEQUENCE = "consequence"
    """It ended because another one failed, which knows why."""


@dataclass(frozen=True)
class Failure:
    """Why a process of a job failed. It lies beside the process's log, which says the same to people."""

    kind: FailureKind
    exit_code: int
    message: str
    """On one line."""


def write_failure(log: Path, error: Exception) -> None:
    """Keep why the process that writes this log failed; a full disk, for one, may not take it: then a note says so."""
    from masp.errors import MaspError, OtherRankFailed, one_line
    from masp.files.atomic import write_bytes

    if isinstance(error, MaspError):
        kind = FailureKind.CONSEQUENCE if isinstance(error, OtherRankFailed) else FailureKind.CAUSE
        failure = Failure(kind, error.exit_code, one_line(str(error)))
    else:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        failure = Failure(FailureKind.BUG, MaspError.exit_code, one_line(text))
    path = failure_path(log)
    try:
        write_bytes(path, json.dumps(asdict(failure), indent=1).encode() + b"\n")
    except OSError as problem:
        print(f"note: {path} cannot be written: {problem.strerror}", file=sys.stderr, flush=True)


def read_failure(log: Path) -> Failure | None:
    """What `write_failure` wrote beside a log; None if the process has not failed, or ended before it could say so.

    Raises:
        DataError: it is damaged.
    """
    from masp.errors import DataError

    path = failure_path(log)
    try:
        found = json.loads(path.read_bytes())
        return Failure(FailureKind(found["kind"]), int(found["exit_code"]), str(found["message"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def failure_path(log: Path) -> Path:
    """`<job>_<rank>_log.out` -> `<job>_<rank>_failure.json`."""
    return log.with_name(f"{log.name.removesuffix('_log.out')}_failure.json")


def own_log() -> Path:
    """The log of this process of a job."""
    from submitit import JobEnvironment

    return JobEnvironment().paths.stdout


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
        try:
            return self._until_stopped()
        except SystemExit:
            # srun ends the other ranks of a failed one by SIGTERM, also those that are about to end by the same error:
            # they would die of the signal, and the job's exit code would be the signal's, not the error's.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise

    def _until_stopped(self) -> str | None:
        from masp.runtime.stop import StopFlag

        with StopFlag() as stop:
            # launch.task held it back until somebody listens
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
            from masp.config import load_config
            from masp.errors import MaspError, StoppedEarly
            from masp.runtime.log import setup as set_up_logging

            failure_path(own_log()).unlink(missing_ok=True)  # of this job before it was queued again
            _announce_ranks()
            set_up_logging()
            try:
                check_restarts(self.max_requeues)
                made = self.work(load_config(self.config_path), stop)
            except StoppedEarly as error:
                print(f"stopped: {error}", file=sys.stderr, flush=True)
                if signal.SIGUSR2 in stop.received:
                    requeue(self.max_requeues)
                sys.exit(error.exit_code)
            except MaspError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                write_failure(own_log(), error)
                sys.exit(error.exit_code)
            except Exception as error:
                write_failure(own_log(), error)
                raise
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
        from masp.extraction.job import extract

        return _patiently(
            lambda: extract(config, num_tasks=self.num_tasks, task_index=self.task_index, stop=stop), stop
        )


@dataclass(frozen=True)
class TrainJob(Job):
    """One rank of a stage's training."""

    stage: StageName = "stage1"

    def work(self, config: Config, stop: StopFlag) -> Path:
        from masp.distributed.liveness import RankLost
        from masp.runtime.run_lock import RunInUse
        from masp.training.loop import train

        def lost(error: RankLost) -> None:
            write_failure(own_log(), error)  # now: this process may be ended before it comes to that
            requeue_after_loss(Path(self.config_path).parent / "jobs", self._newest(config), self.max_requeues)

        try:
            return train(config, self.stage, stop=stop, on_loss=lost)
        except RankLost as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            lost(error)
            raise
        except RunInUse as error:
            if num_restarts():  # by a rank that this job left on a lost node; it notices within a minute
                print(f"error: {error}", file=sys.stderr, flush=True)
                requeue(self.max_requeues)
            raise

    def _newest(self, config: Config) -> str:
        """The newest checkpoint's name; empty without one."""
        from masp.training.checkpoint import latest_name

        return latest_name(Path(config.output_dir) / self.stage / "checkpoints") or ""


@dataclass(frozen=True)
class EvaluateJob(Job):
    """One rank of the evaluation; of an array of evaluations, one rank of one of its jobs."""

    num_tasks: int = 1
    task_index: int = 0

    def work(self, config: Config, stop: StopFlag) -> Path | None:
        from masp.evaluation.run import evaluate

        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # On Slurm `evaluate` reads the array's variables itself. Its ranks never meet, so they may be counted on.
            size = int(os.environ["WORLD_SIZE"])
            os.environ["RANK"] = str(self.task_index * size + int(os.environ["RANK"]))
            os.environ["WORLD_SIZE"] = str(self.num_tasks * size)
        return _patiently(lambda: evaluate(config, stop=stop), stop)


def _patiently(work: Callable[[], T], stop: StopFlag) -> T:
    """Do the work; of a job that started again, also wait for a predecessor on a lost node to let go of its files."""
    from masp.errors import FilesInUse

    began = time.monotonic()
    while True:
        try:
            return work()
        except FilesInUse as error:
            if not num_restarts() or stop or time.monotonic() - began > _PATIENCE_S:
                raise
            print(f"waiting: {error}", file=sys.stderr, flush=True)
            time.sleep(5)


def _announce_ranks() -> None:
    """Let `masp.distributed.ranks.read_ranks` see this job's ranks, and no others.

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
