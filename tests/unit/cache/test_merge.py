"""Merging sidecars: each is read once, nothing is written before all are known to be good, any order of aspects."""

import hashlib
import os
import shutil
import tracemalloc

import numpy as np
import pytest

from masp.cache import shard_state
from masp.cache.fingerprint import FORMAT_VERSION
from masp.cache.layout import Shard, make_layout, read_layout, sidecar_path
from masp.cache.merge import Merged, _summarize, finalize, merge_sidecars
from masp.cache.reader import open_cache
from masp.cache.shard_state import (
    Member,
    SampleEntry,
    Sidecar,
    Source,
    TarFile,
    UnfinishedCache,
    absent_shards,
    fingerprint_of,
    finished_sidecars,
)
from masp.data.sample import Sample, Samples
from masp.errors import DataError
from tests.small_cache import CATEGORIES, machine_part, make_small_cache, model_part

MERGED = ("index.h5", "quarantine.jsonl", "manifest.json")


@pytest.fixture
def cache(tmp_path):
    return make_small_cache(tmp_path / "cache")


def test_merging_again_gives_the_same_bytes_and_reads_each_sidecar_once(cache, monkeypatch):
    before = {name: (cache / name).read_bytes() for name in MERGED}
    for name in MERGED:
        (cache / name).unlink()
    opened = []
    read = shard_state.read_bytes
    monkeypatch.setattr(shard_state, "read_bytes", lambda path, **options: opened.append(path) or read(path, **options))
    layout = read_layout(cache)
    finalize(cache, layout)
    assert {name: (cache / name).read_bytes() for name in MERGED} == before
    assert opened == [sidecar_path(cache, name) for name in layout.shard_names]


def test_the_bits_of_aspects_are_those_of_the_sorted_names(cache):
    opened = open_cache(cache)
    answers = {s.key: s.answers for sidecar in finished_sidecars(cache, read_layout(cache)) for s in sidecar.samples}
    rows = np.arange(len(opened))
    for aspect in opened.manifest.aspects:
        assert opened.has_answer(rows, aspect).tolist() == [aspect in answers[key] for key in opened.index.keys]
    assert opened.manifest.aspects == ("brightness", "scene")


@pytest.mark.parametrize("damage", ["gone", "tar gone", "flipped", "tar short", "another's"])
def test_a_shard_that_is_not_finished_is_named_and_nothing_is_written(cache, damage):
    layout = read_layout(cache)
    name = layout.shard_names[1]
    side, tar = sidecar_path(cache, name), cache / "shards" / f"{name}.tar"
    if damage == "gone":
        side.unlink()
    elif damage == "tar gone":
        tar.unlink()
    elif damage == "flipped":
        side.write_bytes(side.read_bytes().replace(b'"hidden_size": 8', b'"hidden_size": 9'))
    elif damage == "tar short":
        os.truncate(tar, 100)
    else:
        text = side.read_bytes()
        side.write_bytes(text.replace(layout.model_digest.encode(), b"0" * 64))
    for file in MERGED:
        (cache / file).unlink()
    assert absent_shards(cache, layout) == ([name] if "gone" in damage else [])
    with pytest.raises(UnfinishedCache, match=f"1 of 3 shards are missing \\({name}\\)") as found:
        finalize(cache, layout)
    assert found.value.missing == (name,)
    assert not any((cache / file).exists() for file in MERGED)


def test_shards_of_different_numbers_of_deep_maps_are_not_merged(tmp_path):
    cache, other = (make_small_cache(tmp_path / str(count), num_deep_maps=count) for count in (2, 3))
    for file in ("train-00001.json", "train-00001.tar"):
        shutil.copyfile(other / "shards" / file, cache / "shards" / file)
    before = {name: (cache / name).read_bytes() for name in MERGED}
    with pytest.raises(DataError, match="sidecar train-00001: num_deep_maps = 3, but 2 in the shards before it"):
        finalize(cache, read_layout(cache))
    assert {name: (cache / name).read_bytes() for name in MERGED} == before


def test_what_examines_a_sidecar_can_refuse_it_before_anything_is_written(cache):
    def refuse(number, sidecar):
        raise RuntimeError(f"{number} {sidecar.name}")

    names = read_layout(cache).shard_names
    with pytest.raises(RuntimeError, match=f"1 {names[1]}"):
        merge_sidecars(cache, read_layout(cache), refuse, [None, *range(1, len(names))])


@pytest.mark.full
def test_processes_give_the_same_bytes_and_problems(cache, monkeypatch):
    layout = read_layout(cache)
    before = {name: (cache / name).read_bytes() for name in MERGED}
    expected = merge_sidecars(cache, layout).content_findings()
    monkeypatch.setattr(shard_state, "_MANY", 1)
    monkeypatch.setattr(shard_state, "default_processes", lambda: 1)
    merged = merge_sidecars(cache, layout)
    assert merged.content_findings() == expected
    finalize(cache, layout, merged)
    assert {name: (cache / name).read_bytes() for name in MERGED} == before
    assert shard_state.missing_shards(cache, layout) == []
    sidecar_path(cache, layout.shard_names[0]).write_bytes(b"{}")
    assert shard_state.missing_shards(cache, layout) == [layout.shard_names[0]]
    with pytest.raises(UnfinishedCache):
        merge_sidecars(cache, layout)


def test_an_image_takes_few_bytes_of_memory():
    num_shards, size = 40, 250
    sample = Sample("train/awe/0", "train", "none", "awe", {})
    shards = [Shard(n, f"train-{n:05d}", "train", 0, Samples.of([sample] * size)) for n in range(num_shards)]
    layout = make_layout("folder", CATEGORIES, num_shards, shards, model_part(), machine_part())
    tracemalloc.start()
    try:
        merged = Merged(layout)
        for shard in shards:
            merged.add(_summarize(a_sidecar(layout, shard), "0" * 64, 0, {"awe": 0}))
        assert len(merged.content_findings()) == 1
        assert merged.summary().splits["train"].num_samples == num_shards * size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # as objects they would take ten times that
    assert peak < 400 * num_shards * size, peak / (num_shards * size)


def a_sidecar(layout, shard):
    """A sidecar of images with long keys, two of which are equal."""
    samples = tuple(
        SampleEntry(
            key=f"train/contentment/train_contentment_{shard.number:05d}_{n:04d}%2Ejpg",
            category="awe",
            answers={"scene": f"place {n % 100}", "brightness": "low", "object": f"thing {shard.number}"},
            image_size=(40, 30),
            grid=(1, 2, 2),
            num_tokens=1,
            json=Member(10 * n, 5, 7),
            features=Member(10 * n + 5, 5, 7),
            source=Source(9, 10, hashlib.sha256(b"%d %d" % (shard.number, max(n, 1))).hexdigest()),
        )
        for n in range(len(shard.samples))
    )
    tar = TarFile(10 * len(samples), "1" * 64)
    return Sidecar(FORMAT_VERSION, shard.name, "train", 0, tar, fingerprint_of(layout), 8, samples, ())
