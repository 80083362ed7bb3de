"""Back into Slurm's queue: when a job may, and who asks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from masp.errors import InputError

_WAIT_FOR_END_S = 120
_MAX_LOST = 3
"""So often may ranks be lost without a checkpoint in between, before it is taken for no accident."""


def on_slurm() -> bool:
    """Whether this process is a task of a Slurm job that this package submitted."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def num_restarts() -> int:
    """How often Slurm started this job again, for whatever reason."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def check_restarts(max_requeues: int) -> None:
    """Refuse to go on where a job started again too often.

    Raises:
        InputError: it did.
    """
    if num_restarts() > max_requeues:
        raise InputError(
            f"max_requeues = {max_requeues}: this job has started again {num_restarts()} times; its log says why"
        )


def requeue(max_requeues: int, by_lead: bool = True) -> None:
    """Queue this job again and wait for Slurm to end it; returns where that is not possible.

    Args:
        max_requeues: how often that may happen.
        by_lead: rank 0 asks and the others wait, since a rank that ends with an error would end the job before it is
            queued. Otherwise this rank asks, whichever it is.
    """
    if not on_slurm():
        return
    if num_restarts() >= max_requeues:
        _say(f"not queued again: max_requeues = {max_requeues} is reached")
        return
    if not by_lead or os.environ.get("SLURM_PROCID", "0") == "0":
        job = os.environ["SLURM_JOB_ID"]
        if refusal := _refusal(job):
            _say(f"not queued again: {refusal}")
            return
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if asked.returncode:
            _say(f"not queued again: {asked.stderr.strip()}")
            return
        _say(f"job {job} is queued again")
    time.sleep(_WAIT_FOR_END_S)


def _refusal(job: str) -> str | None:
    """Why this job must not be queued again: its user cancelled it, or another node runs it again already."""
    asked = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True)
    if asked.returncode:
        return f"Slurm does not say how it is: {asked.stderr.strip()}"
    words = dict(word.partition("=")[::2] for word in asked.stdout.split())
    if words.get("JobState") == "CANCELLED":
        return "it was cancelled"
    if words.get("Restarts", str(num_restarts())) != str(num_restarts()):
        return "Slurm has started it again already"
    return None


def requeue_after_loss(marks: Path, step: str, max_requeues: int) -> None:
    """Queue the job again because another rank vanished: its node died, or it was killed.

    Slurm notices dead nodes too, but the ranks notice first, and would end the job as failed.

    Args:
        marks: a folder of the submission, for marks that all ranks see.
        step: where the newest checkpoint stands.
        max_requeues: see `requeue`.
    """
    if not on_slurm():
        return
    job, count = os.environ["SLURM_JOB_ID"], num_restarts()
    earlier = [mark.read_text() for mark in marks.glob(f"{job}.lost-*")]
    if earlier.count(step) >= _MAX_LOST:
        _say(f"not queued again: ranks were lost {_MAX_LOST} times since {step or 'the start'}; is memory too small?")
        return
    try:
        with open(marks / f"{job}.lost-{count}", "x", encoding="utf-8") as mark:
            mark.write(step)
    except FileExistsError:  # another survivor asks
        time.sleep(_WAIT_FOR_END_S)
        return
    requeue(max_requeues, by_lead=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
