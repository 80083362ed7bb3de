"""Fetching a cache: only what the manifest names arrives, whole or not at all, whatever is on the other side."""

import hashlib
import json
import shutil
from collections import namedtuple

import pytest

from masp.cache.layout import MANIFEST
from masp.cache.reader import open_cache
from masp.cache.remote.directory import DirectoryPlace
from masp.cache.verify import verify_cache
from masp.cli.main import main
from masp.data.findings import DatasetRecord, Finding, Holdings, save_findings
from masp.errors import InputError
from masp.files.sealed import sealed, unseal_object
from tests.small_cache import make_small_cache
from tests.unit.cache.remote.conftest import content, extend, flip, times


@pytest.fixture
def source(cache, tmp_path):
    return cache.rename(tmp_path / "source")


def edit(path, change):
    """Change a sealed file and give it a right digest again."""
    value = unseal_object(path.read_bytes(), "")
    change(value)
    path.write_bytes(sealed(value))


def test_what_arrives_is_the_cache(source, run, tmp_path):
    code, line, _ = run("cache", "pull", source, tmp_path / "a" / "b")
    assert code == 0 and content(tmp_path / "a" / "b") == content(source)
    assert line.startswith(f"cache: {tmp_path}/a/b: 3 shards, 6 images, ")
    assert line.endswith("; 7 files fetched, every digest is the manifest's")
    assert verify_cache(tmp_path / "a" / "b") == []


def test_only_what_is_missing_or_damaged_is_fetched_again(source, run, tmp_path):
    target = tmp_path / "target"
    run("cache", "pull", source, target)
    before = times(target)
    code, line, _ = run("cache", "pull", source, target)
    assert code == 0 and "all of it was here already" in line and times(target) == before
    flip(target / "shards" / "train-00000.tar")
    (target / "index.h5").unlink()
    flip(target / "answers.safetensors", -3)
    flip(target / "quarantine.jsonl", 5)
    assert "2 files fetched" in run("cache", "pull", source, target)[1]
    assert content(target) == content(source)
    changed = {path.name for path, time in times(target).items() if before[path] != time}
    assert changed == {"train-00000.tar", "index.h5", "answers.safetensors", "quarantine.jsonl", MANIFEST}


def test_a_source_that_is_no_cache(source, run, tmp_path):
    code, _, error = run("cache", "pull", tmp_path / "none", tmp_path / "target")
    assert code == 2 and error == f"error: SOURCE: {tmp_path / 'none'}: does not exist"
    (tmp_path / "empty").mkdir()
    code, _, error = run("cache", "pull", tmp_path / "empty", tmp_path / "target")
    assert code == 2 and "is not a feature cache: it has no manifest.json" in error
    (source / MANIFEST).unlink()
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 2 and "is a cache that is not finished" in error and "masp cache push" in error
    assert not (tmp_path / "target").exists()


def test_a_damaged_manifest_is_named(source, run, tmp_path):
    flip(source / MANIFEST, 200)
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 3 and f"{source / MANIFEST} is damaged" in error
    assert not (tmp_path / "target").exists()


def test_a_manifest_of_another_version(source, run, tmp_path):
    edit(source / MANIFEST, lambda manifest: manifest.update(format_version=2))
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 2 and "manifest.json: format_version is 2, this version of masp reads 1" in error


def test_a_damaged_file_is_named_and_everything_else_stays(source, run, no_waiting, tmp_path):
    target = tmp_path / "target"
    flip(source / "shards" / "train-00001.tar")
    code, _, error = run("cache", "pull", source, target, "--num-threads", "1")
    assert code == 3 and error == (
        f"error: {source}: shards/train-00001.tar arrived damaged: its digest is not the manifest's"
    )
    arrived = content(target)
    assert set(arrived) == {"layout.json", "shards/test-00000.tar", "shards/test-00000.json"} | {
        "shards/train-00000.tar",
        "shards/train-00000.json",
    }
    with pytest.raises(InputError, match="unfinished: 1 of 3 shards are missing .*`masp cache pull` again"):
        open_cache(target)
    before = times(target)
    flip(source / "shards" / "train-00001.tar")  # back to what it was
    assert run("cache", "pull", source, target)[0] == 0
    assert content(target) == content(source)
    assert {path: times(target)[path] for path in before} == before


