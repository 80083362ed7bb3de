"""Before anything is queued: would it run? What is wrong is refused here, not after a night in the queue."""

from __future__ import annotations

import errno
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launch.job.config import ClusterConfig
from launch.job.parts import Part, PartName
from launch.submission.record import run_name
from launch.submission.slurm_client import SlurmError, ask, check_answers
from launch.submission.slurm_scripts import check_installed, parameters, script
from launch.time_limits import check_time
from masp.annotation.job import open_own_cache
from masp.annotation.wanted import aspects_to_annotate
from masp.cache.fingerprint import model_part
from masp.cache.layout import cached_aspects, check_layout, read_layout
from masp.config import Config, load_aspects
from masp.config.feature_source import evaluation_source
from masp.config.fields import describe_settings
from masp.config.schema import AnnotateConfig, ExtractConfig, StageName
from masp.data.datasets import list_dataset
from masp.data.questions import questions_of
from masp.data.target.find_labels import is_table
from masp.errors import InputError
from masp.evaluation.feed import open_feed
from masp.evaluation.run import evaluate_dir, open_evaluation
from masp.files.regular import exists, is_file
from masp.files.text import reason, shown, shown_apart
from masp.files.typed import as_json
from masp.plan.plan import Plan, make_plan
from masp.results.ledger import DIRECTORY as LEDGERS
from masp.results.ledgers.reader import check_identity, read_header
from masp.training.checkpoint import check_latest
from masp.training.stages import open_stage

# Directories that by convention each node has for itself.
_OF_ONE_NODE = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass
class Findings:
    """What a preflight found that is not an error."""

    notes: list[str] = field(default_factory=list)
    """One line each, for the user."""

    plan: Plan | None = None
    """What `masp plan` says, if the encoder runs in a part: in extraction, or without a cache in any other."""


def preflight(parts: Sequence[Part], config: Config, cluster: ClusterConfig) -> Findings:
    """Check settings, paths, space, fingerprints, GPUs and time; writes nothing but probes that it removes at once.

    Args:
        parts: Parts to submit, in order.
        config: Configuration of the run.
        cluster: Cluster settings.

    Raises:
        InputError, DataError: the first thing that is wrong.
    """
    findings = Findings()
    names = [part.name for part in parts]
    for part in parts:
        _check_devices(part, config, cluster)
    _check_paths(parts, config, cluster, findings)
    if PartName.EXTRACT in names or config.cache.dir is None:
        findings.plan = _check_extraction(config)
        obstacles = findings.plan.dataset.obstacles
        stages = [*names, *(PartName.STAGE2 for name in names if name == PartName.GROUPS)]
        if obstacle := next((o for stage, o in obstacles.items() if stage in stages), None):
            raise InputError(f"dataset.root: {config.dataset.root}: {obstacle}")
    _check_artifacts(names, config)
    _check_shares(parts, config, findings)
    if findings.plan is not None:
        findings.notes += check_time(parts, config, cluster, findings.plan)
    return findings


def _check_devices(part: Part, config: Config, cluster: ClusterConfig) -> None:
    """A GPU where the settings want one, and none where they do not."""
    key = part.name.section
    own: dict[PartName, ExtractConfig | AnnotateConfig] = {
        PartName.EXTRACT: config.extract,
        PartName.ANNOTATE: config.annotate,
    }
    section = own.get(part.name, config.engine)
    setting = f"{part.name if part.name in own else 'engine'}.device"
    gpus = part.resources.gpus_per_task
    if config.cache.dir is None and config.extract.device == "cuda" and not gpus:
        raise InputError(
            f"extract.device = 'cuda', but cluster.{key}.gpus_per_task = 0, and with cache.dir = null the encoder runs "
            f"in {part.name}: ask for a GPU, or set 'cpu'"
        )
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
    """Inputs exist, outputs can be written, and other nodes may see both."""
    if not is_file(Path(config.questions), key="questions"):
        raise InputError(f"questions: {config.questions} is not a file")
    written = {"output_dir": config.output_dir}
    for part in parts:
        if part.name in (PartName.EXTRACT, PartName.ANNOTATE):
            written["cache.dir"] = str(part.result)
        elif part.name == PartName.EVALUATE:
            written["evaluate.output_dir"] = str(part.result.parent)
    for key, path in written.items():
        check_writable(key, path)
    if cluster.executor == "slurm":
        read = {"dataset.root": config.dataset.root}
        read |= {} if config.cache.dir is None else {"cache.dir": config.cache.dir}
        read |= {"target.labels": config.target.labels} if is_table(config.target.labels) else {}
        read |= {"vlm.path": config.vlm.path} if exists(Path(config.vlm.path), key="vlm.path") else {}
        lone = [
            f"{key} = {path}"
            for key, path in (written | read).items()
            if str(Path(path).absolute()).startswith(tuple(f"{directory}/" for directory in _OF_ONE_NODE))
        ]
        if lone:
            findings.notes.append(
                f"every node must see {', '.join(lone)}: usually each has a directory of its own at such a path"
            )


