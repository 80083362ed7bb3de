"""What an accuracy is worth, by counted cases."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from masp.results.breakdown import MAX_VALUES, SplitCounts, ValueGroups, few_predicted, majority_class
from masp.results.metrics import wilson_interval


def test_images_that_were_not_scored_count_as_wrong():
    split = SplitCounts(6, num_quarantined=1, left_out={"surprise": 2, "joy": 1})
    assert split.to_json() == {
        "num_in_split": 10, "num_quarantined": 1, "num_left_out": 3, "left_out": {"surprise": 2, "joy": 1}
    }  # fmt: skip
    assert split.shares(6, 5) == {
        "coverage": 0.6, "accuracy_of_split": 0.5, "accuracy_of_split_ci95": wilson_interval(5, 10)
    }  # fmt: skip


def test_coverage_is_1_only_where_every_image_was_scored():
    assert SplitCounts(6).shares(6, 5)["coverage"] == 1 and SplitCounts(6).shares(6, 5)["accuracy_of_split"] == 5 / 6
    assert SplitCounts(6, num_quarantined=1).shares(6, 5)["coverage"] == 6 / 7
    assert SplitCounts(6, left_out={"x": 1}).shares(6, 5)["coverage"] == 6 / 7
    # two images with 3 answers each, and one in quarantine that could have had three aspects
    assert SplitCounts(2, num_quarantined=1).shares(6, 6, 3)["accuracy_of_split"] == 6 / 9


def test_the_majority_class_is_scikit_learns_dummy():
    random = np.random.default_rng(0)
    names = np.array(["joy", "fear", "awe"])
    train, test = (random.choice(names, size, p=(0.2, 0.5, 0.3)) for size in (100, 40))
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((100, 1)), train)
    counts = [dict(zip(*np.unique(labels, return_counts=True), strict=True)) for labels in (train, test)]
    found = majority_class(counts[0], "train", counts[1], ("awe", "fear", "joy"))
    assert found.category == dummy.predict([[0]])[0] == "fear"
    assert found.accuracy == dummy.score(np.zeros((40, 1)), test) and found.share == (train == "fear").mean()


def test_of_equally_large_categories_the_first_is_taken_and_it_may_not_occur():
    found = majority_class({"b": 2, "a": 2}, "train", {"c": 4}, ("b", "a", "c"))
    assert (found.category, found.accuracy, found.accuracy_ci95) == ("b", 0.0, wilson_interval(0, 4))


@pytest.mark.parametrize(
    ("predicted", "support", "remark"),
    [
        ({"a": 4, "b": 0}, {"a": 2, "b": 2}, "it never predicts any category but 'a'"),
        ({"a": 3, "b": 1, "c": 0}, {"a": 2, "b": 1, "c": 1}, "it never predicts 1 of 3 categories ('c')"),
        ({}, {"a": 1}, "it never predicts any category"),
        ({"a": 1, "b": 1}, {"a": 2, "b": 0}, None),
        ({"a": 2, "b": 1}, {"a": 1, "b": 2}, None),
        ({"a": 4}, {"a": 4, "b": 0}, None),
        (dict.fromkeys("ab", 1), dict.fromkeys("abcdef", 1), "it never predicts 4 of 6 categories ('c', 'd', 'e', …)"),
    ],
)
def test_categories_that_are_never_predicted_are_remarked_on(predicted, support, remark):
    assert few_predicted(predicted, support) == remark


def test_accuracy_per_value_by_hand():
    groups = ValueGroups(("scene", "object"), lists=("object",))
    is_right = np.array([True, False, True])
    groups.add("scene", ("beach", "city, old", "of no sample"), np.array([0, 0, 1]), is_right)
    groups.add("object", ("dog, tree, dog",), np.array([0, -1, -1]), is_right)
    groups.add("mood", ("x",), np.array([-1, -1, 0]), is_right)
    found = groups.to_json()
    assert {a: list(values) for a, values in found.items()} == {
        "scene": ["beach", "city, old"], "object": ["dog", "tree"]
    }  # fmt: skip
    beach = found["scene"]["beach"]
    assert (beach["num_samples"], beach["num_correct"], beach["accuracy"]) == (2, 1, 0.5)
    assert beach["accuracy_ci95"] == wilson_interval(1, 2) and beach["is_small"]
    assert found["object"]["dog"]["num_samples"] == 1  # named twice, one image


def test_large_groups_are_not_marked_and_the_smallest_of_many_are_left_out():
    groups = ValueGroups(("scene", "object"))
    places = [f"place {number:03}" for number in range(MAX_VALUES + 5)]
    numbers = np.array([*range(MAX_VALUES + 5), *[7] * 29])
    groups.add("scene", places, numbers, np.ones(len(numbers), dtype=bool))
    found = groups.to_json()
    assert list(found) == ["scene"] and len(found["scene"]) == MAX_VALUES
    assert next(iter(found["scene"])) == "place 007" and not found["scene"]["place 007"]["is_small"]
    assert groups.num_values() == {"scene": MAX_VALUES + 5}
