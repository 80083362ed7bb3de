"""The folder of a submission: what was submitted, with which settings, as which jobs.

<output_dir>/launch/<time>-<command>/
    submission.json   command, working directory, version, parts with their job ids
    config.yaml       the resolved configuration, which the jobs read
    cluster.yaml      the resolved cluster settings
    jobs/             what submitit keeps: scripts, pickles, and a log per process (<job>_<rank>_log.out)
    status.json       local executor only: how far its driver is
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.schema import ClusterConfig
from masp import __version__
from masp.cache.files import write_bytes
from masp.config import Config, save_config
from masp.errors import InputError

FILE, CONFIG, CLUSTER, JOBS = "submission.json", "config.yaml", "cluster.yaml", "jobs"
# They write into the same logs, and only about what the job did.
_BYSTANDERS = ("srun: ", "slurmstepd", "submitit ")


@dataclass(frozen=True)
class Submitted:
    """A part that was handed over."""

    name: str
    job_id: str
    """As the scheduler calls it; an array has one."""

    num_jobs: int
    """Tasks of the array, or 1."""

    num_ranks: int
    """Processes of each."""


def make_folder(command: str, config: Config, cluster: ClusterConfig) -> Path:
    """A new folder with the resolved settings in it.

    Raises:
        InputError: it cannot be written.
    """
    parent = Path(config.output_dir).absolute() / "launch"
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(parent, name)
        (folder / JOBS).mkdir()
        save_config(config, folder / CONFIG)
        save_config(cluster, folder / CLUSTER)
    except OSError as error:
        raise InputError(f"output_dir: {parent} cannot be written: {error.strerror}") from None
    return folder


def _new_folder(parent: Path, name: str) -> Path:
    """Two submissions in one second get folders of their own."""
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise InputError(f"output_dir: {parent} holds a thousand submissions of this second")


def write_record(folder: Path, command: str, stage: str | None, parts: list[Submitted], **more: object) -> None:
    """Write `submission.json`: complete or not at all."""
    record = {
        "command": command,
        "stage": stage,
        "time": time.time(),
        "host": socket.gethostname(),
        "working_directory": os.getcwd(),
        "version": __version__,
        "parts": [asdict(part) for part in parts],
        **more,
    }
    write_bytes(folder / FILE, json.dumps(record, indent=1).encode() + b"\n")


def read_record(folder: Path) -> dict:
    """What `write_record` wrote."""
    return json.loads((folder / FILE).read_text(encoding="utf-8"))


def explain(folder: Path, job_id: str) -> str | None:
    """Why a job failed: what its logs say, and in which of them; None if it wrote none."""
    paths = sorted((folder / JOBS).glob(f"{job_id}_*_log.out"))
    others: list[str] = []
    for path in paths:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return f"{errors[-1]} ({path})"
        own = [line for line in lines if not line.startswith(_BYSTANDERS)]
        others += [f"{line} ({path})" for line in own[-1:]]
    if others:
        return others[0]
    return f"it said nothing ({paths[0]})" if paths else None
