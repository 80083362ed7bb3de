"""The jobs themselves: small, picklable, and in no doubt about ranks, signals and restarts."""

import pickle
import signal
import subprocess
import sys

import pytest

import masp.errors
from launch.job.failure import Failure, FailureKind
from launch.job.jobs import EvaluateJob, ExtractJob, TrainJob, _patiently
from masp.runtime.stop import StopFlag
from tests.runs import REPOSITORY
from tests.unit.launch.job.probe import SRUN


@pytest.mark.parametrize(
    "job",
    [
        ExtractJob("c.yaml", 3, num_tasks=8, task_index=5),
        TrainJob("c.yaml", 3, stage="stage2"),
        EvaluateJob("c.yaml", 3),
    ],
)
def test_jobs_are_small(job):
    data = pickle.dumps(job)
    assert len(data) < 500
    assert pickle.loads(data) == job


def test_ranks_are_sruns_even_if_the_shell_had_others(probe):
    done = probe(**SRUN | {"SLURM_PROCID": "3", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Ranks(rank=3, size=4, local_rank=0, launcher='srun')\n"


def test_ranks_of_the_local_executor(probe):
    local = {"GLOBALID": "1", "LOCALID": "1", "NTASKS": "2", "JOB_ID": "4711"}
    variables = {f"SUBMITIT_LOCAL_{name}": value for name, value in local.items()}
    done = probe(SUBMITIT_EXECUTOR="local", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Ranks(rank=1, size=2, local_rank=1, launcher='torchrun')\n"


def test_an_error_is_one_line_and_masps_exit_code(probe):
    done = probe(**SRUN, PROBE="bad")
    assert (done.returncode, done.stderr) == (2, "error: a.b = 1: must be 2\n")
    assert not done.asked
    assert done.failure == Failure(FailureKind.CAUSE, 2, "a.b = 1: must be 2")
    assert probe(**SRUN).failure is None  # it has run again, and ended well


def test_a_rank_that_failed_ends_with_its_own_code_whatever_srun_sends_then(probe):
    done = probe(**SRUN, PROBE="bad", AT_EXIT="1")
    assert done.returncode == 2 and done.stdout.endswith("\nSIG_IGN\n"), (done.stdout, done.stderr)


def test_a_bug_is_not_tried_again(probe):
    done = probe(**SRUN | {"PROBE": "raise TypeError('a bug')"})
    assert done.returncode == 1 and "TypeError: a bug" in done.stderr and not done.asked
    assert done.failure == Failure(FailureKind.BUG, 1, "TypeError: a bug")


@pytest.mark.parametrize(
    ("error", "restarts", "waits"),
    [("FilesInUse", "1", True), ("FilesInUse", "0", False), ("InputError", "1", False)],
)
def test_only_a_job_that_started_again_waits_for_what_its_predecessor_holds(error, restarts, waits, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    monkeypatch.setattr("launch.job.jobs.time.sleep", lambda _: None)
    tries = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise getattr(masp.errors, error)("another extraction is writing there")
        return "done"

    if waits:
        assert _patiently(work, StopFlag()) == "done"
    else:
        with pytest.raises(masp.errors.InputError):
            _patiently(work, StopFlag())
    assert len(tries) == (3 if waits else 1)


def test_the_probe_stands_where_submitit_does():
    # What PROBE imitates: the handlers that submitit sets before it calls a job.
    from submitit.core.job_environment import JobEnvironment

    assert JobEnvironment._usr_sig() is signal.SIGUSR2


def reference(name: str, *fields: object) -> bytes:
    """A pickle as the previous release made it: class `launch.jobs.NAME`, fields by name."""
    # protocol 0 is text, so that the module's name can be exchanged without lengths
    job = {"TrainJob": TrainJob, "ExtractJob": ExtractJob, "EvaluateJob": EvaluateJob}[name](*fields)
    vars(job).pop("overrides", None)  # which it did not know
    data = pickle.dumps(job, protocol=0)
    assert data.count(b"launch.job.jobs\n") == 1
    return data.replace(b"launch.job.jobs\n", b"launch.jobs\n")


@pytest.mark.parametrize(
    ("name", "fields", "state"),
    [
        (
            "TrainJob",
            ("c.yaml", 3, "stage2"),
            {"config_path": "c.yaml", "max_requeues": 3, "stage": "stage2"},
        ),
        (
            "ExtractJob",
            ("c.yaml", 3, 8, 5),
            {"config_path": "c.yaml", "max_requeues": 3, "num_tasks": 8, "task_index": 5},
        ),
        (
            "EvaluateJob",
            ("c.yaml", 3, 2, 1),
            {"config_path": "c.yaml", "max_requeues": 3, "num_tasks": 2, "task_index": 1},
        ),
    ],
)
def test_a_job_that_was_queued_before_the_move_is_the_same_job(name, fields, state):
    job = pickle.loads(reference(name, *fields))
    assert type(job).__module__ == "launch.job.jobs" and type(job).__name__ == name
    assert vars(job) == state  # the fields, which the pickle holds by name
    assert getattr(job, "overrides", ()) == ()


def test_a_job_that_was_queued_before_the_move_runs(probe):
    done = probe(**SRUN, PROBE="old pickle")
    assert done.returncode == 0, done.stderr
    assert "trained stage2 of" in done.stdout


def test_a_job_is_unpickled_without_anything_heavy():
    code = "import sys, launch.jobs; print([m for m in ('torch', 'transformers', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
