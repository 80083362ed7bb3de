"""Sending a cache: what arrives, what is refused, and that nothing is sent twice."""

import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from masp.cache.layout import LAYOUT, MANIFEST, sidecar_path
from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.errors import InputError
from masp.files.locks import locked
from tests.small_cache import make_small_cache
from tests.unit.cache.remote.conftest import content, extend, flip, times


def test_what_arrives_in_a_directory_is_the_cache(cache, run, tmp_path):
    code, line, _ = run("cache", "push", cache, tmp_path / "a" / "b")
    assert code == 0
    assert content(tmp_path / "a" / "b") == content(cache)
    assert line == (
        f"cache: {tmp_path}/a/b: 3 shards, 6 images, {open_cache(cache).manifest.num_bytes / 1e3:.1f}kB; 9 files "
        f"sent; `masp cache pull {tmp_path}/a/b DIR` fetches it"
    )
    assert verify_cache(tmp_path / "a" / "b") == []


def test_answers_of_the_vlm_are_not_sent(cache, run, tmp_path):
    before = content(cache)
    shutil.copytree(cache, tmp_path / "annotated")
    parts = tmp_path / "annotated" / "annotations" / ".parts"
    parts.mkdir(parents=True)
    for path in (parts / "scene.json", parts.parent / "scene.parquet", parts.parent / "_manifest.json"):
        path.write_bytes(b"answers")
    code, line, _ = run("cache", "push", tmp_path / "annotated", tmp_path / "target")
    assert code == 0 and "9 files sent" in line and content(tmp_path / "target") == before

    # those that are where a cache arrives stay there
    (tmp_path / "here" / "annotations").mkdir(parents=True)
    (tmp_path / "here" / "annotations" / "scene.parquet").write_bytes(b"answers")
    shutil.copytree(parts.parent, tmp_path / "target" / "annotations")
    assert run("cache", "pull", tmp_path / "target", tmp_path / "here")[0] == 0
    assert content(tmp_path / "here") == before | {"annotations/scene.parquet": b"answers"}


def test_what_is_there_is_not_sent_again(cache, run, tmp_path):
    target = tmp_path / "target"
    run("cache", "push", cache, target)
    before = times(target)
    code, line, _ = run("cache", "push", cache, target)
    assert (code, times(target)) == (0, before) and "all of it was there already" in line
    flip(target / "shards" / "train-00001.tar")
    (target / "shards" / "test-00000.json").unlink()
    assert "2 files sent" in run("cache", "push", cache, target)[1]
    assert content(target).keys() == content(cache).keys()
    assert content(target) == content(cache)
    changed = {path.name for path, time in times(target).items() if before.get(path) != time}
    assert changed == {"train-00001.tar", "test-00000.json", "manifest.json"}


@pytest.mark.parametrize("name", ["shards/train-00001.tar", "shards/train-00001.json", "index.h5", "quarantine.jsonl"])
def test_a_damaged_file_of_the_cache_is_named_and_not_sent(cache, run, tmp_path, name):
    flip(cache / name, 40)
    code, _, error = run("cache", "push", cache, tmp_path / "target")
    assert code == 3 and name in error and "masp cache verify" in error
    assert not {name, MANIFEST} & content(tmp_path / "target").keys() if (tmp_path / "target").exists() else True
    (cache / name).unlink()
    code, _, error = run("cache", "push", cache, tmp_path / "target")
    assert code == 3 and name in error


def test_a_cache_that_is_not_finished_is_not_sent(cache, run, tmp_path):
    (cache / MANIFEST).unlink()
    sidecar_path(cache, "train-00001").unlink()
    code, _, error = run("cache", "push", cache, tmp_path / "target")
    assert code == 2 and "is unfinished: 1 of 3 shards are missing" in error
    code, _, error = run("cache", "push", tmp_path / "none", tmp_path / "target")
    assert code == 2 and "does not exist" in error
    assert not (tmp_path / "target").exists()


def test_another_cache_at_the_target_is_refused(cache, run, tmp_path):
    target = make_small_cache(tmp_path / "bf16", dtype="bf16")
    before = content(target)
    code, _, error = run("cache", "push", cache, target)
    assert code == 2
    assert f'{target} holds another cache, which was made with dtype = "bf16", but here it is "fp32"' in error
    assert content(target) == before


