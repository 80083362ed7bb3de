"""Whole files or none, flips noticed, locks that go with their process."""

import os
import subprocess
import sys

import pytest

from masp.cache.files import create_sealed, locked, read_sealed, replacing, sealed, unseal, write_bytes
from masp.errors import DataError


def test_every_flipped_byte_of_a_sealed_file_is_noticed():
    data = sealed({"a": [1, 2.5, None], "b": {"ä": "\udc80"}})
    assert unseal(data, "it") == {"a": [1, 2.5, None], "b": {"ä": "\udc80"}}
    for position in range(len(data)):
        for bit in (0, 3, 5):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(DataError, match="it is damaged"):
                unseal(bytes(flipped), "it")
    for length in range(len(data)):
        with pytest.raises(DataError):
            unseal(data[:length], "it")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_only_the_first_creates(tmp_path):
    path = tmp_path / "file"
    assert read_sealed(path) is None
    assert create_sealed(path, {"a": 1})
    assert not create_sealed(path, {"a": 2})
    assert read_sealed(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_another_process_sees_a_locked_range_until_its_holder_is_gone(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from masp.cache.files import locked\n"
        "with locked(Path(sys.argv[1]), [(3, 2)]) as free:\n    print(free, flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", hold, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "True\n"
        with locked(path, [(0, 3), (5, 0)]) as free:
            assert free
        with locked(path, [(0, 0)]) as free:
            assert not free
        with locked(path, [(0, 1), (4, 1)]) as free:
            assert not free
    finally:
        holder.kill()
        holder.wait()
    with locked(path, [(0, 0)]) as free:
        assert free


def test_several_processes_may_replace_one_file_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from masp.cache.files import write_bytes\n"
        "for i in range(200): write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 50000)"
    )
    path = tmp_path / "digests.json"
    running = [subprocess.Popen([sys.executable, "-c", code, path, letter]) for letter in "ab"]
    while any(process.poll() is None for process in running):
        if path.exists():
            assert len(path.read_bytes()) == 50000 and len(set(path.read_bytes())) == 1
    assert [process.returncode for process in running] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["digests.json"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path, node = tmp_path / "metrics.json", os.uname().nodename
    left, others = (
        tmp_path / f".metrics.json.{node}.{dead.pid}.tmp",
        tmp_path / f".metrics.json.{node}.{os.getppid()}.tmp",
    )
    foreign = tmp_path / ".metrics.json.elsewhere.1.tmp"
    for name in (left, others, foreign):
        name.write_text("half")
    write_bytes(path, b"{}")
    assert sorted(tmp_path.iterdir()) == sorted([path, others, foreign])
