"""Writing a shard: nothing is left of one that is abandoned, and the same samples are the same bytes."""

import hashlib
import os
import tarfile

import pytest

from masp.cache.layout import SHARDS, Shard, tar_path
from masp.cache.shard_state import SidecarFingerprint
from masp.cache.writer import ShardWriter
from tests.small_cache import machine_part, make_small_cache


@pytest.fixture
def shard_writer(tmp_path):
    (tmp_path / SHARDS).mkdir()
    return ShardWriter(tmp_path, Shard(0, "train-00000", "train", 0, ()), SidecarFingerprint("0" * 64, machine_part()))


def test_the_same_samples_are_the_same_bytes(tmp_path):
    found = []
    for name in ("one", "other"):
        files = sorted(make_small_cache(tmp_path / name).rglob("*.*"))
        found.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert found[0] == found[1] and len(found[0]) == 11


def test_members_have_fixed_owner_mode_and_time(tmp_path):
    with tarfile.open(make_small_cache(tmp_path / "cache") / SHARDS / "test-00000.tar") as tar:
        members = [(m.uname, m.gname, m.mode, m.mtime, m.name.split(".")[-1]) for m in tar]
    assert members[:2] == [("masp", "masp", 0o444, 0, "json"), ("masp", "masp", 0o444, 0, "safetensors")]


def test_an_abandoned_shard_leaves_nothing(shard_writer, tmp_path):
    assert len(list((tmp_path / SHARDS).iterdir())) == 1
    shard_writer.abandon()
    assert not list((tmp_path / SHARDS).iterdir())


def test_a_temporary_file_that_cannot_be_removed_does_not_hide_the_error(shard_writer, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refuse)
    shard_writer.abandon()


def test_a_shard_of_broken_images_only(shard_writer, tmp_path):
    sidecar = shard_writer.finish()
    assert (sidecar.hidden_size, sidecar.samples, sidecar.tar.bytes) == (None, (), 10240)
    assert tar_path(tmp_path, "train-00000").stat().st_size == 10240
