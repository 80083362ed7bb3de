"""Which share of the shards a process does: the command line first, then Slurm's variables."""

import pytest

from masp.distributed.task_share import task_share
from masp.errors import InputError


def array(element, first=0, last=3, step=1, count=None):
    return {
        "SLURM_ARRAY_TASK_ID": str(element),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str((last - first) // step + 1 if count is None else count),
    }


def step(task, count):
    return {"SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": str(count)}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (1, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (1, 0)),  # a batch script runs once
        (step(0, 1), (1, 0)),
        (step(2, 4), (4, 2)),
        (array(2), (4, 2)),
        (array(7, first=5, last=9), (5, 2)),
        (array(4, first=0, last=8, step=2), (5, 2)),
        (array(3, first=3, last=4), (2, 0)),  # those that failed, submitted again
        (array(2) | step(1, 2), (8, 5)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}, (2, 1)),
    ],
)
def test_slurms_variables(environ, expected):
    assert task_share(None, None, environ)[:2] == expected


def test_every_share_occurs_once():
    shares = [task_share(None, None, array(e, 1, 3) | step(t, 2))[:2] for e in (1, 2, 3) for t in (0, 1)]
    assert shares == [(6, i) for i in range(6)]


def test_the_command_line_comes_first():
    assert task_share(3, 1, array(0) | step(1, 2)) == (3, 1, "")
    assert task_share(1, 0, array(2)) == (1, 0, "")
    assert task_share(None, None, array(2) | step(1, 2))[2] == "SLURM_ARRAY_TASK_ID and SLURM_PROCID"


@pytest.mark.parametrize(
    ("given", "environ", "named"),
    [
        ((3, None), {}, "--num-tasks 3, --task-index None: give"),
        ((None, 1), array(0), "--num-tasks None, --task-index 1: give"),
        ((0, 0), {}, "--num-tasks 0"),
        ((2, 2), {}, "--task-index 2: must be"),
        ((2, -1), {}, "--task-index -1: must be"),
        ((None, None), array(7, first=3, last=7, count=2), "SLURM_ARRAY_TASK_ID = 7: .*gaps"),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT = not set"),
        ((None, None), {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID = not set"),
        ((None, None), step(4, 4), "SLURM_PROCID = 4"),
        ((None, None), step(0, "many"), "SLURM_STEP_NUM_TASKS = 'many'"),
    ],
)
def test_what_does_not_say_which_task_this_is_is_refused(given, environ, named):
    with pytest.raises(InputError, match=named):
        task_share(*given, environ)
