"""`status.json`: its exact text, and that neither a damaged one nor one in the way hides anything."""

import json
import os
from dataclasses import dataclass

import pytest

from masp.errors import DataError, InputError
from masp.runtime.log import setup
from masp.runtime.status import FILE, RunState, Status, noting_failure, read_status, write_status


def test_the_file_has_the_given_fields_only_and_null_for_no_exit_code(tmp_path):
    write_status(tmp_path, RunState.RUNNING, step=3, num_steps=9)
    found = json.loads((tmp_path / FILE).read_text())
    assert list(found) == ["state", "exit_code", "message", "time", "host", "pid", "step", "num_steps"]
    assert found["exit_code"] is None and found["state"] == "running" and found["pid"] == os.getpid()
    write_status(tmp_path, RunState.FAILED, 3, "a file called \udcff")
    text = (tmp_path / FILE).read_text()
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
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_status_is_like_none_and_is_replaced(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read_status(tmp_path) is None
    with pytest.raises(DataError), noting_failure(tmp_path):
        raise DataError("shard 3 is damaged")
    assert read_status(tmp_path).message == "shard 3 is damaged"


def test_what_is_in_the_way_of_the_status_does_not_hide_the_error(tmp_path, capsys):
    setup(0)
    (tmp_path / FILE).mkdir()
    with pytest.raises(InputError, match="status.json cannot be read: not a regular file"):
        read_status(tmp_path)
    with pytest.raises(DataError, match="^shard 3 is damaged$"), noting_failure(tmp_path):
        raise DataError("shard 3 is damaged")
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1 and str(tmp_path / FILE) in err
