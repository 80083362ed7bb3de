"""What runs on a node: one small picklable class per kind of job. Importing this module imports nothing heavy.

submitit starts each process, unpickles the job and calls it. Its own signal handlers, which leave from inside the
handler on one rank, are replaced for the whole call by a flag: the work stops where it can, with all ranks agreed and a
checkpoint written, and only then is the job put back into the queue.

What a queued job's pickle holds is the names of these classes and their fields: they stay as they are for one release.
"""

from __future__ import annotations

import abc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from launch.job.failure import failure_path, write_failure
from launch.job.requeue import check_restarts, num_restarts, requeue, requeue_after_loss
from masp.config import Config, load_config
from masp.config.schema import StageName
from masp.errors import FilesInUse, InputError, MaspError, StoppedEarly
from masp.files.text import users_error
from masp.runtime.log import say_error, show
from masp.runtime.log import setup as set_up_logging
from masp.runtime.run_directory import RunInUse
from masp.runtime.stop import StopFlag

if TYPE_CHECKING:  # it imports torch
    from masp.distributed.liveness import RankLost

LOG = logging.getLogger(__name__)

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE_S = 600
"""How long files that a dead node was writing may stay locked: leases of network file systems expire."""

T = TypeVar("T")


def own_log() -> Path:
    """Path of this process's log."""
    from submitit import JobEnvironment

    return JobEnvironment().paths.stdout


@dataclass(frozen=True)
class Job(abc.ABC):
    """What all jobs share: reading the configuration, stopping, errors, requeueing."""

    config_path: str
    """Path of the resolved configuration in the submission's directory."""

    max_requeues: int
    """How often the job may start again."""

    def __call__(self) -> str | None:
        """Run the job.

        Returns:
            Path of its result; None if other processes have yet to finish it.

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
        with StopFlag() as stop:
            # launch.job.task blocked it until this handler was in place
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
            failure_path(own_log()).unlink(missing_ok=True)  # of this job before it was queued again
            _announce_ranks()
            set_up_logging()
            try:
                check_restarts(self.max_requeues)
                made = self.work(load_config(self.config_path), stop)
            except StoppedEarly as error:
                show(f"stopped: {error}", to=sys.stderr)
                if signal.SIGUSR2 in stop.received:
                    requeue(self.max_requeues)
                sys.exit(error.exit_code)
            except MaspError as error:
                say_error(error)
                write_failure(own_log(), error)
                sys.exit(error.exit_code)
            except Exception as error:
                if isinstance(error, OSError) and (message := users_error(error)) is not None:
                    problem = InputError(message)
                    say_error(problem)
                    write_failure(own_log(), problem)
                    sys.exit(problem.exit_code)
                write_failure(own_log(), error)
                raise
            stop.done()
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
class AnnotateJob(Job):
    """One task of the array that annotates."""

    num_tasks: int = 1
    task_index: int = 0

    def work(self, config: Config, stop: StopFlag) -> Path:
        from masp.annotation.job import annotate

        return _patiently(
            lambda: annotate(config, num_tasks=self.num_tasks, task_index=self.task_index, stop=stop), stop
        )


@dataclass(frozen=True)
class TrainingJob(Job):
    """One rank of a training; it is queued again where another rank is lost."""

    def work(self, config: Config, stop: StopFlag) -> Path:
        from masp.distributed.liveness import RankLost

        def lost(error: RankLost) -> None:
            write_failure(own_log(), error)  # now: this process may be killed before it gets any further
            requeue_after_loss(Path(self.config_path).parent / "jobs", self.newest(config), self.max_requeues)

        try:
            return self.train(config, stop, lost)
        except RankLost as error:
            say_error(error)
            lost(error)
            raise
        except RunInUse as error:
            if num_restarts():  # by a rank that this job left on a lost node; it notices within a minute
                say_error(error)
                requeue(self.max_requeues)
            raise

    @abc.abstractmethod
    def train(self, config: Config, stop: StopFlag, on_loss: Callable[[RankLost], None]) -> Path:
        """Train; arguments as of `masp.training.loop.train`."""

    @abc.abstractmethod
    def newest(self, config: Config) -> str:
        """How far it is: the name of the newest checkpoint, empty if there is none."""


@dataclass(frozen=True)
class TrainJob(TrainingJob):
    """One rank of a stage's training; of an array of trainings, one rank of one of them."""

    stage: StageName = "stage1"
    overrides: tuple[str, ...] = ()
    """What this training changes in the configuration, as `key=value`."""

    def train(self, config: Config, stop: StopFlag, on_loss: Callable[[RankLost], None]) -> Path:
        from masp.training.loop import train

        return train(self._own(config), self.stage, stop=stop, on_loss=on_loss)

    def newest(self, config: Config) -> str:
        return _newest(self._own(config), self.stage)

    def _own(self, config: Config) -> Config:
        return load_config(self.config_path, self.overrides) if self.overrides else config


