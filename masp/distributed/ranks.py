"""Ranks: reading them from the launcher's environment, and joining them. A single process uses the same code.

`torchrun`, `deepspeed` and `srun` each set environment variables of their own. If the environment announces N ranks,
there must be N: nothing here falls back to one.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed

from masp.errors import InputError, MaspError, one_line
from masp.files.text import first_line, reason, shortened, shown
from masp.runtime.log import say_error
from masp.runtime.parent import parent, watching_parent
from masp.runtime.stop import is_ending

LOG = logging.getLogger(__name__)

MAX_DIGITS = 9
"""Digits of a number in an environment variable; more cannot be a rank, a count or a job."""


BOTH = "give --num-tasks and --task-index together"
"""What a user can do if Slurm's variables do not determine the share of a task."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and how many there are."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes on this machine."""
    launcher: Literal["none", "torchrun", "srun"] = "none"
    """`torchrun` also stands for `deepspeed`, which sets the same variables."""

    @property
    def is_rank_0(self) -> bool:
        return self.rank == 0


def read_ranks(environment: dict[str, str] | None = None) -> Ranks:
    """Read the ranks that the launcher announced; a single rank without a launcher.

    Args:
        environment: Environment variables; None for those of this process.

    Raises:
        InputError: The announcement is incomplete or contradicts itself.
    """
    env = dict(os.environ) if environment is None else environment
    if "RANK" in env or "WORLD_SIZE" in env:
        return Ranks(*_numbers(env, "RANK", "WORLD_SIZE", "LOCAL_RANK"), launcher="torchrun")
    # Of the step, not of the job: the batch script itself is one process, however many tasks the job has.
    in_step = "SLURM_STEP_ID" in env or "SLURM_STEP_NUM_TASKS" in env or env.get("SLURM_PROCID", "0") != "0"
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    if in_step and "SLURM_PROCID" in env and env.get(size, "1") != "1":
        return Ranks(*_numbers(env, "SLURM_PROCID", size, "SLURM_LOCALID"), launcher="srun")
    return Ranks()


def note_idle_tasks(ranks: Ranks) -> None:
    """Warn where a Slurm job has several tasks and no launcher has started this process: the others stay idle."""
    job, tasks = os.environ.get("SLURM_JOB_ID", ""), _number(os.environ.get("SLURM_NTASKS")) or 1
    if ranks.launcher == "none" and "SLURM_STEP_ID" not in os.environ and tasks > 1:
        LOG.warning(
            "Slurm job %s has %d tasks, but without srun this command is one process and leaves the others idle; "
            "`srun masp …` starts a process per task",
            shown(job),
            tasks,
        )


def _numbers(env: dict[str, str], rank: str, size: str, local_rank: str) -> tuple[int, int, int]:
    found = {name: _number(env.get(name)) for name in (rank, size, local_rank)}
    wrong = next((name for name, value in found.items() if value is None), None)
    if wrong is not None:
        value = shown(env[wrong]) if wrong in env else "not set"
        raise InputError(
            f"environment: {wrong} = {value}: a launcher sets {rank}, {size} and {local_rank}, all of them to "
            "non-negative integers; unset them all to run as one process"
        )
    values = int(env[rank]), int(env[size]), int(env[local_rank])
    if values[0] >= values[1]:
        raise InputError(f"environment: {rank} = {values[0]}: must be below {size}, which is {values[1]}")
    return values


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


