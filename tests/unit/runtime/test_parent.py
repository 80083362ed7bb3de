"""Noticing that the process that started this one is gone."""

import os
import subprocess
import sys
import time

import pytest

from masp.runtime.parent import parent, watching_parent

# Starts a rank whose other rank never comes, prints its process id, and waits to be killed.
LAUNCHER = """
import os, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | eval(sys.argv[2]))
print(rank.pid, flush=True)
time.sleep(600)
"""
RANK = """
from masp.distributed.ranks import join, read_ranks
print("joining", flush=True)
join(read_ranks(), "cpu")
"""


def test_nothing_happens_while_the_parent_is_there():
    told = []
    with watching_parent(lambda: told.append(1)):
        assert os.getppid() == parent()
    assert not told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_launcher_is_killed_before_the_ranks_have_joined_ends_soon(rank, free_port):
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    command = [sys.executable, "-c", LAUNCHER, RANK, repr(variables)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline().strip().isdecimal()
        assert launcher.stdout.readline() == "joining\n"
        time.sleep(1)
        launcher.kill()
        killed = time.monotonic()
        errors = launcher.stderr.read()  # until the rank, which shares it, has ended
    assert time.monotonic() - killed < 20
    expected = f"the launcher (process {launcher.pid}) ended before all 2 ranks had joined; start them again"
    assert errors.splitlines()[-1] == f"error: environment: {expected}"


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_forked_process_has_its_own_parent():
    child = os.fork()
    if child == 0:
        os._exit(0 if parent() == os.getppid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
