"""Threads that move files: one failure ends all of them, a request to stop too, and what failed is not counted."""

import threading
import time

import pytest

from masp.cache.remote import transfers as module
from masp.cache.remote.place import Unreachable
from masp.cache.remote.transfers import Transfers, patiently, size_text
from masp.errors import DataError, StoppedEarly
from masp.runtime.stop import StopFlag


def test_every_item_is_done_once():
    with Transfers("check", 0, 3, StopFlag()) as transfers:
        found = dict(transfers.each(lambda n: n * n, range(50)))
    assert found == {n: n * n for n in range(50)}


def test_nothing_is_begun_after_a_failure():
    begun = []

    def work(n):
        begun.append(n)
        raise DataError(f"file {n}")

    with Transfers("check", 0, 1, StopFlag()) as transfers, pytest.raises(DataError, match="file 0"):
        list(transfers.each(work, range(9)))
    time.sleep(0.05)
    assert begun == [0]


def test_what_runs_beside_a_failure_ends_at_its_next_step():
    ended, running = threading.Event(), threading.Event()

    def work(n):
        if n:
            running.wait(10)
            raise DataError("broken")
        with transfers.counting() as advance:
            try:
                while True:
                    advance(1)
                    running.set()
            except StoppedEarly:
                ended.set()
                raise

    with Transfers("check", 0, 2, StopFlag()) as transfers, pytest.raises(DataError, match="broken"):
        list(transfers.each(work, range(2)))
    assert ended.wait(10)


def test_a_request_to_stop_ends_what_is_inside_a_library(monkeypatch):
    monkeypatch.setattr(module, "_END_WITHIN_S", 0.1)
    stop, running, release = StopFlag(), threading.Event(), threading.Event()

    def work(_):
        running.set()
        stop.set()
        release.wait(30)

    start = time.monotonic()
    with Transfers("check", 0, 1, stop) as transfers, pytest.raises(StoppedEarly, match="the same command goes on"):
        list(transfers.each(work, range(3)))
    assert running.is_set() and time.monotonic() - start < 10
    release.set()


def test_bytes_of_a_failed_attempt_are_taken_back():
    with Transfers("check", 100, 1, StopFlag()) as transfers:
        with pytest.raises(Unreachable), transfers.counting() as advance:
            advance(60)
            assert transfers._bar.n == 60
            raise Unreachable("gone")
        assert transfers._bar.n == 0
        with transfers.counting() as advance:
            advance(60)
        assert transfers._bar.n == 60


def test_what_may_pass_is_tried_three_times(monkeypatch, caplog):
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    tries = []

    def attempt():
        tries.append(1)
        if len(tries) < 3:
            raise Unreachable("come back later")
        return "done"

    assert patiently(attempt) == "done" and waited == [1.0, 5.0]

    def refused():
        tries.append(1)
        raise DataError("no")

    tries.clear()
    with pytest.raises(DataError):
        patiently(refused)
    assert len(tries) == 1


def test_sizes_for_people():
    assert [size_text(n) for n in (12, 30_720, 7_200_000, 3 * 10**11)] == ["12.0B", "30.7kB", "7.20MB", "300GB"]
