"""Annotations as they are in the wild, and the answers that they become."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.data.answers import LEVELS, Annotation, answer_text, read_annotation
from masp.errors import DataError
from masp.taxonomy import ASPECTS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "very low"), (0, "very low"), (0.1, "very low"), (0.19, "very low"),
        (0.2, "low"), (1 - 0.8, "low"), (0.3, "low"), (0.1 + 0.2, "low"),
        (0.4, "moderate"), (0.5, "moderate"), (0.59, "moderate"),
        (0.6, "high"), (0.1 * 6, "high"), (3 * 0.2, "high"), (0.7, "high"), (1.8 - 1.2, "high"),
        (0.8, "very high"), (0.9, "very high"), (1.0, "very high"), (1, "very high"),
    ],
)  # fmt: skip
def test_levels(value, expected):
    assert answer_text("brightness", value) == answer_text("colorfulness", value) == expected


@given(st.floats(0, 1))
def test_every_level_is_a_word_and_they_grow_with_the_value(value):
    word = answer_text("brightness", value)
    assert LEVELS.index(word) <= LEVELS.index(answer_text("brightness", min(1.0, value + 0.01)))


@pytest.mark.parametrize("value", [1.7, -0.1, float("nan"), float("inf"), "0.5", True, [0.5], {}])
def test_what_is_no_level(value):
    with pytest.raises(ValueError, match="must be a number from 0 to 1"):
        answer_text("brightness", value)


@pytest.mark.parametrize(
    ("aspect", "value", "expected"),
    [
        ("human_action", "boxing ", "boxing"),
        ("scene", "bakery/shop", "bakery/shop"),
        ("scene", "airplane_cabin", "airplane cabin"),
        ("facial_expression", "Happy", "happy"),
        ("object", ["Dog", " Alarm_clock", "Tree"], "dog, alarm clock, tree"),
        ("object", ["Tree", "", "Dog"], "tree, dog"),
        ("object", [], None),
        ("object", ["", " "], None),
        ("scene", "", None),
        ("scene", " _ ", None),
        ("scene", None, None),
        ("brightness", None, None),
    ],
)
def test_texts(aspect, value, expected):
    assert answer_text(aspect, value) == expected


@pytest.mark.parametrize(("aspect", "value"), [("object", "dog"), ("object", [1]), ("scene", ["beach"]), ("scene", 3)])
def test_wrong_types(aspect, value):
    with pytest.raises(ValueError, match=r"must be a (list of )?string"):
        answer_text(aspect, value)


def test_read_annotation(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(
            {"image_id": "amusement_1", "emotion": "amusement", "brightness": 0.0, "object": ["Cat"], "scene": ""}
        ),
        encoding="utf-8-sig",
    )
    assert read_annotation(path) == Annotation({"object": "cat", "brightness": "very low"}, ("image_id", "emotion"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is not valid JSON"),
        ("{'a': 1}", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"brightness": 1.7}', "brightness = 1.7: must be a number from 0 to 1, or be left out"),
        ('{"brightness": NaN}', "brightness = nan: must be a number"),
        ('{"object": "dog"}', "object = 'dog': must be a list of strings, or be left out"),
        ('{"scene": "\\ud800x"}', "must be text, without halves of a surrogate pair"),
        ("[]", "must hold one JSON object"),
        ("null", "must hold one JSON object"),
    ],
)
def test_damaged_annotations_name_the_file(tmp_path, content, expected):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_annotation(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_annotation_that_is_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.json: is not valid JSON"):
        read_annotation(tmp_path / "a.json")


def test_the_published_vocabularies_become_answers():
    """Samples of what EmoSet's vocabularies hold, odd ones included."""
    assert set(ASPECTS) == {"facial_expression", "object", "scene", "human_action", "brightness", "colorfulness"}
    assert answer_text("object", ["Human face", "Door_handle"]) == "human face, door handle"
    assert [answer_text("brightness", float(text)) for text in ("0.0", "0.2", "0.4", "0.6", "0.8")] == list(LEVELS)
