"""Whole files or none, with the permissions of the umask."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from masp.files.atomic import create_bytes, creating_directory, replacing, temporary_path, write_bytes


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_not_a_file_is_not_replaced(tmp_path, through_a_link):
    target = tmp_path / "named"
    os.mkfifo(target)
    if through_a_link:
        target = tmp_path / "link"
        target.symlink_to("named")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OSError, match="not a regular file"):
        write_bytes(target, b"page")
    assert sorted(path.name for path in tmp_path.iterdir()) == before and target.is_fifo()
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to("absent")
    write_bytes(nowhere, b"page")
    assert nowhere.read_bytes() == b"page" and not nowhere.is_symlink()


def test_only_the_first_creates(tmp_path):
    path = tmp_path / "file"
    assert create_bytes(path, b"1")
    assert not create_bytes(path, b"2")
    assert path.read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_permissions_follow_the_umask_though_a_library_makes_its_file_private(tmp_path, umask):
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        save_file({"a": torch.zeros(1)}, tmp_path / "plain")
        assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o600  # else there is nothing to mend
        with replacing(tmp_path / "mended") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        write_bytes(tmp_path / "other", b"")
    finally:
        os.umask(before)
    for name in ("mended", "other"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_the_first_error_gets_through_when_the_temporary_file_cannot_be_removed(tmp_path, monkeypatch):
    def refuse(self, missing_ok=False):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RuntimeError, match="the cause"), replacing(tmp_path / "file"):
        raise RuntimeError("the cause")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        create_bytes(tmp_path / "file", b"")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_bytes(tmp_path / "nowhere" / "file", b"")


def test_several_processes_may_replace_one_file_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from masp.files.atomic import write_bytes\n"
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
    left, others, strange = (tmp_path / f".metrics.json.{node}.{pid}.tmp" for pid in (dead.pid, os.getppid(), 10**30))
    foreign = tmp_path / ".metrics.json.elsewhere.1.tmp"
    for name in (left, others, foreign, strange):
        name.write_text("half")
    write_bytes(path, b"{}")
    assert sorted(tmp_path.iterdir()) == sorted([path, others, foreign, strange])


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "above" / "new"
    with pytest.raises(RuntimeError), creating_directory(path) as temporary:
        (temporary / "file").write_bytes(b"1")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    left = path.with_name(temporary_path(path).name.replace(str(os.getpid()), "999999999"))
    left.mkdir()  # of a process that was killed
    (left / "file").write_bytes(b"1")
    path.mkdir()  # empty
    with creating_directory(path) as temporary:
        (temporary / "file").write_bytes(b"2")
        assert not any(path.iterdir())
    assert list(path.parent.iterdir()) == [path] and (path / "file").read_bytes() == b"2"
    with pytest.raises(OSError, match="not empty"), creating_directory(path) as temporary:
        (temporary / "file").write_bytes(b"3")
    assert list(path.parent.iterdir()) == [path] and (path / "file").read_bytes() == b"2"
