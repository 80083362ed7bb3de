"""A Slurm cluster of two nodes on this machine, for the tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.runs import REPOSITORY
from tools.dev_cluster import DevCluster, running

CLUSTER = """\
executor: slurm
signal_delay_s: 30
extract: {num_tasks: 2, cpus_per_task: 1, timeout_min: 5}
train: {nodes: 2, cpus_per_task: 1, timeout_min: 5}
evaluate: {nodes: 2, cpus_per_task: 1, timeout_min: 5}
"""


@pytest.fixture(scope="session")
def cluster(require_slurm) -> Iterator[DevCluster]:
    """The cluster, up; torn down afterwards, with all jobs on it, even if this process is killed."""
    with running() as cluster:
        yield cluster


@pytest.fixture
def launch(cluster, tmp_path):
    """Runs `python -m launch …` on the cluster."""
    settings = tmp_path / "cluster.yaml"
    settings.write_text(CLUSTER)

    def run(command: str, *arguments: object, timeout_s: float = 500) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "launch", command, "--cluster", settings, *arguments]
        environment = os.environ | cluster.environment
        return subprocess.run(
            [str(part) for part in line],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


@pytest.fixture
def slurm(cluster):
    """Runs a command of Slurm's; returns what it printed."""

    def run(*command: str) -> str:
        environment = os.environ | cluster.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
