"""`findings.json`: written with a cache, bound to it, and never believed where it is of another state of it."""

import json
from pathlib import Path

import pytest

from masp.cache.describe import describe
from masp.cache.findings import FILE, read_findings, record_findings
from masp.cache.layout import read_layout
from masp.cache.manifest import read_manifest
from masp.cache.verify import verify_cache
from masp.data.findings import Finding
from masp.data.sample import Dataset, Sample
from masp.errors import DataError
from tests.small_cache import CATEGORIES, make_small_cache, reseal

FOUND = Finding("ignored", "/data/set/x is ignored", 1, ("/data/set/train/x.bin",))


@pytest.fixture
def folder(tmp_path):
    return make_small_cache(tmp_path / "cache")  # every image has the same digest but the one in quarantine


def record(folder: Path, root: str = "/data/set"):
    sample = Sample("train/awe/000%2Ejpg", "train", Path(root, "a"), "awe", {"scene": "sea"})
    found = Finding(FOUND.kind, FOUND.text.replace("/data/set", root), 1, (f"{root}/train/x.bin",))
    return record_findings(
        folder, read_layout(folder), Dataset("folder", Path(root), CATEGORIES, (sample,), (), (found,))
    )


def test_what_the_bytes_of_images_tell_is_added(folder):
    found = record(folder)
    assert [(f.kind, f.count) for f in found.findings] == [("ignored", 1), ("duplicates", 1), ("labels", 1)]
    assert found.findings[0] == Finding("ignored", "x is ignored", 1, ("train/x.bin",))
    assert "1 in test and train" in found.findings[1].text
    assert found.holdings.categories == {"train": {"awe": 1}} and found.holdings.aspects == {"train": {"scene": 1}}
    assert read_findings(folder, read_manifest(folder)) == found


def test_the_bytes_do_not_depend_on_where_the_dataset_is(folder):
    record(folder)
    before = (folder / FILE).read_bytes()
    record(folder, "/elsewhere")
    assert (folder / FILE).read_bytes() == before


def test_that_of_another_state_is_not_read(folder):
    record(folder)
    reseal(folder / FILE, "dataset", json.dumps("0" * 64))
    assert read_findings(folder, read_manifest(folder)) is None
    assert verify_cache(folder) == []


def test_info_shows_them_or_says_that_they_are_missing(folder):
    assert "findings about the dataset were not recorded; `masp extract` again records them" in describe(folder)
    record(folder)
    note, *_, warning, searched = describe(folder).splitlines()[-4:]
    assert note == "note: x is ignored: train/x.bin"
    assert warning.startswith("warning: 1 images have more than one category")
    assert searched.endswith("were not searched for; `masp extract --near-duplicates` does so")


def test_damage_is_named_and_not_passed_over(folder):
    record(folder)
    path = folder / FILE
    path.write_bytes(path.read_bytes().replace(b'"count": 1', b'"count": 2', 1))
    with pytest.raises(DataError, match="findings.json is damaged.*masp cache verify"):
        read_findings(folder, read_manifest(folder))
    assert [str(problem) for problem in verify_cache(folder)] == ["findings.json: damaged"]
