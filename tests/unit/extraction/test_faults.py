"""A disk that is really full, directories that may not be read or written: one line, and nothing finished is lost."""

import hashlib
import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from masp.errors import InputError
from masp.extraction.job import extract
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def disk(tmp_path):
    """Mounts a small file system: `disk(options) -> folder`."""
    mounted = []

    def mount(options):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def tars(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "shards").glob("*.tar")}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_disk_that_is_full(vlm, disk, tmp_path):
    root = make_dataset(tmp_path / "data", 40, 4)
    whole = extract(make_config(root, vlm, tmp_path / "whole", "cache.num_shards=8"))
    needed = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    small = disk(f"size={needed * 6 // 10}")
    config = make_config(root, vlm, small / "c", "cache.num_shards=8")
    with pytest.raises(InputError) as error:
        extract(config)
    assert "no space is left; finished shards are kept: free some space" in one_line(error)
    kept = tars(small / "c")
    assert kept and kept.items() < tars(whole).items()
    assert not list((small / "c" / "shards").glob(".*"))  # what was half written takes no space
    before = {p: p.stat().st_mtime_ns for p in (small / "c" / "shards").glob("*.json")}
    with pytest.raises(InputError, match="no space is left"):
        extract(config)
    subprocess.run(["mount", "-o", f"remount,size={needed * 3}", small], check=True)
    extract(config)
    assert tars(small / "c") == tars(whole)
    assert {p: p.stat().st_mtime_ns for p in before} == before  # none was done twice


def test_a_disk_with_no_room_for_anything(vlm, disk, tmp_path):
    root = make_dataset(tmp_path / "data", 4, 2)
    small = disk("size=4k")
    with pytest.raises(InputError) as error:
        extract(make_config(root, vlm, small / "c"))
    assert "no space is left" in one_line(error) or "No space left" in one_line(error)


def test_a_disk_that_is_read_only(vlm, disk, tmp_path):
    root = make_dataset(tmp_path / "data", 4, 2)
    folder = disk("size=1m")
    config = make_config(root, vlm, folder / "c")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(InputError) as error:
        extract(config)
    assert str(folder) in one_line(error) and "Read-only file system" in one_line(error)


@contextmanager
def as_nobody():
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_directories_that_may_not_be_read_or_written(vlm, tmp_path):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        base = Path(name)
        base.chmod(0o755)
        root = make_dataset(base / "data", 4, 2)
        local = make_vlm(base / "vlm")
        cache = extract(make_config(root, local, base / "cache"))
        before = tars(cache)
        (cache / "shards" / "test-00000.json").unlink()
        (local / "model.safetensors").chmod(0o600)
        with as_nobody(), pytest.raises(InputError) as error:
            extract(make_config(root, local, cache))
        assert "model.safetensors cannot be read: Permission denied" in one_line(error)
        (local / "model.safetensors").chmod(0o644)
        with as_nobody(), pytest.raises(InputError) as error:
            extract(make_config(root, local, cache))
        assert "cannot be written: Permission denied" in one_line(error)
        (cache / "layout.json").chmod(0o600)
        with as_nobody(), pytest.raises(InputError) as error:
            extract(make_config(root, local, cache))
        assert "layout.json cannot be read: Permission denied" in one_line(error)
        (root / "train" / "awe").chmod(0o700)
        with as_nobody(), pytest.raises(InputError) as error:
            extract(make_config(root, local, base / "other"))
        assert "awe" in one_line(error) and "Permission denied" in one_line(error)
        extract(make_config(root, local, cache))
        assert tars(cache) == before
