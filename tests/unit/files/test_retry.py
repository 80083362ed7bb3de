"""Errors that may pass are tried again, others are not."""

import errno

import pytest

from masp.files.retry import retry_io


class Flaky:
    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "content"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_transient_errors_pass(number):
    read = Flaky(OSError(number, "now and then"), OSError(number, "now and then"))
    assert retry_io(read, (0, 0, 0)) == "content"
    assert read.calls == 3


def test_the_last_try_raises():
    read = Flaky(*[OSError(errno.EIO, "for ever")] * 9)
    with pytest.raises(OSError, match="for ever"):
        retry_io(read, (0, 0))
    assert read.calls == 3


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "x"), OSError("truncated"), ValueError("x")],
)
def test_others_are_raised_at_once(error):
    read = Flaky(error)
    with pytest.raises(type(error)):
        retry_io(read, (0, 0))
    assert read.calls == 1
