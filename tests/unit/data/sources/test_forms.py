"""One set of images in every form: the same labels, the same features, the same predictions."""

import dataclasses

import numpy as np
import pytest
import torch

from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.config import load_aspects, load_config
from masp.data.datasets import dataset_of, read_dataset
from masp.data.images import load_image
from masp.data.keys import path_of
from masp.errors import InputError
from masp.extraction.extend import extend
from masp.extraction.job import extract
from masp.extraction.repair import repair
from masp.plan.headers.reading import read_sizes
from tests.dataset_forms import FORMS, read_items, write_form
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return read_items(make_dataset(tmp_path_factory.mktemp("items")), NUM_IMAGES)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module", params=FORMS)
def form(request, items, tmp_path_factory):
    return write_form(request.param, tmp_path_factory.mktemp(request.param) / "data", items)


def settings(form):
    return [f"dataset.{setting}" for setting in form.settings]


@pytest.fixture(scope="module")
def expected(items, vlm, tmp_path_factory):
    """Name -> features, from image folders."""
    root = tmp_path_factory.mktemp("expected")
    return features(write_form("folders", root / "data", items), vlm, root / "cache")


def features(form, vlm, directory, *overrides):
    """Name -> features, as a cache of the form has them; every image is encoded alone."""
    config = make_config("none", vlm, directory, *settings(form), "extract.batch_tokens=1", *overrides)
    cache = open_cache(extract(config))
    return {form.item_of(path_of(key)): cache.read(row).features.tokens for row, key in enumerate(cache.index.keys)}


def test_every_form_says_the_same(form, items):
    dataset = read_dataset(load_config(None, ["vlm.path=x", "cache.dir=y", *settings(form)]).dataset, load_aspects())
    by_name = {form.item_of(path_of(sample.key)): sample for sample in dataset.samples}
    assert by_name.keys() == {item.name for item in items}
    for item in items:
        sample = by_name[item.name]
        assert (sample.split, sample.category) == (item.split, item.category)
        assert ("brightness" in sample.answers) == ("brightness" in item.answers)
        assert sample.answers.get("scene") == ("sea side" if item.answers else None)
        assert sample.answers.get("object") == ("dog, tree" if item.answers else None)
    sizes, broken = read_sizes(dataset.samples.images, None, 1)
    assert not broken
    assert list(map(tuple, sizes.tolist())) == [load_image(sample.image).size for sample in dataset.samples]


def test_every_form_gives_the_same_features(form, items, vlm, expected, tmp_path):
    found = features(form, vlm, tmp_path / "cache")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not verify_cache(tmp_path / "cache")


def test_any_number_of_tasks_and_workers_gives_the_same_bytes(form, vlm, tmp_path):
    config = make_config("none", vlm, tmp_path / "one", *settings(form))
    extract(config)
    other = dataclasses.replace(config, cache=dataclasses.replace(config.cache, dir=str(tmp_path / "two")))
    other.extract.num_workers = 2
    for task in (1, 0):
        extract(other, num_tasks=2, task_index=task)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one/shards").iterdir()}
    again = {path.name: path.read_bytes() for path in (tmp_path / "two/shards").iterdir()}
    assert {name: data for name, data in files.items() if name.endswith(".tar")} == {
        name: data for name, data in again.items() if name.endswith(".tar")
    }
    assert (tmp_path / "one/index.h5").read_bytes() == (tmp_path / "two/index.h5").read_bytes()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one/shards").iterdir()}
    extract(config)  # what is finished stays
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one/shards").iterdir()} == before


def test_images_of_a_row_group_come_into_one_shard(items, vlm, tmp_path):
    form = write_form("parquet_bytes", tmp_path / "data", items)
    config = make_config("none", vlm, tmp_path / "cache", *settings(form))
    dataset = dataset_of(config)
    from masp.cache.layout import assign

    order = [int(key.rpartition("/")[2]) // 5 for shard in assign(dataset.samples, 2) for key in shard.samples.keys]
    changes = np.count_nonzero(np.diff(order))
    assert changes <= 2 * len(set(order))  # each split reads each group once


NAMED_ROWS = ("folders", "table_jsonl", "webdataset", "parquet", "arrow")
"""Forms in which an image keeps its name when others come or go."""


@pytest.mark.parametrize("name", NAMED_ROWS)
def test_images_that_come_go_or_change_are_named(name, items, vlm, expected, tmp_path):
    fewer = items[:14] if name == "webdataset" else items[:18]
    config = make_config(
        "none", vlm, tmp_path / "cache", *settings(write_form(name, tmp_path / "data", fewer)), "extract.batch_tokens=1"
    )
    extract(config)
    form = write_form(name, tmp_path / "data", items)
    if name == "webdataset":  # the tars were cut elsewhere: the names of their members are others
        with pytest.raises(InputError, match="is no longer in the dataset"):
            extract(config)
        return
    with pytest.raises(InputError, match=r"sample \S+ is new in the dataset.* `masp cache extend` adds"):
        extract(config)
    cache = open_cache(extend(config))
    found = {form.item_of(path_of(key)): cache.read(row).features.tokens for row, key in enumerate(cache.index.keys)}
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    write_form(name, tmp_path / "data", items[1:])
    with pytest.raises(InputError, match=r"sample \S+ is no longer in the dataset"):
        extract(config)
    other = dataclasses.replace(items[0], data=items[1].data)
    write_form(name, tmp_path / "data", [other, *items[1:]])
    with pytest.raises(InputError, match=r"sample \S+: .* has changed"):
        extract(config)


@pytest.mark.parametrize("name", ["webdataset", "parquet", "arrow"])
def test_a_shard_is_rebuilt_and_a_broken_image_named(name, items, vlm, tmp_path):
    broken = [dataclasses.replace(items[0], data=b"no picture"), *items[1:]]
    config = make_config("none", vlm, tmp_path / "cache", *settings(write_form(name, tmp_path / "data", broken)))
    extract(config)
    quarantine = (tmp_path / "cache/quarantine.jsonl").read_text().splitlines()
    assert len(quarantine) == 1 and "no image, or of a format" in quarantine[0]
    assert ("row " if name != "webdataset" else f"{items[0].name}.png") in quarantine[0]
    tar = next((tmp_path / "cache/shards").glob("train-*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    assert verify_cache(tmp_path / "cache")
    repair(config)
    assert tar.read_bytes() == whole and not verify_cache(tmp_path / "cache")
