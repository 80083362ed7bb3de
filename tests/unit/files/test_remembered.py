"""What is remembered of files; `tests/unit/plan/headers/test_memory.py` tests damage and files that change."""

import os
import pwd
from pathlib import Path

import numpy as np
import pytest

from masp.files import remembered
from masp.files.remembered import Remembered, memory_file, read_rows, user_cache

COLUMNS = (("length", "<i4"), ("digest", "u1", (4,)))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED_NS", -1_000_000_000)
    for name in "abc":
        (tmp_path / name).write_text(name)
    return [tmp_path / name for name in "abc"] + [tmp_path / "none"]


def test_rows_are_found_again_by_file(files, tmp_path):
    path = tmp_path / "home" / "memory.bin"
    memory = Remembered(path, {"version": 1}, COLUMNS, files)
    assert not memory.is_known.any()
    memory.rows["length"][:2] = [7, 9]
    memory.rows["digest"][1] = [1, 2, 3, 4]
    memory.save(np.array([True, True, False, True]))  # a file that is not there is never remembered
    again = Remembered(path, {"version": 1}, COLUMNS, files[::-1])
    assert again.is_known.tolist() == [False, False, True, True]
    assert again.rows["length"].tolist() == [0, 0, 9, 7] and again.rows["digest"][2].tolist() == [1, 2, 3, 4]
    assert not Remembered(path, {"version": 2}, COLUMNS, files).is_known.any()
    assert len(read_rows(path, {"version": 1}, COLUMNS)) == 2
    assert not len(read_rows(path, {"version": 1}, COLUMNS[:1]))


def test_each_kind_and_dataset_has_a_memory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {memory_file(kind, *parts) for kind in ("a", "b") for parts in (("x", 1), ("x", 2), ("y", 1))}
    assert len(found) == 6 and {path.parent for path in found} == {tmp_path / "masp"}


def test_a_user_without_a_home_remembers_nothing(files, monkeypatch, caplog):
    def unknown(_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    caplog.set_level("INFO")
    for _ in range(2):
        memory = Remembered(user_cache() / "memory.bin", {}, COLUMNS, files)
        assert not memory.is_known.any()
        memory.save(np.ones(4, dtype=bool))
    assert caplog.text.count("memory.bin cannot be written (Not a directory); what was found out is not kept") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_memory_that_another_user_made_private(files, tmp_path):
    path = tmp_path / "memory.bin"
    memory = Remembered(path, {}, COLUMNS, files)
    memory.save(np.ones(4, dtype=bool))
    path.chmod(0o600)
    as_another = os.fork()
    if not as_another:
        code = 1
        try:
            os.chdir(tmp_path)  # the directories above are the first user's
            os.setuid(65534)
            other = Remembered(Path("memory.bin"), {}, COLUMNS, ["a", "b"])
            other.save(np.ones(2, dtype=bool))  # says that it cannot
            code = int(other.is_known.any())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(as_another, 0)[1]) == 0
    assert Remembered(path, {}, COLUMNS, files).is_known.tolist() == [True, True, True, False]
