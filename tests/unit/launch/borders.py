"""The files that `launch` reads, for tests that damage them: what a valid one holds and what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.job.config import load_cluster
from launch.job.failure import failure_path, read_failure
from launch.submission.record import FILE, read_record
from launch.submission.snapshot import FILE as ENVIRONMENT
from launch.submission.snapshot import Snapshot
from launch.submission.state import read_driver_status
from masp.files import typed
from tests.unit.launch.fake_slurm import SLURM

RECORD = {
    "command": "train",
    "stage": "stage1",
    "executor": "local",
    "parts": [{"name": "stage1", "num_jobs": 1, "num_ranks": 2, "result": "out/stage1", "job_ids": ["41"]}],
    "working_directory": "/",
    "host": "login1",
    "time": 1763990000.25,
}
STATUS = {
    "state": "running",
    "exit_code": None,
    "message": "",
    "time": 1763990000.25,
    "host": "laptop",
    "pid": 4711,
    "part": "stage1",
    "parts": {"stage1": {"state": "failed", "job_ids": ["41"], "num_done": 0, "message": "m", "elapsed": "0:00:07"}},
}
FAILURE = {"kind": "cause", "exit_code": 2, "message": "vlm.path: none"}
ENVIRONMENT_VALUE = {
    "code": {"version": "1", "folder": "/masp", "commit": "c" * 40, "dirty": True, "changed": ["a.py"]},
    "python": {"version": "3.11", "executable": "/python"},
    "machine": {"host": "login1", "system": "Linux"},
    "command": ["launch", "train"],
    "variables": {"PATH": "/bin"},
    "packages": {"torch": "2"},
}


@dataclass(frozen=True)
class LaunchBorder:
    """A file that `launch` reads."""

    name: str
    form: str
    """`json` or `yaml`."""
    content: bytes
    read: Callable[[Path], object]
    """Reads the file; its result can be compared with `==`."""
    file: str
    """Name of the file."""


BORDERS = [
    LaunchBorder("submission", "json", json.dumps(RECORD).encode(), lambda p: read_record(p.parent), FILE),
    LaunchBorder("driver", "json", json.dumps(STATUS).encode(), lambda p: read_driver_status(p.parent), "status.json"),
    LaunchBorder(
        "failure",
        "json",
        json.dumps(FAILURE).encode(),
        lambda p: read_failure(p.with_name("7_0_log.out")),
        failure_path(Path("7_0_log.out")).name,
    ),
    LaunchBorder(
        "environment",
        "json",
        json.dumps(ENVIRONMENT_VALUE).encode(),
        lambda p: typed.read(Snapshot, p, surrogates=True),
        ENVIRONMENT,
    ),
    LaunchBorder("cluster", "yaml", SLURM.read_bytes(), load_cluster, "cluster.yaml"),
]
