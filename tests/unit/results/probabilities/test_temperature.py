"""Temperature scaling against scikit-learn, a known temperature, and what it must never change."""

import dataclasses

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from masp.results.ledger_format import Record
from masp.results.metrics import compute_metrics
from masp.results.probabilities.temperature import HIGHEST, LOWEST, calibration, fit_temperature, is_at_limit


def draw(count, temperature, num_categories=4, seed=0):
    """Scores that are `temperature` times too sure, and labels."""
    random = np.random.default_rng(seed)
    true = random.normal(size=(count, num_categories))
    chosen = softmax(true, axis=1).cumsum(axis=1) > random.random((count, 1))
    return true * temperature, chosen.argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_finds_the_temperature_that_scores_were_made_with(temperature):
    scores, labels = draw(20_000, temperature)
    assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.06)


def test_two_categories_are_a_logistic_regression_without_intercept():
    scores, labels = draw(3000, 2.0, num_categories=2)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-9).fit(scores[:, 1:] - scores[:, :1], labels)
    assert fit_temperature(scores, labels) == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)


def test_at_temperature_1_it_is_what_the_metrics_say():
    scores, labels = draw(500, 2.0)
    names = tuple("abcd")
    records = [
        Record(f"test/{i}", names[label], names[row.argmax()], tuple(row.tolist()))
        for i, (row, label) in enumerate(zip(scores, labels, strict=True))
    ]
    metrics = compute_metrics(records, names)
    expected = {name: pytest.approx(getattr(metrics, name)) for name in ("nll", "brier", "ece")}
    assert dataclasses.asdict(calibration(scores, labels)) == expected
    for low, high, value in (
        (*metrics.nll_ci95, metrics.nll),
        (*metrics.brier_ci95, metrics.brier),
        (*metrics.ece_ci95, metrics.ece),
    ):
        assert low < value < high


def test_the_likelihood_of_the_split_it_is_fitted_on_never_falls():
    for seed in range(5):
        scores, labels = draw(60, 3.0, seed=seed)
        fitted = fit_temperature(scores, labels)
        assert calibration(scores, labels, fitted).nll <= calibration(scores, labels).nll + 1e-9


def test_is_said_to_be_at_the_limit_where_all_or_none_is_right():
    scores, _ = draw(50, 1.0)
    right = fit_temperature(scores, scores.argmax(axis=1))
    wrong = fit_temperature(scores, scores.argmin(axis=1))
    assert right == pytest.approx(LOWEST, rel=1e-3) and wrong == pytest.approx(HIGHEST, rel=1e-3)
    assert is_at_limit(right) and is_at_limit(wrong) and not is_at_limit(1.0)


def test_scores_far_below_zero_and_equal_ones():
    scores = np.array([[-1e5, -1e5 - 1], [-1e5, -1e5], [-3e4, -9e4]])
    found = calibration(scores, np.array([0, 0, 1]), 2.0)
    assert np.isfinite([found.nll, found.brier, found.ece]).all() and found.brier <= 2


def test_chunks_make_no_difference(monkeypatch):
    scores, labels = draw(100, 2.0)
    whole = calibration(scores, labels, 1.5)
    monkeypatch.setattr("masp.results.probabilities.temperature._CHUNK", 7)
    assert dataclasses.astuple(calibration(scores, labels, 1.5)) == pytest.approx(dataclasses.astuple(whole))
