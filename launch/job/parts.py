"""Which parts a command consists of, in order; each waits for the one before it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from launch.job.config import ClusterConfig, PartConfig
from launch.job.jobs import EvaluateJob, ExtractJob, Job, TrainJob
from masp.config import Config
from masp.config.schema import StageName
from masp.errors import InputError

COMMANDS = ("extract", "train", "evaluate", "pipeline")


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

    name: str
    """`extract`, `stage1`, `stage2` or `evaluate`."""

    jobs: tuple[Job, ...]
    """What runs; more than one make an array."""

    resources: PartConfig
    """What each of them asks for."""

    result: Path
    """What it leaves behind."""

    @property
    def num_nodes(self) -> int:
        return getattr(self.resources, "nodes", 1)

    @property
    def tasks_per_node(self) -> int:
        return getattr(self.resources, "tasks_per_node", 1)


def task_command(folder: Path) -> str:
    """The shell command of one process of a job; in place of submitit's own (see `launch.job.task`).

    Args:
        folder: submitit's.
    """
    return shlex.join([sys.executable, "-u", "-m", "launch.job.task", str(folder)])


def make_parts(
    command: str, stage: str | None, config: Config, cluster: ClusterConfig, config_path: Path
) -> list[Part]:
    """The parts of a command.

    Args:
        command: one of `COMMANDS`.
        stage: `stage1` or `stage2`, for `train`.
        config: of the run.
        cluster: what each part asks for.
        config_path: where the jobs will find the run's configuration.
    """
    if command == "train" and stage is None:
        raise InputError("command line: train needs --stage stage1 or --stage stage2")
    common = (str(config_path), cluster.max_requeues)
    output = Path(config.output_dir)
    names = {
        "extract": ["extract"],
        "train": [str(stage)],
        "evaluate": ["evaluate"],
        "pipeline": ["extract", "stage1", "stage2", "evaluate"],
    }[command]
    if command == "pipeline" and not config.aspects:
        names.remove("stage1")  # the soft prompt alone is trained
    parts = []
    for name in names:
        if name == "extract":
            count = cluster.extract.num_tasks
            tasks: tuple[Job, ...] = tuple(ExtractJob(*common, num_tasks=count, task_index=i) for i in range(count))
            parts.append(Part(name, tasks, cluster.extract, Path(config.cache.dir)))
        elif name == "evaluate":
            from masp.evaluation.run import evaluate_dir

            count = cluster.evaluate.num_tasks
            tasks = tuple(EvaluateJob(*common, num_tasks=count, task_index=i) for i in range(count))
            parts.append(Part(name, tasks, cluster.evaluate, evaluate_dir(config) / "metrics.json"))
        else:
            job = TrainJob(*common, stage=cast(StageName, name))  # of two names: the choices of --stage
            parts.append(Part(name, (job,), cluster.train, output / name))
    return parts
