"""Slurm, through submitit: the script of a part, submitting a chain of parts, waiting for it."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.parts import Part
from launch.record import JOBS, Submitted
from launch.schema import ClusterConfig
from masp.errors import InputError

WAITING = "PENDING"
GOOD = "COMPLETED"
_POLL_S = 2.0


def parameters(cluster: ClusterConfig, part: Part, run_name: str, after: str | None) -> dict[str, Any]:
    """What submitit is told about a part; everything else keeps submitit's defaults.

    Args:
        after: the job that must have succeeded before; None: this part begins.
    """
    resources = part.resources
    # Since Slurm 22.05, srun does not take this over from sbatch any more.
    srun = [f"--cpus-per-task={resources.cpus_per_task}"]
    if part.num_nodes * part.tasks_per_node > 1 and part.name != "evaluate":
        # A rank that died would leave the others waiting for it. Evaluation's ranks wait for nobody.
        srun.append("--kill-on-bad-exit=1")
    more: dict[str, Any] = {"requeue" if cluster.max_requeues else "no-requeue": True}
    if after is not None:
        more["kill-on-invalid-dep"] = "yes"  # what can never start leaves the queue
    more |= {name: value for name, _, value in (option.partition("=") for option in cluster.sbatch)}
    chosen = {
        "job_name": f"masp-{run_name}-{part.name}",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mail_user": cluster.mail_user,
        "mail_type": cluster.mail_type if cluster.mail_user else None,
        "time": resources.timeout_min,
        "nodes": part.num_nodes,
        "ntasks_per_node": part.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_task * part.tasks_per_node or None,
        "mem": f"{round(resources.memory_gb * 1024)}MB" if resources.memory_gb else None,
        "signal_delay_s": cluster.signal_delay_s,
        "setup": cluster.setup or None,
        "dependency": f"afterok:{after}" if after is not None else None,
        "array_parallelism": getattr(resources, "max_parallel", None),
        "stderr_to_stdout": True,  # one log per process
        "srun_args": srun,
        "additional_parameters": more,
    }
    return {name: value for name, value in chosen.items() if value is not None}


class _Script(submitit.SlurmExecutor):
    """Writes scripts, also where Slurm is not installed."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def text(self, num_jobs: int) -> str:
        """The script that would be handed to sbatch."""
        if num_jobs > 1:
            self.parameters["map_count"] = num_jobs
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def scripts(parts: Sequence[Part], cluster: ClusterConfig, run_name: str, folder: Path) -> dict[str, str]:
    """The sbatch script of every part, by its name; job ids that are not known yet stand as `<id of …>`."""
    found, after = {}, None
    for part in parts:
        executor = _Script(folder / JOBS)
        executor.update_parameters(**parameters(cluster, part, run_name, after))
        found[part.name] = executor.text(len(part.jobs))
        after = f"<id of {part.name}>"
    return found


def submit(parts: Sequence[Part], cluster: ClusterConfig, run_name: str, folder: Path) -> list[Submitted]:
    """Queue all parts, each after the one before.

    Args:
        folder: of the submission.

    Raises:
        InputError: Slurm refused a part, in its own words; none of the others stays in the queue.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError(
            "cluster: executor = 'slurm', but there is no sbatch on this machine: submit from a node of the cluster,"
            " or take --cluster configs/cluster/local.yaml"
        )
    done: list[Submitted] = []
    try:
        for part in parts:
            executor = submitit.SlurmExecutor(folder / JOBS)
            after = done[-1].job_id if done else None
            executor.update_parameters(**parameters(cluster, part, run_name, after))
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
                jobs = executor.submit_array(part.jobs)
            job_id = jobs[0].job_id.partition("_")[0]
            done.append(Submitted(part.name, job_id, len(jobs), part.num_nodes * part.tasks_per_node))
    except BaseException as error:
        if done:
            subprocess.run(["scancel", *(part.job_id for part in done)], check=False)
        if isinstance(error, FailedJobError | FailedSubmissionError):
            raise InputError(f"cluster: Slurm refused {part.name}: {_reason(str(error))}") from None
        raise
    return done


def _reason(text: str) -> str:
    """sbatch's own words, on one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "it gave no reason"


def wait(parts: Sequence[Submitted], tell: Callable[[str, str], None]) -> dict[str, str]:
    """Wait until no part is queued or running.

    Args:
        tell: called with name and state of a part when its state changed.

    Returns:
        The last state of each part, in Slurm's words; `COMPLETED` is the good one.
    """
    told: dict[str, str] = {}
    while True:
        queued = _queued()  # asked first: what leaves the queue after this is in the accounting already
        states = _states(parts)
        for name, state in states.items():
            if told.get(name) != state:
                tell(name, state)
        told = states
        if not any(part.job_id in queued for part in parts) and WAITING not in states.values():
            return states
        time.sleep(_POLL_S)


def _queued() -> set[str]:
    """Jobs that the controller still has before it, arrays as one."""
    return set(_ask("squeue", "--me", "--noheader", "--format=%F").split())


def _states(parts: Sequence[Submitted]) -> dict[str, str]:
    """The state of each part; of an array, the one of its tasks that is furthest from being done."""
    ids = ",".join(part.job_id for part in parts)
    lines = _ask("sacct", "-X", "--parsable2", "--noheader", "--format=JobID,State", f"--jobs={ids}").splitlines()
    states = {}
    for part in parts:
        # `12`, `12_3` and `12_[0-7]`; a cancelled job's state goes on with who did it
        rows = [line.split("|") for line in lines]
        found = {state.split()[0] for job, state in rows if job.partition("_")[0] == part.job_id and state}
        open_ones = sorted(found & {"RUNNING", "PENDING", "REQUEUED", "SUSPENDED", "COMPLETING"}, reverse=True)
        bad_ones = sorted(found - {GOOD})
        states[part.name] = next(iter([*open_ones, *bad_ones]), GOOD if found else WAITING)
    return states


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise InputError(f"cluster: {command[0]}: {_reason(error.stderr)}; the jobs go on without this") from None
