"""The category sets, and how names are compared."""

import pytest

from masp.taxonomy import CATEGORY_SETS, normalize_category


def test_sets_are_normalised_and_distinct():
    for categories in CATEGORY_SETS.values():
        assert [normalize_category(name) for name in categories] == list(categories)
        assert len(set(categories)) == len(categories)
    assert {name: len(categories) for name, categories in CATEGORY_SETS.items()} == {
        "emoset": 8,
        "emotion6": 6,
        "artphoto": 8,
        "abstract": 8,
        "fi": 8,
        "unbiasedemo": 6,
        "emotionroi": 6,
        "twitter1": 2,
        "caer-s": 7,
        "flickr": 2,
        "instagram": 2,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Anger ", "anger"),
        ("very__Happy", "very happy"),
        ("\tJOY", "joy"),
        ("__", ""),
        ("Ärger", "ärger"),
        ("A\u0308rger", "ärger"),
    ],
)
def test_normalize_category(name, expected):
    assert normalize_category(name) == expected
