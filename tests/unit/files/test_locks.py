"""Locks that go with their process."""

import subprocess
import sys

import pytest

from masp.errors import FilesInUse, InputError
from masp.files.locks import holding, is_held, locked


@pytest.fixture
def in_another_process(tmp_path):
    """Start a process that holds a lock until it is killed: a function of the expression that locks `path`."""
    started = []

    def start(lock: str, path) -> subprocess.Popen:
        code = (
            "import sys, time; from pathlib import Path; from masp.files.locks import holding, locked\n"
            f"path = Path(sys.argv[1])\nwith {lock} as free:\n    print(free, flush=True); time.sleep(60)"
        )
        started.append(subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() in ("True\n", "None\n")
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_another_process_sees_a_locked_range_until_its_holder_is_gone(tmp_path, in_another_process):
    path = tmp_path / "lock"
    holder = in_another_process("locked(path, [(3, 2)], key='cache.dir')", path)
    for ranges, expected in [([(0, 3), (5, 0)], True), ([(0, 0)], False), ([(0, 1), (4, 1)], False)]:
        with locked(path, ranges, key="cache.dir") as free:
            assert free is expected
    holder.kill()
    holder.wait()
    with locked(path, [(0, 0)], key="cache.dir") as free:
        assert free


def test_one_holder_at_a_time(tmp_path, in_another_process):
    path = tmp_path / "lock"
    assert not is_held(path)
    holder = in_another_process("holding(path, '', key='output_dir')", path)
    assert is_held(path)
    with pytest.raises(FilesInUse, match="wait for it"), holding(path, "wait for it", key="output_dir"):
        pass
    holder.kill()
    holder.wait()
    assert not is_held(path)
    with holding(path, "", key="output_dir"):
        pass


def test_what_cannot_be_locked_is_one_line(tmp_path):
    path = tmp_path / "no" / "lock"
    with pytest.raises(InputError, match=r"^cache.dir: .*no cannot be written: No such file or directory$"):
        with locked(path, [(0, 0)], key="cache.dir"):
            pass
    with pytest.raises(InputError, match="cannot be examined: File name too long"):
        is_held(tmp_path / ("x" * 300))
