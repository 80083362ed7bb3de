"""Slurm through submitit: the sbatch script of a part, and submitting a chain of parts."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from launch.job.config import ClusterConfig
from launch.job.parts import Part, PartName, task_command
from launch.job.pickles import owners_pickles
from launch.submission.record import JOBS, job_name
from launch.submission.slurm_client import SlurmError, ask, queued, reason
from masp.errors import InputError, MaspError
from masp.files.text import users_error

LOG = logging.getLogger(__name__)

_POLL_S = 2.0
_CANCEL_TRIES = 15


_ALTERNATIVES = (
    {"gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "tres-per-task"},
    {"mem", "mem-per-cpu", "mem-per-gpu"},
)
"""Options of sbatch that ask for the same: one that the user gives replaces the one that `launch` would give."""
_OF_THE_USER = ("SLURM_CLUSTERS", "SLURM_CONF", "SLURM_JWT", "SLURM_MPI_TYPE", "SLURM_TIME_FORMAT")
"""Variables named like those of a job that people set themselves."""


class PartsLeft(InputError):
    """A part was not submitted, and those before it could not be cancelled: they may still be queued."""


class Interrupted(MaspError):
    """Interrupted from the keyboard before all parts were submitted; none of them is queued. Exit code as of shells."""

    exit_code = 128 + signal.SIGINT


def parameters(cluster: ClusterConfig, part: Part, run_name: str, after: str | None, tag: str = "") -> dict[str, Any]:
    """The parameters of a part that submitit gets; all others keep submitit's defaults.

    Args:
        after: the job that must have succeeded before; None for the first part.
        tag: see `launch.submission.record.job_name`.
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
    gpus = resources.gpus_per_task * part.tasks_per_node
    chosen = {
        "job_name": job_name(run_name, part.name, tag),
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
        "gpus_per_node": (f"{resources.gpu_type}:{gpus}" if resources.gpu_type else gpus) if gpus else None,
        "mem": f"{round(resources.memory_gb * 1024)}MB" if resources.memory_gb else None,
        "signal_delay_s": cluster.signal_delay_s,
        "setup": cluster.setup or None,
        "dependency": f"afterok:{after}" if after is not None else None,
        "array_parallelism": part.max_parallel if len(part.jobs) > 1 else None,
        "stderr_to_stdout": True,  # one log per process
        "srun_args": srun + [f"--{option}" for option in resources.srun],
        "additional_parameters": more,
    }
    options = dict(option.split("=", 1) for option in (*cluster.sbatch, *resources.sbatch))
    for alternatives in _ALTERNATIVES:
        if options.keys() & alternatives:
            chosen = {name: value for name, value in chosen.items() if name.replace("_", "-") not in alternatives}
    for name, value in options.items():
        # submitit writes both of two spellings, and Slurm would follow the last
        if (spelling := name.replace("-", "_")) in chosen:
            chosen[spelling] = value
        else:
            more[name] = value
    # submitit would set the workload characterization key to its own name, which clusters that check keys refuse
    return {name: value for name, value in chosen.items() if value is not None} | {"wckey": None}


class _Executor(submitit.SlurmExecutor):
    """Starts tasks by way of `launch.job.task`, and writes scripts also where Slurm is not installed."""

    interpreter: str | None = None
    """Python of the tasks; None for that of this process."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    @property
    def _submitit_command_str(self) -> str:
        return task_command(self.folder, self.interpreter)

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[submitit.Job]:
        return super()._internal_process_submissions(owners_pickles(delayed_submissions))

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
    executor.interpreter = part.resources.python
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
    parts: Sequence[Part],
    cluster: ClusterConfig,
    run_name: str,
    tag: str,
    directory: Path,
    tell: Callable[[PartName, str], None],
) -> list[str]:
    """Submit all parts, each to start after the one before.

    Args:
        tag: see `launch.submission.record.job_name`.
        directory: Directory of the submission.
        tell: called with name and job id of each part once Slurm has it.

    Returns:
        The job ids.

    Raises:
        InputError: Slurm refused a part, in its own words, or a file could not be written; none of the others stays in
            the queue, but for PartsLeft. Interrupted: as it says.
    """
    done: list[str] = []
    part = parts[0]
    try:
        for part in parts:
            executor = _Executor(directory / JOBS)
            executor.interpreter = part.resources.python
            after = done[-1] if done else None
            executor.update_parameters(**parameters(cluster, part, run_name, after, tag))
            # submitit prints what it also raises
            with _outside_of_a_job(), contextlib.redirect_stderr(io.StringIO()):
                jobs = executor.submit_array(part.jobs)
            done.append(jobs[0].job_id.partition("_")[0])
            tell(part.name, done[-1])
    except BaseException as error:
        left = _take_back(done, [job_name(run_name, part.name, tag) for part in parts])
        kind: type[MaspError] = InputError
        if isinstance(error, FailedJobError | FailedSubmissionError):
            why = f"cluster: Slurm refused {part.name}: {reason(str(error))}"
        elif isinstance(error, KeyboardInterrupt):
            kind, why = Interrupted, f"interrupted while {part.name} was being submitted; nothing was submitted"
        elif isinstance(error, OSError) and (message := users_error(error)) is not None:
            why = message
        else:
            if left:
                LOG.error("%s", left.removeprefix("; "))
            raise
        raise (PartsLeft if left else kind)(f"{why}{left}") from None
    return done


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide the variables of a job that this process may run in: the jobs that it submits would inherit them.

    A job that is not a task of an array, or was never restarted, does not replace these variables of another one.
    """
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    hidden = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "SLURMD_", "SUBMITIT_"))}
    hidden = {name: value for name, value in hidden.items() if name not in _OF_THE_USER}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _take_back(job_ids: Sequence[str], job_names: Sequence[str]) -> str:
    """Cancel what is queued already; returns what to tell the user if Slurm refuses that too.

    Args:
        job_ids: Jobs that are known to be queued.
        job_names: Names of all jobs: sbatch may have queued one and not said so, if it was killed or timed out.
    """
    for _ in range(_CANCEL_TRIES):
        try:
            if found := {*job_ids, *queued(job_names)}:
                ask("scancel", *sorted(found))
            return ""
        except SlurmError:
            time.sleep(_POLL_S)
    if job_ids:
        text = " ".join(job_ids)
        return f"; and it did not take back jobs {text}: run `scancel {text}` when it answers"
    return (
        "; and Slurm does not say what it has queued: `python -m launch cancel` of this output_dir takes it back when"
        " it answers"
    )
