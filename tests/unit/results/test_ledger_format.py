"""The lines of a ledger file: what its lines may be, and how a damaged one is named."""

import json
import re

import pytest

from masp.errors import DataError, InputError
from masp.results.ledger import Ledgers, MissingRecords
from masp.results.ledger_format import Record
from masp.results.ledgers import reader
from masp.results.ledgers.reader import LedgerReader
from tests.unit.results.test_ledger import IDENTITY, KEYS, ledgers, record, write

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
    for call in (Ledgers.merge, Ledgers.begin):
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
    crc32 = header.pop("crc32")
    assert header == {"ledger": 2, "identity": json.loads(json.dumps(IDENTITY))} and len(crc32) == 8


@pytest.mark.parametrize("version", [3, "1", None, {"a": 1}, "x" * 5000])
def test_a_ledger_of_another_format_is_refused(tmp_path, version):
    path = write(tmp_path, "rank-0", KEYS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = json.dumps({"ledger": version, "identity": {}, "more": 1}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError if version is None else InputError, match="rank-0.jsonl, line 1: ") as error:
        list(LedgerReader(path).chunks())
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(path))


def test_ledgers_of_earlier_versions_are_read_and_go_on(tmp_path):
    """They have no checksums; some keys were added later, and a list of keys is all that they had in common."""
    path = tmp_path / "rank-0.jsonl"
    path.write_text(
        json.dumps({"ledger": 1, "identity": IDENTITY})
        + '\n{"sample_key": "a", "label": "fear", "prediction": null}\n'
        + '{"sample_key": "b#scene", "label": "sea", "scores": [-1, -0.5], "prediction": "sea", "text": "sea"}\n'
    )
    old = [Record("a", "fear", None), Record("b#scene", "sea", "sea", (-1.0, -0.5), text="sea")]
    found = [pair for chunk in LedgerReader(path).chunks() for pair in chunk]
    assert found == list(zip((2, 3), old, strict=True))
    assert (old[1].image_key, old[1].aspect) == ("b", "scene")
    keys = ["a", "b#scene", "c"]
    with ledgers(tmp_path, images=keys).begin() as scoring:
        assert list(scoring.missing) == ["c"]
        scoring.append([record("c")])
    assert list(ledgers(tmp_path, images=keys).merge()) == [*old, record("c")]
    assert [b"crc32" in line for line in path.read_bytes().splitlines()] == [False] * 3 + [True]


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    """What a flip in the last line or its end leaves may look like what a kill leaves: it is scored again."""
    path = write(tmp_path, "rank-0", KEYS[:5])
    whole, keys = path.read_bytes(), KEYS[:5]
    last = whole.rstrip(b"\n").rfind(b"\n")
    found = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            table = ledgers(tmp_path, images=keys).merge()
        except MissingRecords as error:
            assert place >= last and KEYS[4] in str(error)
        except DataError:
            found += 1
        else:
            raise AssertionError(f"byte {place}: {list(table)}")
    assert found > 0.8 * len(whole)


def test_a_line_of_this_version_without_checksum_is_damaged(tmp_path):
    path = write(tmp_path, "rank-0", KEYS[:3])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = re.sub(rb', "crc32": "[0-9a-f]{8}"', b"", lines[2])
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="line 3: it has no checksum; delete the file"):
        ledgers(tmp_path).merge()


@pytest.mark.parametrize("block", [1, 7, 100, 1000, 1 << 20])
def test_blocks_of_any_size_give_the_same_records(tmp_path, monkeypatch, block):
    monkeypatch.setattr(reader, "_BLOCK", block)
    path = write(tmp_path, "rank-0", KEYS)
    for cut in (0, 1, 30):
        path.write_bytes(path.read_bytes()[: -cut or None])
        found = LedgerReader(path)
        records = [r.sample_key for chunk in found.chunks() for _, r in chunk]
        assert records == KEYS[: len(records)] and len(records) == len(KEYS) - (cut > 0)
        assert path.read_bytes()[: found.num_valid_bytes].count(b"\n") == len(records) + 1


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_LINE", 10_000)
    monkeypatch.setattr(reader, "_BLOCK", 1000)
    path = write(tmp_path, "rank-0", KEYS)
    path.write_bytes(path.read_bytes() + b"x" * 20_000)
    with pytest.raises(DataError, match="holds a line of more than 10,000 bytes"):
        ledgers(tmp_path).merge()
