"""Which share of the shards this process does: from the command line, or from the variables that Slurm sets."""

from __future__ import annotations

import os
from collections.abc import Mapping

from masp.distributed.ranks import read_ranks
from masp.errors import InputError

BOTH = "give --num-tasks and --task-index together"


def task_share(num_tasks: int | None, task_index: int | None, environ: Mapping[str, str]) -> tuple[int, int, str]:
    """How many tasks divide the shards, and which one this is.

    The command line comes first. Without it, the elements of a Slurm array and the tasks of a Slurm step are counted,
    and where there are both, each element's tasks stand one after another. An array that was submitted again for the
    elements that failed (`--array=3-4`) divides what is missing between two tasks, since finished shards are skipped.

    Args:
        num_tasks: as given on the command line, or None.
        task_index: likewise.
        environ: the process's environment.

    Returns:
        The number of tasks, this task's index from 0, and where both came from (empty: the command line or nothing).

    Raises:
        InputError: one is given without the other, the index is out of range, or Slurm's variables do not say which
            task this is.
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


def array_share(environ: Mapping[str, str]) -> tuple[int, int]:
    """Number of elements of a Slurm array and which one this is, from 0; `(1, 0)` outside of arrays."""
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 1, 0
    this, count = _number(environ, "SLURM_ARRAY_TASK_ID"), _number(environ, "SLURM_ARRAY_TASK_COUNT")
    first, step = _number(environ, "SLURM_ARRAY_TASK_MIN"), _number(environ, "SLURM_ARRAY_TASK_STEP", 1)
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", first + (count - 1) * step)
    index, odd = divmod(this - first, max(step, 1))
    if odd or first + (count - 1) * step != last or not 0 <= index < count:
        raise InputError(
            f"SLURM_ARRAY_TASK_ID = {this}: the array's {count} elements from {first} to {last} have gaps, so this "
            f"one's place among them is not known; submit a run of numbers such as --array=0-{count - 1}, or {BOTH}"
        )
    return count, index


def _step(environ: Mapping[str, str]) -> tuple[int, int]:
    """Number of tasks of the Slurm step (not of the allocation: a batch script runs once) and which one this is."""
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return 1, 0
    count = _number(environ, "SLURM_STEP_NUM_TASKS")
    if count < 2:
        return 1, 0
    index = _number(environ, "SLURM_PROCID")
    if not 0 <= index < count:
        raise InputError(f"SLURM_PROCID = {index}: must be below SLURM_STEP_NUM_TASKS, which is {count}; or {BOTH}")
    return count, index


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in environ and default is not None:
        return default
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        raise InputError(f"{name} = {environ.get(name)!r}: Slurm should have set a number; {BOTH}") from None


def require_one_process(why: str, instead: str) -> None:
    """Refuse ranks of a launcher and elements of a Slurm array: evaluation would share its images among them.

    Args:
        why, instead: the beginning and the end of the line that says so.

    Raises:
        InputError: the environment announces several processes.
    """
    ranks, (elements, _) = read_ranks().size, array_share(os.environ)
    found = [f"{ranks} ranks"] * (ranks > 1) + [f"{elements} elements of a Slurm array"] * (elements > 1)
    if found:
        raise InputError(f"{why}, and the environment announces {' and '.join(found)}; {instead}")
