"""Distributions in a cache: they come back as they were, and a cache without any is what it was before there were."""

import json

import h5py
import numpy as np
import pytest

from masp.cache.codec import decode_record
from masp.cache.describe import describe
from masp.cache.index import load_index, save_index, shard_columns
from masp.cache.layout import assign, read_layout
from masp.cache.manifest import read_manifest
from masp.cache.reader import open_cache
from masp.cache.shard_state import finished_sidecars
from masp.cache.verify import verify_cache
from masp.data.sample import Sample
from masp.errors import DataError
from masp.extraction.changes import compare_shard
from masp.files.sealed import digest_file
from tests.small_cache import CATEGORIES, make_small_cache, reseal

THIRDS = (1 / 3, 2 / 3)


def votes(number):
    """Every other sample has a distribution, which names its category; that of the quarantined sample too."""
    return None if number % 4 > 1 else (0.75, 0.25) if number % 2 == 0 else THIRDS


@pytest.fixture
def folder(tmp_path):
    return make_small_cache(tmp_path / "cache", num_train=9, num_test=6, votes=votes)


def test_they_come_back_as_they_were(folder):
    cache = open_cache(folder)
    expected = [votes(int(key.rpartition("/")[2][:3])) for key in cache.index.keys]
    assert None in expected and THIRDS in expected
    rows = np.arange(len(cache))
    assert [cache.read(row).distribution for row in rows] == expected
    assert cache.has_distribution(rows).tolist() == [found is not None for found in expected]
    assert cache.index.distributions(rows).tolist() == [list(found or (0.0, 0.0)) for found in expected]
    manifest = read_manifest(folder)
    assert sum(split.num_distributions for split in manifest.splits.values()) == len(expected) - expected.count(None)
    assert verify_cache(folder) == []
    assert "votes        8 of 14 images have a distribution" in describe(folder)
    save_index(folder / "again.h5", cache.index)
    assert (folder / "again.h5").read_bytes() == (folder / "index.h5").read_bytes()


def test_only_where_there_are_any_is_anything_of_them_written(tmp_path, folder):
    plain = make_small_cache(tmp_path / "plain", num_train=9, num_test=6)
    files = [path for path in sorted(plain.rglob("*")) if path.is_file()]
    assert len(files) > 8 and not any(b"distribution" in path.read_bytes() for path in files)
    cache, other = open_cache(plain), open_cache(folder)
    assert not cache.has_distribution(np.arange(len(cache))).any() and cache.index.distribution is None
    assert cache.manifest.dataset.digest != other.manifest.dataset.digest
    assert verify_cache(plain) == [] and "votes" not in describe(plain)


def test_a_shard_without_any_beside_one_that_has_some(tmp_path):
    cache = open_cache(make_small_cache(tmp_path / "cache", votes=lambda number: (1.0, 0.0) if number == 4 else None))
    rows = np.arange(len(cache))
    assert cache.has_distribution(rows).sum() == 1
    assert cache.index.keys[int(cache.has_distribution(rows).argmax())].endswith("004%2Ejpg")
    assert verify_cache(cache.directory) == []


def test_another_distribution_is_a_change_of_the_dataset(folder):
    [sidecar] = [sidecar for sidecar in finished_sidecars(folder, read_layout(folder)) if sidecar.split == "test"]
    samples = [Sample(e.key, "test", "none", e.category, e.answers, e.distribution) for e in sidecar.entries]
    samples[0].distribution = (0.9, 0.1)
    [shard] = assign(samples, 1)
    found = compare_shard(shard, sidecar)
    [change] = [change for change in found.changes if "was cached with" in change]
    assert "was cached with distribution" in change and change.endswith("now it is (0.9, 0.1)")


def test_one_over_other_categories_is_named(folder):
    with pytest.raises(DataError, match=r"the distribution of t\S+ has 2 numbers, for 3 categories"):
        for sidecar in finished_sidecars(folder, read_layout(folder)):
            shard_columns(sidecar, 0, 0, dict.fromkeys([*CATEGORIES, "joy"], 0), {"scene": 1, "brightness": 2})


@pytest.mark.parametrize(
    ("value", "message"),
    [([0.5, 0.6], "must sum to 1"), ([1.5, -0.5], "0 or more"), (["1", 0], "number"), (0.5, "array"), ([], "number")],
)
def test_what_is_not_a_distribution_is_refused_where_it_is_read(folder, value, message):
    record = json.loads(bytes(open_cache(folder)._span(0, int(open_cache(folder).index.json_length[0]))))
    decode_record(json.dumps({**record, "distribution": [0.5, 0.5]}).encode())
    with pytest.raises(DataError, match=rf"the JSON member: distribution.*{message}"):
        decode_record(json.dumps({**record, "distribution": value}).encode())


def change_index(folder, change):
    with h5py.File(folder / "index.h5", "r+") as file:
        change(file)
    path = folder / "index.h5"
    index = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    reseal(folder / "manifest.json", "index", json.dumps(index, separators=(",", ":")))


def test_a_damaged_column_is_named(folder):
    change_index(folder, lambda file: file["distribution"].__setitem__((0, 0), 7.0))
    with pytest.raises(DataError, match="column distribution holds values that cannot be"):
        load_index(folder / "index.h5")


def test_a_column_that_the_sidecars_do_not_have_is_found(folder):
    cache = open_cache(folder)
    row = int(cache.has_distribution(np.arange(len(cache))).argmax())
    change_index(folder, lambda file: file["distribution"].__setitem__(row, (1.0, 0.0)))
    assert [str(problem) for problem in verify_cache(folder)] == [
        "index.h5: column distribution does not agree with the sidecars"
    ]
    change_index(folder, lambda file: file.__delitem__("distribution"))
    assert "distribution" in str(verify_cache(folder)[0])


def test_a_column_of_another_width_is_not_the_manifests(folder):
    wide = np.zeros((14, 3))

    def widen(file):
        del file["distribution"]
        file.create_dataset("distribution", data=wide)

    change_index(folder, widen)
    with pytest.raises(DataError, match="does not agree with the manifest"):
        open_cache(folder)
