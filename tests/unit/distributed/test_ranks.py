"""Ranks: what launchers announce, and what becomes of announcements that do not hold."""

import os
import subprocess
import sys
import time

import pytest

from masp.distributed.ranks import Ranks, _announce_slurm, note_idle_tasks, read_ranks
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
    assert expected.is_rank_0 == (expected.rank == 0)


@pytest.mark.parametrize(
    ("environment", "is_noted"),
    [
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "5"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, False),
        (SLURM, False),
        ({"SLURM_NTASKS": "8", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, False),
        ({}, False),
    ],
)
def test_tasks_of_a_job_that_nobody_starts_are_noted(environment, is_noted, monkeypatch, caplog):
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    note_idle_tasks(read_ranks())
    expected = ["Slurm job '5' has 8 tasks, but without srun this command is one process"] if is_noted else []
    assert [message.partition(" and leaves")[0] for message in caplog.messages] == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK = not set: a launcher sets RANK, WORLD_SIZE and LOCAL_RANK"),
        ({"RANK": "0"}, "WORLD_SIZE = not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK = not set"),
        ({"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 'first'"),
        ({"RANK": "\u00b2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "RANK = '\u00b2': a launcher sets"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000, "LOCAL_RANK": "0"}, "WORLD_SIZE = '9{70,80}…: a launcher sets"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 2: must be below WORLD_SIZE, which is 2"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "RANK = 0: must be below WORLD_SIZE"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID = not set"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many'"),
    ],
)
def test_incomplete_announcements_are_errors_never_one_process(environment, message):
    with pytest.raises(InputError, match=f"environment: {message}"):
        read_ranks(environment)


IN_STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "node[1-2]"}


@pytest.fixture
def step(monkeypatch, tmp_path):
    """The environment of a Slurm step; returns what puts a program `scontrol` on the path, or takes it away."""
    for name in (*IN_STEP, "SLURM_JOB_NODELIST", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # what the test sets is taken back at its end
        monkeypatch.delenv(name)
    for name, value in IN_STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path))

    def scontrol(script: str) -> None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)

    return scontrol


def test_a_slurm_step_takes_the_first_node_and_a_port_of_its_own(step):
    step('echo "$3 node2" | while read a b; do echo node1; echo $b; done')
    _announce_slurm(Ranks(3, 4, 1, "srun"))
    found = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")}
    assert found == {
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "20120",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
    }


def test_a_slurm_step_without_scontrol_uses_master_addr(step, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    _announce_slurm(Ranks(0, 2, 0, "srun"))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "20120")


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (None, {}, "and `scontrol show hostnames node[1-2]` failed: No such file or directory; set MASTER_ADDR"),
        ("echo a >&2; echo b >&2; exit 1", {}, "failed: a b; set MASTER_ADDR"),
        ("exit 3", {}, "failed: exit code 3; set MASTER_ADDR"),
        ("exit 0", {}, "failed: it printed no host; set MASTER_ADDR"),
        ("exit 1", {"SLURM_STEP_NODELIST": "n" * 5000}, "n…` failed: exit code 1"),
        ("exit 0", {"SLURM_STEP_NODELIST": ""}, "neither MASTER_ADDR nor SLURM_JOB_NODELIST is set; set MASTER_ADDR"),
        ("echo node1", {"SLURM_JOB_ID": "x"}, "MASTER_PORT is not set, and SLURM_JOB_ID and SLURM_STEP_ID"),
        ("echo node1", {"SLURM_STEP_ID": "batch"}, "MASTER_PORT is not set, and SLURM_JOB_ID and SLURM_STEP_ID"),
    ],
)
def test_a_slurm_step_whose_first_node_is_not_known_is_one_line(step, monkeypatch, script, variables, message):
    if script:
        step(script)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        _announce_slurm(Ranks(0, 2, 0, "srun"))
    assert str(error.value).startswith("environment: ") and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


JOIN = """
import sys
from masp.distributed.ranks import join, read_ranks
from masp.errors import InputError
try:
    join(read_ranks(), "cpu", timeout_min=3 / 60)
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_ranks_that_do_not_join_end_the_others_in_bounded_time(rank):
    announced = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    announced |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 10000 + rank)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env=os.environ | announced, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1 and time.monotonic() - started < 150
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: environment: 2 ranks were announced, but not all joined: "), done.stderr


@pytest.mark.parametrize("place", [0, 1, 4], ids=["before", "after", "at the end"])
def test_the_command_line_takes_the_local_rank_wherever_deepspeed_puts_it(place):
    from masp.cli.commands import build_parser

    line = ["train", "--stage", "stage1", "seed=1"]
    line.insert(place, "--local_rank=3")
    arguments = build_parser().parse_args(line)
    assert (arguments.command, arguments.stage, arguments.overrides) == ("train", "stage1", ["seed=1"])
