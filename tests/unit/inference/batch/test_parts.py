"""Units of rows: who claims which, what a kill leaves, and who writes the output."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from masp.distributed.ranks import Ranks
from masp.errors import DataError, InputError
from masp.inference.batch import parts as module
from masp.inference.batch.parts import Finished, Parts, is_complete, parts_of, unit_size
from masp.inference.batch.rows import Row, read_rows
from masp.inference.batch.run import claims
from tests.runs import REPOSITORY

IDENTITY, MACHINE = {"model": "a", "inputs": "b"}, {"torch": "2.13"}


def rows(*numbers):
    return [Row(number, None, "joy", (-0.1, -2.5)) for number in numbers]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "o.jsonl"


@pytest.fixture(autouse=True)
def units_of_four(monkeypatch):
    monkeypatch.setattr(module, "unit_size", lambda num_images: 4)


def begin(output, identity=IDENTITY, machine=MACHINE, num_images=10):
    return Parts(output, identity, machine, num_images)


def test_sizes_of_units():
    assert [unit_size(n) for n in (0, 1, 63, 640, 16_384, 1_000_000, 100_000_000)] == [1, 1, 1, 10, 256, 256, 10_000]


def test_units_are_claimed_filled_and_merged(output):
    with begin(output) as parts:
        assert parts.num_units == 3 and parts.claim(2) == range(8, 10)
        parts.append(rows(8))
        with parts.merging() as units:
            assert units is None
        parts.append(rows(9))
        for unit in (0, 1):
            parts.append(rows(*parts.claim(unit)))
        assert parts.claim(1) == range(0) and parts.num_done() == 10
        with parts.merging() as units:
            assert [row.number for unit in units for row in unit] == list(range(10))
            output.write_text("all")
    assert os.listdir(output.parent) == [output.name] and is_complete(output)


def test_a_batch_may_be_of_several_units(output):
    with begin(output) as parts:
        assert [*parts.claim(0), *parts.claim(1)] == list(range(8))
        parts.append(rows(0, 1, 2))
        parts.append(rows(3, 4, 5))
        assert parts.num_done() == 4


OTHER = """
import sys
from pathlib import Path
from masp.inference.batch import parts as module
from masp.inference.batch.rows import Row
module.unit_size = lambda num_images: 4
parts = module.Parts(Path(sys.argv[1]), {"model": "a", "inputs": "b"}, {"torch": "2.12"}, 10)
numbers = parts.claim(0)
parts.append([Row(n, None, "joy", (-0.1, -2.5)) for n in list(numbers)[:3]])
print(len(numbers), flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_had_is_gone_on_with(output):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", OTHER, output]
    other = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"4\n"
    with begin(output) as parts:
        assert parts.machine_differences == [("torch", "2.12", "2.13")]
        assert parts.claim(0) == range(0)  # that one has it
        assert list(claims(parts, Ranks(1, 2))) == [4, 5, 6, 7, 8, 9]
        other.kill()
        other.communicate()
        with open(parts_of(output) / "000000.open", "ab") as file:
            file.write(b'{"number": 3, "pre')  # within a write
        assert parts.claim(0) == range(3, 4)
        parts.append(rows(3))
    assert [row.number for row in read_rows(parts_of(output) / "000000.rows", range(4), True)[0]] == [0, 1, 2, 3]


def test_a_unit_that_is_whole_but_not_renamed(output):
    with begin(output):
        (parts_of(output) / "000001.open").write_bytes(b"".join(row.line() for row in rows(4, 5, 6, 7)))
    with begin(output) as parts:
        assert parts.claim(1) == range(8, 8) and parts.num_done() == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"joy", b"awe"),
        lambda data: data[: len(data) // 2],
        lambda data: data + data,
        lambda data: b"\n".join(reversed(data.splitlines())) + b"\n",
        lambda data: b"\0" * len(data) + b"\n",
        lambda data: b"",
    ],
)
def test_damaged_rows_are_refused(output, change):
    with begin(output) as parts:
        for unit in range(3):
            parts.append(rows(*parts.claim(unit)))
        path = parts_of(output) / "000000.rows"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match=f"^{path} is damaged: .*; delete this file and run the same command again"):
            with parts.merging() as units:
                list(units)
    assert not output.exists() and path.exists()


def test_ranks_begin_with_their_own_and_go_on_with_what_is_left(output):
    with begin(output, num_images=20) as parts:
        order = list(claims(parts, Ranks(1, 3)))
        assert [number // 4 for number in order[::4]] == [1, 2, 0, 4, 3]
        assert sorted(order) == list(range(20))


def test_the_output_of_another_process_ends_this_one(output):
    with begin(output) as late, begin(output) as parts:
        for unit in range(3):
            parts.append(rows(*parts.claim(unit)))
        with parts.merging() as units:
            list(units)
            output.write_text("all")
        with pytest.raises(Finished):
            late.claim(0)
        assert list(claims(late, Ranks())) == []
        with pytest.raises(Finished), late.merging():
            pass
    assert not parts_of(output).exists()
    (parts_of(output)).mkdir()  # a process that has looked for the output before it was there
    with pytest.raises(InputError, match="was begun with model = 'a', and here it is 'c'"):
        with begin(output):
            begin(output, {"model": "c", "inputs": "b"})


def test_a_kill_between_output_and_removal(output):
    with begin(output) as parts:
        for unit in range(3):
            parts.append(rows(*parts.claim(unit)))
    output.write_text("all")
    assert is_complete(output) and not parts_of(output).exists()


def test_an_old_output_is_kept_until_the_new_one_is_there(output):
    output.write_text("old")
    with begin(output) as parts:
        parts.append(rows(*parts.claim(0)))
    assert not is_complete(output)  # goes on
    with begin(output) as parts:
        for unit in (1, 2):
            parts.append(rows(*parts.claim(unit)))
        assert output.read_text() == "old"
        with parts.merging() as units:
            list(units)
            output.write_text("new!")
    assert is_complete(output)


def test_a_file_of_that_name_from_elsewhere(output):
    with begin(output) as parts:
        parts.append(rows(*parts.claim(0)))
    output.write_text("mine")
    with pytest.raises(InputError, match="has appeared since .*o.jsonl.parts was begun; delete one of them"):
        begin(output)
    assert parts_of(output).exists() and output.read_text() == "mine"


def test_a_file_system_without_locks(output, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with begin(output) as parts:
        monkeypatch.setattr(module, "try_lock", refuse)
        with pytest.raises(InputError, match="cannot be locked: No locks available; choose an output on a file system"):
            parts.claim(0)


def test_a_header_that_is_damaged(output):
    with begin(output):
        pass
    header = parts_of(output) / "header.json"
    header.write_text(header.read_text().replace('"a"', '"c"'))
    with pytest.raises(DataError, match="header.json is damaged"):
        begin(output)


def test_an_output_is_not_written_through_a_link_to_the_parts(output, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    parts_of(output).symlink_to(elsewhere)
    with pytest.raises(InputError, match="holds precious, which no batch prediction left"):
        begin(output)
    assert Path(elsewhere / "precious").read_text() == "mine"
