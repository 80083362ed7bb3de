"""Images in the place of a cache: the same index, digest and findings; what changes while a run reads them."""

import json
import logging
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masp.cache.findings import findings_of, read_findings
from masp.cache.reader import open_cache, open_matching_cache
from masp.errors import DataError, InputError
from masp.extraction.job import extract
from masp.extraction.live.images import open_live
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Three broken images, one image that is in two splits, and the cache of all."""
    folder = tmp_path_factory.mktemp("live")
    images = make_dataset(folder / "data", broken=True)
    (images / "test" / "joy" / "again.png").write_bytes((images / "train" / "awe" / "train.001.png").read_bytes())
    config = make_config(images, make_vlm(folder / "vlm"), folder / "cache")
    extract(config)
    return config


def test_the_index_is_that_of_a_cache_and_so_is_what_is_known_of_the_dataset(config, tmp_path):
    live = open_live(config)
    with closing(open_cache(config.cache.dir)) as cache:
        assert len(live) == len(cache) and list(live.index.keys) == list(cache.index.keys)
        assert (live.index.num_tokens == cache.index.num_tokens).all() and (live.index.shard == cache.index.shard).all()
        assert (live.categories, live.splits, live.hidden_size) == (cache.categories, cache.splits, cache.hidden_size)
        for split in cache.splits:
            rows = live.rows(split)
            assert (rows == cache.rows(split)).all() and len(rows)
            assert live.num_quarantined(split) == cache.manifest.splits[split].num_quarantined
            for aspect in ("scene", "brightness", "facial_expression"):
                assert (live.has_answer(rows, aspect) == cache.has_answer(rows, aspect)).all()
        for row in range(len(cache)):
            one, other = live.read(row), cache.read(row)
            for name in ("key", "split", "category", "answers", "layout", "image_size"):
                assert getattr(one, name) == getattr(other, name), name
            assert one.features.tokens.is_meta and one.features.tokens.shape == other.features.tokens.shape
            assert one.encoder_flops > 0
        assert live.digest == cache.manifest.dataset.digest
        assert live.record == read_findings(cache.directory, cache.manifest)
        assert any(finding.kind == "duplicates" for finding in live.record.findings)
    live.save_quarantine(tmp_path)
    quarantine = "quarantine.jsonl"
    assert (tmp_path / quarantine).read_bytes() == (Path(config.cache.dir) / quarantine).read_bytes()


@pytest.mark.parametrize("target", ["labels=brightness", "categories=[joy,anger]", "labels={table}"])
def test_another_target_gives_live_images_the_labels_that_it_gives_a_cache(config, tmp_path, target):
    table = tmp_path / "labels.csv"
    keys = open_live(config).index.keys
    lines = [f"{key},{('spring', 'autumn')[number % 2]}" for number, key in enumerate(keys) if number % 5]
    table.write_text("\n".join(["key,label", *lines]))
    own = make_config(
        Path(config.dataset.root), Path(config.vlm.path), Path(config.cache.dir), f"target.{target.format(table=table)}"
    )
    live, (cache, _) = open_live(own), open_matching_cache(own)
    assert live.categories == cache.categories and live.labels.findings == cache.labels.findings != ()
    assert live.labels.digest(live.index.keys) == cache.labels.digest(cache.index.keys)
    num_rows = 0
    for split in cache.splits:
        assert live.rows(split).tolist() == cache.rows(split).tolist()
        num_rows += len(live.rows(split))
    assert 0 < num_rows < len(live)
    for row in range(len(live)):
        one, other = live.read(row), cache.read(row)
        assert (one.key, one.category, one.answers) == (other.key, other.category, other.answers)
    assert live.record == findings_of(cache) and live.digest == cache.manifest.dataset.digest
    assert open_live(own, has_target=False).categories == ("anger", "awe", "joy")


@pytest.mark.parametrize("target", ["", "labels=brightness"])
@pytest.mark.parametrize("setting", ["fraction=0.4", "shots=2"])
def test_training_sees_the_same_images_of_a_subset_live_and_in_a_cache_in_both_stages(config, target, setting):
    given = [f"dataset.{setting}", *([f"target.{target}"] if target else [])]
    own = make_config(Path(config.dataset.root), Path(config.vlm.path), Path(config.cache.dir), *given)
    whole = make_config(Path(config.dataset.root), Path(config.vlm.path), Path(config.cache.dir), *given[1:])
    live, (cache, _), (everything, _) = open_live(own), open_matching_cache(own), open_matching_cache(whole)
    rows, keys = cache.rows("train"), cache.index.keys
    assert 0 < len(rows) < len(everything.rows("train")) and set(rows) < set(everything.rows("train"))
    assert rows.tolist() == live.rows("train").tolist() and cache.rows("test").tolist() == live.rows("test").tolist()
    assert cache.rows("test").tolist() == everything.rows("test").tolist()
    assert cache.subset.identity() == live.subset.identity() and cache.subset.num_images == len(rows)
    assert live.record == findings_of(cache) and live.record.findings[-1].kind == "subset"
    # stage 1 has no target: it sees the images that stage 2 sees
    for stage1 in (open_live(own, has_target=False), open_matching_cache(own, has_target=False)[0]):
        assert stage1.rows("train").tolist() == rows.tolist() and stage1.labels is None
        assert stage1.subset.identity() == cache.subset.identity() and stage1.categories == ("anger", "awe", "joy")
    assert {keys[row] for row in rows} == {live.read(int(row)).key for row in rows}


def test_a_split_that_is_not_there_is_refused(config):
    with pytest.raises(InputError, match=f"dataset.root: {config.dataset.root} has no split 'val'; it has test, train"):
        open_live(config).rows("val")


def test_what_is_left_out_is_said(config, caplog):
    live = open_live(config)
    with caplog.at_level(logging.INFO):
        live.log()
    first, second = caplog.records
    assert first.levelname == "INFO" and "the encoder runs in training" in first.getMessage()
    assert second.levelname == "WARNING"
    assert second.getMessage().startswith("3 of 27 images cannot be read and are left out: ")


@pytest.fixture
def own(config, tmp_path):
    """A dataset of its own, whose images are changed."""
    return make_config(make_dataset(tmp_path / "data", 6, 3), Path(config.vlm.path), tmp_path / "cache")


def test_an_image_that_changes_or_goes_during_a_run(own, monkeypatch):
    live = open_live(own)
    paths = [str(live.samples[row].image) for row in (0, 1, 2)]
    before = os.stat(paths[0])
    pixels = np.asarray(Image.open(paths[0]).convert("RGB")).copy()
    Image.fromarray(255 - pixels).save(paths[0])
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=f"sample {live.index.keys[0]}: {paths[0]} has changed since this run began"):
        live.read(0)
    Path(paths[1]).write_bytes(b"no image")
    with pytest.raises(DataError, match=f"sample {live.index.keys[1]}: {paths[1]} can no longer be read: .*the same"):
        live.read(1)
    os.unlink(paths[2])
    with pytest.raises(DataError, match="can no longer be read: file not found; the same command goes on when it can"):
        live.read(2)
    assert live.read(3).key == live.index.keys[3]


def test_only_training_sees_augmented_images(own):
    own.dataset.augment = "flip"
    live = open_live(own)
    inputs = {
        (row, epoch): live.read(row, epoch=epoch).image.inputs["pixel_values"]
        for row in range(len(live))
        for epoch in (None, 0, 1)
    }
    again = open_live(own)
    assert all(
        (again.read(row, epoch=epoch).image.inputs["pixel_values"] == v).all() for (row, epoch), v in inputs.items()
    )
    flipped = [[bool((inputs[row, e] != inputs[row, None]).any()) for row in range(len(live))] for e in (0, 1)]
    assert flipped[0] != flipped[1] and 0 < sum(flipped[0]) < len(live)
    own.dataset.augment = "none"
    plain = open_live(own)
    assert all((plain.read(row, epoch=1).image.inputs["pixel_values"] == inputs[row, None]).all() for row in range(9))


def test_without_a_broken_image_no_list_is_left(own, tmp_path):
    (tmp_path / "quarantine.jsonl").write_text(json.dumps({"key": "old"}))
    open_live(own).save_quarantine(tmp_path)
    assert not (tmp_path / "quarantine.jsonl").exists()
