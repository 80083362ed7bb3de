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
from launch.job.jobs import AnnotateJob, ChooseJob, EvaluateJob, ExtractJob, GroupJob, Job, TableJob, TrainJob
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.config.schema import StageName
from masp.errors import InputError
from masp.start.steps import step_names

if TYPE_CHECKING:  # they import torch
    from masp.experiments.study.run import Study
    from masp.experiments.study.runs import Run
    from masp.sweep.members import Sweep

Command = Literal["extract", "annotate", "train", "evaluate", "pipeline", "sweep", "study"]
COMMANDS: tuple[Command, ...] = typing.get_args(Command)


class PartName(StrEnum):
    """The parts that a submission may have."""

    EXTRACT = "extract"
    ANNOTATE = "annotate"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    EVALUATE = "evaluate"
    ASPECTS = "aspects"
    """Of a sweep or study: the trainings of stage 1 that its members need."""
    GROUPS = "groups"
    """Of a sweep or study: the trainings of stage 2, a task per group."""
    CHOOSE = "choose"
    """Of a sweep: the scores, the choice and the table."""
    TABLE = "table"
    """Of a study: the scores and the table."""

    @property
    def section(self) -> Literal["extract", "annotate", "train", "evaluate"]:
        """Section of the cluster settings that says what the part asks for."""
        match self:
            case PartName.EXTRACT:
                return "extract"
            case PartName.ANNOTATE:
                return "annotate"
            case PartName.EVALUATE | PartName.CHOOSE | PartName.TABLE:
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
    runs: Sweep | Study | None = None,
) -> list[Part]:
    """Make the parts of a command.

    Args:
        command: one of `COMMANDS`.
        stage: `stage1` or `stage2`, for `train`.
        config: Configuration of the run.
        cluster: Cluster settings.
        config_path: where the jobs will find the run's configuration.
        runs: The sweep or study, for `sweep` and `study`.

    Raises:
        InputError: `train` without a stage.
    """
    if command == "train" and stage is None:
        raise InputError("command line: train needs --stage stage1 or --stage stage2")
    common = (str(config_path), cluster.max_requeues)
    if runs is not None:
        from masp.sweep.members import Sweep

        make = _sweep_parts if isinstance(runs, Sweep) else _study_parts
        return make(runs, cluster, common)  # type: ignore[arg-type]  # that of its class
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
    parts.append(Part(PartName.CHOOSE, (ChooseJob(*common),), _one_process(cluster), sweep.directory / FILE))
    return parts


def _study_parts(study: Study, cluster: ClusterConfig, common: tuple[str, int]) -> list[Part]:
    """The parts of a study: an array of trainings of stage 1, one with a task per group, and the table."""
    from masp.experiments.study.runs import overrides
    from masp.experiments.study.table import FILE

    def of(run: Run, names_modules: bool) -> tuple[str, ...]:
        return tuple(overrides(study.base, run.variant, run.seed, names_modules))

    parts = [] if study.base.cache.dir is None else [_extraction(study.base, cluster, common)]
    trainings = tuple(
        TrainJob(*common, stage="stage1", overrides=of(run, False))
        for run in study.runs
        if "stage1" in run.variant.stages
    )
    if trainings:
        parts.append(Part(PartName.ASPECTS, trainings, cluster.train, study.directory))
    units = [[run for run in unit if "stage2" in run.variant.stages] for unit in study.units]
    groups = tuple(GroupJob(*common, runs=tuple(of(run, True) for run in unit)) for unit in units if unit)
    parts.append(Part(PartName.GROUPS, groups, cluster.train, study.directory))
    parts.append(Part(PartName.TABLE, (TableJob(*common),), _one_process(cluster), study.directory / FILE))
    return parts


def _one_process(cluster: ClusterConfig) -> PartConfig:
    return replace(cluster.evaluate, nodes=1, tasks_per_node=1, num_tasks=1)
