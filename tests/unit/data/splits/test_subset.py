"""The training images that a run learns from: nested, and independent of order, machine and most of what is added."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.config import load_config
from masp.config.schema import DatasetConfig
from masp.data.findings import DatasetRecord, Holdings
from masp.data.sample import Sample, Samples
from masp.data.splits.subset import (
    choose_subset,
    described,
    has_subset,
    seen_samples,
    subset_of,
    subset_settings,
)
from masp.errors import InputError

CATEGORIES = ("awe", "fear", "joy")
KEYS = [f"train/{CATEGORIES[n % 3]}/{n:03d}%2Ejpg" for n in range(120)]
IMAGES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.integers(-1, 2), st.booleans()), min_size=1, unique_by=lambda image: image[0]
)
FRACTIONS = st.floats(0.001, 1, exclude_max=True)
SEEDS = st.integers(0, 3)


def chosen(images, **settings):
    """Keys that are taken of images (key, category, whether of the training split)."""
    keys = [key for key, _, _ in images]
    category, is_train = (np.array([image[place] for image in images]) for place in (1, 2))
    found = choose_subset(DatasetConfig(root="d", **settings), keys, CATEGORIES, category, is_train.astype(bool))
    return {key for key, taken in zip(keys, found.is_in, strict=True) if taken}, found


def sizes(images):
    return Counter(category for _, category, is_train in images if is_train and category >= 0)


@given(IMAGES, FRACTIONS, FRACTIONS, st.integers(1, 50), st.integers(1, 50), SEEDS)
def test_a_smaller_subset_is_in_a_larger_one(images, one, other, few, many, seed):
    low, high = sorted((one, other))
    smaller, larger = (chosen(images, fraction=value, subset_seed=seed)[0] for value in (low, high))
    assert smaller <= larger
    smaller, larger = (chosen(images, shots=value, subset_seed=seed)[0] for value in sorted((few, many)))
    assert smaller <= larger


@given(IMAGES, FRACTIONS, st.integers(1, 50), SEEDS)
def test_only_labeled_training_images_and_of_every_category_as_many_as_asked_for(images, fraction, shots, seed):
    usable = {key: category for key, category, is_train in images if is_train and category >= 0}
    found, subset = chosen(images, fraction=fraction, subset_seed=seed)
    taken = Counter(usable[key] for key in found)
    for category, size in sizes(images).items():
        assert taken[category] >= 1 and abs(taken[category] - fraction * size) <= max(0.5 + 1e-9, 1 - fraction * size)
    assert (subset.num_images, subset.num_in_split) == (len(found), len(usable))
    assert subset.min_per_category == min(taken.values(), default=0)
    found, subset = chosen(images, shots=shots, subset_seed=seed)
    taken = Counter(usable[key] for key in found)
    assert taken == {category: min(shots, size) for category, size in sizes(images).items()}
    assert dict(subset.short) == {CATEGORIES[c]: size for c, size in sizes(images).items() if size < shots}


@given(IMAGES, st.randoms(), FRACTIONS, st.integers(1, 50), SEEDS)
def test_neither_the_order_nor_other_splits_matter(images, random, fraction, shots, seed):
    others = list(images)
    random.shuffle(others)
    more = [*others, *((f"test/awe/{n}", 0, False) for n in range(5))]
    for settings in ({"fraction": fraction}, {"shots": shots}):
        (found, one), (again, other) = (chosen(each, subset_seed=seed, **settings) for each in (images, more))
        assert found == again and one.digest == other.digest and one.identity() == other.identity()


@given(IMAGES, st.integers(1, 60), st.integers(1, 50), SEEDS)
def test_images_that_are_added_later_never_change_which_of_two_others_is_first(images, num_first, shots, seed):
    before = images[:num_first]
    old = {key for key, _, _ in before}
    few, _ = chosen(before, shots=shots, subset_seed=seed)
    after, _ = chosen(images, shots=shots, subset_seed=seed)
    assert after & old <= few  # an image only enters if it is new
    for fraction in (0.2, 0.6):
        taken, _ = chosen(images, fraction=fraction, subset_seed=seed)
        for number in range(3):
            of_category = {key for key, category, is_train in before if is_train and category == number}
            count = len(taken & of_category)
            assert not count or taken & of_category == chosen(before, shots=count, subset_seed=seed)[0] & of_category


def test_the_choice_is_the_same_on_every_machine():
    images = [(key, n % 3, True) for n, key in enumerate(KEYS)]
    found, subset = chosen(images, shots=2)
    assert sorted(found) == [
        "train/awe/036%2Ejpg", "train/awe/045%2Ejpg", "train/fear/061%2Ejpg", "train/fear/076%2Ejpg",
        "train/joy/011%2Ejpg", "train/joy/068%2Ejpg",
    ]  # fmt: skip  # by sha256sum of "subset 0 <key>"
    assert subset.digest == "ff77eded8cef3a01c709e002e26f7df7d8c6744d814f555a32cc84538ce55a63"
    assert chosen(images, shots=2, subset_seed=1)[0] != found


def test_what_is_said_of_a_subset():
    images = [*((key, n % 2, True) for n, key in enumerate(KEYS[:8])), ("train/joy/one", 2, True)]
    _, subset = chosen(images, shots=3, subset_seed=4)
    assert subset.text == (
        "7 of 9 training images, 1 or more per category (dataset.shots = 3, dataset.subset_seed = 4)"
    )
    taken, short = subset.findings
    assert taken.text == f"training takes {subset.text}" and taken.count == 7
    assert short.text == "1 category has fewer training images than dataset.shots = 3, and all are taken: joy (1)"
    assert not (taken.serious or short.serious)
    record = DatasetRecord(1, "", Holdings({}, {}), ())
    assert subset.record(record) == dataclasses.replace(record, findings=(taken, short))
    identity = subset.identity()
    assert identity["dataset.shots"] == 3 and identity["dataset.subset"]["digest"] == subset.digest
    assert described(identity) == subset.text
    assert described({}) == "" and described({"dataset.subset": 7}) == ""
    odd = {"dataset.subset": {"num_images": "x"}, "dataset.fraction": "y" * 10_000}
    assert described(odd).startswith("? of ? training images") and len(described(odd)) < 500


@pytest.mark.parametrize("settings", [{}, {"fraction": 1}, {"fraction": 1.0, "subset_seed": 3}])
def test_all_images_are_no_subset(settings):
    config = DatasetConfig(root="d", **settings)
    assert not has_subset(config)
    assert choose_subset(config, KEYS, CATEGORIES, np.zeros(len(KEYS)), np.ones(len(KEYS), dtype=bool)) is None
    samples = Samples.of([])
    assert subset_of(config, samples) is None and seen_samples(config, samples) is samples
    overrides = [f"dataset.{name}={value}" for name, value in settings.items()]
    assert subset_settings(load(*overrides)) == ()


def test_samples_are_chosen_by_their_labels_and_other_splits_stay():
    samples = Samples.of(
        [Sample(key, "train", key, CATEGORIES[n % 3] if n % 4 else "", {}) for n, key in enumerate(KEYS)]
        + [Sample(f"test/awe/{n}", "test", "t", "awe", {}) for n in range(7)]
    )
    config = DatasetConfig(root="d", fraction=0.25)
    images = [(key, n % 3 if n % 4 else -1, True) for n, key in enumerate(KEYS)]
    expected, subset = chosen(images, fraction=0.25)
    assert set(samples[subset_of(config, samples).is_in].keys) == expected
    assert subset_of(config, samples).digest == subset.digest
    assert set(seen_samples(config, samples).keys) == expected | {f"test/awe/{n}" for n in range(7)}


def load(*overrides):
    return load_config(None, ["vlm.path=m", "dataset.root=d", "cache.dir=c", *overrides])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["dataset.fraction=0"], "dataset.fraction = 0: must be a number above 0 and of at most 1, or null"),
        (["dataset.fraction=1.5"], "dataset.fraction = 1.5: must be a number above 0"),
        (["dataset.fraction=half"], "dataset.fraction = 'half': must be a number above 0"),
        (["dataset.shots=0"], "dataset.shots = 0: must be an integer of at least 1, or null"),
        (["dataset.shots=2.5"], "dataset.shots = 2.5: must be an integer"),
        (["dataset.subset_seed=-1"], "dataset.subset_seed = -1: must be an integer from 0"),
        (["dataset.fraction=0.5", "dataset.shots=3"], "dataset.fraction = 0.5 and dataset.shots = 3: give one of them"),
        (["dataset.fraction=1", "dataset.shots=3"], "give one of them, the other must be null"),
    ],
)
def test_what_is_no_subset_is_named(overrides, problem):
    with pytest.raises(InputError) as found:
        load(*overrides)
    assert problem in str(found.value) and "\n" not in str(found.value)
