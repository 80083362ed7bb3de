"""The jobs themselves: small, picklable, and in no doubt about ranks, signals and restarts."""

import os
import pickle
import signal
import subprocess
import sys

import pytest

import masp.errors
from launch.job.jobs import EvaluateJob, ExtractJob, Failure, FailureKind, TrainJob, _patiently, read_failure
from masp.config import load_config, save_config
from masp.runtime.stop import StopFlag
from tests.runs import REPOSITORY

# Replaces what a stage would do by saying what it sees, and by stopping on request as a stage would.
PROBE = """
import os, sys, signal, time
import launch.job.requeue
launch.job.requeue._WAIT_FOR_END_S = 0
from launch.job.jobs import TrainJob
from masp.errors import InputError, StoppedEarly

class Probe(TrainJob):
    def work(self, config, stop):
        from masp.distributed.ranks import read_ranks
        print(read_ranks(), flush=True)
        what = os.environ.get("PROBE", "")
        if what == "bad":
            raise InputError("a.b = 1: must be 2")
        if what.startswith("raise "):
            import types, masp.distributed.liveness, masp.runtime.run_lock
            error = eval(what.removeprefix("raise "))
            def train(*_, **__):
                raise error
            sys.modules["masp.training.loop"] = types.SimpleNamespace(train=train)  # the real ones import torch
            sys.modules["masp.training.checkpoint"] = types.SimpleNamespace(latest_name=lambda _: None)
            return TrainJob.work(self, config, stop)
        if what:
            os.kill(os.getpid(), getattr(signal, what))
            assert stop
            raise StoppedEarly("stopped after step 3")

# As submitit does before it calls the job.
signal.signal(signal.SIGUSR2, lambda *_: sys.exit("submitit's handler"))
signal.signal(signal.SIGTERM, lambda *_: print("bypassed"))
if "AT_EXIT" in os.environ:
    import atexit
    atexit.register(lambda: print(signal.getsignal(signal.SIGTERM).name))
Probe(sys.argv[1], 2, stage="stage1")()
"""
SRUN = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def probe(tmp_path):
    """Runs a job that says what it sees; `asked` is what it asked of scontrol."""
    show = f"cat {tmp_path}/shown 2>/dev/null || echo JobId=17 JobState=RUNNING"
    script = f'#!/bin/sh\nif [ "$1" = --oneliner ]; then {show}; else echo "$@" >> {tmp_path}/asked; fi\n'
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)

    def run(**variables: str):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        config = tmp_path / "submission" / "config.yaml"
        (config.parent / "jobs").mkdir(parents=True, exist_ok=True)
        save_config(load_config(REPOSITORY / "configs" / "demo.yaml", [f"output_dir={tmp_path / 'run'}"]), config)
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(config)],
            cwd=REPOSITORY,
            env=clean | variables | {"PATH": path, "SUBMITIT_FOLDER": str(config.parent / "jobs")},
            capture_output=True,
            text=True,
        )
        asked = tmp_path / "asked"
        done.asked = asked.read_text() if asked.exists() else ""
        task = f"17_{variables.get('SLURM_PROCID')}_log.out"
        done.failure = read_failure(config.parent / "jobs" / task)
        return done

    return run


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


def test_ahead_of_the_time_limit_the_job_is_queued_again(probe):
    done = probe(**SRUN, PROBE="SIGUSR2", SLURM_RESTART_COUNT="1")
    assert done.returncode == 75, done.stderr
    assert "stopped after step 3" in done.stderr
    assert done.asked == "requeue 17\n"


@pytest.mark.parametrize(
    ("why", "variables"),
    [
        ("only rank 0 asks", {"SLURM_PROCID": "1", "PROBE": "SIGUSR2"}),
        ("cancelled by the user", {"PROBE": "SIGTERM"}),
        ("too often already", {"PROBE": "SIGUSR2", "SLURM_RESTART_COUNT": "2"}),
        (
            "not on Slurm",
            {
                "PROBE": "SIGUSR2",
                "SUBMITIT_EXECUTOR": "local",
                "SUBMITIT_LOCAL_GLOBALID": "0",
                "SUBMITIT_LOCAL_NTASKS": "1",
                "SUBMITIT_LOCAL_LOCALID": "0",
                "SUBMITIT_LOCAL_JOB_ID": "9",
            },
        ),
    ],
)
def test_otherwise_it_is_not(why, variables, probe):
    done = probe(**SRUN | variables)
    assert done.returncode == 75, done.stderr
    assert not done.asked, why


def test_a_job_that_starts_again_and_again_ends(probe):
    done = probe(**SRUN, SLURM_RESTART_COUNT="3")
    assert done.returncode == 2
    assert "max_requeues = 2: this job has started again 3 times" in done.stderr


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("JobId=17 JobState=CANCELLED Restarts=1", "it was cancelled"),
        ("JobId=17 JobState=PENDING Restarts=2", "Slurm has started it again already"),
    ],
)
def test_it_is_not_queued_again_behind_somebodys_back(shown, expected, probe, tmp_path):
    (tmp_path / "shown").write_text(shown)
    done = probe(**SRUN, PROBE="SIGUSR2", SLURM_RESTART_COUNT="1")
    assert done.returncode == 75, done.stderr
    assert f"not queued again: {expected}" in done.stderr and not done.asked


LOST = SRUN | {"SLURM_PROCID": "3", "PROBE": "raise masp.distributed.liveness.RankLost('rank 1 ended without a word')"}


def test_a_lost_rank_brings_the_job_back_whichever_rank_notices(probe):
    done = probe(**LOST)
    assert done.returncode == 1
    assert done.asked == "requeue 17\n" and "error: rank 1 ended without a word" in done.stderr
    assert done.failure == Failure(FailureKind.CAUSE, 1, "rank 1 ended without a word")
    assert probe(**LOST).asked == "requeue 17\n"  # one survivor asks for all
    for count in ("1", "2"):
        done = probe(**LOST, SLURM_RESTART_COUNT=count)
    assert done.asked == "requeue 17\n" * 2  # the limit counts all restarts
    assert "max_requeues = 2 is reached" in done.stderr


def test_without_progress_losing_ranks_is_no_accident(probe, tmp_path):
    marks = tmp_path / "submission" / "jobs"
    marks.mkdir(parents=True)
    for count in range(5, 8):
        (marks / f"17.lost-{count}").write_text("")
    done = probe(**LOST)
    assert "ranks were lost 3 times since the start; is memory too small?" in done.stderr and not done.asked


@pytest.mark.parametrize("count", ["0", "1"])
def test_a_run_that_a_lost_rank_still_holds_is_tried_again(count, probe):
    used = SRUN | {
        "PROBE": "raise masp.runtime.run_lock.RunInUse('in use by another run')",
        "SLURM_RESTART_COUNT": count,
    }
    done = probe(**used)
    assert done.returncode == 2 and "error: in use" in done.stderr
    assert done.asked == ("requeue 17\n" if count == "1" else "")


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
