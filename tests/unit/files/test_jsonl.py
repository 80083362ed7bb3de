"""Lines that a kill cuts short are dropped, and nothing is written behind them."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from masp.errors import DataError, InputError
from masp.files.jsonl import append_line, cut_lines, decode_lines, read_lines, whole_lines


@dataclass(frozen=True)
class Entry:
    step: int
    loss: float | None = None


def test_whole_lines():
    assert whole_lines(b"") == ([], 0)
    assert whole_lines(b"a\nb") == ([b"a"], 2)
    assert whole_lines(b"a\n\nb\n") == ([b"a", b"", b"b"], 5)


@pytest.mark.parametrize("length", range(len(b'{"step":1}\n{"step":2}\n') + 1))
def test_a_log_that_is_cut_anywhere_keeps_its_whole_lines(tmp_path, length):
    path = tmp_path / "log"
    path.write_bytes(b'{"step":1}\n{"step":2}\n'[:length])
    whole = [Entry(step) for step in (1, 2) if length >= 11 * step]
    assert read_lines(Entry, path) == whole
    append_line(path, {"step": 3})
    assert read_lines(Entry, path, skip_damaged=True) in (
        [*whole, Entry(3)],
        [*whole, Entry(len(whole) + 1), Entry(3)],  # only the line end was missing
    )


def test_a_damaged_line_is_named_or_skipped(tmp_path):
    path = tmp_path / "log"
    assert read_lines(Entry, path) is None
    path.write_bytes(b'{"step":1}\n{"step":"x"}\n\xff\n[1]\n{"step":2,"loss":0.5}\n' + b"[" * 9999 + b"\n")
    with pytest.raises(DataError, match=r"log, line 2: step = 'x': must be a valid integer$"):
        read_lines(Entry, path)
    assert read_lines(Entry, path, skip_damaged=True) == [Entry(1), Entry(2, 0.5)]
    assert list(decode_lines(Entry, b'{"step":1}\n{"st', "it")) == [Entry(1)]
    with pytest.raises(InputError, match="must be at most 5"):
        read_lines(Entry, path, max_bytes=5)


def test_cut_lines(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    cut_lines(path, 3)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 4}\n{"st')
    cut_lines(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n' and not caplog.records


@pytest.mark.parametrize(
    "damage", ["[]", '{"step": "1"}', '{"loss": 1}', "", "\0" * 500, '{"step": 1e999}', "[" * 100_000]
)
def test_damage_before_a_kept_line_is_an_error_and_damage_at_the_end_is_cut_off(tmp_path, caplog, damage):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 1}}\n{damage}\n{{"step": 2}}\n'
    path.write_text(text)
    with pytest.raises(
        DataError, match="^[^\n]*metrics.jsonl, line 2 is damaged: must be .*; remove the line, or"
    ) as error:
        cut_lines(path, 3)
    assert len(str(error.value)) < 500 and path.read_text() == text
    cut_lines(path, 1)  # the lines from the damaged one on are written again
    assert path.read_text() == '{"step": 1}\n'
    assert [r.getMessage() for r in caplog.records] == [f"{path}: 1 damaged lines at its end were removed"]


def test_processes_that_append_at_once_do_not_mix_their_lines(tmp_path):
    code = (
        "import sys; from pathlib import Path; from masp.files.jsonl import append_line\n"
        "for i in range(300): append_line(Path(sys.argv[1]), {'who': sys.argv[2] * 50, 'i': i})"
    )
    path = tmp_path / "log"
    running = [subprocess.Popen([sys.executable, "-c", code, path, letter]) for letter in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for letter in "ab":
        assert [e["i"] for e in found if e["who"] == letter * 50] == list(range(300))
