"""What Slurm says about jobs, read from what its commands print."""

import pytest

from launch.submission import slurm_client
from launch.submission.slurm_client import JobState
from masp.errors import InputError


def test_every_run_of_a_job_counts_as_a_restart(slurm):
    slurm(sacct="4|NODE_FAIL|00:01:00|node2\n4|REQUEUED|00:00:09|node1\n4|COMPLETED|00:00:30|node1\n")
    assert slurm_client.look(["4"])["4"][""] == slurm_client.JobState("COMPLETED", "", "00:00:30", "node1", 2)


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


def test_tasks_that_were_cancelled_before_they_started_share_a_line_of_the_accounting(slurm):
    # as sacct of slurm-wlm 22.05.8 prints a waiting array that is cancelled
    slurm(sacct="1_0|CANCELLED by 0|00:00:05|node1\n1_[1-2,4-8:2%4]|CANCELLED by 0|00:00:00|None assigned\n")
    never = JobState("CANCELLED", "", "00:00:00")
    found = slurm_client.look(["1"])["1"]
    assert found == {"0": JobState("CANCELLED", "", "00:00:05", "node1")} | dict.fromkeys("12468", never)
    assert {state.state for state in found.values()} == {"cancelled"}


def test_of_tasks_that_wait_the_queue_has_a_line_each(slurm):
    slurm("1|1|PENDING|Resources|0:00||0|\n", "1_[0-1]|PENDING|00:00:00|None assigned\n")
    assert list(slurm_client.look(["1"])["1"]) == ["1"]


def test_a_list_of_tasks_is_never_cut_short(slurm, tmp_path):
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sacct").write_text('#!/bin/sh\necho "1_$SLURM_BITSTR_LEN|COMPLETED|1|n"\n')
    assert list(slurm_client.look(["1"])["1"]) == ["0"]


@pytest.mark.parametrize(
    ("squeue", "sacct"),
    [
        ("7|1|RUNNING\n", ""),
        ("7|1|RUNNING|None|0:06|node1|many|\n", ""),
        ("\udcff\n", ""),
        ("", "7|COMPLETED\n"),
        ("", "7_[1,...]|CANCELLED by 0|0|n\n"),
        ("", "7_[0-99999999]|CANCELLED by 0|0|n\n"),
        ("", "7_[0-9:0]|CANCELLED by 0|0|n\n"),
        ("", "7_[|CANCELLED by 0|0|n\n"),
    ],
)
def test_a_line_that_is_not_understood_is_named(squeue, sacct, slurm, tmp_path):
    slurm(sacct=sacct)
    (tmp_path / "bin" / "squeue.txt").write_bytes(squeue.encode(errors="surrogateescape"))
    with pytest.raises(slurm_client.SlurmError, match="printed a line that is not understood: '") as error:
        slurm_client.look(["7"])
    assert "\n" not in str(error.value)


def test_a_command_that_cannot_be_run_is_named(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin" / "squeue").write_bytes(b"\0")
    with pytest.raises(slurm_client.SlurmError, match="cluster: squeue cannot be run: Exec format error"):
        slurm_client.look(["7"])
