"""What a user asks of a run that was submitted."""

import os
from dataclasses import replace

import pytest

from launch.cli import main
from launch.submission.record import JOBS, read_record, write_record


def test_logs_of_all_processes_or_of_one(directory, slurm, capsys):
    slurm("7|0|RUNNING|None|0:06|node1|0|\n")
    for task in (0, 1, 10, 2):
        (directory / JOBS / f"7_{task}_0_log.out").write_text(f"first\ntask {task}\n")
    assert main(["logs", str(directory), "--lines", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1::2] == ["task 0", "task 1", "task 2", "task 10"]
    assert lines[0] == f"==> {directory / JOBS / '7_0_0_log.out'} <=="
    assert main(["logs", str(directory), "--rank", "2", "--part", "extract"]) == 0
    assert capsys.readouterr().out == "first\ntask 2\n"
    for arguments, expected in (
        (["--rank", "4"], "--rank 4: extract has logs of 4 processes, 0 to 3"),
        (["--part", "stage1"], "stage1 has written no log"),
        (["--part", "stage3"], "--part stage3: this submission has extract, stage1, stage2, evaluate"),
    ):
        assert main(["logs", str(directory), *arguments]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["directory", "fifo"])
def test_a_log_that_is_not_a_file_is_one_line(odd, directory, slurm, capsys):
    path = directory / JOBS / "7_0_0_log.out"
    path.mkdir() if odd == "directory" else os.mkfifo(path)
    assert main(["logs", str(directory), "--part", "extract"]) == 2
    assert capsys.readouterr().err == f"error: {path} cannot be read: not a regular file\n"


@pytest.mark.parametrize("where", ["/none", "/none\0", "x" * 5000])
def test_a_working_directory_that_is_gone_is_one_line(where, directory, capsys):
    write_record(directory, replace(read_record(directory), working_directory=where))
    assert main(["status", str(directory)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {directory}: its working directory cannot be entered: ") and error.count("\n") == 1


def test_what_has_ended_cannot_be_cancelled(directory, slurm, capsys):
    slurm(sacct="7_[0-2]|CANCELLED by 0|00:00:00|None assigned\n")
    assert main(["cancel", str(directory)]) == 2
    assert capsys.readouterr().err == f"error: {directory}: nothing to cancel: it is cancelled\n"


def test_a_cancelled_array_is_cancelled_however_the_accounting_lists_it(directory, slurm, capsys):
    rest = "".join(f"{job}|CANCELLED by 0|00:00:00|None assigned\n" for job in (8, 9, 10))
    slurm(sacct="7_[0-2]|CANCELLED by 0|00:00:00|None assigned\n" + rest)
    assert main(["status", str(directory)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"cancelled: {directory}\n") and "0/3" in printed.out
    assert printed.err.splitlines()[0] == "error: extract: cancelled"


def test_cancelling_names_what_has_not_ended(directory, slurm, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slurm("8|N/A|RUNNING|None|0:06|node1|0|\n")
    (tmp_path / "bin" / "scancel").write_text("#!/bin/sh\nprintf '' > $(dirname $0)/squeue.txt\n")
    (tmp_path / "bin" / "scancel").chmod(0o755)
    assert main(["cancel", str(directory)]) == 0
    assert capsys.readouterr().out.startswith(f"cancelled: {directory}; ")


def test_resuming_what_has_finished_submits_nothing(directory, slurm, tmp_path, capsys):
    for name in ("extract", "stage1", "stage2", "evaluate"):
        (tmp_path / name).touch()
    lines = [f"7_{task}|COMPLETED|00:00:09|n1\n" for task in range(3)]
    slurm(sacct="".join([*lines, *(f"{job}|COMPLETED|00:00:09|n1\n" for job in (8, 9, 10))]))
    assert main(["resume", str(directory)]) == 0
    assert capsys.readouterr().out.startswith(f"nothing to resume: {directory} has finished; ")
