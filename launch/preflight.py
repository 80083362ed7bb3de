"""Before anything is queued: would it run? What is wrong is refused here, and not after a night in the queue."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launch.job.config import ClusterConfig
from launch.job.parts import Part
from launch.submission.record import run_name
from launch.submission.slurm_client import SlurmError, ask, check_answers
from launch.submission.slurm_scripts import check_installed, parameters, script
from launch.time_limits import check_time
from masp.cache.layout import check_layout, read_layout
from masp.config import Config
from masp.data.datasets import read_dataset
from masp.data.questions import load_questions
from masp.errors import InputError
from masp.evaluation.feed import open_feed
from masp.evaluation.run import evaluate_dir, open_evaluation
from masp.extraction.provenance import model_part
from masp.plan.plan import Plan, make_plan
from masp.training.stages import STAGES, open_stage

# Folders that each node has for itself, by long custom.
_OF_ONE_NODE = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass
class Findings:
    """What a preflight found that is no error."""

    notes: list[str] = field(default_factory=list)
    """One line each, for the user."""

    plan: Plan | None = None
    """What `masp plan` says, if extraction is among the parts."""


def preflight(parts: Sequence[Part], config: Config, cluster: ClusterConfig) -> Findings:
    """Check settings, paths, space, fingerprints, GPUs and time; nothing is written but probes that go at once.

    Args:
        parts: that are to be submitted, in order.
        config: of the run.
        cluster: where they would run.

    Raises:
        InputError, DataError: the first thing that is wrong.
    """
    findings = Findings()
    names = [part.name for part in parts]
    for part in parts:
        _check_devices(part, config, cluster)
    _check_paths(parts, config, cluster, findings)
    if "extract" in names:
        findings.plan = _check_extraction(config)
    _check_artefacts(names, config)
    _check_shares(parts, config, findings)
    if findings.plan is not None:
        findings.notes += check_time(parts, config, cluster, findings.plan)
    return findings


def _check_devices(part: Part, config: Config, cluster: ClusterConfig) -> None:
    """A GPU where the settings want one, and none where they do not."""
    key = "extract" if part.name == "extract" else "evaluate" if part.name == "evaluate" else "train"
    section = config.extract if part.name == "extract" else config.engine
    setting = "extract.device" if part.name == "extract" else "engine.device"
    gpus = part.resources.gpus_per_task
    if section.device == "cuda" and not gpus:
        raise InputError(f"{setting} = 'cuda', but cluster.{key}.gpus_per_task = 0: ask for a GPU, or set 'cpu'")
    if section.device == "cpu" and gpus:
        raise InputError(f"{setting} = 'cpu', but cluster.{key}.gpus_per_task = {gpus}: ask for none, or set 'auto'")
    if cluster.executor == "local" and gpus:
        wanted, found = gpus * part.tasks_per_node, torch.cuda.device_count()
        if wanted > found:
            raise InputError(
                f"cluster.{key}.tasks_per_node = {part.tasks_per_node} with a GPU each, but this machine has {found}"
            )


def _check_paths(parts: Sequence[Part], config: Config, cluster: ClusterConfig, findings: Findings) -> None:
    """What is read is there, what is written can be, and both lie where other nodes may see them."""
    if not Path(config.questions).is_file():
        raise InputError(f"questions: {config.questions} is no file")
    written = {"output_dir": config.output_dir}
    for part in parts:
        if part.name == "extract":
            written["cache.dir"] = config.cache.dir
        elif part.name == "evaluate":
            written["evaluate.output_dir"] = str(part.result.parent)
    for key, path in written.items():
        check_writable(key, path)
    if cluster.executor == "slurm":
        read = {"dataset.root": config.dataset.root, "cache.dir": config.cache.dir}
        read |= {"vlm.path": config.vlm.path} if Path(config.vlm.path).exists() else {}
        lone = [
            f"{key} = {path}"
            for key, path in (written | read).items()
            if str(Path(path).absolute()).startswith(tuple(f"{folder}/" for folder in _OF_ONE_NODE))
        ]
        if lone:
            findings.notes.append(f"every node must see {', '.join(lone)}: mostly each has such a folder of its own")


def check_writable(key: str, path: str) -> None:
    """Try to write where `path` is, or where it will be made.

    Raises:
        InputError: that is not possible; names `key`.
    """
    target = Path(path).expanduser().absolute()
    existing = next(p for p in (target, *target.parents) if p.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(20, "is no folder")
        with tempfile.TemporaryFile(dir=existing, prefix=".masp-probe-"):
            pass
    except OSError as error:
        raise InputError(f"{key}: {target} cannot be written: {existing}: {error.strerror}") from None


def _check_extraction(config: Config) -> Plan:
    """Dataset, VLM, room for the cache, and a cache that was begun already; returns the plan."""
    plan = make_plan(config)
    if not plan.space.fits:
        raise InputError(f"cache.dir: {config.cache.dir}: {plan.space.verdict}")
    layout = read_layout(Path(config.cache.dir))
    if layout is not None:
        dataset = read_dataset(config.dataset)
        check_layout(
            Path(config.cache.dir),
            layout,
            dataset=dataset.name,
            categories=dataset.categories,
            num_shards=config.cache.num_shards,
            model=model_part(config),
        )
    return plan


def _check_artefacts(names: Sequence[str], config: Config) -> None:
    """What the first part builds on is there and fits: cache, aspect modules, soft prompt."""
    if "extract" in names:
        load_questions(config.questions)
        return
    first = names[0]
    for stage in STAGES:
        if first == stage:
            open_stage(stage, config, "cpu" if config.engine.device == "cpu" else "cuda").identity()
            return
    if config.evaluate.source != "cache":
        return  # that asks for the machine that makes the features, which is not this one
    open_evaluation(config, evaluate_dir(config), open_feed(config))


def _check_shares(parts: Sequence[Part], config: Config, findings: Findings) -> None:
    """Processes that would have nothing to do."""
    for part in parts:
        ranks = part.num_nodes * part.tasks_per_node
        if part.name == "extract" and len(part.jobs) > config.cache.num_shards:
            findings.notes.append(
                f"cluster.extract.num_tasks = {len(part.jobs)}: {len(part.jobs) - config.cache.num_shards} of them have"
                f" nothing to do, since cache.num_shards = {config.cache.num_shards}"
            )
        elif part.name in ("stage1", "stage2"):
            size = getattr(config, part.name).global_batch_size
            if ranks > size:
                findings.notes.append(
                    f"{part.name}: {ranks - size} of {ranks} processes have nothing to do in a step, since"
                    f" {part.name}.global_batch_size = {size}"
                )


def check_executor(cluster: ClusterConfig) -> None:
    """Make sure that there is somebody to submit to.

    Raises:
        InputError: Slurm is not installed here, or does not answer.
    """
    if cluster.executor == "slurm":
        check_installed()
        check_answers()


def check_slurm(parts: Sequence[Part], config: Config, cluster: ClusterConfig, folder: Path) -> None:
    """Ask Slurm whether it would take every part (`sbatch --test-only`); nothing is queued.

    Args:
        folder: of the submission, which need not exist yet.

    Raises:
        InputError: it would not, in its own words, or it does not answer.
    """
    asked: list[dict[str, Any]] = []
    for part in parts:
        wanted = {**parameters(cluster, part, run_name(config), None), "job_name": "", "num_jobs": len(part.jobs)}
        if wanted in asked:  # both stages ask for the same
            continue
        asked.append(wanted)
        try:
            ask("sbatch", "--test-only", text=script(part, cluster, run_name(config), folder))
        except SlurmError as error:
            why = f"{error.words}; nothing was submitted"
            raise InputError(f"cluster: Slurm would refuse {part.name}: {why}") from None
        _check_time_limit(part, cluster)


def _check_time_limit(part: Part, cluster: ClusterConfig) -> None:
    """A job that asks for more than its partition allows would wait for ever instead of being refused."""
    for line in ask("sinfo", "--noheader", "--format=%P|%l").splitlines():
        name, _, limit = line.partition("|")
        if name == cluster.partition or (cluster.partition is None and name.endswith("*")):
            minutes = limit_minutes(limit)
            if minutes is not None and part.resources.timeout_min > minutes:
                section = part.name if part.name in ("extract", "evaluate") else "train"
                raise InputError(
                    f"cluster: {section}.timeout_min = {part.resources.timeout_min}: partition {name.rstrip('*')}"
                    f" allows at most {minutes:g}; jobs go on after their limit, so a lower one will do"
                )


def limit_minutes(text: str) -> float | None:
    """A duration as Slurm writes it, `[days-][[hours:]minutes:]seconds`, in minutes; None for `infinite`."""
    days, _, clock = text.strip().rpartition("-")
    numbers = clock.split(":")
    if not all(number.isdigit() for number in numbers) or (days and not days.isdigit()):
        return None
    seconds = 0
    for number in numbers:
        seconds = seconds * 60 + int(number)
    return int(days or 0) * 1440 + seconds / 60
