"""Every setting of a cluster: its type, its default, its valid range and what it does.

The string under a field is its documentation; `tools/config_reference.py` turns it into the table of `docs/cluster.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from masp.config import load_settings
from masp.config.fields import Count, Item, Number, Positive, Settings, Text, UniqueList
from masp.errors import InputError
from masp.files.text import shown

_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_NOT_AN_OPTION = {
    "array": "extract.num_tasks and evaluate.num_tasks are for that",
    "clusters": "`launch` asks only the cluster of the machine it runs on; submit there",
    "cpus-per-task": "cpus_per_task is for that",
    "error": "the logs are where `launch logs` finds them",
    "job-name": "`launch` finds its jobs by their names",
    "label": "the logs hold what a process prints",
    "multi-prog": "every process of a part runs the same command",
    "nodes": "nodes is for that",
    "ntasks": "tasks_per_node is for that",
    "ntasks-per-node": "tasks_per_node is for that",
    "open-mode": "a job that starts again goes on writing its log",
    "output": "the logs are where `launch logs` finds them",
    "signal": "signal_delay_s is for that",
    "time": "timeout_min is for that",
    "wrap": "`launch` writes the script itself",
}
"""Options of sbatch and srun that cannot be given, since other parts of `launch` depend on them, and why."""
_OF_LAUNCH = (
    "dependency",
    "kill-on-bad-exit",
    "kill-on-invalid-dep",
    "no-requeue",
    "parsable",
    "quiet",
    "requeue",
    "test-only",
    "wait",
)


@dataclass
class PartConfig(Settings):
    """What one part of a run asks for."""

    gpus_per_task: Annotated[int, Field(ge=0, le=1), Number] = 0
    """GPUs of each process: one, or none at all."""

    cpus_per_task: Annotated[int, Field(ge=1, le=4096), Number] = 4
    """CPU cores of each process, for itself and for its workers."""

    memory_gb: Positive | None = None
    """Memory per node; null leaves it to the cluster's default."""

    timeout_min: Count = 240
    """Time limit. Ahead of it the job stops cleanly and queues itself again (`max_requeues`)."""

    gpu_type: Text | None = None
    """Type of the GPUs as Slurm names it, such as `a100`; null takes any."""

    sbatch: Annotated[UniqueList[Item], Field(examples=[["partition=h100", "chdir=/shared/run"]])] = field(
        default_factory=list
    )
    """Further options of sbatch for this part, like the `sbatch` for all parts, over which they win."""

    srun: Annotated[UniqueList[Item], Field(examples=[["container-image=masp.sqsh"]])] = field(default_factory=list)
    """Options of srun, which starts the processes: each `name` or `name=value`, such as those of a container."""

    python: Text | None = None
    """Python interpreter of the processes, such as that of a container; null takes the one that submits."""


@dataclass
class ExtractPartConfig(PartConfig):
    """Extraction: an array of tasks, each of which does its share of the shards."""

    num_tasks: Annotated[int, Field(ge=1, le=100_000), Number] = 4
    """Tasks of the array. More than `cache.num_shards` leaves some without work."""

    max_parallel: Count = 256
    """How many of them run at once at most."""


@dataclass
class AnnotatePartConfig(ExtractPartConfig):
    """Annotation by the VLM: an array of tasks, each of which does its share of the shards of the cache."""

    num_tasks: Annotated[int, Field(ge=1, le=100_000), Number] = 4
    """Tasks of the array. More than the cache has shards leaves some without work."""


@dataclass
class TrainPartConfig(PartConfig):
    """Training: one job over all nodes; both stages ask for the same. A sweep is an array of such jobs."""

    nodes: Annotated[int, Field(ge=1, le=100_000), Number] = 1
    """Nodes of the job."""

    tasks_per_node: Annotated[int, Field(ge=1, le=1024), Number] = 1
    """Processes on each node: as many as it has GPUs."""

    max_parallel: Count = 256
    """How many jobs of an array run at once at most."""


@dataclass
class EvaluatePartConfig(TrainPartConfig):
    """Evaluation: one job over all nodes, or an array of such jobs; each process has a slice of its own."""

    num_tasks: Annotated[int, Field(ge=1, le=100_000), Number] = 1
    """Jobs of the array; 1 for no array. Of more than one, each finds its GPUs when it can."""