def array_share(environ: Mapping[str, str]) -> tuple[int, int]:
    """Number of elements of the Slurm array and index of this one, from 0; `(1, 0)` outside of an array.

    Raises:
        InputError: Slurm's variables do not determine the index.
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 1, 0
    this, count = slurm_number(environ, "SLURM_ARRAY_TASK_ID"), slurm_number(environ, "SLURM_ARRAY_TASK_COUNT")
    first, step = slurm_number(environ, "SLURM_ARRAY_TASK_MIN"), slurm_number(environ, "SLURM_ARRAY_TASK_STEP", 1)
    last = slurm_number(environ, "SLURM_ARRAY_TASK_MAX", first + (count - 1) * step)
    index, odd = divmod(this - first, max(step, 1))
    if odd or first + (count - 1) * step != last or not 0 <= index < count:
        raise InputError(
            f"environment: SLURM_ARRAY_TASK_ID = {this}: the array's {count} elements from {first} to {last} have "
            "gaps, so the index of this one is not known; submit consecutive numbers such as "
            f"--array=0-{count - 1}, or {BOTH}"
        )
    return count, index


def read_share() -> Ranks:
    """Which part of the work this process does where ranks need not run together: the launcher's ranks, times the
    elements of a Slurm array.

    Raises:
        InputError: As of `read_ranks` and `array_share`.
    """
    ranks = read_ranks()
    note_idle_tasks(ranks)
    if ranks.launcher == "torchrun":
        return ranks
    count, index = array_share(os.environ)
    return replace(ranks, rank=index * ranks.size + ranks.rank, size=count * ranks.size)


def slurm_number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """An integer that Slurm sets; InputError if it is not one, or missing without a default."""
    if name not in environ and default is not None:
        return default
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        value = shown(environ[name]) if name in environ else "not set"
        raise InputError(f"environment: {name} = {value}: must be an integer, set by Slurm; {BOTH}") from None


def join(ranks: Ranks, device: str, timeout_min: float = 30.0) -> None:
    """Join the other ranks, through DeepSpeed and torch.distributed (NCCL on GPUs, gloo on CPUs).

    Args:
        ranks: Ranks that the launcher announced.
        device: `cpu` or `cuda`.
        timeout_min: Minutes to wait for the other ranks.

    Raises:
        InputError: Not all announced ranks joined within `timeout_min`, or Slurm does not say where rank 0 is. If the
            launcher ends before they have, this process ends with exit code 1.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed requires it even of one process
    backend = "nccl" if device == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_min)
    if device == "cuda":
        os.environ["LOCAL_RANK"] = str(claim_gpu(ranks))  # DeepSpeed selects by it
    if not torch.distributed.is_initialized():
        if ranks.size == 1:
            store = torch.distributed.HashStore()  # no port that could be taken
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            if ranks.launcher == "srun":
                _announce_slurm(ranks)
            try:
                with watching_parent(lambda: _end_without_launcher(ranks)):
                    torch.distributed.init_process_group(
                        backend, rank=ranks.rank, world_size=ranks.size, timeout=timeout
                    )
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"environment: {ranks.size} ranks were announced, but not all joined: {first_line(error)}"
                ) from None
        atexit.register(leave)  # not before the end: DeepSpeed keeps its groups for the life of the process
    import deepspeed

    _quieten()
    # DeepSpeed would compile a shared-memory all-reduce for CPUs on first use: that takes a compiler and half a minute,
    # and its ranks spin forever when one of them dies. gloo needs neither and raises an error.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # torch.distributed is initialized already; with auto_mpi_discovery DeepSpeed would look for MPI all the same.
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _end_without_launcher(ranks: Ranks) -> None:
    """End this process, which waits for ranks that nobody will start any more."""
    say_error(
        f"environment: the launcher (process {parent()}) ended before all {ranks.size} ranks had joined; "
        "start them again"
    )
    os._exit(MaspError.exit_code)


def claim_gpu(ranks: Ranks) -> int:
    """Make this rank's GPU the current one and return its index: the only visible one, or that of the local rank.

    Raises:
        InputError: There are more ranks on this machine than GPUs.
    """
    count = torch.cuda.device_count()
    index = 0 if count == 1 else ranks.local_rank
    if index >= count:
        raise InputError(f"environment: local rank {index}, but only {count} GPUs are visible; start one rank per GPU")
    torch.cuda.set_device(index)
    return index


def _announce_slurm(ranks: Ranks) -> None:
    """Set the variables that torch.distributed reads from Slurm's; all ranks get the same address and port.

    Raises:
        InputError: Slurm's variables or `scontrol` do not say where rank 0 is.
    """
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_host()
    if "MASTER_PORT" not in os.environ:
        # Two jobs on a node must not use the same port, and a step may follow another one of the same job. All ports
        # are below those that Linux gives to outgoing connections, from 32768 on.
        job, step = _number(os.environ.get("SLURM_JOB_ID")), _number(os.environ.get("SLURM_STEP_ID", "0"))
        if job is None or step is None:
            raise InputError(
                "environment: MASTER_PORT is not set, and SLURM_JOB_ID and SLURM_STEP_ID, from which it is derived, "
                "are not both integers; set MASTER_PORT to a free port of the node of rank 0"
            )
        os.environ["MASTER_PORT"] = str(20000 + (job * 17 + step) % 12000)
    os.environ.setdefault("RANK", str(ranks.rank))
    os.environ.setdefault("WORLD_SIZE", str(ranks.size))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))


def _first_host() -> str:
    """The first node of the Slurm step, where rank 0 runs.

    Raises:
        InputError: It is not known.
    """
    remedy = "set MASTER_ADDR to the address of the node of rank 0"
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise InputError(f"environment: neither MASTER_ADDR nor SLURM_JOB_NODELIST is set; {remedy}")
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        hosts = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except subprocess.CalledProcessError as error:
        why = shortened(one_line(" ".join(error.stderr.split()))) or f"exit code {error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = reason(error)
    else:
        if hosts:
            return hosts[0]
        why = "it printed no host"
    raise InputError(
        f"environment: MASTER_ADDR is not set, and `scontrol show hostnames {shortened(nodes)}` failed: {why}; {remedy}"
    )


def leave() -> None:
    """Destroy the process group; not at the end of a process whose exit code must not depend on that."""
    if torch.distributed.is_initialized() and not is_ending():
        torch.distributed.destroy_process_group()


def _quieten() -> None:
    """Silence what torch warns about DeepSpeed, unless MASP_DEBUG=1."""
    if os.environ.get("MASP_DEBUG") == "1":
        return
    # DeepSpeed calls collectives that torch has renamed, on every step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
