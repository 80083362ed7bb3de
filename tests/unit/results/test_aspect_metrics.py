"""Stage 1 in numbers: closed answers as categories, open ones by exact match and words in common."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.config import load_config
from masp.data.answers import LEVELS
from masp.demo.tiny_vlm import VLM_DIR
from masp.evaluation.aspects import MAX_CLOSED, closed_answers, num_tokens_of_longest
from masp.evaluation.emotions import length_notes
from masp.results.aspect_metrics import OpenMetrics, compute_aspect_metrics, token_f1
from masp.results.ledger_file import Record
from masp.results.metrics import Metrics
from masp.vlm.prompt import load_prompt


@pytest.mark.parametrize(
    ("written", "answer", "expected"),
    [
        ("dog, tree", "dog, tree", 1.0),
        ("tree, dog", "dog, tree", 1.0),
        ("dog", "dog, tree", 2 / 3),
        ("Dog cat", "dog, tree", 0.5),
        ("dog dog", "dog", 2 / 3),
        ("", "dog", 0.0),
        ("cat", "dog", 0.0),
    ],
)
def test_token_f1_by_hand(written, answer, expected):
    assert token_f1(written, answer) == pytest.approx(expected)


@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_a_share(a, b):
    assert 0 <= token_f1(a, b) == token_f1(b, a) <= 1


def test_which_aspects_are_closed():
    assert closed_answers("brightness", {"low"}) == LEVELS
    assert closed_answers("object", {"dog", "tree"}) == ()
    assert closed_answers("scene", {"sea", "city"}) == ("city", "sea")
    assert closed_answers("scene", {"sea"}) == ()  # nothing to compare it with
    assert closed_answers("scene", {str(i) for i in range(MAX_CLOSED + 1)}) == ()


def test_the_longest_answer_is_the_one_with_most_tokens():
    prompt = load_prompt(str(VLM_DIR))
    answers = {"object": ["amusement park", "candles"], "scene": ["alley"]}
    counts = {text: len(prompt.ids(text)) for text in answers["object"]}
    assert counts["candles"] > counts["amusement park"]
    assert num_tokens_of_longest(prompt, answers) == {"object": counts["candles"], "scene": len(prompt.ids("alley"))}


def test_answers_that_cannot_win_without_an_end_token_are_noted(repository):
    config = load_config(repository / "configs/demo.yaml", [f"vlm.path={VLM_DIR}"])
    answers = ("beach", "beach amusement", "alley")
    (note,) = length_notes(config, "released", answers)
    assert "'beach amusement' never scores above its beginning, 'beach'" in note
    assert length_notes(config, "after_image", answers) == length_notes(config, "released", answers[::2]) == []
    config.evaluate.scoring = "generate"
    assert length_notes(config, "released", answers) == []


def test_per_aspect_and_over_all():
    records = [
        Record(f"{i}#scene", "sea", "sea" if i else "city", (0.0, float(bool(i)) - 0.5), (0.0, 1.0)) for i in range(4)
    ]
    records += [Record("0#object", "dog, tree", "dog")]
    metrics = compute_aspect_metrics(records, ["object", "scene", "brightness"], {"scene": ("city", "sea")}, 5)
    assert (metrics.num_samples, metrics.num_correct, metrics.coverage) == (5, 3, 1)
    assert metrics.mean_accuracy == pytest.approx((0.75 + 0) / 2) and list(metrics.per_aspect) == [
        "object",
        "scene",
    ]
    scene, thing = metrics.per_aspect["scene"], metrics.per_aspect["object"]
    assert isinstance(scene, Metrics) and scene.accuracy == 0.75 and scene.confusion == ((0, 0), (1, 3))
    assert isinstance(thing, OpenMetrics) and thing.accuracy == 0 and thing.token_f1 == pytest.approx(2 / 3)
    text = json.dumps(metrics.to_json(), allow_nan=False)
    assert json.dumps(json.loads(text)) == text
    assert {aspect: v["kind"] for aspect, v in json.loads(text)["per_aspect"].items()} == {
        "object": "open", "scene": "closed"
    }  # fmt: skip
