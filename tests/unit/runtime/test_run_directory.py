"""The status of a run directory and its lock: their exact text, and that nothing wrong with either hides anything.

Two processes that want one directory: pipeline/test_guards.py.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest

from masp.errors import DataError, InputError
from masp.runtime.log import setup
from masp.runtime.run_directory import (
    LOCK_FILE,
    STATUS_FILE,
    RunInUse,
    RunLock,
    RunState,
    Status,
    noting_failure,
    read_status,
    write_status,
)


def test_the_file_has_the_given_fields_only_and_null_for_no_exit_code(tmp_path):
    write_status(tmp_path, RunState.RUNNING, step=3, num_steps=9)
    found = json.loads((tmp_path / STATUS_FILE).read_text())
    assert list(found) == ["state", "exit_code", "message", "time", "host", "pid", "step", "num_steps"]
    assert found["exit_code"] is None and found["state"] == "running" and found["pid"] == os.getpid()
    write_status(tmp_path, RunState.FAILED, 3, "a file called \udcff")
    text = (tmp_path / STATUS_FILE).read_text()
    assert text.startswith('{\n "state": "failed",\n "exit_code": 3,\n "message": "a file called \\udcff",\n "time": ')
    assert list(json.loads(text)) == ["state", "exit_code", "message", "time", "host", "pid"]
    status = read_status(tmp_path)
    assert status == Status(RunState.FAILED, 3, "a file called \udcff", status.time, status.host, os.getpid())


def test_a_subclass_adds_fields(tmp_path):
    @dataclass(frozen=True)
    class Longer(Status):
        part: str | None = None

    write_status(tmp_path, RunState.RUNNING, kind=Longer, part="extract")
    assert read_status(tmp_path, Longer).part == "extract"


WRITE = """
import sys
from pathlib import Path
from masp.runtime.run_directory import RunState, write_status
write_status(Path(sys.argv[1]), RunState.RUNNING, step=3, num_steps=9)
print("written", flush=True)
sys.stdin.read()
"""


def test_a_process_that_has_died_is_not_running(tmp_path):
    """Neither while its parent has not asked for its exit code, nor afterwards; what is in the file stays."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        before = (tmp_path / STATUS_FILE).read_text()
        assert read_status(tmp_path).state == RunState.RUNNING
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = read_status(tmp_path)
    assert zombie == read_status(tmp_path)
    assert (zombie.state, zombie.exit_code, zombie.step, zombie.num_steps) == (RunState.FAILED, 1, 3, 9)
    assert zombie.message == f"process {process.pid} ended without a word: it was killed, or could not write its status"
    assert (tmp_path / STATUS_FILE).read_text() == before

    host = json.loads(before)["host"]  # nobody here can tell what runs on another machine, or of what has ended
    for changed in (before.replace(f'"{host}"', '"elsewhere"'), before.replace('"running"', '"stopped"')):
        (tmp_path / STATUS_FILE).write_text(changed)
        assert read_status(tmp_path).state == json.loads(changed)["state"]


def test_the_first_process_is_running(tmp_path):
    write_status(tmp_path, RunState.RUNNING)
    text = (tmp_path / STATUS_FILE).read_text()
    (tmp_path / STATUS_FILE).write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 1'))
    assert read_status(tmp_path).state == RunState.RUNNING


DAMAGED = [
    b"",
    b"\xff{",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"state": "failed"}',
    b'{"state": "odd", "exit_code": 1, "message": "", "time": 1.0, "host": "h", "pid": 1}',
    b'{"state": "failed", "exit_code": "1", "message": "", "time": 1.0, "host": "h", "pid": 1}',
    b'{"state": "failed", "exit_code": 1, "message": "", "time": NaN, "host": "h", "pid": 1}',
    b'{"state": "failed", "exit_code": 1, "message": "", "time": 1e999, "host": "h", "pid": 1}',
    b'{"state": "running", "exit_code": null, "message": "", "time": 1.0, "host": "h", "pid": 0}',
    b'{"state": "running", "exit_code": null, "message": "", "time": 1.0, "host": "h", "pid": -1}',
    b'{"state": "running", "exit_code": null, "message": "", "time": 1.0, "host": "h", "pid": 4294967296}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_status_is_like_none_and_is_replaced(tmp_path, content):
    (tmp_path / STATUS_FILE).write_bytes(content)
    assert read_status(tmp_path) is None
    with pytest.raises(DataError), noting_failure(tmp_path):
        raise DataError("shard 3 is damaged")
    assert read_status(tmp_path).message == "shard 3 is damaged"


def test_what_is_in_the_way_of_the_status_does_not_hide_the_error(tmp_path, capsys):
    setup(0)
    (tmp_path / STATUS_FILE).mkdir()
    with pytest.raises(InputError, match="status.json cannot be read: not a regular file"):
        read_status(tmp_path)
    with pytest.raises(DataError, match="^shard 3 is damaged$"), noting_failure(tmp_path):
        raise DataError("shard 3 is damaged")
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1 and str(tmp_path / STATUS_FILE) in err


def test_the_file_names_the_holder(tmp_path):
    (tmp_path / LOCK_FILE).write_text("x" * 9000)
    with RunLock(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    assert (tmp_path / LOCK_FILE).exists()


def test_a_directory_that_does_not_exist_is_not_locked_yet(tmp_path):
    lock = RunLock(tmp_path / "run")
    lock.take()
    (tmp_path / "run").mkdir()
    with lock:
        assert (tmp_path / "run" / LOCK_FILE).exists()


HOLD = """
import sys
from pathlib import Path
from masp.runtime.run_directory import RunLock
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
            (tmp_path / LOCK_FILE).write_text(content, encoding="latin-1")
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
    make(tmp_path / LOCK_FILE)
    with pytest.raises(InputError, match=f"^output_dir: {tmp_path / LOCK_FILE} cannot be written: "):
        RunLock(tmp_path).take()


def test_a_directory_that_cannot_be_examined_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^output_dir: .* cannot be examined: File name too long$"):
        RunLock(tmp_path / ("n" * 300)).take()