def test_a_cache_of_other_images_at_the_target_is_refused(cache, other, run, tmp_path):
    target = shutil.copytree(other, tmp_path / "target")
    code, _, error = run("cache", "push", cache, target)
    assert code == 2 and "holds another cache, made from other images or labels" in error
    (target / MANIFEST).unlink()  # a transfer that is under way: only sidecars tell
    code, _, error = run("cache", "push", cache, target)
    assert code == 2 and "belongs to another cache, made from other images or labels" in error
    (target / LAYOUT).unlink()
    code, _, error = run("cache", "push", cache, target)
    assert code == 2 and "but no layout.json, so it does not say of which cache" in error
    left = content(other)
    assert content(target) == {name: data for name, data in left.items() if name not in (MANIFEST, LAYOUT)}


def test_images_that_were_added_are_sent_alone(cache, run, tmp_path):
    target = tmp_path / "target"
    run("cache", "push", cache, target)
    earlier = shutil.copytree(cache, tmp_path / "earlier")
    before = times(target)
    extend(cache)
    assert run("cache", "push", cache, target)[0] == 0
    assert content(target) == content(cache) and verify_cache(target) == []
    shards = {path for path in before if path.parent.name == "shards"}
    assert {path: times(target)[path] for path in shards} == {path: before[path] for path in shards}
    code, _, error = run("cache", "push", earlier, target)
    assert code == 2 and "holds a later state of this cache: images were added to it 1 times, and 0 times to" in error
    assert content(target).keys() == content(cache).keys()
    assert content(target) == content(cache)


def test_a_target_that_cannot_be_written(cache, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, error = run("cache", "push", cache, tmp_path / "file")
    assert code == 2 and f"TARGET: {tmp_path / 'file'} is not a directory" in error
    code, _, error = run("cache", "push", cache, tmp_path / "file" / "below")
    assert code == 2 and "Not a directory" in error
    code, _, error = run("cache", "push", cache, cache / "." / "shards" / "..")
    assert code == 2 and "is the cache itself" in error
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def as_nobody():
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_target(small, run):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        base = Path(name)
        base.chmod(0o755)
        cache = shutil.copytree(small, base / "cache")
        (base / "target").mkdir()
        with as_nobody():
            code, _, error = run("cache", "push", cache, base / "target")
            assert code == 2 and f"TARGET: {base / 'target'}: writing failed (Permission denied)" in error
            code, _, error = run("cache", "pull", cache, base / "target")
            assert code == 2 and f"CACHE: {base / 'target'}: writing failed (Permission denied)" in error
        assert list((base / "target").iterdir()) == []


def test_permissions_follow_the_umask(cache, run, tmp_path):
    old = os.umask(0o077)
    try:
        run("cache", "push", cache, tmp_path / "target")
        run("cache", "pull", tmp_path / "target", tmp_path / "back")
    finally:
        os.umask(old)
    for directory in (tmp_path / "target", tmp_path / "back"):
        modes = {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*") if path.is_file()}
        assert modes == {0o600}
        assert {stat.S_IMODE(path.stat().st_mode) for path in (directory, directory / "shards")} == {0o700}


def test_a_cache_that_another_process_writes_is_left_alone(cache, run, processes, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with locked(target / ".lock", [(0, 0)], key="cache.dir") as is_free:
        assert is_free
        result = processes("cache", "push", cache, target)
    assert result.code == 2 and f"TARGET: another process is writing {target}" in result.stderr
    assert run("cache", "push", cache, target)[0] == 0


def test_killed_at_any_moment_the_same_command_goes_on(cache, processes, tmp_path):
    target = tmp_path / "target"
    num_calls = 1
    while (result := processes("cache", "push", cache, target, KILL_AT=2)).code != 0:
        num_calls += 1
        assert result.code == -9
        assert MANIFEST not in content(target)
        with pytest.raises(InputError, match="unfinished|not a feature cache|no manifest"):
            open_cache(target)
    assert num_calls == len(content(cache))  # one file a time
    assert content(target).keys() == content(cache).keys()
    assert content(target) == content(cache)
