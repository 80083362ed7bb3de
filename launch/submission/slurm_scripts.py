"""Slurm through submitit: the sbatch script of a part, and submitting a chain of parts."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.job.config import ClusterConfig
from launch.job.parts import Part, PartName, task_command
from launch.submission.record import JOBS
from launch.submission.slurm_client import SlurmError, ask, reason
from masp.errors import InputError

LOG = logging.getLogger(__name__)

_POLL_S = 2.0
_CANCEL_TRIES = 15


class PartsLeft(InputError):
    """Slurm refused a part, and then did not cancel those before it: they are still queued."""


def parameters(cluster: ClusterConfig, part: Part, run_name: str, after: str | None) -> dict[str, Any]:
    """The parameters of a part that submitit gets; all others keep submitit's defaults.

    Args:
        after: the job that must have succeeded before; None for the first part.
    """
    resources = part.resources
    # since Slurm 22.05, srun no longer takes this over from sbatch
    srun = [f"--cpus-per-task={resources.cpus_per_task}"]
    if part.num_ranks > 1 and part.name != PartName.EVALUATE:
        # the others would wait for a rank that died; evaluation's ranks wait for nobody
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
        "array_parallelism": part.max_parallel if len(part.jobs) > 1 else None,
        "stderr_to_stdout": True,  # one log per process
        "srun_args": srun,
        "additional_parameters": more,
    }
    return {name: value for name, value in chosen.items() if value is not None}


class _Executor(submitit.SlurmExecutor):
    """Starts tasks by way of `launch.job.task`, and writes scripts also where Slurm is not installed."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    @property
    def _submitit_command_str(self) -> str:
        return task_command(self.folder)

    def text(self, num_jobs: int) -> str:
        """The script that sbatch would get."""
        if num_jobs > 1:
            self.parameters["map_count"] = num_jobs
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def script(part: Part, cluster: ClusterConfig, run_name: str, directory: Path, after: str | None = None) -> str:
    """The sbatch script of a part.

    Args:
        directory: Directory of the submission; nothing is written there.
        after: see `parameters`.
    """
    with tempfile.TemporaryDirectory() as scratch:  # the executor makes its directory at once
        executor = _Executor(scratch)
    executor.folder = directory / JOBS
    executor.update_parameters(**parameters(cluster, part, run_name, after))
    return executor.text(len(part.jobs))


def scripts(parts: Sequence[Part], cluster: ClusterConfig, run_name: str, directory: Path) -> dict[str, str]:
    """The sbatch script of every part, by its name; a job id that is not known yet is written `<id of …>`."""
    found: dict[str, str] = {}
    after = None
    for part in parts:
        found[part.name] = script(part, cluster, run_name, directory, after)
        after = f"<id of {part.name}>"
    return found


def check_installed() -> None:
    """Check that Slurm is installed here.

    Raises:
        InputError: it is not.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError(
            "cluster: executor = 'slurm', but this machine has no sbatch: submit from a node of the cluster,"
            " or take --cluster configs/cluster/local.yaml"
        )


def submit(
    parts: Sequence[Part], cluster: ClusterConfig, run_name: str, directory: Path, tell: Callable[[PartName, str], None]
) -> list[str]:
    """Submit all parts, each to start after the one before.

    Args:
        directory: Directory of the submission.
        tell: called with name and job id of each part once Slurm has it.

    Returns:
        The job ids.

    Raises:
        InputError: Slurm refused a part, in its own words; none of the others stays in the queue, but for PartsLeft.
    """
    done: list[str] = []
    try:
        for part in parts:
            executor = _Executor(directory / JOBS)
            executor.update_parameters(**parameters(cluster, part, run_name, done[-1] if done else None))
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
                jobs = executor.submit_array(part.jobs)
            done.append(jobs[0].job_id.partition("_")[0])
            tell(part.name, done[-1])
    except BaseException as error:
        left = _take_back(done)
        if isinstance(error, FailedJobError | FailedSubmissionError):
            kind = PartsLeft if left else InputError
            raise kind(f"cluster: Slurm refused {part.name}: {reason(str(error))}{left}") from None
        if left:
            LOG.error("%s", left.removeprefix("; "))
        raise
    return done


def _take_back(job_ids: Sequence[str]) -> str:
    """Cancel what is queued already; returns what to tell the user if Slurm refuses that too."""
    if not job_ids:
        return ""
    for _ in range(_CANCEL_TRIES):
        try:
            ask("scancel", *job_ids)
            return ""
        except SlurmError:
            time.sleep(_POLL_S)
    return f"; and it did not take back jobs {' '.join(job_ids)}: run `scancel {' '.join(job_ids)}` when it answers"