def check_writable(key: str, path: str) -> None:
    """Try to write to a path, or to where it will be made.

    Args:
        key: the setting that the path comes from.
        path: Path.

    Raises:
        InputError: it cannot be written; names `key`.
    """
    target = Path(path).expanduser().absolute()
    existing = next(p for p in (target, *target.parents) if exists(p, key=key))
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is not a directory")
        with tempfile.TemporaryFile(dir=existing, prefix=".masp-probe-"):
            pass
    except OSError as error:
        raise InputError(f"{key}: {target} cannot be written: {existing}: {reason(error)}") from None


def _check_extraction(config: Config) -> Plan:
    """Check dataset, VLM, space for the cache, and a cache that was begun already; returns the plan."""
    plan = make_plan(config)
    if config.cache.dir is None or plan.space is None:
        return plan
    if not plan.space.fits:
        raise InputError(f"cache.dir: {config.cache.dir}: {plan.space.verdict}")
    layout = read_layout(Path(config.cache.dir))
    if layout is not None:
        aspects = load_aspects(config.aspect_definitions)
        aspects = cached_aspects(Path(config.cache.dir), layout.answer_forms, aspects)
        dataset = list_dataset(config.dataset, aspects, config.cache.dir)
        check_layout(
            Path(config.cache.dir),
            layout,
            dataset=dataset.name,
            categories=dataset.categories,
            num_shards=config.cache.num_shards,
            model=model_part(config),
        )
    return plan


def _check_artifacts(names: Sequence[PartName], config: Config) -> None:
    """What the first part builds on, or goes on from, exists and fits."""
    if PartName.EXTRACT in names:
        questions_of(config)
        return
    first = names[0]
    if first in (
        PartName.ASPECTS,
        PartName.GROUPS,
        PartName.CHOOSE,
        PartName.TABLE,
    ):  # each of its trainings looks for itself
        questions_of(config)
        return
    if first == PartName.ANNOTATE:
        aspects_to_annotate(config)
        open_own_cache(config)
        return
    if config.cache.dir is None:  # what a checkpoint says can be compared where all images are read, not here
        questions_of(config)
        model_part(config)
        return
    if first in (PartName.STAGE1, PartName.STAGE2):
        _check_checkpoint(first, config)
        return
    if evaluation_source(config) != "cache":
        return  # this would need the machine that makes the features, which is not this one
    directory = evaluate_dir(config)
    evaluation = open_evaluation(config, directory, open_feed(config))
    for ledger in sorted((directory / LEDGERS).glob("rank-*.jsonl")):
        check_identity(ledger, read_header(ledger), as_json(evaluation.identity))


def check_changes(done: Sequence[PartName], old: Config, new: Config, all_done: bool = False) -> None:
    """Check that changed settings of a run that is resumed can still take effect, or have no need to.

    Args:
        done: Parts that have finished, and are not submitted again.
        old: Settings that the run was submitted with.
        new: Settings that it is resumed with.
        all_done: Whether nothing is left to submit.

    Raises:
        InputError: A finished part was run with another value, or it is another run.
    """
    values = {name: (_setting(old, name), _setting(new, name)) for name in describe_settings(Config)}
    changed = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if not changed:
        return
    if "output_dir" in changed:
        before, now = changed["output_dir"]
        raise InputError(f"output_dir = {shown(now)}: a run is resumed where it is, {before}; submit a new one instead")
    remedy = "leave it out, or submit a new run with another output_dir"
    for name, (before, now) in changed.items():
        part = next((part for part in done if name.startswith(_decided_by(part, new))), None)
        if part is not None or all_done:
            who = part or "the whole run"
            here, there = shown_apart(shown(now), shown(before))
            raise InputError(f"{name} = {here}: {who} has finished with {there}; {remedy}")
    for part in done:
        if part in (PartName.STAGE1, PartName.STAGE2):
            _check_checkpoint(part, new)


