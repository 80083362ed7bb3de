"""Why a process failed, as a file beside its log."""

import logging

import pytest

from launch.job.failure import Failure, FailureKind, failure_path, read_failure, write_failure
from masp.errors import DataError, InputError, OtherRankFailed, StoppedEarly


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("a\nb"), Failure(FailureKind.CAUSE, 3, "a\\nb")),
        (StoppedEarly("at step 3"), Failure(FailureKind.CAUSE, 75, "at step 3")),
        (OtherRankFailed("rank 1 failed"), Failure(FailureKind.CONSEQUENCE, 1, "rank 1 failed")),
        (TypeError("a bug\nin two lines"), Failure(FailureKind.BUG, 1, "TypeError: a bug")),
        (TypeError(), Failure(FailureKind.BUG, 1, "TypeError:")),
        (InputError("caf\udcff"), Failure(FailureKind.CAUSE, 2, "caf\\udcff")),
    ],
)
def test_what_is_written_is_read(error, expected, tmp_path):
    log = tmp_path / "7_0_log.out"
    assert read_failure(log) is None
    write_failure(log, error)
    assert read_failure(log) == expected


def test_a_file_of_the_previous_release_is_read(tmp_path):
    log = tmp_path / "7_1_0_log.out"
    path = tmp_path / "7_1_0_failure.json"
    assert failure_path(log) == path
    text = '{\n "kind": "cause",\n "exit_code": 2,\n "message": "vlm.path: none"\n}\n'
    path.write_text(text)
    assert read_failure(log) == Failure(FailureKind.CAUSE, 2, "vlm.path: none")
    write_failure(log, InputError("vlm.path: none"))
    assert path.read_text() == text


def test_a_disk_that_does_not_take_it_is_a_note(tmp_path, caplog):
    log = tmp_path / "gone" / "7_0_log.out"
    with caplog.at_level(logging.INFO, "launch"):
        write_failure(log, InputError("vlm.path: none"))
    assert caplog.messages == [f"{failure_path(log)} cannot be written: No such file or directory"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"kind": "odd", "exit_code": 1, "message": ""}', "kind = 'odd': must be 'cause', 'bug' or 'consequence'"),
        ('{"kind": "bug", "exit_code": "1", "message": ""}', "exit_code = '1': must be a valid integer"),
        ('{"kind": "bug", "exit_code": 1}', "message is missing"),
    ],
)
def test_another_shape_is_named(text, expected, tmp_path):
    (tmp_path / "7_0_failure.json").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_failure(tmp_path / "7_0_log.out")
