"""Ranks: what launchers announce, and what becomes of announcements that do not hold."""

import os
import subprocess
import sys
import time

import pytest

from masp.distributed.ranks import Ranks, read_ranks
from masp.errors import InputError

SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Ranks(1, 4, 0, "torchrun")),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Ranks(0, 1, 0, "torchrun")),
        (SLURM, Ranks(3, 4, 1, "srun")),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NUM_TASKS"}, Ranks(3, 8, 1, "srun")),
        # the batch script of a job with several tasks, without srun
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, Ranks()),
        # inside `salloc` without srun there is one process, whatever the allocation
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, Ranks()),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, Ranks()),
        # torchrun under srun: the nearer launcher counts
        (SLURM | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, Ranks(0, 2, 0, "torchrun")),
    ],
)
def test_what_launchers_announce(environment, expected):
    assert read_ranks(environment) == expected
    assert expected.is_lead == (expected.rank == 0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK = None: a launcher announces RANK, WORLD_SIZE and LOCAL_RANK"),
        ({"RANK": "0"}, "WORLD_SIZE = None"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK = None"),
        ({"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 'first'"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 2: must be below WORLD_SIZE, which is 2"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "RANK = 0: must be below WORLD_SIZE"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID = None"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many'"),
    ],
)
def test_incomplete_announcements_are_errors_never_one_process(environment, message):
    with pytest.raises(InputError, match=f"environment: {message}"):
        read_ranks(environment)


JOIN = """
import sys
from masp.distributed.ranks import join, read_ranks
from masp.errors import InputError
try:
    join(read_ranks(), "cpu", timeout_min=3 / 60)
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_come_are_missed_in_bounded_time(rank):
    announced = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    announced |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 10000 + rank)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env=os.environ | announced, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1 and time.monotonic() - started < 150
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: environment: 2 ranks were announced and did not all come: "), done.stderr


@pytest.mark.parametrize("place", [0, 1, 4], ids=["before", "after", "at the end"])
def test_the_command_line_takes_the_local_rank_wherever_deepspeed_puts_it(place):
    from masp.cli.main import build_parser

    line = ["train", "--stage", "stage1", "seed=1"]
    line.insert(place, "--local_rank=3")
    arguments = build_parser().parse_args(line)
    assert (arguments.command, arguments.stage, arguments.overrides) == ("train", "stage1", ["seed=1"])
