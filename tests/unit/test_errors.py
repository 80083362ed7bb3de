"""Exit codes of the errors, and messages on one line."""

import pytest

from masp import errors
from masp.errors import one_line


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MaspError", 1),
        ("OtherRankFailed", 1),
        ("InputError", 2),
        ("FilesInUse", 2),
        ("DataError", 3),
        ("StoppedEarly", 75),
    ],
)
def test_each_error_has_its_exit_code(name, code):
    assert getattr(errors, name)("text").exit_code == code


def test_a_message_stays_on_one_line_whatever_a_file_is_called():
    assert one_line("a\nb\x1b[31mé – ok") == "a\\nb\\x1b[31mé – ok"
    assert one_line("lone \udce9") == "lone \\udce9"
