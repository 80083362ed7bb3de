"""Metrics against scikit-learn, closed forms and hand-counted cases."""

import json
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from masp.errors import DataError
from masp.results.ledger_format import Record
from masp.results.metrics import CategoryMetrics, calibration_bins, compute_metrics, softmax, wilson_interval

CATEGORIES = ("fear", "joy", "sad", "sadness")


def make_records(num_samples=400, categories=CATEGORIES, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(categories), size=num_samples)
    scores = rng.normal(size=(num_samples, len(categories)))
    scores[np.arange(num_samples), labels] += 1
    return [
        Record(f"test/{index}", categories[label], categories[int(row.argmax())], scores=tuple(row.tolist()))
        for index, (label, row) in enumerate(zip(labels, scores, strict=True))
    ]


def test_agrees_with_scikit_learn():
    records = make_records()
    metrics = compute_metrics(records, CATEGORIES)
    top2 = partial(sklearn_metrics.top_k_accuracy_score, k=2)
    labels = [record.label for record in records]
    predictions = [record.prediction for record in records]
    probabilities = softmax([record.scores for record in records])
    positions = [CATEGORIES.index(label) for label in labels]
    assert metrics.accuracy == sklearn_metrics.accuracy_score(labels, predictions)
    assert metrics.macro_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average="macro"))
    assert metrics.weighted_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average="weighted"))
    assert metrics.balanced_accuracy == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predictions))
    assert metrics.nll == pytest.approx(sklearn_metrics.log_loss(positions, probabilities))
    assert metrics.top2_accuracy == pytest.approx(top2(positions, probabilities))
    assert np.array_equal(metrics.confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=CATEGORIES))
    assert metrics.brier == pytest.approx(np.square(probabilities - np.eye(4)[positions]).sum() / 400)


def test_counts_add_up_and_everything_is_json():
    metrics = compute_metrics(make_records(), CATEGORIES)
    assert metrics.num_samples == metrics.num_expected == 400 and metrics.coverage == 1.0
    assert metrics.num_correct / 400 == metrics.accuracy
    assert sum(map(sum, metrics.confusion)) == 400
    assert sum(metrics.confusion[i][i] for i in range(4)) == metrics.num_correct
    assert [values.support for values in metrics.per_category.values()] == list(map(sum, metrics.confusion))
    text = json.dumps(metrics.to_json(), allow_nan=False)
    assert json.dumps(json.loads(text)) == text
    assert list(json.loads(text)) == [f.name for f in fields(metrics) if f.name != "distributions"]
    assert set(json.loads(text)["calibration"][0]) == {"from", "to", "num_samples", "mean_confidence", "accuracy"}


def test_does_not_depend_on_the_order_of_records():
    records = make_records()
    rounded = dict.fromkeys(("nll", "brier", "ece", "calibration"))
    forward, backward = (replace(compute_metrics(o, CATEGORIES), **rounded) for o in (records, records[::-1]))
    assert forward == backward


@pytest.mark.parametrize(("num_correct", "num_samples"), [(0, 10), (10, 10), (50, 100), (1, 1), (3, 17_700)])
def test_wilson_interval_holds_the_shares_that_the_score_test_accepts(num_correct, num_samples):
    share = num_correct / num_samples
    for end in wilson_interval(num_correct, num_samples):
        assert abs(share - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / num_samples), abs=1e-6)


def test_intervals_hold_their_estimates_and_agree():
    metrics = compute_metrics(make_records(2000), CATEGORIES)
    for key in ("accuracy", "macro_f1"):
        low, high = getattr(metrics, f"{key}_ci95")
        assert low < getattr(metrics, key) < high and high - low < 0.05
    assert metrics.accuracy_ci95_bootstrap == pytest.approx(metrics.accuracy_ci95, abs=0.003)


def test_generate_has_no_scores_and_unparsable_lines_count_as_wrong():
    records = [replace(record, scores=None) for record in make_records(100)]
    records[:10] = [replace(record, prediction=None) for record in records[:10]]
    metrics = compute_metrics(records, CATEGORIES)
    assert metrics.num_unparsable == 10 and metrics.num_samples == 100
    assert metrics.num_correct == sum(record.label == record.prediction for record in records)
    assert metrics.confusion_columns == (*CATEGORIES, None)
    assert sum(row[-1] for row in metrics.confusion) == 10
    assert all(getattr(metrics, key) is None for key in ("top2_accuracy", "nll", "brier", "ece", "calibration"))