@pytest.mark.parametrize("name", ["shards/train-00001.json", "index.h5"])
def test_other_damaged_files_are_named(source, run, no_waiting, tmp_path, name):
    flip(source / name, 50)
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 3 and f"{name} arrived damaged" in error
    assert MANIFEST not in content(tmp_path / "target")


def test_sizes_are_the_manifests(source, run, tmp_path):
    tar = source / "shards" / "train-00001.tar"
    size = tar.stat().st_size
    with open(tar, "ab") as file:
        file.truncate(1 << 40)  # a sparse file; nothing of it must be read
    with open(source / "shards" / "train-00001.json", "ab") as file:
        file.truncate(1 << 40)
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 3 and not (tmp_path / "target").exists()
    assert f"{tar} has 1,099,511,627,776 bytes, but the manifest says {size:,} (1 other files do not fit" in error
    (source / "index.h5").unlink()
    tar.unlink()
    assert f"{tar} is missing (2 other files do not fit" in run("cache", "pull", source, tmp_path / "target")[2]


def test_more_bytes_than_listed_are_not_written(source, run, no_waiting, monkeypatch, tmp_path):
    whole = DirectoryPlace.chunks

    def chunks(self, name):
        yield from whole(self, name)
        while name == "index.h5":
            yield b"\0" * (1 << 16)

    monkeypatch.setattr(DirectoryPlace, "chunks", chunks)
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    size = (source / "index.h5").stat().st_size
    assert code == 3 and f"index.h5 arrived with more than its {size:,} bytes" in error
    assert "index.h5" not in content(tmp_path / "target")


STRANGE = ["../../evil", "/evil", "train-00000/../../evil", "train-00000\n", "train-00000.tar", "évil-00000", ""]


@pytest.mark.parametrize("name", STRANGE)
def test_names_that_no_cache_gives_are_refused(source, run, tmp_path, name):
    def rename(manifest):
        shards = manifest["generations"][0]["shards"]
        shards[name] = shards.pop("train-00000")
        next(s for s in manifest["shards"] if s["name"] == "train-00000")["name"] = name

    edit(source / MANIFEST, rename)
    before = sorted(tmp_path.rglob("*"))
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 3 and "must have shards with names such as train-00000" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_are_not_fetched(source, run, tmp_path):
    (source / "run.py").write_text("raise SystemExit('never run')")
    (source / "shards" / "train-00009.tar").write_bytes(b"a stranger")
    (source / "aspect-tokens").mkdir()
    (source / "aspect-tokens" / "x.h5").write_bytes(b"x")
    assert run("cache", "pull", source, tmp_path / "target")[0] == 0
    assert set(content(source)) - set(content(tmp_path / "target")) == {
        "run.py",
        "shards/train-00009.tar",
        "aspect-tokens/x.h5",
    }


def test_a_sidecar_that_says_something_else_is_refused(source, run, tmp_path):
    """The manifest is the stranger's too, so its digests are no proof that the files fit together."""
    edit(source / "shards" / "train-00001.json", lambda sidecar: sidecar["tar"].update(bytes=1 << 20))
    digest = hashlib.sha256((source / "shards" / "train-00001.json").read_bytes()).hexdigest()

    def name_it(manifest):
        next(s for s in manifest["shards"] if s["name"] == "train-00001")["sidecar_sha256"] = digest

    edit(source / MANIFEST, name_it)
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 3 and "train-00001.json is not the sidecar of the shard that the manifest names" in error
    assert MANIFEST not in content(tmp_path / "target")


