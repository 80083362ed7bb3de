"""The directory of a submission, and which one a user means."""

import json

import pytest

from launch.job.failure import failure_path, write_failure
from launch.job.parts import PartName
from launch.submission.record import (
    FILE,
    JOBS,
    Record,
    Submitted,
    explain,
    find_directory,
    log_paths,
    new_record,
    read_record,
    write_record,
)
from masp.errors import DataError, InputError

# as the previous release wrote it
OLD = """\
{
 "command": "train",
 "stage": "stage1",
 "executor": "slurm",
 "parts": [
  {
   "name": "stage1",
   "num_jobs": 1,
   "num_ranks": 2,
   "result": "out/stage1",
   "job_ids": [
    "41"
   ]
  }
 ],
 "working_directory": "/home/me",
 "host": "login1",
 "time": 1763990000.25
}
"""


def record(command: str = "extract") -> Record:
    return new_record(command, None, "slurm", (Submitted(PartName.EXTRACT, 1, 1, "cache"),))


def test_a_run_is_its_newest_submission(directory, tmp_path):
    again = directory.with_name("19990101-000000-extract")  # older by name, newer by its record
    again.mkdir()
    write_record(again, record("extract"))
    assert find_directory(str(tmp_path / "run")) == again
    assert find_directory(str(directory)) == directory
    with pytest.raises(InputError, match="neither a run's output_dir"):
        find_directory(str(tmp_path))
    (again / "submission.json").write_text('{"command": "ext')
    with pytest.raises(DataError, match=r"submission.json: not valid JSON: EOF while parsing a string"):
        find_directory(str(tmp_path / "run"))


def test_a_record_of_the_previous_release_is_read_and_written_the_same(tmp_path):
    (tmp_path / FILE).write_text(OLD)
    found = read_record(tmp_path)
    part = Submitted(PartName.STAGE1, 1, 2, "out/stage1", ("41",))
    assert found == Record("train", "stage1", "slurm", (part,), "/home/me", "login1", 1763990000.25)
    write_record(tmp_path, found)
    assert (tmp_path / FILE).read_text() == OLD


def test_a_path_need_not_be_utf_8(tmp_path):
    odd = new_record("extract", None, "local", (Submitted(PartName.EXTRACT, 1, 1, "c\udcff"),))
    write_record(tmp_path, odd)
    assert read_record(tmp_path) == odd


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("command", "serve", "command = 'serve': must be 'extract', 'annotate', 'train', 'evaluate', 'pipeline' or"),
        ("stage", "stage3", "stage = 'stage3': must be 'stage1' or 'stage2'"),
        ("executor", None, "executor = null: must be 'slurm' or 'local'"),
        ("parts", {}, "parts = {}: must be a valid array"),
        ("parts", [], "parts must not be empty"),
        ("host", 1, "host = 1: must be a valid string"),
        ("time", "now", "time = 'now': must be a valid number"),
        ("more", 1, "more: unknown key; valid keys: command, stage, executor, parts, working_directory, host, time"),
    ],
)
def test_a_record_of_another_shape_is_one_line(key, value, expected, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(json.loads(OLD) | {key: value}))
    with pytest.raises(DataError) as error:
        read_record(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / FILE}: ") and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_job_id_is_a_number(tmp_path):
    (tmp_path / FILE).write_text(OLD.replace('"41"', '"../*"'))
    with pytest.raises(DataError, match="must have job_ids of digits only"):
        read_record(tmp_path)


@pytest.mark.parametrize("run", ["x" * 300, "a\0b", "/proc/1/root\n"])
def test_a_run_that_cannot_be_looked_for_is_one_line(run):
    with pytest.raises(InputError, match="^RUN") as error:
        find_directory(run)
    assert len(str(error.value)) < 600


def test_logs_are_in_the_order_of_tasks_and_ranks(tmp_path):
    (tmp_path / JOBS).mkdir()
    names = ["7_0_0_log.out", "7_2_1_log.out", "7_10_0_log.out"]
    for name in (*reversed(names), "71_0_log.out", "7_0_0_result.pkl"):
        (tmp_path / JOBS / name).touch()
    assert [path.name for path in log_paths(tmp_path, "7")] == names


def test_the_last_line_of_a_huge_log_is_found(tmp_path):
    (tmp_path / JOBS).mkdir()
    log = tmp_path / JOBS / "7_0_log.out"
    with open(log, "wb") as file:
        file.seek(1 << 40)  # sparse
        file.write(b"\nerror: \xff at the end\n\nsrun: error: task 0\n")
    assert explain(tmp_path, "7") == f"\ufffd at the end ({log})"


def test_what_a_process_noted_wins_over_its_log(tmp_path):
    (tmp_path / JOBS).mkdir()
    log = tmp_path / JOBS / "7_0_log.out"
    assert explain(tmp_path, "7") is None
    log.write_text("")
    assert explain(tmp_path, "7") == f"it said nothing ({log})"
    write_failure(log, InputError("a.b = 1"))
    assert explain(tmp_path, "7") == f"a.b = 1 ({log})"
    failure_path(log).unlink()
    log.unlink()
    log.mkdir()
    with pytest.raises(InputError, match="cannot be read: not a regular file"):
        explain(tmp_path, "7")
