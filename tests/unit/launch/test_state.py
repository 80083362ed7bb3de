"""What became of a submission, read from what Slurm's commands print and from the run's files. Slurm itself is not
needed: its commands are replaced by ones that print what the real ones printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.job.config import load_cluster
from launch.job.jobs import failure_path, write_failure
from launch.submission import slurm_client
from launch.submission.record import JOBS, Submitted, find_folder, make_folder, new_record, write_record
from launch.submission.state import overview, table
from masp.config import load_config
from masp.errors import DataError, InputError, OtherRankFailed
from masp.files.locks import holding, is_held
from tests.runs import REPOSITORY

SLURM = REPOSITORY / "configs" / "cluster" / "slurm.yaml"
CONFIG = REPOSITORY / "configs" / "demo.yaml"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Sets what squeue and sacct print."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    (commands / "scontrol").write_text("#!/bin/sh\necho 'Slurmctld(primary) at here is UP'\n")
    (commands / "scontrol").chmod(0o755)
    for name in ("sbatch", "srun"):
        (commands / name).symlink_to("/bin/false")

    def says(squeue: str = "", sacct: str = "", code: int = 0) -> None:
        for name, text in (("squeue", squeue), ("sacct", sacct)):
            (commands / f"{name}.txt").write_text(text)
            stream = ">&2" if code else ""
            (commands / name).write_text(f"#!/bin/sh\ncat {commands}/{name}.txt {stream}\nexit {code}\n")
            (commands / name).chmod(0o755)

    says()
    return says


@pytest.fixture
def folder(tmp_path) -> Path:
    """A submission of the whole pipeline: extraction is array 7 of 3 tasks, 8 to 10 are the rest."""
    config = load_config(CONFIG, [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"])
    folder = make_folder("pipeline", config, load_cluster(SLURM))
    names = ("extract", "stage1", "stage2", "evaluate")
    parts = tuple(
        Submitted(name, 3 if name == "extract" else 1, 1, str(tmp_path / name), (str(7 + i),))
        for i, name in enumerate(names)
    )
    write_record(folder, new_record("pipeline", None, "slurm", parts))
    return folder


WAITING = "".join(f"{job}|N/A|PENDING|Dependency|0:00||0|\n" for job in (8, 9, 10))


def test_the_queue_wins_over_the_accounting_which_lags_behind(folder, slurm):
    slurm(
        "7|1|RUNNING|None|0:06|node1|2|\n7|2|PENDING|BeginTime|0:00||0|\n" + WAITING,
        "7_0|COMPLETED|00:00:09|node2\n7_1|REQUEUED|00:00:01|node2\n7_1|PENDING|00:00:00|None assigned\n"
        "7_[2]|PENDING|00:00:00|None assigned\n8|PENDING|00:00:00|None assigned\n",
    )
    found = overview(folder)
    extract, stage1, *_ = found.parts
    assert (extract.state, extract.tasks, extract.num_restarts, extract.nodes) == ("running", "1/3", 2, "node1")
    assert (stage1.state, stage1.message) == ("waiting", "Dependency")
    assert found.is_open and found.state == "running"
    head, first, *_ = table(found.parts)
    assert head.split() == ["part", "state", "jobs", "tasks", "restarts", "time", "nodes"]
    assert first.split() == ["extract", "running", "7", "1/3", "2", "0:06", "node1"]


def test_every_run_of_a_job_counts_as_a_restart(slurm):
    slurm(sacct="4|NODE_FAIL|00:01:00|node2\n4|REQUEUED|00:00:09|node1\n4|COMPLETED|00:00:30|node1\n")
    assert slurm_client.look(["4"])["4"][""] == slurm_client.JobState("COMPLETED", "", "00:00:30", "node1", 2)


def test_a_failure_is_told_with_what_its_processes_noted_or_with_the_words_of_a_log(folder, slurm):
    cancelled = "".join(f"{job}|CANCELLED by 0|00:00:00|None assigned\n" for job in (8, 9, 10))
    slurm(sacct="7_0|COMPLETED|00:00:09|n1\n7_1|FAILED|00:00:03|n1\n7_2|COMPLETED|00:00:09|n1\n" + cancelled)
    logs = [folder / JOBS / f"7_1_{rank}_log.out" for rank in range(4)]
    logs[0].write_text("submitit INFO: Starting\nat work\nsrun: error: task 0 failed\n")
    assert overview(folder).problems == [f"extract: failed: Slurm says FAILED; at work ({logs[0]})"]
    errors = (OtherRankFailed("rank 3 failed"), TypeError("a bug\nin two lines"), InputError("vlm.path: none"))
    said = ("rank 3 failed", "TypeError: a bug", "vlm.path: none")
    for log, error, text in zip(logs[1:], errors, said, strict=True):  # each says more than those before it
        log.write_text("what people read\n")
        write_failure(log, error)
        found = overview(folder)
        assert found.problems == [f"extract: failed: Slurm says FAILED; {text} ({log})"]
    failure_path(logs[3]).write_text('{"kind": "cau')
    with pytest.raises(DataError, match="7_1_3_failure.json is damaged"):
        overview(folder)
    failure_path(logs[3]).unlink()
    assert [part.state for part in found.parts] == ["failed", "cancelled", "cancelled", "cancelled"]
    assert not found.is_open


def test_a_part_cancelled_while_it_ran_is_told_and_those_behind_it_are_not(folder, slurm):
    lines = [f"7_{i}|COMPLETED|00:00:09|n1\n" for i in range(3)] + ["8|CANCELLED by 1000|00:00:12|n1\n"]
    lines += [f"{job}|CANCELLED|00:00:00|None assigned\n" for job in (9, 10)]
    slurm(sacct="".join(lines))
    assert overview(folder).problems == ["stage1: cancelled"]


def test_jobs_that_slurm_has_forgotten_are_not_taken_for_finished(folder, slurm):
    found = overview(folder)
    assert {part.state for part in found.parts} == {"unknown"}
    assert "Slurm does not know its job" in found.problems[0]


def test_a_slurm_that_fails_is_told_in_its_own_words(folder, slurm, capsys):
    slurm("squeue: error: Unable to contact slurm controller (connect failure)\n", code=1)
    assert main(["status", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error == "error: cluster: squeue: Unable to contact slurm controller (connect failure)\n"
    with pytest.raises(slurm_client.SlurmError) as caught:
        slurm_client.look(["4"])
    assert not isinstance(caught.value, slurm_client.UnknownJob)
    assert caught.value.words == "Unable to contact slurm controller (connect failure)"


def test_job_ids_that_slurm_has_forgotten_are_no_error(slurm, tmp_path):
    slurm("slurm_load_jobs error: Invalid job id specified\n", code=1)
    (tmp_path / "bin" / "sacct").write_text("#!/bin/sh\n")
    assert slurm_client.look(["4"]) == {"4": {}}


# As `scontrol ping` of slurm-wlm 22.05.8 printed it; the last with an exit code of 1.
UP = "Slurmctld(primary) at vm is UP\n"
DOWN = "Slurmctld(primary) at vm is DOWN\n"
STARS = "*****************************************\n"


@pytest.mark.parametrize(
    ("said", "code", "answers"),
    [
        (UP, 0, True),
        (DOWN + "Slurmctld(backup) at other is UP\n", 1, True),
        (DOWN, 0, False),
        (f"{DOWN}{STARS}** RESTORE SLURMCTLD DAEMON TO SERVICE **\n{STARS}", 1, False),
    ],
)
def test_whether_a_controller_answers(said, code, answers, slurm, tmp_path):
    (tmp_path / "said").write_text(said)
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\ncat {tmp_path}/said\nexit {code}\n")
    if answers:
        slurm_client.check_answers()
    else:
        with pytest.raises(InputError, match=r"does not answer: Slurmctld\(primary\) at vm is DOWN; nothing was"):
            slurm_client.check_answers()


def test_submitting_a_part_that_runs_already_is_refused(folder, slurm, tmp_path, capsys):
    slurm("8|N/A|RUNNING|None|0:06|node1|0|\n")
    given = ["--cluster", str(SLURM), "--config", str(CONFIG), f"output_dir={tmp_path / 'run'}"]
    given.append(f"cache.dir={tmp_path / 'cache'}")
    assert main(["train", "--stage", "stage1", *given]) == 2
    error = capsys.readouterr().err
    assert "stage1 is queued or running already" in error and str(folder) in error and error.count("\n") == 1
    assert list((tmp_path / "run" / "launch").glob("*/")) == [folder]
    assert find_folder(str(tmp_path / "run")) == folder
    assert main(["resume", str(folder)]) == 2
    assert "nothing to resume: it is running" in capsys.readouterr().err


def test_a_run_is_its_newest_submission(folder, tmp_path):
    again = folder.with_name("19990101-000000-extract")  # older by name, newer by its record
    again.mkdir()
    write_record(again, new_record("extract", None, "slurm", ()))
    assert find_folder(str(tmp_path / "run")) == again
    assert find_folder(str(folder)) == folder
    with pytest.raises(InputError, match="neither a run's output_dir"):
        find_folder(str(tmp_path))
    (again / "submission.json").write_text('{"command": "ext')
    with pytest.raises(DataError, match="submission.json is damaged"):
        find_folder(str(tmp_path / "run"))


def test_logs_of_all_processes_or_of_one(folder, slurm, capsys):
    slurm("7|0|RUNNING|None|0:06|node1|0|\n")
    for task in (0, 1, 10, 2):
        (folder / JOBS / f"7_{task}_0_log.out").write_text(f"first\ntask {task}\n")
    assert main(["logs", str(folder), "--lines", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1::2] == ["task 0", "task 1", "task 2", "task 10"]
    assert lines[0] == f"==> {folder / JOBS / '7_0_0_log.out'} <=="
    assert main(["logs", str(folder), "--rank", "2", "--part", "extract"]) == 0
    assert capsys.readouterr().out == "first\ntask 2\n"
    for arguments, expected in (
        (["--rank", "4"], "--rank 4: extract has logs of 4 processes, 0 to 3"),
        (["--part", "stage1"], "stage1 has written no log"),
        (["--part", "stage3"], "--part stage3: this submission has extract, stage1, stage2, evaluate"),
    ):
        assert main(["logs", str(folder), *arguments]) == 2
        assert expected in capsys.readouterr().err


def test_a_lock_goes_with_its_process(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    code = "from masp.files.locks import *; import pathlib, time\n"
    code += f"with holding(pathlib.Path({str(path)!r}), '', key='output_dir'):\n"
    code += " print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert is_held(path)
        with pytest.raises(InputError, match="wait for it"):
            with holding(path, "wait for it", key="output_dir"):
                pass
        other.kill()
    assert not is_held(path)
    with holding(path, "", key="output_dir"):
        pass
