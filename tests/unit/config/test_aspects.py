"""The file that defines the aspects."""

import pytest

from masp.config import load_aspects, load_config
from masp.errors import InputError

NEEDED = ["vlm.path=vlm", "dataset.root=data", "cache.dir=cache"]
WEATHER = """
weather:
  questions: ["What is the weather?"]
  vocabulary: [Rain, fog, clear_sky]
  absent: Not visible
"""


@pytest.fixture
def defined(tmp_path):
    def write(text):
        path = tmp_path / "aspects.yaml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_file_has_the_six_of_the_method():
    aspects = load_aspects()
    assert list(aspects) == ["facial_expression", "object", "scene", "human_action", "brightness", "colorfulness"]
    assert {each.kind for each in aspects.values()} == {"text", "list", "level"}
    assert aspects["brightness"].annotate == "brightness" and aspects["object"].annotate == "generate"
    assert aspects["scene"].annotate == "likelihood" and "amusement park" in aspects["scene"].vocabulary
    assert aspects["colorfulness"].vocabulary == ("very low", "low", "moderate", "high", "very high")
    assert all(len(each.questions) == 4 for each in aspects.values())


def test_an_aspect_of_ones_own(defined):
    path = defined(WEATHER)
    (weather,) = load_aspects(path).values()
    assert (weather.name, weather.kind, weather.annotate) == ("weather", "text", "likelihood")
    assert weather.vocabulary == ("rain", "fog", "clear sky") and weather.absent == "not visible"
    # without `aspects`, all that are defined are in use
    assert load_config(None, [*NEEDED, f"aspect_definitions={path}"]).aspects == ["weather"]
    assert load_config(None, [*NEEDED, f"aspect_definitions={path}", "aspects=[]"]).aspects == []
    columns = "dataset.columns={weather: sky}"
    assert load_config(None, [*NEEDED, f"aspect_definitions={path}", columns]).dataset.columns == {"weather": "sky"}
    with pytest.raises(InputError, match="'weather' is not something that a column may hold; valid are image, label"):
        load_config(None, [*NEEDED, columns])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must define 1 to 64 aspects, not 0"),
        ("weather: 3", "line 1: weather = 3: must be a section with questions"),
        ("weather: {kind: text}", "line 1: questions must be given"),
        ("weather: {questions: []}", "weather.questions = []: must hold at least one question"),
        ("weather: {questions: [Q], vocabulary: []}", "weather.vocabulary = []: must hold the possible answers, or"),
        ("weather: {questions: [Q], vocabulary: [rain]}", "needs two or more answers to choose from"),
        ("weather: {questions: [Q], vocabulary: [rain, Rain]}", "must hold different words"),
        ("weather:\n  questions: [Q]\n  vocabluary: [a, b]", "aspect weather, line 3: unknown key 'vocabluary'"),
        ("weather: {questions: [Q], kind: word}", "kind = 'word': must be one of text, list, level"),
        ("weather: {questions: Q}", "questions = 'Q': must be a list such as [Name the scene.]"),
        ("weather: {questions: [Q], annotate: likelihood}", "annotate = likelihood: needs a vocabulary"),
        ("weather: {questions: [Q], annotate: brightness}", "gives a number, so it needs kind = level"),
        ("weather: {questions: [Q], vocabulary: [a, b], absent: A}", "weather.absent = 'A': is one of the possible"),
        ("weather: {questions: [Q], bounds: [0, 1]}", "weather.bounds: only of kind = level"),
        ("weather: {questions: [Q], words: [a, b]}", "weather.words: not with kind = text; give vocabulary"),
        ("n: {questions: [Q], kind: level, words: [a, b]}", "n.bounds = null: a level needs two numbers"),
        ("n: {questions: [Q], kind: level, words: [a, b], bounds: [1, 0]}", "the lower one first"),
        ("n: {questions: [Q], kind: level, words: [a], bounds: [0, 1]}", "a level needs two or more words"),
        ("n: {questions: [Q], kind: level, words: [a, b], bounds: [0]}", "bounds = [0]: must be a list such as"),
        ("label: {questions: [Q]}", "'label' cannot be the name of an aspect"),
        ("n: {questions: [Q], kind: level, words: [a, b], bounds: [-1.7e308, 1.7e308]}", "a level needs two numbers"),
        ("a: {questions: [Q]}\nA: {questions: [Q]}", "line 2: the aspects 'a' and 'A' differ only in case or - and _"),
        ("a_b: {questions: [Q]}\na-b: {questions: [Q]}", "the aspects 'a_b' and 'a-b' differ only in case or"),
        ("a.b: {questions: [Q]}", "'a.b' cannot be the name of an aspect"),
    ],
)
def test_refused(defined, text, expected):
    with pytest.raises(InputError) as caught:
        load_aspects(defined(text))
    message = str(caught.value)
    assert expected in message and "\n" not in message and "aspects.yaml" in message


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"aspect_definitions: .*none\.yaml does not exist"):
        load_config(None, [*NEEDED, f"aspect_definitions={tmp_path / 'none.yaml'}"])
