"""How far a part is, from the files that it leaves: cheap enough to ask every few seconds."""

from __future__ import annotations

import json
import os
from pathlib import Path

from masp.cache.layout import read_layout, sidecar_path
from masp.cache.manifest import read_manifest
from masp.config import Config
from masp.errors import MaspError
from masp.runtime.status import read_status

_TAIL = 4096


def progress(name: str, config: Config) -> str:
    """One phrase such as `3 of 16 shards`; empty while there is nothing to count, or it cannot be read just now.

    Args:
        name: of the part.
        config: of the run, whose relative paths begin in the working directory.
    """
    try:
        if name == "extract":
            return _shards(Path(config.cache.dir))
        if name == "evaluate":
            from masp.evaluation.run import evaluate_dir

            return _scored(evaluate_dir(config), config)
        return _steps(Path(config.output_dir) / name)
    except (OSError, MaspError, ValueError, KeyError) as error:
        # A run's files are read while it writes them. Its own commands say what is damaged; a table says that.
        return f"cannot be read: {error}"


def _shards(folder: Path) -> str:
    layout = read_layout(folder)
    if layout is None:
        return ""
    names = layout.shard_names
    return f"{sum(sidecar_path(folder, name).exists() for name in names)} of {len(names)} shards"


def _steps(folder: Path) -> str:
    status = read_status(folder)
    if status is None:
        return ""
    total, last = status.num_steps, _last_step(folder / "metrics.jsonl")
    return f"step {last} of {total}" if total else f"step {last}" if last else ""


def _last_step(path: Path) -> int:
    """The step of the log's last whole line; 0 without one."""
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL))
        lines = [line for line in file.read().split(b"\n") if line.startswith(b"{") and line.endswith(b"}")]
    return json.loads(lines[-1])["step"] if lines else 0


def _scored(folder: Path, config: Config) -> str:
    ledgers = sorted((folder / "ledger").glob("rank-*.jsonl"))
    if not ledgers:
        return ""
    scored = sum(max(0, path.read_bytes().count(b"\n") - 1) for path in ledgers)  # the first line is a header
    if config.evaluate.source != "cache" or config.evaluate.stage != "stage2":
        return f"{scored} records"
    splits = read_manifest(Path(config.cache.dir)).splits
    return f"{scored} of {splits[config.evaluate.split].num_samples} samples"