def test_a_category_that_never_occurs_does_not_pull_the_averages_down():
    records = [record for record in make_records() if "sadness" not in (record.label, record.prediction)]
    labels, predictions = ([getattr(record, key) for record in records] for key in ("label", "prediction"))
    metrics = compute_metrics(records, CATEGORIES)
    assert metrics.macro_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average="macro"))
    assert metrics.balanced_accuracy == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predictions))
    assert metrics.per_category["sadness"] == CategoryMetrics(0.0, 0.0, 0.0, 0, 0)


def test_ties_go_to_the_order_of_categories():
    for label, expected in (("joy", 1.0), ("sad", 0.0)):
        record = Record("test/a", label, "fear", scores=(-1.0,) * 4)
        assert compute_metrics([record], CATEGORIES).top2_accuracy == expected


@pytest.mark.parametrize("categories", [("only",), ("a", "b")])
def test_few_categories_and_one_sample(categories):
    metrics = compute_metrics(make_records(1, categories), categories)
    assert metrics.top2_accuracy == 1.0 and metrics.num_samples == 1


def test_large_and_distant_scores_stay_finite():
    records = make_records(10)
    records[0] = replace(records[0], scores=(-1e4, -2e4, -3e4, -5.0))
    metrics = compute_metrics(records, CATEGORIES)
    assert np.isfinite([metrics.nll, metrics.brier, metrics.ece]).all()


def test_calibration_of_a_calibrated_model_is_small():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 100_000)
    bins = calibration_bins(confidence, rng.random(100_000) < confidence)
    assert sum(b.num_samples for b in bins) == 100_000
    assert all(abs(b.accuracy - b.mean_confidence) < 0.02 for b in bins if b.num_samples)
    assert bins[0].accuracy is None


def scored(label, probabilities, mean_scores=None):
    """A record of two categories whose scores are the logarithms of these probabilities."""
    prediction = ("fear", "joy")[int(np.argmax(probabilities))]
    return Record("test/a", label, prediction, tuple(np.log(probabilities).tolist()), mean_scores)


def test_the_calibration_error_of_four_samples_counted_by_hand():
    records = [
        # the bin from 13/15 to 14/15: half are right, at a mean confidence of 0.91
        scored("fear", [0.90, 0.10]),
        scored("joy", [0.92, 0.08]),
        scored("fear", [0.62, 0.38]),  # from 9/15 to 10/15
        scored("joy", [0.30, 0.70]),  # from 10/15 to 11/15
    ]
    metrics = compute_metrics(records, ("fear", "joy"))
    by_hand = 2 / 4 * abs(0.5 - 0.91) + 1 / 4 * abs(1 - 0.62) + 1 / 4 * abs(1 - 0.70)
    assert by_hand == pytest.approx(0.375)
    assert metrics.ece == pytest.approx(by_hand, abs=1e-12)
    assert [(i, b.num_samples) for i, b in enumerate(metrics.calibration) if b.num_samples] == [
        (9, 1), (10, 1), (13, 2)
    ]  # fmt: skip


def test_accuracy_by_mean_score_ranks_by_the_means_alone():
    records = [
        scored("joy", [0.8, 0.2], (-1.0, -0.5)),  # wrong by the sum, right by the mean
        scored("joy", [0.3, 0.7], (-0.2, -0.9)),  # right by the sum, wrong by the mean
        scored("joy", [0.6, 0.4], (-0.7, -0.1)),
        scored("fear", [0.6, 0.4], (-0.5, -0.5)),  # a tie goes to the order of categories
    ]
    metrics = compute_metrics(records, ("fear", "joy"))
    assert (metrics.accuracy, metrics.accuracy_by_mean_score) == (0.5, 0.75)
    records[0] = replace(records[0], mean_scores=None)
    assert compute_metrics(records, ("fear", "joy")).accuracy_by_mean_score is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label": "awe"}, "label 'awe' is not a category"),
        ({"prediction": "awe"}, "prediction 'awe' is not a category"),
        ({"scores": (0.0, 1.0)}, "2 scores for 4 categories"),
    ],
)
def test_records_that_do_not_fit_are_named(changes, problem):
    records = make_records(3)
    records[1] = replace(records[1], **changes)
    with pytest.raises(DataError, match=problem) as error:
        compute_metrics(records, CATEGORIES)
    assert "test/1" in str(error.value)


def test_no_records_give_no_number():
    with pytest.raises(DataError, match="nothing to compute"):
        compute_metrics([], CATEGORIES)
