"""Which job of Slurm this process belongs to, by the name that Slurm's commands understand as this job alone.

`SLURM_JOB_ID` is not that name: the last task of an array carries the id of the array, which stands for all its tasks
(`scontrol requeue` restarts them all), and the components of a heterogeneous job can only be requeued by their leader.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from masp.files.text import reason


@dataclass(frozen=True)
class OwnJob:
    """What Slurm says of this process's job."""

    name: str
    """`12`, or `12_3` for task 3 of array 12."""
    state: str
    num_restarts: int | None
    """How often Slurm has restarted it; None if Slurm does not say."""


class NotShown(Exception):
    """Slurm does not show the job; the message says why."""


def own_name() -> str:
    """The name of this process's job according to its environment: `12`, or `12_3` for task 3 of array 12."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def show_own_job() -> OwnJob:
    """Ask Slurm for this process's job.

    Raises:
        NotShown: Slurm does not answer, or has no such job.
    """
    # A job that was submitted from inside a task of an array inherits the variables of that array, which is another
    # job. So the record must have this job's own id; only then is its name the right one.
    own_id = os.environ["SLURM_JOB_ID"]
    problem = ""
    for name in dict.fromkeys([own_name(), own_id]):
        code, output, errors = scontrol("--oneliner", "show", "job", name)
        for line in output.splitlines():
            if (found := _parse(line, own_id)) is not None:
                return found
        problem = errors or (f"scontrol exited with code {code}" if code else f"scontrol shows no job {own_id}")
    raise NotShown(problem)


def scontrol(*words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of scontrol; a scontrol that cannot be run counts as one that failed."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, errors="replace")
    except OSError as error:
        return 1, "", f"scontrol cannot be run: {reason(error)}"
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def _parse(line: str, own_id: str) -> OwnJob | None:
    """One record of `scontrol --oneliner show job`; None if it is that of another job."""
    fields: dict[str, str] = {}
    for word in line.split():
        key, _, value = word.partition("=")
        fields.setdefault(key, value)  # what users name freely, such as paths, is at the end of a record
    if fields.get("JobId") != own_id:
        return None
    name = fields.get("HetJobId", own_id)
    if "ArrayJobId" in fields and "ArrayTaskId" in fields:
        name = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}"
    restarts = fields.get("Restarts", "")
    return OwnJob(name, fields.get("JobState", ""), int(restarts) if restarts.isdecimal() else None)
