"""The evaluation that is shared with what was trained, if it is of that and of nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from masp.artifacts.exported import NONE
from masp.artifacts.trained import Trained
from masp.config import Config
from masp.errors import DataError, InputError
from masp.files.json_text import parse_json
from masp.files.regular import is_file, read_bytes
from masp.files.text import shown, shown_apart
from masp.results.metrics_file import METRICS, MetricsFile, read_metrics
from masp.runtime.run_directory import RunState, read_status
from masp.taxonomy import CATEGORY_SETS


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of what is exported."""

    metrics: MetricsFile
    values: dict[str, Any]
    """What `metrics.json` says, for `write_metrics`; paths of this machine are replaced by the settings that named
    them."""


def evaluated_categories(run: Path, config: Config) -> tuple[str, ...] | None:
    """The categories that were asked in the evaluation of a run; None where something else says what they are.

    Neither a released soft prompt nor a run without one does.
    """
    soft_prompt, target = config.checkpoint.soft_prompt, config.target
    is_silent = soft_prompt == NONE or (soft_prompt or "").endswith(".pt")
    is_known = config.dataset.categories or config.dataset.name in CATEGORY_SETS
    path = _directory(run, config) / METRICS
    if not is_silent or target.categories or target.labels is not None or is_known or not is_file(path):
        return None
    return read_metrics(path, []).categories


def _directory(run: Path, config: Config) -> Path:
    return Path(config.evaluate.output_dir or run / "evaluate")


def evaluation_of(run: Path, config: Config, trained: Trained) -> Evaluated | None:
    """The evaluation of a run; None if it was not evaluated.

    Args:
        run: Run directory.
        config: Its configuration.
        trained: What it trained.

    Raises:
        InputError: It was begun and not finished, or is of something else than what was trained.
        DataError: It is damaged.
    """
    directory = _directory(run, config)
    path = directory / METRICS
    if not is_file(path):
        status = read_status(directory)
        if status is not None and status.state != RunState.FINISHED:
            raise InputError(
                f"RUN: {directory}: the evaluation has not finished ({status.state}); run `masp evaluate` again, or "
                "remove this directory to export without results"
            )
        return None
    problems: list[str] = []
    metrics = read_metrics(path, problems)
    if problems:
        raise DataError(f"{problems[0]}; run `masp evaluate` again")
    _check_of_these(path, metrics, trained)
    values = parse_json(read_bytes(path) or b"")
    known = {field.name for field in fields(MetricsFile)}
    values = {name: value for name, value in values.items() if name in known}
    lineage = {name: value for name, value in (values.get("lineage") or {}).items() if name != "digest"}
    return Evaluated(metrics, _without_paths({**values, "lineage": lineage}, config))


def _check_of_these(path: Path, metrics: MetricsFile, trained: Trained) -> None:
    """Refuse numbers of other artifacts, or of a prompt that lacks a part."""
    remedy = "evaluate this run, or move the directory of that evaluation elsewhere"
    if metrics.stage == "stage1" or metrics.per_aspect is not None:  # of earlier versions, no stage is named
        raise InputError(f"RUN: {path} is not an evaluation of the target, but of stage1; {remedy}")
    said = metrics.lineage or {}
    for name, here in trained.lineage().items():
        part = said.get(name)
        there = part.get("digest") if isinstance(part, dict) else None
        ours = None if here is None else here["digest"]
        if there != ours:
            old, new = shown_apart(str(there and str(there)[:12]), str(ours and ours[:12]))
            words = "aspect modules" if name == "aspect" else "soft prompt"
            raise InputError(f"RUN: {path} was made with {words} {old}, but those of the run are {new}; {remedy}")
    if metrics.without:
        raise InputError(f"RUN: {path} was made with evaluate.without = {shown(list(metrics.without))}; {remedy}")


def _without_paths(value: Any, config: Config) -> Any:
    """The value with paths of this machine replaced."""
    named = {
        "output_dir": config.output_dir, "cache.dir": config.cache.dir, "dataset.root": config.dataset.root,
        "vlm.path": config.vlm.path, "home": os.path.expanduser("~"),
    }  # fmt: skip
    paths = {
        os.path.abspath(path): f"<{name}>" for name, path in named.items() if path and os.path.abspath(path) != "/"
    }
    return _replaced(value, sorted(paths.items(), key=lambda item: -len(item[0])))


def _replaced(value: Any, paths: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for path, name in paths:
            value = value.replace(path, name)
        return value
    if isinstance(value, list):
        return [_replaced(item, paths) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, paths) for key, item in value.items()}
    return value
