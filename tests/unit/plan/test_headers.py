"""Reading the sizes of images."""

import os
import signal
import threading
import time
from multiprocessing import active_children

import pytest

from masp.errors import InputError
from masp.plan.headers import read_sizes
from tests.unit.plan.photographs import photographs


def test_processes_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("masp.plan.headers._ALONE", 0)
    root = photographs(tmp_path, [(40 + i, 50) for i in range(9)])
    paths = [*sorted(root.rglob("*.jpg")), root / "none.jpg"]
    alone = read_sizes(paths, 44, num_processes=1)
    assert alone == read_sizes(paths, 44, num_processes=2)
    assert alone[0][0] == (35, 44)
    assert alone[0][-1] is None and alone[1] == [(root / "none.jpg", "file not found")]


def test_a_process_that_is_killed_while_it_starts_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("masp.plan.headers._ALONE", 0)
    earlier = set(active_children())

    def kill() -> None:
        while not (started := set(active_children()) - earlier):
            time.sleep(0.001)
        os.kill(next(iter(started)).pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(InputError) as error:
        read_sizes([tmp_path / "none.jpg"] * 600, None, num_processes=2)
    thread.join()
    assert str(error.value).startswith("--processes 2: a process that reads image headers was killed, most often")
    assert "SIGKILL); give a lower number" in str(error.value)
