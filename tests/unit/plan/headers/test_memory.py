"""Remembered image sizes: read once, never stale, and a damaged memory costs time only."""

import json
import os

import pytest
from PIL import Image

from masp.files import remembered
from masp.files.remembered import examine
from masp.plan.headers import reading as headers
from masp.plan.headers.memory import HeaderMemory, memory_path
from tests.unit.plan.photographs import photographs

SIZES = [(40 + i, 50) for i in range(6)]


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Images that count as old enough, one file that is none, and one that is not there."""
    monkeypatch.setattr(remembered, "SETTLED_NS", -1_000_000_000)
    root = photographs(tmp_path / "data", SIZES)
    (root / "words.jpg").write_text("no picture")
    return [*sorted((root / "train").rglob("*.jpg")), root / "words.jpg", root / "none.jpg"]


def read_sizes(*arguments):
    """The sizes as a list, zeros where there is none, and what is broken."""
    sizes, broken = headers.read_sizes(*arguments)
    return list(map(tuple, sizes.tolist())), broken


@pytest.fixture
def opened(monkeypatch):
    """Names of the files whose headers are read."""
    names = []
    real = headers.image_size
    monkeypatch.setattr(
        headers, "image_size", lambda path, limit: names.append(os.path.basename(path)) or real(path, limit)
    )
    return names


def test_only_what_is_new_or_cannot_be_read_is_read_again(paths, tmp_path, opened):
    memory = tmp_path / "cache" / "memory.bin"
    first = read_sizes(paths, None, 1, memory)
    assert first == read_sizes(paths, None, 1) and first[0][:6] == SIZES
    opened.clear()
    assert read_sizes(paths, None, 1, memory) == first
    assert opened == ["words.jpg", "none.jpg"]
    opened.clear()
    assert read_sizes(paths[:3], None, 1, memory)[0] == SIZES[:3] and not opened
    Image.new("RGB", (7, 9)).save(paths[0].with_name("new.jpg"))
    assert read_sizes([paths[0].with_name("new.jpg"), *paths], None, 1, memory)[0] == [(7, 9), *first[0]]
    assert opened == ["new.jpg", "words.jpg", "none.jpg"]


def rewritten(path):
    Image.new("RGB", (7, 9)).save(path)


def rewritten_with_its_old_size_and_time(path):
    status = os.stat(path)
    Image.new("RGB", (7, 9)).save(path, quality=1)
    data = path.read_bytes()
    path.write_bytes(data[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_size == status.st_size and os.stat(path).st_mtime_ns == status.st_mtime_ns


def replaced_by_another(path):
    os.replace(path.with_name("0005.jpg"), path)


def replaced_by_a_link(path):
    path.unlink()
    path.symlink_to(path.with_name("0005.jpg"))


@pytest.mark.parametrize(
    "change", [rewritten, rewritten_with_its_old_size_and_time, replaced_by_another, replaced_by_a_link]
)
def test_a_file_that_changed_is_read_again(paths, tmp_path, change):
    read_sizes(paths[:1], None, 1, tmp_path / "memory.bin")
    change(paths[0])
    assert read_sizes(paths[:1], None, 1, tmp_path / "memory.bin") == read_sizes(paths[:1], None, 1)
    assert read_sizes(paths[:1], None, 1)[0] != SIZES[:1]


def with_head(name, value, *within):
    def change(data):
        line, _, rows = data.partition(b"\n")
        head = json.loads(line)
        (head[within[0]] if within else head)[name] = value
        return json.dumps(head).encode() + b"\n" + rows

    return change


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda data: b"",
        "cut short": lambda data: data[:-5],
        "a row less": lambda data: data[:-24],
        "a flipped bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "not JSON": lambda data: b"\xff" + data,
        "no rows": lambda data: data.partition(b"\n")[0],
        "another Pillow": with_head("pillow", "1.0", "made_by"),
        "another version": with_head("format_version", 0, "made_by"),
        "another limit": with_head("max_side", 20, "made_by"),
        "an unknown key": with_head("more", 1),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_memory_that_cannot_be_trusted_is_made_anew(paths, tmp_path, opened, damage):
    memory = tmp_path / "memory.bin"
    first = read_sizes(paths, None, 1, memory)
    whole = memory.read_bytes()
    memory.write_bytes(damage[1](whole))
    opened.clear()
    assert read_sizes(paths, None, 1, memory) == first and len(opened) == len(paths)
    assert memory.read_bytes() == whole


def test_what_was_written_just_now_is_not_remembered(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED_NS", 2_000_000_000)
    read_sizes(paths, None, 1, tmp_path / "memory.bin")
    assert not HeaderMemory(tmp_path / "memory.bin", None, examine(paths)).is_known.any()


def test_where_nothing_can_be_written_headers_are_read(paths, tmp_path):
    (tmp_path / "file").write_text("")
    for memory in (tmp_path / "file" / "memory.bin", tmp_path):
        assert read_sizes(paths, None, 1, memory) == read_sizes(paths, None, 1)


def test_a_dataset_has_a_memory_of_its_own_for_each_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found = {memory_path(tmp_path / name, limit) for name in ("a", "b") for limit in (None, 512)}
    assert len(found) == 4 and {path.parent for path in found} == {tmp_path / "home" / "masp"}


def test_many_files_are_found_by_number(paths, tmp_path):
    read_sizes(paths, None, 1, tmp_path / "memory.bin")
    again = HeaderMemory(tmp_path / "memory.bin", None, examine(paths[::-1]))
    assert again.is_known.tolist() == [False, False] + [True] * 6
    assert list(map(tuple, again.sizes[again.is_known].tolist())) == SIZES[::-1]
