"""A job that is told to stop ahead of its end: checkpoint, back into the queue, on from there."""

import json
import time

import pytest

from tests.runs import make_run

pytestmark = pytest.mark.slurm


def until(condition, timeout_s: float = 180):
    """Wait for something to become true; returns it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
    return found


def steps(run) -> list[int]:
    """The steps that stage 1 has logged."""
    path = run / "stage1" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def test_training_told_to_stop_is_queued_again_and_finishes(launch, slurm, tmp_path):
    from masp.config import load_config
    from masp.extract import extract

    config = make_run(tmp_path)
    extract(load_config(config))
    # Long enough to be interrupted, short enough to wait for.
    settings = ["stage1.num_epochs=40", "stage1.checkpoint_every=10000", "stage1.log_every=1"]
    done = launch("train", "--stage", "stage1", "--config", config, *settings)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    (folder,) = (run / "launch").glob("*/")
    job = json.loads((folder / "submission.json").read_text())["parts"][0]["job_ids"][0]

    until(lambda: len(steps(run)) > 3)
    num_steps = json.loads((run / "stage1" / "status.json").read_text())["num_steps"]
    slurm("scancel", "--signal=USR2", job)
    until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", job))
    before = max(steps(run))
    assert before < num_steps, "it ran to its end before it could be stopped"
    until(lambda: "JobState=PENDING" in slurm("scontrol", "show", "job", job))
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm lets a job wait two minutes otherwise
    until(lambda: "JobState=COMPLETED" in slurm("scontrol", "show", "job", job))

    log = (folder / "jobs" / f"{job}_0_log.out").read_text()
    assert f"job {job} is queued again" in log
    assert f"resuming after step {before} of {num_steps}" in log
    assert steps(run) == list(range(1, num_steps + 1))
    status = json.loads((run / "stage1" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", num_steps)
