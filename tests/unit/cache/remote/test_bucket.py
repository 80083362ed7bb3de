"""Buckets, in the file systems that fsspec has itself: `memory://` and `file://`."""

import shutil

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from masp.cache.layout import MANIFEST
from masp.cache.verify import verify_cache
from tests.unit.cache.remote.conftest import content, extend, flip


@pytest.fixture
def bucket():
    """The URL of an empty place in memory, and its files by name."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://bucket/caches/one", memory.store
    memory.store.clear()


def held(store):
    return {path.removeprefix("/bucket/caches/one/"): bytes(file.getbuffer()) for path, file in store.items()}


def test_there_and_back(cache, run, bucket, tmp_path):
    url, store = bucket
    code, line, _ = run("cache", "push", cache, url + "/")
    assert code == 0 and line.endswith(f"9 files sent; `masp cache pull {url}/ DIR` fetches it")
    assert held(store) == content(cache)
    code, line, _ = run("cache", "pull", url, tmp_path / "back")
    assert code == 0 and "7 files fetched" in line
    assert content(tmp_path / "back") == content(cache) and verify_cache(tmp_path / "back") == []


def test_what_is_there_is_not_sent_again(cache, run, bucket):
    url, store = bucket
    run("cache", "push", cache, url)
    sent = {path: file.created for path, file in store.items()}
    assert "all of it was there already" in run("cache", "push", cache, url)[1]
    assert {path: file.created for path, file in store.items()} == sent
    root = "/bucket/caches/one"
    store[f"{root}/shards/train-00000.tar"].truncate(700)  # cut short
    del store[f"{root}/shards/train-00001.json"]  # so nothing says that the tar has arrived whole
    fsspec.filesystem("memory").pipe_file(f"{root}/index.h5", b"x" * len(held(store)["index.h5"]))
    assert "4 files sent" in run("cache", "push", cache, url)[1]
    assert held(store) == content(cache)


def test_what_has_arrived_in_part_is_not_a_cache(cache, run, bucket, monkeypatch, tmp_path, no_waiting):
    url, store = bucket
    put, count = MemoryFileSystem.put_file, 0

    def failing(self, *arguments, **options):
        nonlocal count
        count += 1
        if count > 3:
            raise ConnectionResetError(104, "Connection reset by peer")
        put(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", failing)
        code, _, error = run("cache", "push", cache, url, "--num-threads", "1")
        assert code == 2 and error.startswith(f"error: {url}/") and error.endswith(": Connection reset by peer")
        assert count == 6  # the fourth, three times
    assert held(store).keys() < content(cache).keys() and MANIFEST not in held(store)
    code, _, error = run("cache", "pull", url, tmp_path / "back")
    assert code == 2 and "is a cache that is not finished: it has no manifest.json" in error
    # the tar whose sidecar failed has nothing that says that it is whole
    assert "7 files sent" in run("cache", "push", cache, url)[1]
    assert held(store) == content(cache)


def test_a_failure_that_passes_does_not_end_it(cache, run, bucket, monkeypatch, tmp_path, no_waiting):
    url, _ = bucket
    run("cache", "push", cache, url)
    opened, failed = MemoryFileSystem._open, set()

    def failing(self, path, *arguments, **options):
        if path not in failed:
            failed.add(path)
            raise TimeoutError(110, "Connection timed out")
        return opened(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", failing)
    assert run("cache", "pull", url, tmp_path / "back")[0] == 0
    assert content(tmp_path / "back") == content(cache)
    assert len(failed) == 8  # the manifest, and each file that is fetched


def test_a_file_that_arrives_damaged_is_named(cache, run, bucket, tmp_path, no_waiting):
    url, store = bucket
    run("cache", "push", cache, url)
    store["/bucket/caches/one/shards/train-00001.tar"].getbuffer()[3000] ^= 1
    code, _, error = run("cache", "pull", url, tmp_path / "back")
    assert code == 3 and error.startswith(f"error: {url}: shards/train-00001.tar arrived damaged")


def test_another_cache_is_refused(cache, other, run, bucket, tmp_path):
    url, store = bucket
    run("cache", "push", other, url)
    before = held(store)
    code, _, error = run("cache", "push", cache, url)
    assert code == 2 and f"{url} holds another cache, made from other images or labels" in error
    del store[f"/bucket/caches/one/{MANIFEST}"]
    code, _, error = run("cache", "push", cache, url)
    assert code == 2 and "belongs to another cache" in error
    assert {**before, **held(store)} == before


def test_a_later_state_replaces_an_earlier_one(cache, run, bucket, tmp_path):
    url, store = bucket
    run("cache", "push", cache, url)
    earlier = shutil.copytree(cache, tmp_path / "earlier")
    extend(cache)
    assert run("cache", "push", cache, url)[0] == 0
    assert held(store) == content(cache)
    code, _, error = run("cache", "push", earlier, url)
    assert code == 2 and "holds a later state of this cache" in error


def test_what_is_lost_without_a_failure_is_noticed(cache, run, bucket, monkeypatch):
    url, store = bucket
    sent = MemoryFileSystem.put_file

    def losing(self, local, path, **options):
        sent(self, local, path, **options)
        if path.endswith("train-00001.json"):
            store[path.replace(".json", ".tar")].truncate(9)

    monkeypatch.setattr(MemoryFileSystem, "put_file", losing)
    code, _, error = run("cache", "push", cache, url)
    assert code == 2 and f"{url}/shards/train-00001.tar did not arrive, and 0 other files" in error
    assert MANIFEST not in held(store)


def test_the_first_file_cut_short_is_sent_again(cache, run, tmp_path):
    """A file of a file system that is not atomic, as `file://`, appears before it is whole."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "layout.json").write_bytes((cache / "layout.json").read_bytes()[:100])
    assert run("cache", "push", cache, f"file://{target}")[0] == 0
    assert content(target) == content(cache)
    (target / MANIFEST).write_bytes((cache / MANIFEST).read_bytes()[:100])
    assert run("cache", "push", cache, f"file://{target}")[0] == 0
    assert content(target) == content(cache)
    (target / MANIFEST).unlink()
    flip(target / "layout.json", 100)
    code, _, error = run("cache", "push", cache, f"file://{target}")
    assert code == 3 and "layout.json is damaged" in error


