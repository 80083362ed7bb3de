"""What became of a submission, from what Slurm's commands print and from the run's files."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from launch.job.failure import failure_path, write_failure
from launch.job.parts import PartName, State
from launch.submission import slurm_client
from launch.submission.record import JOBS, read_record, write_record
from launch.submission.state import (
    DriverStatus,
    PartState,
    PartStatus,
    active,
    overview,
    read_driver_status,
    table,
)
from masp.errors import DataError, InputError, OtherRankFailed
from masp.runtime.run_directory import RunState, write_status

WAITING = "".join(f"{job}|N/A|PENDING|Dependency|0:00||0|\n" for job in (8, 9, 10))


def test_the_queue_wins_over_the_accounting_which_lags_behind(directory, slurm):
    slurm(
        "7|1|RUNNING|None|0:06|node1|2|\n7|2|PENDING|BeginTime|0:00||0|\n" + WAITING,
        "7_0|COMPLETED|00:00:09|node2\n7_1|REQUEUED|00:00:01|node2\n7_1|PENDING|00:00:00|None assigned\n"
        "7_[2]|PENDING|00:00:00|None assigned\n8|PENDING|00:00:00|None assigned\n",
    )
    found = overview(directory)
    extract, stage1, *_ = found.parts
    assert (extract.state, extract.tasks, extract.num_restarts, extract.nodes) == ("running", "1/3", 2, "node1")
    assert (stage1.state, stage1.message) == ("waiting", "Dependency")
    assert found.is_open and found.state == "running"
    head, first, *_ = table(found.parts)
    assert head.split() == ["part", "state", "jobs", "tasks", "restarts", "time", "nodes"]
    assert first.split() == ["extract", "running", "7", "1/3", "2", "0:06", "node1"]


def test_a_failure_is_told_with_what_its_processes_noted_or_with_the_words_of_a_log(directory, slurm):
    cancelled = "".join(f"{job}|CANCELLED by 0|00:00:00|None assigned\n" for job in (8, 9, 10))
    slurm(sacct="7_0|COMPLETED|00:00:09|n1\n7_1|FAILED|00:00:03|n1\n7_2|COMPLETED|00:00:09|n1\n" + cancelled)
    logs = [directory / JOBS / f"7_1_{rank}_log.out" for rank in range(4)]
    logs[0].write_text("submitit INFO: Starting\nat work\nsrun: error: task 0 failed\n")
    assert overview(directory).problems == [f"extract: failed: Slurm says FAILED; at work ({logs[0]})"]
    errors = (OtherRankFailed("rank 3 failed"), TypeError("a bug\nin two lines"), InputError("vlm.path: none"))
    said = ("rank 3 failed", "TypeError: a bug", "vlm.path: none")
    for log, error, text in zip(logs[1:], errors, said, strict=True):  # each says more than those before it
        log.write_text("what people read\n")
        write_failure(log, error)
        found = overview(directory)
        assert found.problems == [f"extract: failed: Slurm says FAILED; {text} ({log})"]
    failure_path(logs[3]).write_text('{"kind": "cau')
    with pytest.raises(DataError, match="7_1_3_failure.json: not valid JSON"):
        overview(directory)
    failure_path(logs[3]).unlink()
    assert [part.state for part in found.parts] == ["failed", "cancelled", "cancelled", "cancelled"]
    assert not found.is_open


def test_a_part_cancelled_while_it_ran_is_told_and_those_behind_it_are_not(directory, slurm):
    lines = [f"7_{i}|COMPLETED|00:00:09|n1\n" for i in range(3)] + ["8|CANCELLED by 1000|00:00:12|n1\n"]
    lines += [f"{job}|CANCELLED|00:00:00|None assigned\n" for job in (9, 10)]
    slurm(sacct="".join(lines))
    assert overview(directory).problems == ["stage1: cancelled"]


def test_jobs_that_slurm_has_forgotten_are_not_taken_for_finished(directory, slurm):
    found = overview(directory)
    assert {part.state for part in found.parts} == {"unknown"}
    assert "Slurm does not know its job" in found.problems[0]


def test_a_slurm_that_fails_is_told_in_its_own_words(directory, slurm, capsys):
    slurm("squeue: error: Unable to contact slurm controller (connect failure)\n", code=1)
    assert main(["status", str(directory)]) == 2
    error = capsys.readouterr().err
    assert error == "error: cluster: squeue: Unable to contact slurm controller (connect failure)\n"
    with pytest.raises(slurm_client.SlurmError) as caught:
        slurm_client.look(["4"])
    assert not isinstance(caught.value, slurm_client.UnknownJob)
    assert caught.value.words == "Unable to contact slurm controller (connect failure)"


# as the driver of the previous release wrote it
OLD_STATUS = """\
{
 "state": "failed",
 "exit_code": 3,
 "message": "stage1: damaged",
 "time": 1763990000.25,
 "host": "laptop",
 "pid": 4711,
 "parts": {
  "extract": {
   "state": "finished",
   "job_ids": [
    "11",
    "12"
   ],
   "num_done": 2,
   "message": "",
   "elapsed": "0:00:07"
  },
  "stage1": {
   "state": "failed",
   "job_ids": [
    "13"
   ],
   "num_done": 0,
   "message": "damaged",
   "elapsed": "0:01:00"
  },
  "stage2": {
   "state": "waiting",
   "job_ids": [],
   "num_done": 0
  }
 }
}"""


@pytest.fixture
def local(directory) -> Path:
    """The same submission, of the local executor."""
    write_record(directory, replace(read_record(directory), executor="local"))
    return directory


def test_a_driver_status_of_the_previous_release_is_read_and_written_the_same(local, monkeypatch):
    (local / "status.json").write_text(OLD_STATUS)
    found = read_driver_status(local)
    assert found.parts["extract"] == PartStatus(State.FINISHED, ("11", "12"), 2, "", "0:00:07")
    assert found.parts["stage2"] == PartStatus()
    monkeypatch.setattr("masp.runtime.run_directory.time.time", lambda: found.time)
    monkeypatch.setattr("masp.runtime.run_directory.socket.gethostname", lambda: found.host)
    monkeypatch.setattr("masp.runtime.run_directory.os.getpid", lambda: found.pid)
    write_status(local, RunState.FAILED, 3, found.message, DriverStatus, parts=found.parts)
    assert (local / "status.json").read_text() == OLD_STATUS


def test_without_its_driver_nothing_runs_or_waits(local):
    (local / "status.json").write_text(OLD_STATUS.replace('"failed",\n   "job_ids"', '"running",\n   "job_ids"'))
    assert [part.state for part in overview(local).parts] == ["finished", "failed", "cancelled", "cancelled"]
    assert overview(local).problems == [f"stage1: failed: its driver died: see {local / 'driver.log'}"]
    (local / "status.json").unlink()
    assert {part.state for part in overview(local).parts} == {"cancelled"}
    assert active(local) == []


@pytest.mark.parametrize("pid", ["0", "-1", "1", "4294967296"])
def test_no_status_makes_a_signal_reach_more_than_one_process(pid, local):
    (local / "status.json").write_text(OLD_STATUS.replace("4711", pid))
    with pytest.raises(DataError, match="pid must be that of one process; remove the file"):
        read_driver_status(local)
    (local / "status.json").write_text(OLD_STATUS.replace('"13"', f'"{pid}x"'))
    with pytest.raises(DataError, match="must have job_ids of digits only"):
        read_driver_status(local)


def test_empty_columns_are_left_out():
    parts = [PartState(PartName.EXTRACT, State.RUNNING, ("7",)), PartState(PartName.STAGE1, State.WAITING)]
    assert table(parts) == ["part     state    jobs", "extract  running  7", "stage1   waiting"]
