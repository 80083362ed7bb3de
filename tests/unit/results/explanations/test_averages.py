"""Averages of explanations, recomputed one number at a time."""

import random
import statistics

import numpy as np
import pytest

from masp.results.explanations.averages import averages_of
from masp.results.explanations.explanation import AspectExplanation, Explanation

CATEGORIES, ASPECTS = ("awe", "fear", "joy"), ("scene", "object")


def explanations(count, seed=0, vision_features=True):
    draw = random.Random(seed)
    found, labels = [], []
    for number in range(count):
        category = draw.choice(CATEGORIES[:2])
        aspects = tuple(AspectExplanation(name, "x", 0.5, draw.gauss(number % 2, 1), 0.1) for name in ASPECTS)
        vision = draw.gauss(0, 1) if vision_features else None
        together = draw.gauss(2, 1) if vision_features else None
        found.append(
            Explanation(f"i{number}", category, 0.6, dict.fromkeys(CATEGORIES, 1 / 3), aspects, together, vision)
        )
        labels.append(draw.choice(CATEGORIES))
    return found, labels


def test_means_are_those_of_the_images_they_name():
    found, labels = explanations(40)
    averages = averages_of(found, labels, ASPECTS, CATEGORIES)

    def check(means, chosen, size=lambda value: value):
        assert means.num_images == len(chosen)
        for place, name in enumerate(ASPECTS):
            expected = statistics.fmean(size(each.aspects[place].contribution) for each in chosen)
            assert means.aspects[name].mean == pytest.approx(expected, abs=1e-12)
        for name in ("all_aspects", "vision_features", "interaction"):
            expected = statistics.fmean(size(getattr(each, name)) for each in chosen)
            assert getattr(means, name).mean == pytest.approx(expected, abs=1e-12)

    check(averages.signed, found)
    check(averages.absolute, found, abs)
    for category in CATEGORIES[:2]:
        check(averages.by_prediction[category], [each for each in found if each.category == category])
        check(averages.by_label[category], [e for e, label in zip(found, labels, strict=True) if label == category])
    none = averages.by_prediction["joy"]  # nothing was predicted as it
    assert none.num_images == 0 and [mean for _, mean in none.parts(ASPECTS)] == [None] * 5


def test_intervals_are_a_bootstrap_over_images():
    """Against images drawn with replacement one by one."""
    found, labels = explanations(60, seed=1)
    interval = averages_of(found, labels, ASPECTS, CATEGORIES).signed.aspects["scene"].ci95
    values = np.array([each.aspects[0].contribution for each in found])
    random = np.random.default_rng(5)
    means = [values[random.integers(0, 60, 60)].mean() for _ in range(4000)]
    assert interval == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.05)
    assert averages_of(found, labels, ASPECTS, CATEGORIES).signed.aspects["scene"].ci95 == interval  # a fixed seed


def test_one_image_has_no_interval_and_absent_parts_have_no_mean():
    found, labels = explanations(1, vision_features=False)
    signed = averages_of(found, labels, ASPECTS, CATEGORIES).signed
    assert signed.aspects["scene"].mean == found[0].aspects[0].contribution and signed.aspects["scene"].ci95 is None
    assert signed.vision_features is None and signed.all_aspects is None and signed.interaction is None
