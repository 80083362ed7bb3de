"""How far a part is, from the files that it writes: cheap enough to ask every few seconds.

What is known of caches and evaluations imports torch. It is imported where it is used: the driver of a local submission
uses none of it, and no training does.
"""

from __future__ import annotations

from pathlib import Path

from launch.job.parts import PartName
from masp.config import Config
from masp.config.feature_source import cache_directory, evaluation_source
from masp.errors import MaspError
from masp.files.jsonl import parse_object
from masp.files.regular import exists, opened, read_tail
from masp.files.text import reason
from masp.runtime.run_directory import RunState, read_status

_TAIL_BYTES = 4096
"""Longer than a line of `metrics.jsonl`."""
_BLOCK_BYTES = 1 << 20


def progress(name: PartName, config: Config, result: str = "") -> str:
    """One phrase such as `3 of 16 shards`; empty while there is nothing to count.

    Args:
        name: Part.
        config: Configuration of the run, whose relative paths begin in the working directory.
        result: Path of what the part makes: of those of a sweep or study, its directory.
    """
    try:
        match name:
            case PartName.EXTRACT:
                return _shards(cache_directory(config))
            case PartName.ANNOTATE:
                parts = cache_directory(config).glob("annotations/.parts/*/*.json")
                count = sum(1 for _ in parts)
                return f"{count} shards of aspects" if count else ""
            case PartName.EVALUATE:
                from masp.evaluation.run import evaluate_dir

                return _scored(evaluate_dir(config), config)
            case PartName.ASPECTS:
                return _finished(result, "stage1", "trainings of aspect modules")
            case PartName.GROUPS:
                return _finished(result, "stage2", "members")
            case PartName.CHOOSE | PartName.TABLE:
                return ""
            case _:
                return _steps(Path(config.output_dir) / name)
    except (OSError, MaspError) as error:
        # A run's files are read while it writes them. Its own commands say what is damaged; a table says that.
        return f"cannot be read: {reason(error)}"


def _shards(directory: Path) -> str:
    from masp.cache.layout import read_layout, sidecar_path

    layout = read_layout(directory)
    if layout is None:
        return ""
    names = layout.shard_names
    return f"{sum(exists(sidecar_path(directory, name)) for name in names)} of {len(names)} shards"


def _steps(directory: Path) -> str:
    status = read_status(directory)
    if status is None:
        return ""
    total, last = status.num_steps, _last_step(directory / "metrics.jsonl")
    return f"step {last} of {total}" if total else f"step {last}" if last else ""


def _finished(directory: str, stage: str, what: str) -> str:
    """How many trainings of a sweep or study have finished, of those that have begun."""
    if not directory:
        return ""
    # of a sweep the runs are in its directory, of a study in those of its seeds
    found = [read_status(path) for depth in ("*", "*/*") for path in Path(directory).glob(f"{depth}/{stage}")]
    states = [status.state for status in found if status is not None]
    return f"{states.count(RunState.FINISHED)} of {len(states)} {what}" if states else ""


def _last_step(path: Path) -> int:
    """The step of the log's last whole line; 0 without one. Damaged lines are skipped, as everywhere in this log."""
    lines = (read_tail(path, _TAIL_BYTES) or b"").split(b"\n")
    return next((step for line in reversed(lines) if (step := _step_of(line)) is not None), 0)


def _step_of(line: bytes) -> int | None:
    value = parse_object(line)
    step = None if value is None else value.get("step")
    return step if type(step) is int else None


def _num_lines(path: Path) -> int:
    with opened(path) as file:
        return 0 if file is None else sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def _scored(directory: Path, config: Config) -> str:
    from masp.cache.manifest import read_manifest

    ledgers = sorted((directory / "ledger").glob("rank-*.jsonl"))
    if not ledgers:
        return ""
    # the first line of each is a header
    scored = sum(max(0, _num_lines(path) - 1) for path in ledgers)
    if evaluation_source(config) != "cache" or config.evaluate.stage != "stage2":
        return f"{scored} records"
    split = read_manifest(cache_directory(config)).splits.get(config.evaluate.split)
    return f"{scored} of {split.num_samples} samples" if split else f"{scored} records"
