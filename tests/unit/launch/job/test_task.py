"""The entry point of a process, under its own name and under that of the previous release."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
from submitit.core.utils import DelayedSubmission

from launch.job.jobs import TrainJob
from launch.job.task import main
from masp.config import load_config, save_config
from tests.runs import REPOSITORY
from tests.unit.launch.fake_slurm import CONFIG

LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
    "SUBMITIT_LOCAL_NTASKS": "1",
    "SUBMITIT_LOCAL_COMMAND": "",
    "SUBMITIT_LOCAL_TIMEOUT_S": "60",
    "SUBMITIT_LOCAL_SIGNAL_S": "10",
    "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_GLOBALID": "0",
    "SUBMITIT_LOCAL_LOCALID": "0",
    "SUBMITIT_LOCAL_WITH_SHELL": "",
}


@pytest.mark.parametrize(
    ("module", "jobs"),
    [pytest.param("launch.job.task", "launch.job.jobs", marks=pytest.mark.full), ("launch.task", "launch.jobs")],
)
def test_a_queued_job_runs_after_the_move(module, jobs, tmp_path):
    """submitit's whole way from a pickle to the job's end; without a cache the job ends with its own one line."""
    (tmp_path / "jobs").mkdir()
    settings = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'none'}"]
    save_config(load_config(CONFIG, settings), tmp_path / "config.yaml")
    # submitit holds one process's pickle until the job is called
    submission = DelayedSubmission(TrainJob(str(tmp_path / "config.yaml"), 3, stage="stage1"))
    data = pickle.dumps(submission, protocol=0).replace(b"launch.job.jobs", jobs.encode())
    (tmp_path / "jobs" / "4711_submitted.pkl").write_bytes(data)
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-u", "-m", module, str(tmp_path / "jobs")],
        cwd=tmp_path,
        env=os.environ | LOCAL | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert f"error: cache.dir: {tmp_path / 'none'} does not exist" in done.stderr
    assert (tmp_path / "jobs" / "4711_0_failure.json").is_file()


def test_the_signal_is_blocked_while_submitit_is_imported(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "submitit.core.submission.submitit_main", lambda: seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        main()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert signal.SIGUSR2 in seen[0]
