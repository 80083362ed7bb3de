"""A cluster from a user's point of view: submitting, querying and waiting."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.launching import call_launch
from tools.dev_cluster import DevCluster

CLUSTER = """\
executor: slurm
signal_delay_s: 30
extract: {num_tasks: 4, cpus_per_task: 1, timeout_min: 5}
train: {nodes: 2, cpus_per_task: 1, timeout_min: 5}
evaluate: {nodes: 2, cpus_per_task: 1, timeout_min: 5}
"""
T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 240, what: str | Callable[[], str] = "timed out") -> T:
    """Wait until a condition is true; returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.1)
    return found


class Site:
    """A running cluster and its settings.

    Args:
        cluster: The cluster.
        directory: Directory for the settings file.
    """

    def __init__(self, cluster: DevCluster, directory: Path):
        self.cluster = cluster
        self.settings = directory / "cluster.yaml"
        self.settings.write_text(CLUSTER)

    def call(self, *arguments: object) -> subprocess.CompletedProcess:
        """Run `python -m launch …`."""
        return call_launch(*arguments, environment=self.cluster.environment)

    def launch(self, command: str, *arguments: object) -> subprocess.CompletedProcess:
        """Submit a command to this cluster."""
        return self.call(command, "--cluster", self.settings, *arguments)

    def submitted(self, command: str, *arguments: object) -> tuple[Path, dict[str, str]]:
        """Submit a command, which must succeed; returns the submission's directory and the job id of each part."""
        done = self.launch(command, *arguments)
        assert done.returncode == 0, done.stderr
        directory = Path(done.stdout.splitlines()[-1].split()[3].rstrip(";")).parent
        record = json.loads((directory / "submission.json").read_text())
        return directory, {part["name"]: part["job_ids"][0] for part in record["parts"]}

    def ask(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command, which must succeed unless `check` is false; returns its output."""
        environment = os.environ | self.cluster.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def state(self, job: str) -> tuple[str, int]:
        """State and number of restarts of a job; for an array, the state of the remaining tasks and the sum."""
        lines = self.ask("scontrol", "--oneliner", "show", "job", job).splitlines()
        found = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
        states = {entry["JobState"] for entry in found}
        order = ("RUNNING", "COMPLETING", "PENDING", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED")
        return next(state for state in order if state in states), sum(int(entry["Restarts"]) for entry in found)

    def tasks(self, job: str) -> dict[str, tuple[str, int]]:
        """State and number of restarts of each task of an array, by its name (`7_2`)."""
        found = {}
        for line in self.ask("scontrol", "--oneliner", "show", "job", job).splitlines():
            entry = dict(word.partition("=")[::2] for word in line.split())
            name = f"{entry['ArrayJobId']}_{entry['ArrayTaskId']}"
            found[name] = (entry["JobState"], int(entry["Restarts"]))
        return dict(sorted(found.items()))

    def queue(self) -> str:
        """The queued and running jobs."""
        return self.ask("squeue", "--noheader")

    @contextlib.contextmanager
    def without_requeue_delay(self) -> Iterator[None]:
        """Start requeued jobs immediately, for which Slurm would otherwise wait two minutes."""
        ended = threading.Event()

        def push() -> None:
            environment = os.environ | self.cluster.environment
            while not ended.wait(0.5):
                # %i names a task of an array; %A of the last one is the id of the array, which means all of them
                command = ["squeue", "--noheader", "--array", "--states=PENDING", "--format=%i|%r"]
                lines = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.splitlines()
                for line in lines:
                    job, _, reason = line.partition("|")
                    if reason == "BeginTime":
                        update = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
                        subprocess.run(update, env=environment, capture_output=True)

        thread = threading.Thread(target=push)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def logs(directory: Path) -> str:
    """All logs of a run, to explain a failed test."""
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(directory.rglob("*_log.out")))


def steps(run: Path, stage: str = "stage1") -> list[int]:
    """Numbers of the steps that a stage has logged."""
    path = run / stage / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def tensors(path: Path) -> dict:
    """Tensors in a safetensors file, by name."""
    from safetensors.torch import load_file

    return load_file(path)
