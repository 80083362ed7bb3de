"""The lock of a run directory: what its file holds, and what may be wrong with it. Two processes: test_guards.py."""

import json
import os
import socket
import subprocess
import sys

import pytest

from masp.errors import InputError
from masp.runtime.run_lock import FILE, RunInUse, RunLock


def test_the_file_names_the_holder(tmp_path):
    (tmp_path / FILE).write_text("x" * 9000)
    with RunLock(tmp_path):
        assert (tmp_path / FILE).read_text() == json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    assert (tmp_path / FILE).exists()


def test_a_directory_that_does_not_exist_is_not_locked_yet(tmp_path):
    lock = RunLock(tmp_path / "run")
    lock.take()
    (tmp_path / "run").mkdir()
    with lock:
        assert (tmp_path / "run" / FILE).exists()


HOLD = """
import sys
from pathlib import Path
from masp.runtime.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        (None, "another run, process PID on "),
        ("", "another run; wait"),
        ("\xff[", "another run; wait"),
        ("[1]", "another run; wait"),
        ('{"host": 3, "pid": 4}', "another run; wait"),
        ('{"host": "a\\nb", "pid": 4}', "another run, process 4 on a\\nb; wait"),
        (json.dumps({"host": "h" * 3000, "pid": 4}), "process 4 on hhh"),
    ],
)
def test_whatever_the_file_says_the_lock_counts(tmp_path, content, holder):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        if content is not None:
            (tmp_path / FILE).write_text(content, encoding="latin-1")
        with pytest.raises(RunInUse) as error:
            RunLock(tmp_path).take()
        process.communicate("")
    message = str(error.value)
    assert message.startswith(f"output_dir: {tmp_path} is in use by ") and len(message) < 600 and "\n" not in message
    assert holder.replace("PID", str(process.pid)) in message
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_a_lock_file_that_cannot_be_written_is_one_line(tmp_path, make):
    make(tmp_path / FILE)
    with pytest.raises(InputError, match=f"^output_dir: {tmp_path / FILE} cannot be written: "):
        RunLock(tmp_path).take()


def test_a_directory_that_cannot_be_examined_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^output_dir: .* cannot be examined: File name too long$"):
        RunLock(tmp_path / ("n" * 300)).take()
