"""Counting quarantined images without reading whole sidecars."""

import json

import pytest

from masp.cache.layout import read_layout, sidecar_path
from masp.cache.shard_state import read_sidecar
from masp.errors import DataError
from masp.extraction.changes import BadImages, estimate_quarantined, known_keys
from masp.files.sealed import sealed
from tests.small_cache import make_small_cache


@pytest.fixture
def cache(tmp_path):
    return make_small_cache(tmp_path / "cache")


@pytest.mark.parametrize("count", [0, 1, 2, 37, 400])
def test_the_beginning_of_a_sidecar_tells_how_many_are_in_quarantine(cache, count):
    path = sidecar_path(cache, "train-00000")
    value = json.loads(path.read_bytes())
    del value["digest"]
    source = {"bytes": 9, "mtime_ns": 10, "sha256": None}
    value["quarantined"] = [
        {
            "key": f"train/awe/bad{n}",
            "category": "awe",
            "answers": {"scene": "]", "object": '"key": '} if n % 2 else {},
            "path": 'x/é \\ " ]/\n ],\n   "key": ',
            "reason": "damaged " * 20,
            "source": source,
        }
        for n in range(count)
    ]
    path.write_bytes(sealed(value))
    assert len(read_sidecar(cache, "train-00000").quarantined) == count
    assert estimate_quarantined(cache, ["train-00000"]) == count


def test_the_estimate_is_of_all_shards_that_have_sidecars(cache):
    names = read_layout(cache).shard_names
    assert estimate_quarantined(cache, [*names, "train-99999"]) == 1


def test_too_many_bad_images_are_refused_and_not_before(tmp_path):
    bad = BadImages(tmp_path, 100, 0.02)
    bad.add(2)
    assert bad.allows(0) and not bad.allows(1)
    with pytest.raises(DataError, match="3 of 100 images cannot be read, more than extract.max_bad_fraction = 0.02"):
        bad.add(1)


def test_keys_are_known_from_what_is_finished(cache):
    layout = read_layout(cache)
    missing, keys = known_keys(cache, layout)
    assert missing == [] and len(keys) == 7
    sidecar_path(cache, layout.shard_names[0]).unlink()
    missing, fewer = known_keys(cache, layout)
    assert missing == layout.shard_names[:1] and fewer < keys