def test_killed_at_any_file_the_same_command_goes_on(cache, processes, tmp_path):
    """`file://` writes without our renames, so these processes end before any of its copies."""
    target = tmp_path / "target"
    url = f"file://{target}"
    num_calls = 1
    while (result := processes("cache", "push", cache, url, "--num-threads", 1, KILL_AT_PUT=3)).code != 0:
        num_calls += 1
        assert result.code == -9 and MANIFEST not in content(target)
    assert num_calls == 4  # at two copies a time: three shards and index, answers
    assert content(target) == content(cache)


def test_what_is_not_installed_or_not_known(cache, run, tmp_path):
    code, _, error = run("cache", "push", cache, "s3://bucket/path")
    assert code == 2 and error == "error: s3://bucket/path: a package is not installed: Install s3fs to access S3"
    code, _, error = run("cache", "pull", "ftps3://bucket/path", tmp_path / "target")
    assert code == 2 and "Protocol not known: ftps3; valid: hf://owner/name, a directory, or a URL" in error
    code, _, error = run("cache", "push", cache, "")
    assert code == 2 and "TARGET: must be hf://owner/name, a URL that fsspec knows, or a directory" in error
    code, _, error = run("cache", "pull", "memory://bucket/nothing", tmp_path / "target")
    assert code == 2 and error == "error: SOURCE: memory://bucket/nothing: nothing is there"
    code, _, error = run("cache", "push", "hf://owner/name", tmp_path / "target")
    assert code == 2 and "CACHE: must be a directory, not hf://owner/name; `masp cache pull` fetches" in error
    code, _, error = run("cache", "pull", cache, "s3://bucket/path")
    assert code == 2 and "CACHE: must be a directory, not s3://bucket/path; `masp cache push` sends" in error
    code, _, error = run("cache", "push", cache, "memory://bucket/x", "--public")
    assert code == 2 and "--public is for repositories of the hub" in error
    assert not (tmp_path / "target").exists()
