"""Waiting for a run to end."""

import time
from types import SimpleNamespace

import pytest

from launch import watch
from launch.submission.slurm_client import SlurmError
from masp.errors import InputError
from masp.files.atomic import write_bytes

ENDED = "".join(f"{job}|N/A|COMPLETED|None|0:09|node1|0|\n" for job in (8, 9, 10))
WAITING = ENDED.replace("COMPLETED", "PENDING")


def extraction(word: str, restarts: int = 0) -> str:
    return "".join(f"7|{task}|{word}|None|0:06|node1|{restarts}|\n" for task in range(3))


def test_a_line_per_change_of_state(directory, slurm, tmp_path, capsys, monkeypatch):
    """What changes while it waits is what the queue prints then."""
    said = [extraction("RUNNING") + WAITING, extraction("RUNNING", 2) + WAITING, extraction("COMPLETED") + ENDED]
    slurm(said[0])

    def next_answer(_: float) -> None:
        said.pop(0)
        write_bytes(tmp_path / "bin" / "squeue.txt", said[0].encode())

    monkeypatch.setattr("launch.watch.time", SimpleNamespace(sleep=next_answer, monotonic=time.monotonic))
    assert watch.watch(directory).state == "finished"
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("extract")] == [
        "extract: running",
        "extract: running, started again 2 times",
        "extract: finished",
    ]
    assert [line for line in lines if line.startswith("stage1")] == ["stage1: waiting", "stage1: finished"]


def test_a_controller_that_is_restarted_is_waited_for_but_not_for_ever(directory, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    asked = []

    def silent(_) -> None:
        asked.append(1)
        raise SlurmError("cluster: squeue: timed out")

    monkeypatch.setattr("launch.watch.overview", silent)
    later = SimpleNamespace(sleep=lambda _: None, monotonic=lambda: float(next(clock)))
    monkeypatch.setattr("launch.watch.time", later)
    with pytest.raises(InputError, match="squeue: timed out, for ten minutes now; what was submitted goes on"):
        watch.watch(directory)
    assert len(asked) > 3
