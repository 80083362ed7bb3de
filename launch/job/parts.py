"""Which parts a command consists of, in order; each waits for the one before it."""

from __future__ import annotations

import shlex
import sys
import typing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.job.config import ClusterConfig, ExtractPartConfig, PartConfig, TrainPartConfig
from launch.job.jobs import AnnotateJob, ChooseJob, EvaluateJob, ExtractJob, GroupJob, Job, TrainJob
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.config.schema import StageName
from masp.errors import InputError
from masp.start.steps import step_names

if TYPE_CHECKING:  # it imports torch
    from masp.sweep.members import Sweep

Command = Literal["extract", "annotate", "train", "evaluate", "pipeline", "sweep"]
COMMANDS: tuple[Command, ...] = typing.get_args(Command)


class PartName(StrEnum):
    """The parts that a submission may have."""

    EXTRACT = "extract"
    ANNOTATE = "annotate"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    EVALUATE = "evaluate"
    ASPECTS = "aspects"
    """Of a sweep: the trainings of stage 1 that its members need."""
    GROUPS = "groups"
    """Of a sweep: the trainings of stage 2, a task per group."""
    CHOOSE = "choose"
    """Of a sweep: the scores, the choice and the table."""

    @property
    def section(self) -> Literal["extract", "annotate", "train", "evaluate"]:
        """Section of the cluster settings that says what the part asks for."""
        match self:
            case PartName.EXTRACT:
                return "extract"
            case PartName.ANNOTATE:
                return "annotate"
            case PartName.EVALUATE | PartName.CHOOSE:
                return "evaluate"
            case _:
                return "train"


class State(StrEnum):
    """What became of a part, or of a task of it."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """It can be resumed."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Part:
    """One step of a run: a single job, or an array of jobs."""

    name: PartName

    jobs: tuple[Job, ...]
    """The jobs; more than one make an array."""

    resources: PartConfig
    """What each job asks for."""

    result: Path
    """Path of what the part makes."""

    @property
    def num_nodes(self) -> int:
        """Nodes of each job."""
        return self.resources.nodes if isinstance(self.resources, TrainPartConfig) else 1

    @property
    def tasks_per_node(self) -> int:
        """Processes of each job on each node."""
        return self.resources.tasks_per_node if isinstance(self.resources, TrainPartConfig) else 1

    @property
    def num_ranks(self) -> int:
        """Processes of each job."""
        return self.num_nodes * self.tasks_per_node

    @property
    def max_parallel(self) -> int:
        """How many of the jobs run at once at most."""
        resources = self.resources
        return resources.max_parallel if isinstance(resources, ExtractPartConfig | TrainPartConfig) else 1


def task_command(directory: Path, python: str | None = None) -> str:
    """The shell command of one process of a job, in place of submitit's own (see `launch.job.task`).

    Args:
        directory: submitit's.
        python: Python interpreter; None for that of this process.
    """
    return shlex.join([python or sys.executable, "-u", "-m", "launch.job.task", str(directory)])


def make_parts(
    command: Command,
    stage: StageName | None,
    config: Config,
    cluster: ClusterConfig,
    config_path: Path,
    sweep: Sweep | None = None,
) -> list[Part]:
    """Make the parts of a command.

    Args:
        command: one of `COMMANDS`.
        stage: `stage1` or `stage2`, for `train`.
        config: Configuration of the run.
        cluster: Cluster settings.
        config_path: where the jobs will find the run's configuration.
        sweep: The sweep, for `sweep`.

    Raises:
        InputError: `train` without a stage.
    """
    if command == "train" and stage is None:
        raise InputError("command line: train needs --stage stage1 or --stage stage2")
    common = (str(config_path), cluster.max_requeues)
    if sweep is not None:
        return _sweep_parts(sweep, cluster, common)
    output = Path(config.output_dir)
    if command == "pipeline":
        names = [PartName(name) for name in step_names(config)]
    else:
        names = [PartName(stage if stage is not None and command == "train" else command)]
    parts = []
    for name in names:
        if name == PartName.EXTRACT:
            parts.append(_extraction(config, cluster, common))
        elif name == PartName.ANNOTATE:
            count = cluster.annotate.num_tasks
            tasks: tuple[Job, ...] = tuple(AnnotateJob(*common, num_tasks=count, task_index=i) for i in range(count))
            parts.append(Part(name, tasks, cluster.annotate, cache_directory(config)))
        elif name == PartName.EVALUATE:
            from masp.evaluation.run import evaluate_dir

            count = cluster.evaluate.num_tasks
            tasks = tuple(EvaluateJob(*common, num_tasks=count, task_index=i) for i in range(count))
            parts.append(Part(name, tasks, cluster.evaluate, evaluate_dir(config) / "metrics.json"))
        else:
            job = TrainJob(*common, stage="stage1" if name == PartName.STAGE1 else "stage2")
            parts.append(Part(name, (job,), cluster.train, output / name))
    return parts


def _extraction(config: Config, cluster: ClusterConfig, common: tuple[str, int]) -> Part:
    count = cluster.extract.num_tasks
    tasks = tuple(ExtractJob(*common, num_tasks=count, task_index=i) for i in range(count))
    return Part(PartName.EXTRACT, tasks, cluster.extract, cache_directory(config))


def _sweep_parts(sweep: Sweep, cluster: ClusterConfig, common: tuple[str, int]) -> list[Part]:
    """The parts of a sweep: an array of trainings of stage 1, one with a task per group, and the choice."""
    from masp.sweep.members import overrides_of
    from masp.sweep.table import FILE

    parts = [] if sweep.base.cache.dir is None else [_extraction(sweep.base, cluster, common)]
    if sweep.aspects:
        trainings = tuple(TrainJob(*common, stage="stage1", overrides=each.overrides) for each in sweep.aspects)
        parts.append(Part(PartName.ASPECTS, trainings, cluster.train, sweep.directory))
    groups = tuple(GroupJob(*common, runs=tuple(map(overrides_of, group))) for group in sweep.groups)
    parts.append(Part(PartName.GROUPS, groups, cluster.train, sweep.directory))
    alone = replace(cluster.evaluate, nodes=1, tasks_per_node=1, num_tasks=1)
    parts.append(Part(PartName.CHOOSE, (ChooseJob(*common),), alone, sweep.directory / FILE))
    return parts
