"""Ranks: how many there are, a barrier, small sums. The same code with one process.

The ranks come from the launcher's environment (`torchrun`, `deepspeed` and `srun` each announce theirs). If the
environment announces N ranks, then N there must be: nothing here falls back to one.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed

from masp.errors import InputError
from masp.files.text import first_line

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Ranks:
    """This process among its fellows."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = "none"
    """`none`, `torchrun` (also `deepspeed`, which sets the same variables) or `srun`."""

    @property
    def is_lead(self) -> bool:
        return self.rank == 0


def read_ranks(environment: dict[str, str] | None = None) -> Ranks:
    """What the launcher announced.

    Raises:
        InputError: the announcement is incomplete or contradicts itself.
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


def _numbers(env: dict[str, str], rank: str, size: str, local_rank: str) -> tuple[int, int, int]:
    missing = [name for name in (rank, size, local_rank) if not env.get(name, "").isdigit()]
    if missing:
        raise InputError(
            f"environment: {missing[0]} = {env.get(missing[0])!r}: a launcher announces {rank}, {size} and "
            f"{local_rank}, all of them whole numbers; unset them all to run as one process"
        )
    values = int(env[rank]), int(env[size]), int(env[local_rank])
    if values[0] >= values[1]:
        raise InputError(f"environment: {rank} = {values[0]}: must be below {size}, which is {values[1]}")
    return values


def join(ranks: Ranks, device: str, timeout_min: float = 30.0) -> None:
    """Meet the other ranks, through DeepSpeed and torch.distributed (NCCL on GPUs, gloo on CPUs).

    Raises:
        InputError: fewer ranks came than were announced, within `timeout_min`.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed insists, also on one process
    backend = "nccl" if device == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_min)
    if device == "cuda":
        os.environ["LOCAL_RANK"] = str(claim_gpu(ranks))  # DeepSpeed selects by it
    if not torch.distributed.is_initialized():
        if ranks.size == 1:
            store = torch.distributed.HashStore()  # no port: nothing to collide with
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            if ranks.launcher == "srun":
                _announce_slurm(ranks)
            try:
                torch.distributed.init_process_group(backend, rank=ranks.rank, world_size=ranks.size, timeout=timeout)
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"environment: {ranks.size} ranks were announced and did not all come: {first_line(error)}"
                ) from None
        atexit.register(leave)  # not earlier: DeepSpeed keeps its groups for the life of the process
    import deepspeed

    _quieten()
    # DeepSpeed would compile a shared-memory reduction for CPUs on first use: that needs a compiler and half a minute,
    # and its ranks spin for ever when one of them dies. gloo needs neither and notices.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It finds torch.distributed initialised; without this it would look for MPI when variables are missing.
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def claim_gpu(ranks: Ranks) -> int:
    """Make this rank's GPU the current one and return its number: the only visible one, or that of the local rank.

    Raises:
        InputError: more ranks on this machine than GPUs.
    """
    count = torch.cuda.device_count()
    index = 0 if count == 1 else ranks.local_rank
    if index >= count:
        raise InputError(f"environment: local rank {index}, but only {count} GPUs are visible; start one rank per GPU")
    torch.cuda.set_device(index)
    return index


def _announce_slurm(ranks: Ranks) -> None:
    """Set what torch.distributed reads, from Slurm's variables; all ranks come to the same."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    os.environ.setdefault("MASTER_ADDR", hosts.stdout.split()[0])
    # Two jobs on a node must not meet on a port; a step of its own may follow another one of the same job. All below
    # the ports that Linux gives to outgoing connections, from 32768 on.
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(20000 + (job * 17 + step) % 12000))
    os.environ.setdefault("RANK", str(ranks.rank))
    os.environ.setdefault("WORLD_SIZE", str(ranks.size))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))


def leave() -> None:
    """Take the process group down."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _quieten() -> None:
    """Keep off the screen what DeepSpeed and torch say about each other; MASP_DEBUG=1 lets it through."""
    if os.environ.get("MASP_DEBUG") == "1":
        return
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives that torch has renamed, on every step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
