"""What a target holds: this cache, an earlier state of it, or another one, which the message names."""

import shutil
from dataclasses import replace

import pytest

from masp.cache.layout import LAYOUT, MANIFEST, layout_bytes, read_layout
from masp.cache.manifest import read_manifest
from masp.cache.remote.cache_files import shard_parcels
from masp.cache.remote.directory import DirectoryPlace
from masp.cache.remote.same_cache import TargetState, examine_target, read_remote_manifest
from masp.errors import DataError, InputError
from masp.files.sealed import sealed, unseal_object
from tests.small_cache import make_small_cache


@pytest.fixture
def examine(small):
    """Examines a directory as the target of the small cache."""
    manifest, data = read_manifest(small), (small / MANIFEST).read_bytes()
    names = [file.name for parcel in shard_parcels(manifest) for file in parcel]

    def examine(directory):
        place = DirectoryPlace(directory, "TARGET")
        place.look()
        return examine_target(place, manifest, data, names)

    return examine


def rewrite(directory, **changes):
    (directory / LAYOUT).write_bytes(layout_bytes(replace(read_layout(directory), **changes)))


def test_states_of_this_cache(examine, cache, tmp_path):
    assert examine(tmp_path / "none") == TargetState(False, False, False)
    assert examine(cache) == TargetState(True, True, True)
    (cache / MANIFEST).write_bytes((cache / MANIFEST).read_bytes()[:500])
    assert examine(cache) == TargetState(False, True, False)
    (cache / MANIFEST).unlink()
    assert examine(cache) == TargetState(False, False, False)


def test_fields_that_differ_are_named(examine, cache, tmp_path):
    (cache / MANIFEST).unlink()
    layout = read_layout(cache)
    rewrite(cache, categories=("awe", "joy"))
    with pytest.raises(InputError, match=r'holds another cache, which was made with dataset.categories = \["awe", "jo'):
        examine(cache)
    rewrite(cache, categories=layout.categories, model={**layout.model, "max_pixels": 9})
    with pytest.raises(InputError, match="was made with max_pixels = 9, but here it is null"):
        examine(cache)
    rewrite(cache, model=layout.model, machine=replace(layout.machine, pillow="1.0"))
    with pytest.raises(InputError, match='was made with pillow = "1.0", but here it is'):
        examine(cache)
    first = layout.generations[0]
    fewer = replace(first, shards={**first.shards, "train-00001": 1})
    rewrite(cache, machine=layout.machine, generations=(fewer,))
    with pytest.raises(InputError, match="holds another cache, made from other images; give an empty target"):
        examine(cache)


def test_more_images_are_another_cache(examine, tmp_path):
    with pytest.raises(InputError, match="holds another cache, made from other images"):
        examine(make_small_cache(tmp_path / "more", num_train=9))


def test_other_versions_are_refused_by_their_number(cache):
    value = unseal_object((cache / MANIFEST).read_bytes(), "")
    with pytest.raises(InputError, match="hf://a/b/manifest.json: format_version is 7, this version of masp reads 1"):
        read_remote_manifest(sealed({"format_version": 7, "new": value}), "hf://a/b/manifest.json")
    with pytest.raises(DataError, match="hf://a/b/manifest.json: .*new"):
        read_remote_manifest(sealed({**value, "new": 1}), "hf://a/b/manifest.json")
    with pytest.raises(DataError, match="damaged"):
        read_remote_manifest(b"<html>", "hf://a/b/manifest.json")


def test_files_without_a_layout(examine, cache):
    shutil.rmtree(cache / "shards")
    (cache / MANIFEST).unlink()
    (cache / LAYOUT).write_bytes(b"half")
    assert examine(cache) == TargetState(False, False, False)  # index and the like are not named here