@dataclass
class ClusterConfig(Settings):
    """Where jobs run, and what they ask for."""

    executor: Literal["slurm", "local"] = "slurm"
    """`slurm`, or `local`: on this machine, in the background, without any scheduler."""

    partition: Text | None = None
    """Slurm's partition; null takes the cluster's default."""

    account: Text | None = None
    """The account to charge; null takes the user's default."""

    qos: Text | None = None
    """The quality of service; null takes the default."""

    constraint: Text | None = None
    """Features that nodes must have, as Slurm writes them; null asks for none."""

    mail_user: Text | None = None
    """Who gets mail about the jobs; null sends none."""

    mail_type: Text = "END,FAIL"
    """About what, if `mail_user` is given."""

    max_requeues: Annotated[int, Field(ge=0, le=10_000), Number] = 20
    """How often a job may start again, for whatever reason, before it counts as failed."""

    signal_delay_s: Annotated[int, Field(ge=1, le=3600), Number] = 120
    """How long before its time limit a job is told to stop: time for a step and a checkpoint."""

    setup: Annotated[list[Item], Field(examples=[["module load cuda"]])] = field(default_factory=list)
    """Shell lines at the start of every job: modules to load, variables to set. Slurm only."""

    sbatch: Annotated[UniqueList[Item], Field(examples=[["reservation=lab"]])] = field(default_factory=list)
    """Further options of sbatch, each `name=value` without dashes, such as `reservation=lab`."""

    extract: ExtractPartConfig = field(default_factory=ExtractPartConfig)
    annotate: AnnotatePartConfig = field(default_factory=AnnotatePartConfig)
    train: TrainPartConfig = field(default_factory=TrainPartConfig)
    evaluate: EvaluatePartConfig = field(default_factory=EvaluatePartConfig)


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read and check a cluster's settings, by the rules of `masp.config.load_settings`.

    Args:
        path: a YAML file such as `configs/cluster/slurm.yaml`.
        overrides: `key=value`.

    Raises:
        InputError: one line that names file, key, value and what would be valid.
    """
    return load_settings(ClusterConfig, path, overrides, _check_together)


def _check_together(cluster: ClusterConfig, where: str) -> None:
    """The rules that concern more than one value."""
    if cluster.executor == "local":
        for name in ("train", "evaluate"):
            nodes = getattr(cluster, name).nodes
            if nodes > 1:
                raise InputError(f"{where}: {name}.nodes = {nodes}: executor 'local' has one node, this machine")
        if cluster.setup:
            raise InputError(f"{where}: setup = {cluster.setup}: with executor 'local', run these lines beforehand")
    for name in ("extract", "annotate", "train", "evaluate"):
        limit_s = getattr(cluster, name).timeout_min * 60
        if cluster.signal_delay_s >= limit_s:
            raise InputError(
                f"{where}: signal_delay_s = {cluster.signal_delay_s}: must be below {name}.timeout_min, which is"
                f" {limit_s} s"
            )
    for name, text in _strings(cluster):
        # in an option, a line end would begin a line of its own in the script, which sbatch or the shell would follow
        if not (text.replace("\n", "").replace("\t", "") if name == "setup" else text).isprintable():
            raise InputError(f"{where}: {name} = {shown(text)}: must not contain line ends or other control characters")
    for line in (line for item in cluster.setup for line in item.splitlines()):
        if line.lstrip().startswith("#SBATCH"):
            raise InputError(f"{where}: setup = {shown(line)}: an option of sbatch; give it as an item of `sbatch`")
    for option in cluster.sbatch:
        _check_sbatch(option, f"{where}: sbatch")
    for section in ("extract", "annotate", "train", "evaluate"):
        _check_part(getattr(cluster, section), f"{where}: {section}", cluster.executor)


def _check_part(part: PartConfig, where: str, executor: str) -> None:
    """The rules for the options of one part."""
    for option in part.sbatch:
        _check_sbatch(option, f"{where}.sbatch")
    for option in part.srun:
        name = option.partition("=")[0]
        if not _OPTION.fullmatch(name):
            raise InputError(
                f"{where}.srun: {shown(option)} must be name or name=value without dashes, such as"
                " container-image=masp.sqsh"
            )
        _check_not_ours(name, option, f"{where}.srun")
    if executor == "local":
        for name in ("gpu_type", "sbatch", "srun", "python"):
            if value := getattr(part, name):
                raise InputError(f"{where}.{name} = {shown(value)}: only for executor 'slurm'")


def _check_sbatch(option: str, where: str) -> None:
    """Refuse what is not an option of sbatch, and options that would break what `launch` itself asks for."""
    name, _, value = option.partition("=")
    if not value or not _OPTION.fullmatch(name):
        raise InputError(f"{where}: {shown(option)} must be name=value without dashes, such as reservation=lab")
    _check_not_ours(name, option, where)


def _check_not_ours(name: str, option: str, where: str) -> None:
    ours = dict.fromkeys(_OF_LAUNCH, "`launch` sets it itself") | _NOT_AN_OPTION
    # Slurm takes the beginning of a name for the whole one
    meant = name if name in ours else next((each for each in ours if each.startswith(name)), None)
    if meant is not None:
        raise InputError(f"{where}: {shown(option)} cannot be given: {ours[meant]}")


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every string of the settings with the dotted name of its setting."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, name)
    elif is_dataclass(value):
        for entry in fields(value):
            yield from _strings(getattr(value, entry.name), f"{name}.{entry.name}".lstrip("."))
