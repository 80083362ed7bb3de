"""Wordings of the question; scoring them is tested with processes (tests/pipeline)."""

from masp.config import load_config
from masp.data.questions import Questions, load_questions
from masp.evaluation.prompts import FIRST, Wording, ordered, other_evaluations, other_wordings

CATEGORIES = ("anger", "awe", "joy", "sadness")


def test_every_template_and_other_orders_each_once(repository):
    questions = load_questions(repository / "configs" / "questions.yaml")
    found = other_wordings(questions, CATEGORIES)
    assert [w.name for w in found] == ["template-2", "template-3", "template-4", "order-2", "order-3", "order-5"]
    asked = [w.question(questions, CATEGORIES) for w in (FIRST, *found)]
    assert len(set(asked)) == 7 and asked[0] == questions.target_first(CATEGORIES)
    assert asked[2] == "Out of anger, awe, joy, sadness, which emotion fits best?"
    assert asked[4] == "Which emotion does the picture evoke? Choose one of: sadness, joy, awe, anger."


def test_orders_are_the_same_everywhere():
    assert ordered(CATEGORIES, 0) == list(CATEGORIES) and ordered(CATEGORIES, 1) == list(CATEGORIES)[::-1]
    assert ordered(CATEGORIES, 2) == ["sadness", "joy", "anger", "awe"]
    assert all(sorted(ordered(CATEGORIES, n)) == list(CATEGORIES) for n in range(9))


def test_two_categories_have_two_orders_and_equal_templates_are_asked_once():
    questions = Questions("q", {}, ("Which of {categories}?", "What of {categories}?", "Which of {categories}?"))
    assert [w.name for w in other_wordings(questions, ("a", "b"))] == ["template-2", "order-2"]
    assert other_wordings(Questions("q", {}, ("Is it {categories}?",)), ("a",)) == []


def test_each_has_a_directory_of_its_own_and_asks_for_no_more(repository, tmp_path):
    config = load_config(
        repository / "configs/demo.yaml",
        [
            "evaluate.validation=true",
            "evaluate.prompts=all",
            "evaluate.attention=true",
            "evaluate.linear_probe=true",
            "evaluate.explain=all",
        ],
    )
    found = list(other_evaluations(config, tmp_path, [Wording(template=1), Wording(order=2)]))
    assert [part.evaluate.output_dir for part, _ in found] == [
        str(tmp_path / name) for name in ("val", "prompts/template-2", "prompts/order-3")
    ]
    assert [part.evaluate.split for part, _ in found] == ["val", "test", "test"]
    for part, _ in found:
        assert (part.evaluate.prompts, part.evaluate.explain) == ("first", "none")
        assert not (part.evaluate.validation or part.evaluate.attention or part.evaluate.linear_probe)
    config.evaluate.split = "val"
    assert list(other_evaluations(config, tmp_path, [])) == []
