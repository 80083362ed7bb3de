"""What is repeated of errors and values is short and on one line."""

import pytest

from masp.files.text import MAX_REASON, MAX_SHOWN, all_lines, first_line, reason, shortened, shown


def test_a_foreign_error_is_one_line():
    assert first_line(ValueError("\n one \n two")) == "one"
    assert all_lines(ValueError("\n one \n two")) == "one two"
    assert first_line(ValueError()) == all_lines(ValueError()) == "ValueError"
    assert first_line(ValueError("a\x1b[31mb")) == "a\\x1b[31mb"
    assert len(first_line(ValueError("x" * 9999))) == MAX_REASON
    assert reason(FileNotFoundError(2, "No such file", "path")) == "No such file"
    assert reason(OSError("only text\nmore")) == "only text"
    assert reason(ValueError("x")) == "x"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1.5, "1.5"), ("a\nb", r"'a\nb'"), ("\udc80", r"'\udc80'"), ([1], "[1]")],
)
def test_a_value_is_spelled(value, text):
    assert shown(value) == text


DEEP: list = []
for _ in range(10**5):
    DEEP = [DEEP]
LONG = [DEEP, "x" * 10**6, [0] * 10**5, 10**400, 10**5000, [10**5000], "\x00" * 1000, b"y" * 1000]


@pytest.mark.parametrize("value", LONG, ids=range(len(LONG)))
def test_a_long_value_is_cut(value):
    assert 20 <= len(shown(value)) <= MAX_SHOWN and shown(value).isprintable()


def test_shortened():
    assert shortened("abcd", 4) == "abcd" and shortened("abcde", 4) == "abc…"
