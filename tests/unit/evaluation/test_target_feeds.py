"""Whatever the features come from, evaluation sees the labels of the target."""

from pathlib import Path

import numpy as np
import pytest

from masp.annotation.job import annotate
from masp.data.datasets import dataset_of
from masp.errors import InputError
from masp.evaluation.feed import open_feed
from masp.evaluation.findings import cited
from masp.evaluation.linear_probe import linear_probe
from masp.extraction.job import extract
from tests.annotated import make_annotated
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feeds")
    config = make_config(make_dataset(folder / "data", 18, 9, broken=True), make_vlm(folder / "vlm"), folder / "cache")
    extract(config)
    return config


def configured(world, *overrides):
    roots = Path(world.dataset.root), Path(world.vlm.path), Path(world.cache.dir)
    return make_config(*roots, "evaluate.num_workers=0", "target.name=light", *overrides)


def feeds(config):
    """From the cache, live beside a cache, and live without one."""
    found = [open_feed(config)]
    config.evaluate.source = "live"
    found.append(open_feed(config))
    config.cache.dir = None
    return [*found, open_feed(config)]


def test_all_feeds_have_the_labels_of_the_target(world):
    asked = ["target.labels=brightness", "target.questions=[How bright is it]"]
    found = feeds(configured(world, *asked))
    samples = {sample.key: sample for sample in dataset_of(world).samples}
    present = sorted({s.answers["brightness"] for s in samples.values() if "brightness" in s.answers})
    for feed in found:
        assert feed.categories == tuple(present) and len(feed.keys) > 3
        assert feed.labels == [samples[key].answers["brightness"] for key in feed.keys]
        assert all(samples[key].split == "test" for key in feed.keys) and feed.keys == found[0].keys
        for split in ("train", "test"):
            counts = feed.category_counts(split)
            assert counts == found[0].category_counts(split) and sum(counts.values()) == len(
                [s for s in samples.values() if s.split == split and "brightness" in s.answers]
            )
        assert any("target light: " in note and "images are left out" in note for note in feed.notes())
        assert feed.record.holdings.categories["test"] == feed.category_counts("test")
        assert [dict(row) for row in feed.annotations().rows()] == [samples[key].answers for key in feed.keys]
    assert found[1].data_digest == found[2].data_digest
    (batch,) = found[0].batches(found[0].keys[:2], 2)
    assert {item.key for item in batch} == set(found[0].keys[:2])


def test_stage_1_is_scored_on_all_annotated_images_whatever_the_target(world):
    asked = ["target.categories=[joy,anger]", "target.questions=[Which]", "evaluate.stage=stage1"]
    own = make_config(Path(world.dataset.root), Path(world.vlm.path), Path(world.cache.dir), "evaluate.stage=stage1")
    for feed, plain in zip(feeds(configured(world, *asked)), feeds(own), strict=True):
        assert (feed.keys, feed.labels, feed.data_digest) == (plain.keys, plain.labels, plain.data_digest)


def test_a_split_without_any_label_is_refused_in_one_line(world, tmp_path):
    keys = [sample.key for sample in dataset_of(world).samples if sample.split == "train"]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["key,label", *(f"{k},{'dark' if n % 2 else 'light'}" for n, k in enumerate(keys))]))
    config = configured(world, f"target.labels={table}", "target.questions=[How]")
    for source, directory in (("cache", world.cache.dir), ("live", world.cache.dir), ("live", None)):
        config.evaluate.source, config.cache.dir = source, directory
        with pytest.raises(InputError, match="has no image in this split that target light has a label for$"):
            open_feed(config)


def test_the_linear_probe_learns_the_target(world):
    asked = ["target.labels=brightness", "target.questions=[How bright is it]"]
    feed = open_feed(configured(world, *asked))
    num_correct, num_tested, num_train = linear_probe(feed.cache, 0)
    labeled = np.flatnonzero(feed.cache.category >= 0)
    assert num_tested == len(feed.keys) and num_train == len(labeled) - num_tested
    assert 0 <= num_correct <= num_tested


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_stored_answers_are_seen_whatever_the_features_come_from(tmp_path, stage):
    """Some scenes are annotated by people; a broken image is in the dataset, and in quarantine."""
    config = make_annotated(
        tmp_path, "aspects=[weather,scene]", f"evaluate.stage={stage}", "annotate.min_confidence=0.4",
        "extract.max_bad_fraction=0.5", prepare=lambda images: (images / "test" / "joy" / "x.jpg").write_bytes(b"-"),
    )  # fmt: skip
    bare = open_feed(config).annotations()
    annotate(config)
    cached, live = feeds(config)[:2]
    assert cached.keys == live.keys and "weather" in cached.aspects and "weather" not in bare.columns
    assert [dict(row) for row in live.annotations().rows()] == [dict(row) for row in cached.annotations().rows()]
    assert live.different_answers() == cached.different_answers() and live.aspects == cached.aspects
    assert [live.answers_of(key) for key in live.keys] == [cached.answers_of(key) for key in cached.keys]
    assert live.aspect_notes and set(live.aspect_notes) <= set(cached.aspect_notes)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_priors_and_the_linear_probe_are_of_the_subset_that_training_sees(world, stage):
    whole, *_ = feeds(configured(world, "target.labels=brightness"))
    asked = ["target.labels=brightness", "dataset.shots=1", f"evaluate.stage={stage}"]
    found = feeds(configured(world, *asked))
    rows = found[0].cache.rows("train")
    for feed in found:
        assert sum(feed.category_counts("train").values()) == len(rows) == feed.subset.num_images
        assert feed.subset.identity() == found[0].subset.identity()
        assert feed.record.findings[-1].kind == "subset"
        if stage == "stage2":
            assert set(feed.category_counts("train").values()) == {1}
            assert feed.category_counts("test") == whole.category_counts("test") and feed.keys == whole.keys
            counts = cited(configured(world, *asked), feed, {})["dataset"]["splits"]["train"]
            assert counts["num_images"] == sum(whole.category_counts("train").values()) > len(rows)
    if stage == "stage2":
        assert linear_probe(found[0].cache, seed=0)[2] == len(rows)