def test_what_follows_from_the_sidecars_is_made_here(source, run, tmp_path):
    whole = content(source)
    (source / "answers.safetensors").write_bytes(b"a stranger's answers")
    (source / "quarantine.jsonl").write_bytes(b"a stranger's list")
    assert run("cache", "pull", source, tmp_path / "target")[0] == 0
    assert content(tmp_path / "target") == whole


def test_findings_come_along_if_they_are_whole(source, run, tmp_path, capsys):
    digest = open_cache(source).manifest.dataset.digest
    save_findings(source, DatasetRecord(1, digest, Holdings({}, {}), (Finding("ignored", "x is ignored", 1),)))
    assert run("cache", "pull", source, tmp_path / "one")[0] == 0
    assert content(tmp_path / "one") == content(source)
    flip(source / "findings.json", 30)
    assert main(["cache", "pull", str(source), str(tmp_path / "two")]) == 0
    assert f"warning: {source / 'findings.json'} is damaged" in capsys.readouterr().err
    assert "findings.json" not in content(tmp_path / "two")


def test_a_directory_with_another_cache_is_refused(source, other, run, tmp_path):
    target = shutil.copytree(other, tmp_path / "target")
    before = content(target)
    code, _, error = run("cache", "pull", source, target)
    assert code == 2 and f"{target} holds another cache, made from other images or labels" in error
    bf16 = make_small_cache(tmp_path / "bf16", dtype="bf16")
    code, _, error = run("cache", "pull", bf16, target)
    assert code == 2 and 'made with dtype = "fp32", but here it is "bf16"' in error
    code, _, error = run("cache", "pull", source, source)
    assert code == 2 and "is the source itself" in error
    assert content(target) == before


def test_files_that_are_no_caches_stay(source, run, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert run("cache", "pull", source, target)[0] == 0
    assert (target / "notes.txt").read_text() == "mine"


def test_no_room(source, run, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 10, 10))
    code, _, error = run("cache", "pull", source, tmp_path / "target")
    assert code == 2 and " are to be fetched, but 10.0B are free" in error
    assert content(tmp_path / "target") == {}


def test_killed_at_any_moment_the_same_command_goes_on(source, processes, tmp_path):
    target = tmp_path / "target"
    num_calls = 1
    while (result := processes("cache", "pull", source, target, KILL_AT=2)).code != 0:
        num_calls += 1
        assert result.code == -9 and MANIFEST not in content(target)
        with pytest.raises(InputError, match="unfinished|not a feature cache|no manifest"):
            open_cache(target)
    assert num_calls == len(content(source))  # one file a time
    assert content(target) == content(source)


@pytest.mark.parametrize("num_threads", ["0", "65"])
def test_the_number_of_threads_has_limits(source, run, tmp_path, num_threads):
    code, _, error = run("cache", "pull", source, tmp_path / "target", "--num-threads", num_threads)
    assert code == 2 and error == f"error: --num-threads {num_threads}: must be from 1 to 64"


def test_json_of_the_manifest_is_untouched(source, run, tmp_path):
    run("cache", "pull", source, tmp_path / "target")
    found = json.loads((tmp_path / "target" / MANIFEST).read_bytes())
    assert found == json.loads((source / MANIFEST).read_bytes())


def test_images_that_were_added_are_fetched_alone(source, run, tmp_path):
    target = tmp_path / "target"
    run("cache", "pull", source, target)
    earlier = shutil.copytree(source, tmp_path / "earlier")
    before = times(target)
    extend(source)
    code, _, _ = run("cache", "pull", source, target)
    assert code == 0 and content(target) == content(source) and verify_cache(target) == []
    shards = {path for path in before if path.parent.name == "shards"}
    assert {path: times(target)[path] for path in shards} == {path: before[path] for path in shards}
    code, _, error = run("cache", "pull", earlier, target)
    assert code == 2 and "holds a later state of this cache" in error
