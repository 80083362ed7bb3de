"""Stage 1 in numbers: closed answers as categories, open ones by exact match and words in common."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.results.aspect_metrics import OpenMetrics, compute_aspect_metrics, token_f1
from masp.results.ledger_format import Record
from masp.results.metrics import Metrics


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
