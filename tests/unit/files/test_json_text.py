"""JSON without a type: what is read is what anybody else would read, or an error of one line."""

import ast
import math

import pytest

from masp.errors import DataError
from masp.files.json_text import is_json, parse_json
from masp.files.typed import decode
from tests.runs import REPOSITORY


@pytest.mark.parametrize("text", ["null", "[1, 2.5, -0.0]", '{"a": {"b": []}}', '"\\ud800"', '{"": "ä"}', " 1 "])
def test_values_are_those_of_python(text):
    import json

    for given in (text, text.encode("utf-8", "surrogatepass")):
        for finite in (False, True):
            assert parse_json(given, finite=finite) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 1}', "'a' is given twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "'a' is given twice"),
        ("[NaN]", "'NaN' is not a finite number"),
        ('{"a": -1e999}', "'-1e999' is not a finite number"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5_000, "Exceeds the limit"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ('{"a": 1}'.encode("utf-16"), "can't decode"),
        (b'"\xff"', "can't decode"),
        (f'{{"{"x" * 9_000}": 1, "{"x" * 9_000}": 1}}', "is given twice"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem) as error:
        parse_json(text)
    assert len(str(error.value)) < 500


def test_what_is_not_finite_can_be_left_to_who_knows_its_key():
    assert parse_json("[1e999, -Infinity]", finite=False) == [math.inf, -math.inf]
    assert math.isnan(parse_json('{"a": NaN}', finite=False)["a"])
    assert parse_json('{"a": 1, "a": 2}', unique_keys=False) == {"a": 2}


def test_a_line_that_was_cut_off_is_not_json():
    for line in (b"{}", b'{"a": 1, "a": NaN}', b"[" * 100_000, b" 1"):
        assert is_json(line)
    for line in (b"", b'{"a": ', b'{"a": 1}}', b'"\xff"', "{}".encode("utf-16")):
        assert not is_json(line)


def test_a_key_that_is_given_twice_is_seen_beside_a_lone_surrogate():
    text = b'{"a": "\\ud800", "b": 1, "b": 2}'
    with pytest.raises(DataError, match="it: not valid JSON: 'b' is given twice"):
        decode(dict[str, str | int], text, "it", surrogates=True)


def test_nothing_else_parses_json():
    parsers = {"loads", "load", "JSONDecoder", "raw_decode"}
    allowed = {"masp/files/json_text.py", "masp/vlm/files/render_template.py"}  # a process that imports nothing of ours
    found = set()
    for path in [*(REPOSITORY / "masp").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in parsers and ast.unparse(node.value) == "json":
                found.add(path.relative_to(REPOSITORY).as_posix())
            if isinstance(node, ast.ImportFrom) and node.module in ("json", "orjson", "simplejson", "msgspec"):
                found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == allowed
