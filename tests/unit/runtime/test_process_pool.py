"""Worker processes."""

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children

import pytest

from masp.errors import InputError, StoppedEarly
from masp.runtime.process_pool import map_ahead, process_pool
from masp.runtime.stop import STOP_SIGNALS, StopFlag


def test_results_come_in_order():
    with process_pool(2, "--processes", "counts") as pool:
        assert list(pool.map(abs, range(-3, 3))) == [3, 2, 1, 0, 1, 2]


def test_work_is_not_prepared_far_ahead_of_what_has_been_taken():
    prepared = []
    with process_pool(2, "--processes", "counts") as pool:
        found = map_ahead(pool, 2, abs, (prepared.append(n) or -n for n in range(100)), chunk=3)
        for taken, number in enumerate(found):
            assert number == taken and len(prepared) <= taken + 3 * (2 * 3 + 1)
    assert len(prepared) == 100


def refused() -> str:
    with pytest.raises(InputError) as error, process_pool(2, "--processes", "counts") as pool:
        list(pool.map(abs, range(600)))
    return str(error.value)


MESSAGE = "--processes 2: a process that counts was killed, most often because memory ran out (process "


def test_a_process_that_is_killed_while_it_starts_is_one_line():
    earlier = set(active_children())

    def kill() -> None:
        while not (started := set(active_children()) - earlier):
            time.sleep(0.001)
        os.kill(next(iter(started)).pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    message = refused()
    thread.join()
    assert message.startswith(MESSAGE) and message.endswith("SIGKILL); give a lower number")


def test_a_process_that_starts_while_another_dies_is_not_waited_for(monkeypatch):
    start = ProcessPoolExecutor._spawn_process

    def start_and_kill_the_first(pool):
        if pool._processes:
            os.kill(next(iter(pool._processes)), signal.SIGKILL)
            time.sleep(0.3)  # by when the pool has noticed
        start(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", start_and_kill_the_first)
    message = refused()
    assert message.startswith(MESSAGE) and message.endswith("SIGKILL); give a lower number")
    assert not active_children()


def test_a_process_that_cannot_be_started_is_one_line(monkeypatch):
    def start(pool):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", start)
    with pytest.raises(InputError, match="^--processes 2: a process cannot be started: Resource temporarily unavail"):
        with process_pool(2, "--processes", "counts") as pool:
            pool.submit(abs, 1)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_all_processes_stops_and_is_not_a_process_that_was_killed(number):
    """As Ctrl-C sends it, or Slurm, to everything that a job has started."""
    with pytest.raises(StoppedEarly, match="^stopped on request; "), StopFlag() as stop:
        with process_pool(2, "--processes", "counts") as pool:
            assert list(pool.map(abs, range(4))) == [0, 1, 2, 3]  # they have started
            for pid in [os.getpid(), *pool._processes]:
                os.kill(pid, number)
            assert list(pool.map(abs, range(600))) == list(range(600))
            if number != signal.SIGTERM:  # by which the pool itself ends them
                assert stop
                raise StoppedEarly("stopped on request; the work goes on until its end")
