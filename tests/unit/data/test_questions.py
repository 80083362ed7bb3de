"""Questions: templates are drawn from a hash, and bad files give one line."""

import collections
import json

import pytest

from masp.data.questions import load_questions
from masp.errors import DataError, InputError

SHIPPED = "configs/questions.yaml"
CATEGORIES = ("amusement", "anger", "awe", "fear")


def test_shipped_file_has_several_templates_of_everything():
    questions = load_questions(SHIPPED)
    assert len(questions.aspects) == 6
    assert all(len(templates) >= 3 for templates in (*questions.aspects.values(), questions.target_templates))


def test_draws_depend_on_every_argument_and_on_nothing_else():
    questions = load_questions(SHIPPED)
    drawn = [questions.target_question(CATEGORIES, 1, 0, f"train/{i}") for i in range(200)]
    assert drawn == [questions.target_question(CATEGORIES, 1, 0, f"train/{i}") for i in range(200)]
    for other in ((2, 0), (1, 1)):
        assert drawn != [questions.target_question(CATEGORIES, *other, f"train/{i}") for i in range(200)]
    by_template = collections.Counter(questions.aspect("scene", 1, 0, f"train/{i}") for i in range(400))
    assert len(by_template) == len(questions.aspects["scene"]) and min(by_template.values()) > 60


def test_the_order_of_categories_given_does_not_move_the_draw():
    questions = load_questions(SHIPPED)
    assert questions.target_question(CATEGORIES, 0, 0, "k") == questions.target_question(CATEGORIES[::-1], 0, 0, "k")


