"""What is repeated of errors and values is short and on one line."""

import pytest

from masp.files.text import (
    MAX_REASON,
    MAX_SHOWN,
    all_lines,
    first_line,
    listed_apart,
    reason,
    shortened,
    shown,
    shown_apart,
)


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


FORM = " (the same text in another Unicode form)"
ALIKE = " (which only looks the same)"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("'joy'", "'fear'", ("'joy'", "'fear'")),
        ("['café']", "['cafe']", ("['café']", "['cafe']")),  # as a reader sees
        ("'caf\u00e9'", "'cafe\u0301'", (r"'caf\xe9'", r"'cafe\u0301'" + FORM)),
        ('["한"]', '["\u1112\u1161\u11ab"]', (r'["\ud55c"]', r'["\u1112\u1161\u11ab"]' + FORM)),
        ("'Å'", "'\u212b'", (r"'\xc5'", r"'\u212b'" + FORM)),
        ("'ﬁne'", "'fine'", (r"'\ufb01ne'", "'fine'" + ALIKE)),
        ("'ｊoy'", "'joy'", (r"'\uff4aoy'", "'joy'" + ALIKE)),
        ("'a\u00a0b'", "'a b'", (r"'a\xa0b'", "'a b'" + ALIKE)),
        ("'a\u200bb'", "'ab'", (r"'a\u200bb'", "'ab'" + ALIKE)),
        ("'\u2764\ufe0f'", "'\u2764'", (r"'\u2764\ufe0f'", r"'\u2764'" + ALIKE)),
        ("'\u202eab'", "'ab'", (r"'\u202eab'", "'ab'" + ALIKE)),
        ("'jоy'", "'joy'", (r"'j\u043ey'", "'joy'" + ALIKE)),  # the first with a Cyrillic letter
        ("'same'", "'same'", ("'same'", "'same'")),
        ("", "'x'", ("", "'x'")),
    ],
)
def test_what_differs_looks_different(old, new, expected):
    assert shown_apart(old, new) == expected
    there, here = shown_apart(new, old)
    assert (there == here) == (old == new) and there.isprintable() and here.isprintable()


def test_texts_that_begin_alike_are_cut_where_they_differ():
    there, here = shown_apart("x" * 500 + "joy" + "y" * 500, "x" * 500 + "fear" + "y" * 500)
    assert "joy" in there and "fear" in here and there.startswith("…x") and max(len(there), len(here)) <= MAX_SHOWN
    there, here = shown_apart("x" * 500, "x" * 501)
    assert len(here) == len(there) + 1
    there, here = shown_apart("é" * 200 + "a", "é" * 200 + "b", 20)
    assert there[-1] == "a" and here[-1] == "b"


def test_names_among_others():
    assert listed_apart(["joy"], ["awe", "fear"]) == ("joy", "awe, fear")
    assert listed_apart(["caf\u00e9"], ["awe", "cafe\u0301"]) == (
        r"caf\xe9",
        r"awe, cafe\u0301 (one only looks the same)",
    )
    assert listed_apart(["joy"], []) == ("joy", "")
    assert [len(text) for text in listed_apart(["x" * 999], ["y"] * 999)] == [MAX_REASON, MAX_REASON]
