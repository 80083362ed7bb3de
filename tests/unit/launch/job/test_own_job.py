"""Which job this process belongs to, by the name that means this job alone."""

from pathlib import Path

import pytest

from launch.job.own_job import NotShown, OwnJob, own_name, show_own_job

# as scontrol of slurm-wlm 22.05.8 prints an array: the last task, which has the array's own id, comes first
ARRAY = """\
JobId=7 ArrayJobId=7 ArrayTaskId=2 ArrayTaskThrottle=3 JobName=masp UserId=me(1) JobState=RUNNING Requeue=1 Restarts=0
JobId=9 ArrayJobId=7 ArrayTaskId=1 ArrayTaskThrottle=3 JobName=masp UserId=me(1) JobState=RUNNING Requeue=1 Restarts=1
JobId=8 ArrayJobId=7 ArrayTaskId=0 ArrayTaskThrottle=3 JobName=masp UserId=me(1) JobState=CANCELLED Requeue=1 Restarts=4
"""
HETEROGENEOUS = """\
JobId=36 HetJobId=36 HetJobOffset=0 JobName=het HetJobIdSet=36-37 JobState=RUNNING Requeue=1 Restarts=2
JobId=37 HetJobId=36 HetJobOffset=1 JobName=het HetJobIdSet=36-37 JobState=PENDING Requeue=1 Restarts=3
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Sets what scontrol shows of each name, and the variables of this process."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def says(shown: dict[str, str], **variables: str) -> Path:
        for name, text in shown.items():
            (tmp_path / f"of-{name}").write_text(text)
        script = f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/of-$4 2>/dev/null ||'
        (tmp_path / "scontrol").write_text(
            f"{script} {{ echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }}\n"
        )
        (tmp_path / "scontrol").chmod(0o755)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return tmp_path / "asked"

    return says


@pytest.mark.parametrize(
    ("job_id", "task", "expected"),
    [
        ("7", "2", OwnJob("7_2", "RUNNING", 0)),
        ("9", "1", OwnJob("7_1", "RUNNING", 1)),
        ("8", "0", OwnJob("7_0", "CANCELLED", 4)),
    ],
)
def test_a_task_is_found_among_those_of_its_array(job_id, task, expected, slurm):
    # whether Slurm shows the task alone, or all of them
    lines = {f"7_{number}": line for number, line in zip((2, 1, 0), ARRAY.splitlines(True), strict=True)}
    for shown in (lines, dict.fromkeys(lines, ARRAY)):
        slurm(shown, SLURM_JOB_ID=job_id, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=task)
        assert own_name() == f"7_{task}"
        assert show_own_job() == expected


def test_multi_digit_numbers_are_not_mixed_up(slurm):
    text = ARRAY.replace("=9 ", "=17 ").replace("TaskId=2", "TaskId=12")
    slurm({"7_12": text}, SLURM_JOB_ID="7", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="12")
    assert show_own_job() == OwnJob("7_12", "RUNNING", 0)
    slurm({"7_1": text}, SLURM_JOB_ID="17", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    assert show_own_job() == OwnJob("7_1", "RUNNING", 1)


def test_variables_of_another_array_are_not_believed(slurm):
    """A job that was submitted from inside a task of an array has that task's variables."""
    own = "JobId=35 JobName=masp JobState=RUNNING Requeue=1 Restarts=0\n"
    asked = slurm({"7_2": ARRAY, "35": own}, SLURM_JOB_ID="35", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert show_own_job() == OwnJob("35", "RUNNING", 0)
    assert asked.read_text().split("\n")[:2] == ["--oneliner show job 7_2", "--oneliner show job 35"]
    slurm({}, SLURM_ARRAY_JOB_ID="5")  # nor of one that Slurm has forgotten
    assert show_own_job().name == "35"


@pytest.mark.parametrize(("job_id", "expected"), [("36", 2), ("37", 3)])
def test_a_heterogeneous_job_is_named_after_its_leader(job_id, expected, slurm):
    slurm({"36": HETEROGENEOUS, "37": HETEROGENEOUS}, SLURM_JOB_ID=job_id)
    assert (show_own_job().name, show_own_job().num_restarts) == ("36", expected)


def test_what_a_user_named_is_not_taken_for_slurms_word(slurm):
    line = "JobId=35 JobName=masp JobState=RUNNING Requeue=1 Restarts=0 WorkDir=/a JobState=CANCELLED Restarts=9 b\n"
    slurm({"35": line}, SLURM_JOB_ID="35")
    assert show_own_job() == OwnJob("35", "RUNNING", 0)


def test_a_job_that_slurm_does_not_show(slurm):
    slurm({}, SLURM_JOB_ID="35")
    with pytest.raises(NotShown, match="Invalid job id specified"):
        show_own_job()
    slurm({"35": ARRAY})
    with pytest.raises(NotShown, match="scontrol shows no job 35"):
        show_own_job()
