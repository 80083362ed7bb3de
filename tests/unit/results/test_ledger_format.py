"""The lines of a ledger file: what its lines may be, and how a damaged one is named."""

import json

import pytest

from masp.errors import DataError, InputError
from masp.results.ledger import Ledgers
from masp.results.ledger_format import Record, read_ledger
from tests.unit.results.test_ledger import IDENTITY, KEYS, ledgers, write

RECORD = b'{"sample_key": "a", "label": "fear", "prediction": null, "scores": %s}'


ATTENTION = b'{"sample_key": "a", "label": "fear", "prediction": null, "attention": {%s}}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"sample_key": "test/', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "line 8: []: must be"),
        (b"null", "must be an object, not null"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion limit"),
        (b'{"sample_key": ' * 5000 + b"1" + b"}" * 5000, "recursion limit"),
        (b'{"label": "fear", "prediction": null}', "line 8: sample_key is missing"),
        (b'{"sample_key": "a", "label": "fear"}', "line 8: prediction is missing"),
        (b'{"sample_key": "a", "label": "fear", "prediction": null, "more": 1}', "line 8: more: unknown key"),
        (RECORD % b'["x"]', "scores[0] = 'x': must be a valid number"),
        (RECORD % b"[NaN]", "scores[0] = nan: must be a finite number"),
        (RECORD % b"[1e999]", "scores[0] = inf: must be a finite number"),
        (RECORD % (b"[1" + b"0" * 400 + b"]"), "must be a finite number"),
        (RECORD % b"[true]", "scores[0] = true"),
        (RECORD % (b'"' + b"x" * 5000 + b'"'), "scores = 'xxx"),
        (
            ATTENTION % b'"file": "../../x", "offset": 0, "shape": [1, 1, 1], "crc32": 0',
            "must name a file in the directory",
        ),
        (ATTENTION % b'"file": "a", "offset": -1, "shape": [1, 1, 1], "crc32": 0', "must have an offset of 0 or more"),
        (ATTENTION % b'"file": "a", "offset": 0, "shape": [1, 1], "crc32": 0', "attention.shape"),
        (b'{"machine": 3}', "line 8: machine = 3"),
    ],
)
def test_a_damaged_line_is_named_by_file_and_line(tmp_path, line, problem):
    path = write(tmp_path, "rank-0", KEYS)
    lines = path.read_bytes().splitlines()
    lines[7] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    for call in (Ledgers.merge, Ledgers.missing):
        with pytest.raises(DataError, match="line 8") as error:
            call(ledgers(tmp_path))
        text = str(error.value)
        assert str(path) in text and problem in text and "\n" not in text and len(text) < 1000
        assert text.endswith("; delete the file and run `masp evaluate` again, it scores only what is missing")


def test_a_file_without_header_is_damaged(tmp_path):
    path = write(tmp_path, "rank-0", KEYS)
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[1:]) + b"\n")
    with pytest.raises(DataError, match="line 1: not a valid ledger header: ledger is missing"):
        ledgers(tmp_path).merge()


def test_the_header_says_what_is_evaluated(tmp_path):
    header = json.loads(write(tmp_path, "rank-0", []).read_text())
    assert header == {"ledger": 1, "identity": json.loads(json.dumps(IDENTITY))}


@pytest.mark.parametrize("version", [2, "1", None, {"a": 1}, "x" * 5000])
def test_a_ledger_of_another_format_is_refused(tmp_path, version):
    path = write(tmp_path, "rank-0", KEYS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = json.dumps({"ledger": version, "identity": {}, "more": 1}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError if version is None else InputError, match="rank-0.jsonl, line 1: ") as error:
        read_ledger(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(path))


def test_records_of_earlier_versions_are_read(tmp_path):
    """Some keys were added later; a list of keys is all that they had in common."""
    path = write(tmp_path, "rank-0", [])
    with open(path, "a") as file:
        file.write('{"sample_key": "a", "label": "fear", "prediction": null}\n')
        file.write(
            '{"sample_key": "b#scene", "label": "sea", "scores": [-1, 0.5], "prediction": "sea", "text": "sea"}\n'
        )
    contents = read_ledger(path)
    assert contents.records == [Record("a", "fear", None), Record("b#scene", "sea", "sea", (-1.0, 0.5), text="sea")]
    assert contents.lines == [2, 3] and (contents.records[1].image_key, contents.records[1].aspect) == ("b", "scene")