def test_evaluation_takes_the_first_template_and_the_given_order():
    questions = load_questions(SHIPPED)
    assert questions.aspect_first("scene") == questions.aspects["scene"][0]
    assert "amusement, anger, awe, fear" in questions.target_first(CATEGORIES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aspects: [", "not valid YAML"),
        ("aspects: {}\nemotion: ['{categories} or {categories_list}']", "exactly once"),
        ("aspects: {}\nemotion: ['{categories}, {categories}']", "exactly once"),
        ("aspects: {}\nemotion: ['which of {category}']", "'{category}' is not a slot"),
        ("aspects: {}\nemotion: ['which of {Categories list}']", "'{Categories list}' is not a slot"),
        ("aspects: {}\nemotion: ['which of {}']", "{categories_list} (['joy', 'fear'])"),
        ("aspect: {}\nemotion: ['{categories}']", "must have the keys"),
        ("[" * 3000, "nested too deeply"),
        ("- a", "must hold 'key: value' lines"),
        ("aspects: {}\nemotion: ['{categories}']\nother: 1", "must have the keys"),
        ("aspects: [a]\nemotion: ['{categories}']", "aspects must map"),
        ("aspects: {scene: 'where'}\nemotion: ['{categories}']", "aspects.scene"),
        ("aspects: {scene: [where, 3]}\nemotion: ['{categories}']", "3"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, text, says):
    path = tmp_path / "questions.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_questions(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and says in message


def write(tmp_path, text, name="questions.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_questions(path)


def test_the_published_form_of_the_list(tmp_path):
    questions = write(tmp_path, "aspects: {}\nemotion: ['Choose from: {categories_list}']")
    assert questions.target_first(["joy", "disgust"]) == "Choose from: ['joy', 'disgust']"
    # quotes and other alphabets as Python writes them in a list
    odd = ["it's", 'a "b"', "both ' and \"", "žal", "悲しみ", "very happy"]
    assert questions.target_first(odd) == f"Choose from: {odd}"
    assert "žal" in questions.target_first(odd) and '"it\'s"' in questions.target_first(odd)


def test_training_draws_the_order_in_both_forms(tmp_path):
    joined = write(tmp_path, "aspects: {}\nemotion: ['{categories}']")
    listed = write(tmp_path, "aspects: {}\nemotion: ['{categories_list}']")
    keys = [f"train/{i}" for i in range(100)]
    orders = [joined.target_question(CATEGORIES, 1, 0, key).split(", ") for key in keys]
    assert len({tuple(order) for order in orders}) > 15
    assert [listed.target_question(CATEGORIES, 1, 0, key) for key in keys] == [str(order) for order in orders]


def test_braces_that_are_no_slot_stay(tmp_path):
    text = """aspects: {scene: ['{}? {categories} {{x}}']}\nemotion: ['{"a": "?"} {} {{a}} of {categories_list}']"""
    questions = write(tmp_path, text)
    assert questions.aspect_first("scene") == "{}? {categories} {{x}}"
    assert questions.target_first(["joy"]) == """{"a": "?"} {} {{a}} of ['joy']"""


def test_a_template_may_name_the_categories_itself(tmp_path):
    questions = write(tmp_path, """aspects: {}\nemotion: ["['Joy', 'very_happy', 'sadness']: {x}?"]""")
    assert questions.target_first(["joy", "sadness", "very happy"]) == "['Joy', 'very_happy', 'sadness']: {x}?"
    assert questions.target_question(["joy", "sadness"], 0, 0, "k") == "['Joy', 'very_happy', 'sadness']: {x}?"
    for missing in ("fear", "sad", "happy joy"):  # `sad` is not named by `sadness`
        with pytest.raises(InputError, match=f"does not name '{missing}'"):
            questions.target_all(["joy", missing])


PUBLISHED = """{"scene": ["Which place {is} it?", " And this one? "],
 "emotion": ["Pick one: {}", "Pick {0}.", "Joined: {{}}", "Literal {{{{x}}}} of {}"]}"""


def test_a_file_of_the_published_form(tmp_path):
    questions = write(tmp_path, PUBLISHED, "prompts.json")
    assert questions.templates("scene") == ("Which place {is} it?", "And this one?")
    asked = questions.target_all(["joy", "fear"])
    # as the published code formats: first with the list, then with the joined categories
    for found, template in zip(asked, json.loads(PUBLISHED)["emotion"], strict=True):
        assert found == template.format(["joy", "fear"]).format("joy, fear")
    assert asked[0] == "Pick one: ['joy', 'fear']"
    assert write(tmp_path, "\ufeff" + PUBLISHED, "Prompts.JSON").target_templates == questions.target_templates
    own = write(tmp_path, '{"aspects": {"scene": ["Where?"]}, "emotion": ["One of {categories}"]}', "own.json")
    assert own.target_first(["joy", "fear"]) == "One of joy, fear"


@pytest.mark.parametrize(
    ("emotion", "says"),
    [
        ('["{} or {}"]', "exactly once"),
        ('["{0.__class__}"]', "'{0.__class__}' is not a valid field"),
        ('["{:999999999}"]', "is not a valid field"),
        ('["{!r}"]', "is not a valid field"),
        ('["{1}"]', "is not a valid field"),
        ('["{name}"]', "is not a valid field"),
        ('["{"]', "Single '{'"),
        ('["{{ {}"]', "in this form {} is the list"),
        ('["a", ""]', "is not a question"),
        ('["\\ud800 {}"]', "prompts.json"),
        ("[]", "emotion must be a list"),
        ('"{}"', "must have the keys"),
        ('["{}"], "emotion": ["{}"]', "given twice"),
    ],
)
def test_a_bad_file_of_the_published_form(tmp_path, emotion, says):
    with pytest.raises(InputError) as caught:
        write(tmp_path, f'{{"scene": ["Where?"], "emotion": {emotion}}}', "prompts.json")
    message = str(caught.value)
    assert says in message and str(tmp_path / "prompts.json") in message and "\n" not in message


def test_missing_file_and_missing_aspect():
    with pytest.raises(InputError, match="^questions: no/such.yaml does not exist$"):
        load_questions("no/such.yaml")
    with pytest.raises(InputError, match="no questions about aspect 'smell'"):
        load_questions(SHIPPED).aspect_first("smell")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "aspects: [",
        "[" * 3_000,
        '"\\UFFFFFFFF"',
        "? [a]\n: b",
        "? {a: 1}\n: b",
        "<<: 1\naspects: {}",
        "aspects: &a [*a]\nemotion: *a",
        "aspects: *missing",
        BOMB,
        "aspects: !!python/object/apply:os.system [ls]",
        "aspects: !!timestamp 2024-13-45",
        'aspects: !!int ""',
        "aspects: !!binary x",
        "aspects: !!omap [1]",
        "aspects: !!set {a, b}\nemotion: ['{categories}']",
        "%YAML 9.9\n---\naspects: {}",
        "--- a\n--- b",
        "aspects: {}\naspects: {}\nemotion: ['{categories}']",
        "aspects: {a: ['\\ud800']}\nemotion: [\"\\ud800 {categories}\"]",
        "aspects: {}\nemotion: [1e999]",
        "\x00",
        "aspects:\t- x",
        "",
        "null",
    ],
)
def test_questions_in_odd_yaml(tmp_path, text):
    path = tmp_path / "questions.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_questions(path)
    line = str(error.value)
    assert str(path) in line and "\n" not in line and len(line) < 2000


@pytest.mark.parametrize("path", ["/dev/zero", "/", "x" * 300, "x\0y"])
def test_questions_that_are_not_a_file(path):
    with pytest.raises(InputError) as error:
        load_questions(path)
    assert "\n" not in str(error.value) and not isinstance(error.value, DataError)
