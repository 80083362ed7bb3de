"""Reading ahead: order, errors as they are, and an end that never hangs."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import Dataset
from torch.utils.data._utils.signal_handling import _error_if_any_worker_fails

from masp.errors import DataError, InputError
from masp.runtime.prefetch import ReadAhead


class Numbers(Dataset):
    def __getitem__(self, index: int):
        if index == 7:
            raise DataError("shard 7 is damaged")
        if index == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 9:
            raise ZeroDivisionError("a bug")
        if index == 10:
            raise RuntimeError("a bug")
        return [index, f"text {index}"]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_items_come_in_the_order_asked_for(num_workers):
    order = [3, 1, 2, 0, 5, 4]
    with ReadAhead(Numbers(), order, num_workers, "engine.num_workers") as reader:
        assert [item[0] for item in reader] == order
    assert list(reader) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_ours_arrives_as_it_is(num_workers):
    with ReadAhead(Numbers(), [1, 7, 2], num_workers, "engine.num_workers") as reader:
        assert next(reader)[0] == 1
        with pytest.raises(DataError) as error:
            next(reader)
    assert str(error.value) == "shard 7 is damaged"


@pytest.mark.parametrize(("index", "kind"), [(9, ZeroDivisionError), (10, RuntimeError)])
def test_a_bug_keeps_its_kind_and_its_traceback(index, kind):
    with (
        ReadAhead(Numbers(), [index], 1, "engine.num_workers") as reader,
        pytest.raises(kind, match="Traceback"),
    ):
        next(reader)


def test_a_killed_worker_is_one_line_with_the_setting_to_lower():
    with ReadAhead(Numbers(), [8], 1, "evaluate.num_workers") as reader:
        with pytest.raises(
            InputError,
            match="^evaluate.num_workers = 1: a worker was killed, most often because memory ran out"
            r" \(worker 0, process \d+, SIGKILL\); .* lower evaluate.num_workers and",
        ):
            next(reader)


class Slow(Dataset):
    def __getitem__(self, index: int):
        time.sleep(0.02)
        return index


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGBUS, "because shared memory (/dev/shm) ran out (worker 1,"),
        (signal.SIGSEGV, "from outside or by a crash (worker 1,"),
        (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3})"),
    ],
)
def test_the_signal_says_why(number, expected):
    with ReadAhead(Slow(), range(1000), 2, "engine.num_workers") as reader:
        next(reader)
        os.kill(reader._items._workers[1].pid, number)
        with pytest.raises(InputError) as error:
            list(reader)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_worker_that_is_killed_while_nobody_reads_disturbs_nothing_else():
    """torch would raise a RuntimeError right there, whatever is going on."""
    with ReadAhead(Slow(), range(1000), 2, "engine.num_workers") as reader:
        next(reader)
        worker = reader._items._workers[0]
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:  # where a handler of SIGCHLD would run
            pass
        with pytest.raises(InputError, match="worker 0"):
            next(reader)


@pytest.fixture(params=["its own", "torch's"])
def handler(request):
    """What handles SIGCHLD: torch's stays behind where something else uses a DataLoader with workers."""
    before = signal.getsignal(signal.SIGCHLD)
    if request.param == "torch's":

        def raises(number, frame):
            _error_if_any_worker_fails()

        signal.signal(signal.SIGCHLD, raises)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_half_an_item_is_not_waited_for(handler, wait):
    """The worker dies while it writes an item larger than a pipe, and the other one holds the pipe open."""
    with ReadAhead(Large(), [0, 1], 2, "engine.num_workers") as reader:
        while True:  # until the pipe is full
            if reader._items._worker_result_queue._reader.poll(10):
                break
        time.sleep(0.3)
        os.kill(reader._items._workers[0].pid, signal.SIGKILL)
        with pytest.raises(InputError, match="worker 0"):
            next(reader)
        os.kill(reader._items._workers[1].pid, signal.SIGKILL)  # closing would wait for it
        time.sleep(wait)  # it is known to be dead, or dies while the reader is closed


class Large(Dataset):
    def __getitem__(self, index: int):
        if index:
            time.sleep(60)
        return bytes(10_000_000)


def test_workers_that_cannot_be_started_are_one_line(monkeypatch):
    def fork():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(InputError, match="^x = 2: a worker cannot be started: Cannot allocate memory; lower it"):
        ReadAhead(Slow(), [1], 2, "x")


BUG = """
from tests.unit.runtime.test_prefetch import Numbers
from masp.runtime.prefetch import ReadAhead
with ReadAhead(Numbers(), [1] * 1000, 2, "x") as reader:
    next(reader)
    raise RuntimeError("a bug in the loop")
"""


def test_a_process_that_ends_by_an_exception_does_not_wait_for_its_workers():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "a bug in the loop" in done.stderr
    assert time.monotonic() - started < 60
