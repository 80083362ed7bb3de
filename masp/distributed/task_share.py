"""The share of the shards that this process does: from the command line, or from Slurm's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from masp.distributed.ranks import BOTH, array_share, read_ranks, slurm_number
from masp.errors import InputError


def task_share(num_tasks: int | None, task_index: int | None, environ: Mapping[str, str]) -> tuple[int, int, str]:
    """Determine how many tasks divide the shards, and which one this process is.

    The command line takes precedence. Otherwise the elements of a Slurm array and the tasks of a Slurm step count;
    with both, the tasks of each element follow one another. An array that is submitted again for the elements that
    failed (`--array=3-4`) divides the missing shards between two tasks, since finished shards are skipped.

    Args:
        num_tasks: Number of tasks given on the command line, or None.
        task_index: Index given on the command line, or None.
        environ: Environment variables of the process.

    Returns:
        Number of tasks, index of this task from 0, and the variables that both come from (empty: the command line, or
        nothing).

    Raises:
        InputError: One is given without the other, the index is out of range, or Slurm's variables do not determine
            the task.
    """
    if num_tasks is not None or task_index is not None:
        if num_tasks is None or task_index is None:
            raise InputError(f"--num-tasks {num_tasks}, --task-index {task_index}: {BOTH}")
        if num_tasks < 1:
            raise InputError(f"--num-tasks {num_tasks}: must be at least 1")
        if not 0 <= task_index < num_tasks:
            raise InputError(
                f"--task-index {task_index}: must be at least 0 and below --num-tasks, which is {num_tasks}"
            )
        return num_tasks, task_index, ""
    array, element = array_share(environ)
    step, task = _step(environ)
    parts = [name for name, count in (("SLURM_ARRAY_TASK_ID", array), ("SLURM_PROCID", step)) if count > 1]
    return array * step, element * step + task, " and ".join(parts)


def _step(environ: Mapping[str, str]) -> tuple[int, int]:
    """Number of tasks of the Slurm step (not of the allocation: a batch script runs once) and index of this one."""
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return 1, 0
    count = slurm_number(environ, "SLURM_STEP_NUM_TASKS")
    if count < 2:
        return 1, 0
    index = slurm_number(environ, "SLURM_PROCID")
    if not 0 <= index < count:
        raise InputError(
            f"environment: SLURM_PROCID = {index}: must be below SLURM_STEP_NUM_TASKS, which is {count}; or {BOTH}"
        )
    return count, index


def require_one_process(why: str, instead: str) -> None:
    """Refuse to run on several ranks of a launcher or as an element of a Slurm array.

    Args:
        why: Beginning of the message: what must run as one process.
        instead: End of the message: what to do instead.

    Raises:
        InputError: The environment announces several processes.
    """
    ranks, (elements, _) = read_ranks().size, array_share(os.environ)
    found = [f"{ranks} ranks"] * (ranks > 1) + [f"{elements} elements of a Slurm array"] * (elements > 1)
    if found:
        raise InputError(f"{why}, and the environment announces {' and '.join(found)}; {instead}")