def _decided_by(part: PartName, config: Config) -> tuple[str, ...]:
    """How settings begin that a finished part alone reads; others are compared by what builds on it."""
    if part == PartName.ANNOTATE:  # training reads `min_confidence`
        return tuple(f"annotate.{name}" for name in ("aspects", "batch_size", "max_new_tokens", "num_threads"))
    if part in (PartName.ASPECTS, PartName.GROUPS):
        return ("stage1." if part == PartName.ASPECTS else "stage2.",)
    if part != PartName.EXTRACT:
        return (f"{part}.",)
    return ("cache.num_shards",) if evaluation_source(config) == "live" else ("cache.num_shards", "extract.")


def _setting(config: Config, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _check_checkpoint(part: PartName, config: Config) -> None:
    """A checkpoint that a part of training has left was made with these settings.

    Without a cache, that depends on the bytes of all images, which training itself reads and compares.
    """
    if config.cache.dir is None:
        return
    stage: StageName = "stage1" if part == PartName.STAGE1 else "stage2"
    found = open_stage(stage, config, "cpu" if config.engine.device == "cpu" else "cuda")
    check_latest(found.directory / "checkpoints", found.identity())


def _check_shares(parts: Sequence[Part], config: Config, findings: Findings) -> None:
    """Note processes that would have nothing to do."""
    for part in parts:
        ranks = part.num_ranks
        if part.name == PartName.EXTRACT and len(part.jobs) > config.cache.num_shards:
            findings.notes.append(
                f"cluster.extract.num_tasks = {len(part.jobs)}: {len(part.jobs) - config.cache.num_shards} of them have"
                f" nothing to do, since cache.num_shards = {config.cache.num_shards}"
            )
        elif part.name in (PartName.STAGE1, PartName.STAGE2):
            size = getattr(config, part.name).global_batch_size
            if ranks > size:
                findings.notes.append(
                    f"{part.name}: {ranks - size} of {ranks} processes have nothing to do in a step, since"
                    f" {part.name}.global_batch_size = {size}"
                )


def check_executor(cluster: ClusterConfig) -> None:
    """Check that jobs can be submitted from here.

    Raises:
        InputError: Slurm is not installed, or does not answer.
    """
    if cluster.executor == "slurm":
        check_installed()
        check_answers()


def check_slurm(parts: Sequence[Part], config: Config, cluster: ClusterConfig, directory: Path) -> None:
    """Ask Slurm whether it would take every part (`sbatch --test-only`); nothing is queued.

    Args:
        directory: Directory of the submission, which need not exist yet.

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
            ask("sbatch", "--test-only", text=script(part, cluster, run_name(config), directory))
        except SlurmError as error:
            why = f"{error.words}; nothing was submitted"
            raise InputError(f"cluster: Slurm would refuse {part.name}: {why}") from None
        _check_time_limit(part, wanted.get("partition"))


def _check_time_limit(part: Part, partition: str | None) -> None:
    """Refuse a time limit above that of the partition: Slurm would let the job wait for ever.

    Args:
        partition: Partition; None for the cluster's default.
    """
    for line in ask("sinfo", "--noheader", "--format=%P|%l").splitlines():
        name, _, limit = line.partition("|")
        if name.rstrip("*") == partition or (partition is None and name.endswith("*")):
            minutes = limit_minutes(limit)
            if minutes is not None and part.resources.timeout_min > minutes:
                raise InputError(
                    f"cluster: {part.name.section}.timeout_min = {part.resources.timeout_min}:"
                    f" partition {name.rstrip('*')} allows at most {minutes:g}; jobs go on after their limit,"
                    " so a lower one will do"
                )


def limit_minutes(text: str) -> float | None:
    """Parse a duration as Slurm writes it, `[days-][[hours:]minutes:]seconds`, in minutes; None for `infinite`."""
    days, _, clock = text.strip().rpartition("-")
    numbers = clock.split(":")
    if not all(number.isdecimal() for number in (*numbers, *([days] if days else []))):
        return None
    seconds = 0
    for number in numbers:
        seconds = seconds * 60 + int(number)
    return int(days or 0) * 1440 + seconds / 60
