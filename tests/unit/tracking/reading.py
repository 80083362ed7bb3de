"""Reads back what trackers stored, with their own libraries."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768


def wandb_files(directory: Path) -> list[Path]:
    """The files of offline runs, in the order in which they were begun."""
    return sorted(directory.rglob("run-*.wandb"), key=lambda path: path.stat().st_ctime_ns)


def _log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: a header of 7 bytes, then the log format of LevelDB."""
    assert data[:4] in (b":W&B", b"")
    place, parts = 7, []
    while place + 7 <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def wandb_records(path: Path) -> dict[str, Any]:
    """What a file of an offline run holds: id, configuration, rows of the history and summary."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"id": None, "name": None, "config": {}, "history": [], "summary": {}, "files": []}

    def key(item):
        return item.key or "/".join(item.nested_key)

    deadline = time.monotonic() + 60
    while True:  # the library's own process may still be writing
        records = [wandb_internal_pb2.Record.FromString(data) for data in _log_records(path.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        assert time.monotonic() < deadline, f"{path} is not finished"
        time.sleep(0.05)
    for record in records:
        match record.WhichOneof("record_type"):
            case "run":
                found["id"], found["name"] = record.run.run_id, record.run.display_name
                found["project"], found["host"], found["git"] = record.run.project, record.run.host, record.run.git
                found["config"] |= {key(item): json.loads(item.value_json) for item in record.run.config.update}
            case "config":
                found["config"] |= {key(item): json.loads(item.value_json) for item in record.config.update}
            case "history":
                found["history"].append({key(item): json.loads(item.value_json) for item in record.history.item})
            case "summary":
                found["summary"] |= {key(item): json.loads(item.value_json) for item in record.summary.update}
            case "files":
                found["files"] += [file.path for file in record.files.files]
    return found


def mlflow_runs(uri: str, experiment: str) -> list[Any]:
    """The runs of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else client.search_runs([found.experiment_id])


def mlflow_series(uri: str, run: str, name: str) -> list[tuple[int, float]]:
    """Step and value of a metric."""
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=uri).get_metric_history(run, name)
    return [(metric.step, metric.value) for metric in history]
