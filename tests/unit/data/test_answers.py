"""Annotations as they are in the wild, and the answers that they become."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.config import Aspect, load_aspects
from masp.data.answers import Annotation, AnswerForm, answer_form, answer_text, read_annotation
from masp.errors import DataError

ASPECTS = load_aspects()
LEVELS = ("very low", "low", "moderate", "high", "very high")


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
    assert answer_text(ASPECTS["brightness"], value) == answer_text(ASPECTS["colorfulness"], value) == expected


@given(st.floats(0, 1))
def test_every_level_is_a_word_and_they_grow_with_the_value(value):
    word = answer_text(ASPECTS["brightness"], value)
    assert LEVELS.index(word) <= LEVELS.index(answer_text(ASPECTS["brightness"], min(1.0, value + 0.01)))


@pytest.mark.parametrize("value", [1.7, -0.1, float("nan"), float("inf"), "0.5", True, [0.5], {}])
def test_what_is_no_level(value):
    with pytest.raises(ValueError, match="must be a number from 0 to 1"):
        answer_text(ASPECTS["brightness"], value)


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
    assert answer_text(ASPECTS[aspect], value) == expected


@pytest.mark.parametrize(("aspect", "value"), [("object", "dog"), ("object", [1]), ("scene", ["beach"]), ("scene", 3)])
def test_wrong_types(aspect, value):
    with pytest.raises(ValueError, match=r"must be a (list of )?string"):
        answer_text(ASPECTS[aspect], value)


def test_read_annotation(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(
            {"image_id": "amusement_1", "emotion": "amusement", "brightness": 0.0, "object": ["Cat"], "scene": ""}
        ),
        encoding="utf-8-sig",
    )
    assert read_annotation(path, ASPECTS) == Annotation(
        {"object": "cat", "brightness": "very low"}, ("image_id", "emotion")
    )


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
        read_annotation(path, ASPECTS)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_annotation_that_is_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.json: is not valid JSON"):
        read_annotation(tmp_path / "a.json", ASPECTS)


def test_the_published_vocabularies_become_answers():
    """Samples of what EmoSet's vocabularies hold, odd ones included."""
    assert answer_text(ASPECTS["object"], ["Human face", "Door_handle"]) == "human face, door handle"
    assert [answer_text(ASPECTS["brightness"], float(text)) for text in ("0.0", "0.2", "0.4", "0.6", "0.8")] == list(
        LEVELS
    )


# Aspects of one's own


def level(low, high, *words):
    return Aspect("mood", "level", ("How is the mood?",), words, (low, high), "likelihood", None)


@pytest.mark.parametrize(
    ("aspect", "value", "expected"),
    [
        (level(1.0, 10.0, "bad", "fair", "good"), 1, "bad"),
        (level(1.0, 10.0, "bad", "fair", "good"), 3.999, "bad"),
        (level(1.0, 10.0, "bad", "fair", "good"), 4, "fair"),
        (level(1.0, 10.0, "bad", "fair", "good"), 7, "good"),
        (level(1.0, 10.0, "bad", "fair", "good"), 10, "good"),
        (level(-1.0, 1.0, "sad", "glad"), -1, "sad"),
        (level(-1.0, 1.0, "sad", "glad"), -1e-12, "glad"),  # a few bits short of the step
        (level(-1.0, 1.0, "sad", "glad"), -1e-6, "sad"),
        (level(-1.0, 1.0, "sad", "glad"), 0, "glad"),
        (level(1e9, 1e9 + 0.3, "a", "b", "c"), 1e9 + 0.1, "b"),
        (level(1e9, 1e9 + 0.3, "a", "b", "c"), 1e9 + 0.2, "c"),
        (level(0.0, 1e300, "little", "much"), 10**299 * 4, "little"),
    ],
)
def test_a_level_with_bounds_and_words_of_its_own(aspect, value, expected):
    assert answer_text(aspect, value) == expected


@given(st.integers(2, 12), st.integers(-1000, 1000), st.integers(1, 1000), st.data())
def test_every_step_of_a_level_begins_with_its_lower_end(num_words, low, width, data):
    aspect = level(float(low), float(low + width), *(f"word {n}" for n in range(num_words)))
    step = data.draw(st.integers(0, num_words - 1))
    assert answer_text(aspect, low + width * step / num_words) == f"word {step}"


@pytest.mark.parametrize("value", [0.99, 10.01, float("nan"), 10**400, True, "5"])
def test_a_number_out_of_bounds_names_them(tmp_path, value):
    aspect = level(1.0, 10.0, "bad", "good")
    with pytest.raises(ValueError, match="must be a number from 1 to 10"):
        answer_text(aspect, value)
    path = tmp_path / "a.json"
    path.write_text('{"mood": 10.5}')
    with pytest.raises(DataError) as error:
        read_annotation(path, {"mood": aspect})
    assert str(error.value) == f"{path}: mood = 10.5: must be a number from 1 to 10, or be left out"


def test_the_form_of_the_answers_says_what_a_cache_depends_on():
    assert answer_form(ASPECTS["scene"]) == AnswerForm("text") and answer_form(ASPECTS["object"]) == AnswerForm("list")
    form = answer_form(level(0.0, 1.0, "dark", "bright"))
    assert form == AnswerForm("level", (0.0, 1.0), ("dark", "bright"))
    assert str(form) == "a level from 0 to 1 in the words dark, bright"


def test_only_what_is_defined_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"scene": 3, "mood": 2}')
    aspects = {"mood": level(1.0, 10.0, "bad", "good")}
    assert read_annotation(path, aspects) == Annotation({"mood": "bad"}, ("scene",))


def test_the_examples_of_the_document(tmp_path, repository):
    """docs/aspects.md defines three aspects and shows an annotation with what becomes of it."""
    text = (repository / "docs" / "aspects.md").read_text()
    (tmp_path / "aspects.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    aspects = load_aspects(tmp_path / "aspects.yaml")
    assert [aspect.kind for aspect in aspects.values()] == ["text", "list", "level"]
    shown, _, rest = text.partition('`{"weather": ')[2].partition("`")
    (tmp_path / "a.json").write_text('{"weather": ' + shown)
    answers = read_annotation(tmp_path / "a.json", aspects).answers
    assert list(answers) == list(aspects)
    said = " ".join(rest.split())
    weather, animals, crowdedness = (f"`{answer}`" for answer in answers.values())
    assert said.startswith(f"gives the answers {weather}, {animals} and {crowdedness}.")