@dataclass(frozen=True)
class GroupJob(TrainingJob):
    """One rank of the training of soft prompts behind one pass of their prefix (`masp.training.group`).

    A run that is stopped, for example since its loss is not finite, stops no other, and the job does not fail.
    """

    runs: tuple[tuple[str, ...], ...] = ()
    """What each run changes in the configuration, as `key=value`, its `output_dir` and `checkpoint.aspect` included."""

    def train(self, config: Config, stop: StopFlag, on_loss: Callable[[RankLost], None]) -> Path:
        from masp.training.group.together import train_together

        configs = self.configs()
        failures = train_together(configs, stop, on_loss)
        for own, failure in zip(configs, failures, strict=True):
            if failure:
                LOG.warning("%s: %s", own.output_dir, failure)
        return Path(configs[0].output_dir).parent

    def newest(self, config: Config) -> str:
        return " ".join(_newest(own, "stage2") for own in self.configs())

    def configs(self) -> list[Config]:
        """Configurations of the runs."""
        return [load_config(self.config_path, run) for run in self.runs]


def _newest(config: Config, stage: StageName) -> str:
    from masp.training.checkpoint import latest_name

    return latest_name(Path(config.output_dir) / stage / "checkpoints") or ""


@dataclass(frozen=True)
class ChooseJob(Job):
    """The end of a sweep: scores its members, chooses the best and writes the table."""

    def work(self, config: Config, stop: StopFlag) -> Path:
        from launch.job.members import read_sweep
        from masp.sweep.run import choose

        path = Path(self.config_path)
        return _patiently(lambda: choose(read_sweep(path.parent, path), stop), stop)


@dataclass(frozen=True)
class TableJob(Job):
    """The end of a study: scores its runs and writes the table."""

    def work(self, config: Config, stop: StopFlag) -> Path:
        from launch.job.members import read_study
        from masp.experiments.study.run import finish_study

        path = Path(self.config_path)
        return _patiently(lambda: finish_study(read_study(path.parent, path), stop), stop)


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
    """Do the work; a restarted job also waits until its predecessor on a lost node no longer locks its files."""
    began = time.monotonic()
    while True:
        try:
            return work()
        except FilesInUse as error:
            if not num_restarts() or stop or time.monotonic() - began > _PATIENCE_S:
                raise
            LOG.info("waiting: %s", error)
            time.sleep(5)


def _announce_ranks() -> None:
    """Let `masp.distributed.ranks.read_ranks` see the ranks of this job, and no others.

    On Slurm it reads srun's own variables. Those of torchrun would take precedence, and the shell that submitted the
    job may have set some, so they are removed. submitit's local executor has variables of its own.
    """
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        os.environ["RANK"] = os.environ["SUBMITIT_LOCAL_GLOBALID"]
        os.environ["WORLD_SIZE"] = os.environ["SUBMITIT_LOCAL_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ["SUBMITIT_LOCAL_LOCALID"]
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        # as in masp.distributed: below the ports of outgoing connections; the job id is a process id
        os.environ["MASTER_PORT"] = str(20000 + int(os.environ["SUBMITIT_LOCAL_JOB_ID"]) * 17 % 12000)
