"""A job that is stopped before it is finished: it writes a checkpoint, requeues itself, and resumes."""

import json

import pytest

from tests.runs import make_run
from tests.slurm.site import logs, steps, until

pytestmark = pytest.mark.slurm

# Long enough to be interrupted, short enough to wait for.
LONG = ["stage1.num_epochs=40", "stage1.checkpoint_every=10000", "stage1.log_every=1"]


@pytest.fixture
def config(tmp_path):
    """A run with a finished cache."""
    from masp.config import load_config
    from masp.extraction.job import extract

    path = make_run(tmp_path)
    extract(load_config(path))
    return path


@pytest.mark.full
def test_training_that_is_told_to_stop_is_requeued_and_finishes(site, config, tmp_path):
    directory, jobs = site.submitted("train", "--stage", "stage1", "--config", config, *LONG)
    run, job = tmp_path / "run", jobs["stage1"]
    twice = site.launch("train", "--stage", "stage1", "--config", config, *LONG)
    assert twice.returncode == 2 and f"submitted as {directory}" in twice.stderr, twice.stderr
    assert twice.stderr.count("\n") == 1 and len(list(directory.parent.glob("*/"))) == 1

    until(lambda: len(steps(run)) > 3, what=logs(run))
    num_steps = json.loads((run / "stage1" / "status.json").read_text())["num_steps"]
    with site.without_requeue_delay():
        site.ask("scancel", "--signal=USR2", job)
        until(lambda: site.state(job)[1] == 1)
        before = max(steps(run))
        assert before < num_steps, "it finished before it could be stopped"
        until(lambda: site.state(job)[0] == "COMPLETED", what=logs(run))

    log = (directory / "jobs" / f"{job}_0_log.out").read_text()
    assert f"job {job} is queued again" in log
    assert f"resuming after step {before} of {num_steps}" in log
    assert steps(run) == list(range(1, num_steps + 1))
    status = json.loads((run / "stage1" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", num_steps)


@pytest.mark.full
def test_a_canceled_job_stays_canceled_until_it_is_resumed(site, config, tmp_path):
    directory, jobs = site.submitted("train", "--stage", "stage1", "--config", config, *LONG)
    run, job = tmp_path / "run", jobs["stage1"]
    until(lambda: len(steps(run)) > 3, what=logs(run))
    done = site.call("cancel", run)
    assert done.returncode == 0, done.stderr
    assert site.state(job) == ("CANCELLED", 0) and not site.queue()
    before = max(steps(run))
    assert f"stopped on request after step {before}" in (directory / "jobs" / f"{job}_0_log.out").read_text()
    status = site.call("status", run)
    assert status.returncode == 1 and status.stdout.startswith("cancelled: ")
    assert status.stderr == "error: stage1: cancelled\n"
    again = site.call("resume", run, "--wait")
    assert again.returncode == 0, f"{again.stderr}\n{logs(run)}"
    assert steps(run) == list(range(1, max(steps(run)) + 1)) and max(steps(run)) > before


@pytest.mark.full
def test_a_job_is_requeued_before_its_time_limit_until_it_is_done(site, config, tmp_path):
    settings = ["stage1.num_epochs=700", "stage1.checkpoint_every=10000", "stage1.log_every=1"]
    limits = ["cluster.train.timeout_min=1", "cluster.signal_delay_s=15"]
    with site.without_requeue_delay():
        done = site.launch("train", "--stage", "stage1", "--config", config, *settings, *limits, "--wait")
    run = tmp_path / "run"
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{logs(run)}"
    assert "started again" in done.stdout, done.stdout
    num_steps = json.loads((run / "stage1" / "status.json").read_text())["num_steps"]
    assert steps(run) == list(range(1, num_steps + 1))


@pytest.mark.full
def test_damaged_data_end_the_job_without_requeueing(site, config, tmp_path):
    (shard,) = (tmp_path / "cache" / "shards").glob("train-00000.tar")
    data = bytearray(shard.read_bytes())
    third = len(data) // 3  # within the features, whatever is at the edges
    data[third : 2 * third] = bytes(byte ^ 1 for byte in data[third : 2 * third])
    shard.write_bytes(data)
    done = site.launch("train", "--stage", "stage1", "--config", config, "--wait")
    assert done.returncode == 1 and "stage1: failed: Slurm says FAILED; " in done.stderr, done.stderr
    assert "train-00000" in done.stderr
    (directory,) = (tmp_path / "run" / "launch").glob("*/")
    job = json.loads((directory / "submission.json").read_text())["parts"][0]["job_ids"][0]
    assert site.state(job) == ("FAILED", 0)
    assert site.ask("sacct", "-X", "-n", "-P", "-o", "ExitCode", "-j", job) == "3:0\n"
