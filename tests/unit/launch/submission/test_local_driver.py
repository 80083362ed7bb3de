"""The driver of a local submission, without its jobs; tests/pipeline/test_launch_local.py runs them."""

import os
import subprocess
import sys
import time

import pytest

from launch.job.parts import PartName, State
from launch.submission import local_driver
from launch.submission.record import FILE
from launch.submission.state import DRIVER_LOCK, DriverStatus, PartStatus, read_driver_status
from masp.errors import InputError
from masp.runtime.run_directory import RunState, write_status
from tests.runs import REPOSITORY


def test_the_board_says_how_far_each_part_is(tmp_path):
    board = local_driver._Board(tmp_path, [PartName.EXTRACT, PartName.STAGE1])
    board.begin(PartName.EXTRACT)
    board.note(PartName.EXTRACT, job_ids=("11", "12"), num_done=1)
    found = read_driver_status(tmp_path)
    assert (found.state, found.part, found.pid) == (RunState.RUNNING, PartName.EXTRACT, os.getpid())
    assert found.parts == {
        PartName.EXTRACT: PartStatus(State.RUNNING, ("11", "12"), 1),
        PartName.STAGE1: PartStatus(),
    }
    board.end(PartName.EXTRACT, State.FAILED, "vlm.path: none")
    assert read_driver_status(tmp_path).parts[PartName.EXTRACT] == PartStatus(
        State.FAILED, ("11", "12"), 1, "vlm.path: none", "0:00:00"
    )


def test_a_driver_that_ends_at_once_is_named(tmp_path):
    (tmp_path / DRIVER_LOCK).mkdir()
    with pytest.raises(InputError, match=f"the driver did not start: see {tmp_path / 'driver.log'}"):
        local_driver.start(tmp_path)
    log = (tmp_path / "driver.log").read_text()
    assert log == f"error: output_dir: {tmp_path} cannot be written: Is a directory\n"


def test_a_driver_ends_with_the_code_of_its_error(tmp_path):
    (tmp_path / FILE).write_text("[]")
    command = [sys.executable, "-m", "launch.submission.local_driver", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / FILE}: ") and done.stderr.count("\n") == 1


def test_a_driver_imports_nothing_heavy():
    """It waits for others for hours."""
    code = (
        "import sys, launch.submission.local_driver; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_driver_of_another_machine_is_not_signaled(tmp_path):
    with pytest.raises(InputError, match="is run by a process on another machine: cancel it there"):
        local_driver.cancel(tmp_path)
    write_status(tmp_path, RunState.RUNNING, kind=DriverStatus)
    path = tmp_path / "status.json"
    path.write_text(path.read_text().replace(os.uname().nodename, "elsewhere"))
    with pytest.raises(InputError, match="is run by a process on elsewhere: cancel it there"):
        local_driver.cancel(tmp_path)


def test_cancelling_waits_for_the_driver_to_end(tmp_path):
    code = f"""
import pathlib, signal, time
from masp.files.locks import holding
from masp.runtime.run_directory import RunState, write_status
from masp.runtime.stop import StopFlag
directory = pathlib.Path({str(tmp_path)!r})
with StopFlag() as stop, holding(directory / "driver.lock", "", key="output_dir"):
    write_status(directory, RunState.RUNNING)
    while not stop:
        time.sleep(0.05)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 60
        while read_driver_status(tmp_path) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert local_driver.cancel(tmp_path)
    assert driver.returncode == 0
