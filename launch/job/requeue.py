"""Back into Slurm's queue: when a job may be requeued, and which rank asks for it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from launch.job.own_job import NotShown, OwnJob, own_name, scontrol, show_own_job
from masp.errors import InputError
from masp.files.atomic import create_bytes
from masp.files.regular import read_bytes

LOG = logging.getLogger(__name__)

_WAIT_FOR_END_S = 120
_MAX_LOST = 3
"""How often ranks may be lost without a checkpoint in between before it is no longer taken for an accident."""
_MAX_MARK_BYTES = 4096


def on_slurm() -> bool:
    """Whether this process is a task of a Slurm job that this package submitted."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def num_restarts() -> int:
    """How often Slurm has restarted this job, for whatever reason."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def check_restarts(max_requeues: int) -> None:
    """Refuse to run a job that was restarted too often.

    Raises:
        InputError: it was.
    """
    if num_restarts() > max_requeues:
        raise InputError(
            f"max_requeues = {max_requeues}: this job has started again {num_restarts()} times; its log says why"
        )


def requeue(max_requeues: int, rank0_asks: bool = True) -> None:
    """Requeue this job and wait until Slurm ends it; returns if it cannot be requeued.

    Args:
        max_requeues: how often that may happen.
        rank0_asks: rank 0 asks and the others wait, since a rank that ends with an error would end the job before it is
            requeued. Otherwise this rank asks, whichever it is.
    """
    if not on_slurm():
        return
    if num_restarts() >= max_requeues:
        LOG.warning("not queued again: max_requeues = %d is reached", max_requeues)
        return
    if not rank0_asks or os.environ.get("SLURM_PROCID", "0") == "0":
        try:
            job = show_own_job()
        except NotShown as error:
            LOG.warning("not queued again: Slurm does not say how it is: %s", error)
            return
        if refusal := _refusal(job):
            LOG.warning("not queued again: %s", refusal)
            return
        code, _, errors = scontrol("requeue", job.name)
        if code:
            LOG.warning("not queued again: %s", errors)
            return
        LOG.info("job %s is queued again", job.name)
    time.sleep(_WAIT_FOR_END_S)


def _refusal(job: OwnJob) -> str | None:
    """Why this job must not be requeued: its user cancelled it, or it runs again on another node already."""
    if job.state == "CANCELLED":
        return "it was cancelled"
    if job.num_restarts not in (None, num_restarts()):
        return "Slurm has started it again already"
    return None


def requeue_after_loss(marks: Path, step: str, max_requeues: int) -> None:
    """Requeue the job because another rank vanished: its node died, or it was killed.

    Slurm notices dead nodes too, but the ranks notice first, and would end the job as failed.

    Args:
        marks: a directory of the submission, for marks that all ranks see.
        step: the newest checkpoint.
        max_requeues: see `requeue`.

    Raises:
        InputError: a mark may not be read. OSError: none can be written.
    """
    if not on_slurm():
        return
    job, count = own_name(), num_restarts()
    earlier = [read_bytes(mark, max_bytes=_MAX_MARK_BYTES) for mark in marks.glob(f"{job}.lost-*")]
    if earlier.count(step.encode()) >= _MAX_LOST:
        since = step or "the start"
        LOG.warning("not queued again: ranks were lost %d times since %s; is memory too small?", _MAX_LOST, since)
        return
    if not create_bytes(marks / f"{job}.lost-{count}", step.encode()):  # another survivor asks
        time.sleep(_WAIT_FOR_END_S)
        return
    requeue(max_requeues, rank0_asks=False)
