"""When a job goes back into the queue."""

import pytest

from launch.job.failure import Failure, FailureKind
from launch.job.requeue import requeue_after_loss
from masp.errors import InputError
from tests.unit.launch.job.probe import LOST, SRUN


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
        "PROBE": "raise masp.runtime.run_directory.RunInUse('in use by another run')",
        "SLURM_RESTART_COUNT": count,
    }
    done = probe(**used)
    assert done.returncode == 2 and "error: in use" in done.stderr
    assert done.asked == ("requeue 17\n" if count == "1" else "")


def test_a_node_without_scontrol_says_so(probe, tmp_path):
    (tmp_path / "scontrol").write_bytes(b"\0")  # what cannot be run is skipped in PATH
    done = probe(**SRUN, PROBE="SIGUSR2", PATH=str(tmp_path))
    assert done.returncode == 75, done.stderr
    assert "warning: not queued again: Slurm does not say how it is: scontrol cannot be run: " in done.stderr


@pytest.mark.parametrize("odd", ["directory", "large"])
def test_a_mark_that_cannot_be_read_is_one_line(odd, tmp_path, monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    mark = tmp_path / "17.lost-0"
    if odd == "directory":
        mark.mkdir()
    else:
        mark.write_bytes(bytes(5000))
    with pytest.raises(InputError, match=f"{mark} cannot be read: "):
        requeue_after_loss(tmp_path, "step-00000001", 2)


def test_only_one_survivor_asks(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("launch.job.requeue._WAIT_FOR_END_S", 0)
    monkeypatch.setattr("launch.job.requeue.requeue", lambda *_, **more: asked.append(more))
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        requeue_after_loss(tmp_path, "step-00000001", 2)
    assert asked == [{"rank0_asks": False}]
    assert [path.name for path in tmp_path.iterdir()] == ["17.lost-0"]
    assert (tmp_path / "17.lost-0").read_text() == "step-00000001"
