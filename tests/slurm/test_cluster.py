"""The cluster itself: ranks as `srun` announces them, and nothing left of it, whatever becomes of its owner."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import REPOSITORY
from tools.dev_cluster import OWNER

pytestmark = pytest.mark.slurm

# Starts a cluster, says where, and waits to be killed.
OWNING = """
import time
from tools.dev_cluster import running
with running(num_nodes=1) as cluster:
    print(cluster.folder, flush=True)
    time.sleep(600)
"""


def test_ranks_are_those_of_srun(site):
    code = "from masp.distributed import read_ranks; print(read_ranks())"
    printed = site.ask("srun", "--nodes=2", "--ntasks=2", f"--chdir={REPOSITORY}", sys.executable, "-c", code)
    assert sorted(printed.splitlines()) == [
        f"Ranks(rank={rank}, size=2, local_rank=0, launcher='srun')" for rank in (0, 1)
    ]


def remains(folder: str) -> list[str]:
    """What is left of a cluster: its folder, its names, its processes."""
    found = [folder] if Path(folder).exists() else []
    found += [line for line in Path("/etc/hosts").read_text().splitlines() if line.endswith(folder)]
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [str(path)] * (f"{OWNER}={folder}".encode() in path.read_bytes())
        except OSError:  # it ended meanwhile
            continue
    return found


def test_nothing_is_left_when_the_owner_is_killed(require_slurm):
    with subprocess.Popen([sys.executable, "-c", OWNING], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        folder = owner.stdout.readline().strip()
        before = remains(folder)
        owner.kill()
    assert len(before) > 6
    deadline = time.monotonic() + 60
    while remains(folder):
        assert time.monotonic() < deadline, remains(folder)
        time.sleep(0.2)
