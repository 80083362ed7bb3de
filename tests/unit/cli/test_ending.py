"""`masp` and `launch` end in the same way; tests/unit/cli/test_main.py has all the ways."""

import errno
import os

import pytest

import launch.cli
from masp.cli.ending import exit_code


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG])
def test_an_error_of_the_file_system_is_one_line_from_launch_too(number, monkeypatch, capsys):
    def status(*_):
        raise OSError(number, os.strerror(number), "/x/run")

    monkeypatch.setattr("launch.follow.status", status)
    assert launch.cli.main(["status", "/x/run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "/x/run" in error and error.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0, lambda: None)
