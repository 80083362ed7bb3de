"""Only regular files of bounded size are read; what the file system refuses is one line."""

import errno
import os

import pytest

from masp.errors import InputError
from masp.files.regular import (
    UnsuitableFile,
    exists,
    is_directory,
    is_file,
    open_descriptor,
    read_bytes,
    read_tail,
)


def test_a_file_is_read_whole_and_a_missing_one_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert read_bytes(tmp_path / "file") == b"abc" == read_bytes(tmp_path / "file", max_bytes=3)
    assert read_bytes(tmp_path / "missing") is None
    with pytest.raises(InputError, match="^--x: .*file cannot be read: 3 bytes; must be at most 2$"):
        read_bytes(tmp_path / "file", max_bytes=2, key="--x")


def test_the_end_of_a_file_of_any_size_is_read(tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.seek(1 << 40)  # sparse
        file.write(b"the end")
    assert read_tail(tmp_path / "huge", 3) == b"end"
    (tmp_path / "file").write_bytes(b"abc")
    assert read_tail(tmp_path / "file", 9) == b"abc"
    assert read_tail(tmp_path / "missing", 9) is None
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="fifo cannot be read: not a regular file"):
        read_tail(tmp_path / "fifo", 9)


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path):
        with pytest.raises(InputError, match="cannot be read: (not a regular file|Is a directory)"):
            read_bytes(path)
    with pytest.raises(InputError, match="File name too long"):
        read_bytes(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="null"):
        read_bytes(tmp_path / "a\0b")


@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT])
def test_a_link_is_read_but_not_written_through(tmp_path, flags):
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "directory").mkdir()
    (tmp_path / "to a directory").symlink_to("directory")
    for name, target in (("link", "file"), ("dangling", "absent")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(UnsuitableFile, match="a symbolic link, which is not written to"):
            open_descriptor(tmp_path / name, flags)
    assert read_bytes(tmp_path / "link") == b"precious" and not (tmp_path / "absent").exists()
    os.close(open_descriptor(tmp_path / "file", flags))
    os.close(open_descriptor(tmp_path / "to a directory" / "new", flags | os.O_CREAT))  # only the last name counts


def test_what_a_path_is(tmp_path):
    (tmp_path / "file").touch()
    os.symlink("nowhere", tmp_path / "dangling")
    found = {
        name: (exists(tmp_path / name), is_file(tmp_path / name), is_directory(tmp_path / name))
        for name in (".", "file", "missing", "file/below", "dangling")
    }
    assert found == {
        ".": (True, False, True),
        "file": (True, True, False),
        "missing": (False, False, False),
        "file/below": (False, False, False),
        "dangling": (False, False, False),
    }


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP])
def test_a_file_system_without_an_answer_is_one_line(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=f"^cache.dir: .*cannot be examined: {os.strerror(number)}$"):
        exists(tmp_path, key="cache.dir")
    with pytest.raises(InputError, match=f"cannot be read: {os.strerror(number)}$"):
        read_bytes(tmp_path)
