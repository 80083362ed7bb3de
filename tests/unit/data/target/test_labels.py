"""Labels of a target: which image has which, and what is known of a dataset that has them."""

import numpy as np
import pytest

from masp.data.findings import DatasetRecord, Finding, Holdings
from masp.data.sample import Sample, Samples
from masp.data.target.labels import NONE, Labels, relabeled


def some_samples():
    return [
        Sample("train/a", "train", "a.jpg", "joy", {"scene": "beach"}, (0.75, 0.25)),
        Sample("train/b", "train", "b.jpg", "joy", {"scene": "beach"}, (0.75, 0.25)),
        Sample("test/c", "test", "c.jpg", "fear", {}, None),
        Sample("train/d", "train", "d.jpg", "joy", {"scene": "street"}, None),
    ]


def labels_of(*numbers, **more):
    return Labels(("summer", "winter"), np.array(numbers, dtype=np.int32), **more)


def test_samples_get_other_labels_and_keep_everything_else():
    samples = Samples.of(some_samples())
    found = relabeled(samples, labels_of(1, 0, NONE, 1))
    assert [sample.category for sample in found] == ["winter", "summer", "", "winter"]
    assert [sample.distribution for sample in found] == [None] * 4
    for before, after in zip(samples, found, strict=True):
        assert (after.key, after.split, after.image, after.answers) == (
            before.key, before.split, before.image, before.answers,
        )  # fmt: skip
    assert [sample.category for sample in samples] == ["joy", "joy", "fear", "joy"]


def test_labels_that_become_equal_are_counted_together():
    samples = Samples.of([
        Sample("train/a", "train", "a.jpg", "joy", {"scene": "beach"}),
        Sample("train/b", "train", "b.jpg", "fear", {"scene": "beach"}),
        Sample("train/c", "train", "c.jpg", "anger", {}),
        Sample("train/d", "train", "d.jpg", "fear", {}),
    ])  # fmt: skip
    found = relabeled(samples, labels_of(1, 1, NONE, NONE))
    assert sorted(found.kinds().values()) == [2, 2] and len(found.table.labels) == 2


def test_a_part_of_samples_in_another_order():
    part = Samples.of(some_samples())[np.array([3, 0])]
    found = relabeled(part, labels_of(0, 1))
    assert [(sample.key, sample.category) for sample in found] == [("train/d", "summer"), ("train/a", "winter")]


def test_distributions_come_with_the_labels():
    shares = np.array([[0.5, 0.5], [0.5, 0.5], [0, 0], [0, 1]])
    found = relabeled(Samples.of(some_samples()), labels_of(0, 0, 1, 1, distribution=shares))
    assert [sample.distribution for sample in found] == [(0.5, 0.5), (0.5, 0.5), None, (0.0, 1.0)]


def test_taking_some_and_naming_them():
    labels = labels_of(1, 0, NONE, 1, distribution=np.array([[0, 1.0], [1, 0], [0, 0], [0.25, 0.75]]))
    assert [labels.name(row) for row in range(4)] == ["winter", "summer", "", "winter"]
    assert [labels.shares(row) for row in range(4)] == [(0.0, 1.0), (1.0, 0.0), None, (0.25, 0.75)]
    part = labels.take(np.array([3, 2]))
    assert [part.name(row) for row in range(2)] == ["winter", ""] and part.shares(0) == (0.25, 0.75)


def test_the_digest_depends_on_labels_and_categories_but_not_on_the_order_of_images():
    keys = ["train/a", "train/b", "test/c"]
    digest = labels_of(0, 1, NONE).digest(keys)
    assert labels_of(1, NONE, 0).digest(["train/b", "test/c", "train/a"]) == digest
    assert labels_of(1, 0).digest(["train/b", "train/a"]) == digest  # images without a label do not matter
    others = [
        labels_of(1, 1, NONE).digest(keys),
        labels_of(0, 1, 1).digest(keys),
        labels_of(0, 1, NONE).digest(["train/a", "train/bb", "test/c"]),
        Labels(("winter", "summer"), np.array([0, 1, NONE])).digest(keys),
    ]
    assert len({digest, *others}) == 5


def test_what_is_known_of_the_dataset_is_counted_by_these_labels():
    findings = (
        Finding("annotations", "some have none", 1),
        Finding("categories", "no image has the category: joy", 1),
        Finding("labels", "one image has two categories", 1),
    )
    aspects = {"test": {}, "train": {"scene": 3}}
    record = DatasetRecord(1, "d" * 64, Holdings({"test": {"fear": 1}, "train": {"joy": 3}}, aspects), findings)
    found = labels_of(1, 1, NONE, 0).record(record, ("test", "train"), np.array([1, 1, 0, 1]))
    assert found.holdings.categories == {"test": {}, "train": {"summer": 1, "winter": 2}}
    assert found.holdings.aspects == aspects and found.dataset == record.dataset
    assert [each.kind for each in found.findings] == ["annotations", "categories"]
    assert "test has no image of 2 categories that train has" in found.findings[1].text


@pytest.mark.parametrize("numbers", [(), (NONE, NONE)])
def test_no_labels_at_all_can_be_digested_and_counted(numbers):
    labels = labels_of(*numbers)
    assert len(labels.digest([f"train/{n}" for n in range(len(numbers))])) == 64
    record = DatasetRecord(1, "", Holdings({"train": {}}, {"train": {}}), ())
    split = np.zeros(len(numbers), dtype=int)
    assert labels.record(record, ("train",), split).holdings.categories == {"train": {}}
