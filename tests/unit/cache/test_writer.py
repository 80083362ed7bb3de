"""Writing a shard: nothing is left of one that is abandoned, and the same samples are the same bytes."""

import hashlib
import os
import tarfile
from pathlib import Path

import pytest
import torch

from masp.cache.codec import store
from masp.cache.fingerprint import Machine
from masp.cache.layout import SHARDS, Shard, tar_path
from masp.cache.shard_state import SidecarFingerprint, Source
from masp.cache.writer import ShardWriter
from masp.data.sample import Sample
from masp.vlm.features import Features, ImageLayout
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


OF_FORMAT_1 = {
    "bf16": (
        "64dfa637df936b590e85bf0c0e345a18180f8ef4526ce2e36a92e818848aa45e",
        "b5170dcd6c30156375b8317c04bc6466deb7121e0b92cea98bd95435bfa2fa1c",
    ),
    "fp16": (
        "92ba3038787cedb9a66d2df8f1596df6703a725f03cdbf9a6114989c1f9206cd",
        "2336f7f99710bc509146e6a8fcc7ae76cd95e9e66f82fbb0da47151c62b5c847",
    ),
    "fp32": (
        "223bc7f3fb7dd6c3a858fa10e7e98dededa120b3c6038c342ff6859ba9383218",
        "383818361cc9e8bc4bd4913b89e25cc7f0cf561fbf3914d11483645731d5e3ca",
    ),
    "int8": (
        "d1eb584ee6ad131a0a69144e25da4dfc83266fb18dbe18fa46411ddf240b2e45",
        "d2532011b914a8f7b2467a9d73e2084c20a2928448e299908fb0c812b4856ff9",
    ),
    "fp8": (
        "8346fc5e1496ea693905e723672f745782e3b0c6e8a197a013efcb61a701f07a",
        "746165ca5ce26095f7ad73ac83c33e6b2543555e74f7a5e2e4d8fa7a0fe40361",
    ),
}
"""Of a small cache as it was written before there were deep maps and blocks: the digest of its shards and sidecars, and
that of its other files."""


@pytest.mark.parametrize("dtype", OF_FORMAT_1)
def test_a_cache_without_deep_maps_is_the_same_bytes_as_ever(tmp_path, dtype):
    versions = ("libjpeg-turbo 3.1.2", 1, "12.0.0", "pil", "2.13.0", "5.23.0", "1.6.0")
    folder = make_small_cache(tmp_path / "cache", dtype=dtype, machine=Machine(64, "cpu", "fp32", *versions))
    others = [folder / name for name in ("index.h5", "layout.json", "manifest.json", "quarantine.jsonl")]
    assert (digest(folder, sorted(folder.glob("shards/*"))), digest(folder, others)) == OF_FORMAT_1[dtype]


def digest(folder, paths):
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


@pytest.mark.parametrize("wrong", ["num_tokens", "num_deep_maps"])
def test_samples_that_do_not_fit_are_a_bug_that_is_noticed(tmp_path, wrong):
    shard = Shard(0, "train-00000", "train", 0, ())
    (tmp_path / SHARDS).mkdir()
    writer = ShardWriter(tmp_path, shard, SidecarFingerprint("0" * 64, machine_part()))
    given = {"image_size": (4, 3), "source": Source(9, 10, "1" * 64)}
    stored = store(Features(torch.ones(4, 8), torch.ones(2, 4, 8)), "bf16")
    writer.add(sample("a"), stored, layout=ImageLayout(4), **given)
    if wrong == "num_deep_maps":
        stored = store(Features(torch.ones(4, 8), torch.ones(3, 4, 8)), "bf16")
    with pytest.raises(AssertionError, match="train/b has"):
        writer.add(sample("b"), stored, layout=ImageLayout(5 if wrong == "num_tokens" else 4), **given)
    writer.abandon()


def sample(name):
    return Sample(f"train/{name}", "train", Path("none"), "awe", {})


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
