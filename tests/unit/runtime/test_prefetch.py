"""Reading ahead: order, errors as they are, and an end that never hangs."""

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import Dataset

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
            InputError, match="^evaluate.num_workers = 1: a worker was killed, most often because memory"
        ):
            next(reader)


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
