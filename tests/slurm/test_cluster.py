"""The test cluster itself: ranks as `srun` announces them, and a complete cleanup even if its owner is killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.job.parts import State
from launch.submission import slurm_client
from tests.runs import REPOSITORY
from tests.slurm.site import until
from tools.dev_cluster import OWNER
from tools.dev_network import DevNetwork

pytestmark = pytest.mark.slurm

# Starts a cluster, prints its directory, and waits to be killed.
OWNING = """
import os, subprocess, sys, time
from tools.dev_cluster import running
with running(num_nodes=1, separate_hosts=sys.argv[1] == "True") as cluster:
    started = cluster.directory / "started"
    command = ["sbatch", "--output=/dev/null", f"--wrap=srun sh -c 'touch {started}; sleep 500'"]
    subprocess.run(command, env=os.environ | cluster.environment, check=True, stdout=subprocess.DEVNULL)
    while not started.exists():
        time.sleep(0.1)
    print(cluster.directory, flush=True)
    time.sleep(600)
"""


def test_ranks_are_those_of_srun(site):
    code = "from masp.distributed.ranks import read_ranks; print(read_ranks())"
    printed = site.ask("srun", "--nodes=2", "--ntasks=2", f"--chdir={REPOSITORY}", sys.executable, "-c", code)
    assert sorted(printed.splitlines()) == [
        f"Ranks(rank={rank}, size=2, local_rank=0, launcher='srun')" for rank in (0, 1)
    ]


def test_an_array_that_is_cancelled_before_it_starts_is_cancelled(site, monkeypatch):
    """The accounting lists its tasks in one line."""
    for name, value in site.cluster.environment.items():
        monkeypatch.setenv(name, value)
    job = site.ask("sbatch", "--parsable", "--hold", "--array=0-1", "--output=/dev/null", "--wrap=true").strip()
    site.ask("scancel", job)
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={job}"]
    until(lambda: site.ask(*command).startswith(f"{job}_[0-1]|CANCELLED"), 60, what=lambda: site.ask(*command))
    found = slurm_client._sacct([job])[job]
    assert {task: state.state for task, state in found.items()} == {"0": State.CANCELLED, "1": State.CANCELLED}


def remains(directory: str) -> list[str]:
    """The remains of a cluster: its directory, host names, network, daemons and jobs."""
    found = [directory] if Path(directory).exists() else []
    found += [line for line in Path("/etc/hosts").read_text().splitlines() if line.endswith(directory)]
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = path.read_bytes()
            marks = (f"{OWNER}={directory}", f"={directory}/slurm.conf")
            found += [str(path)] * any(mark.encode() in text for mark in marks)
        except OSError:  # it has exited in the meantime
            continue
    network = DevNetwork(Path(directory), []).id
    for command in (["ip", "netns", "list"], ["ip", "-o", "link", "show"]):
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found += [line for line in listed.splitlines() if network in line]
    return found


@pytest.mark.parametrize("separate_hosts", [False, pytest.param(True, marks=pytest.mark.full)])
def test_nothing_is_left_when_the_owner_is_killed(require_slurm, separate_hosts):
    command = [sys.executable, "-c", OWNING, str(separate_hosts)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        directory = owner.stdout.readline().strip()
        before = remains(directory)
        owner.kill()
    assert len(before) > 6
    deadline = time.monotonic() + 60
    while remains(directory):
        assert time.monotonic() < deadline, remains(directory)
        time.sleep(0.2)
