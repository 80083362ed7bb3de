"""Intervals against scipy's bootstrap, closed forms and simulations."""

import numpy as np
import pytest
from scipy import stats

from masp.results.intervals import calibration_interval, mean_interval


def test_of_a_mean_as_scipy_resamples_it():
    values = np.random.default_rng(1).exponential(size=300)
    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2))
    assert mean_interval(values) == pytest.approx(
        (found.confidence_interval.low, found.confidence_interval.high), abs=0.02
    )


def test_of_a_mean_of_more_samples_than_cells_by_the_normal_distribution():
    values = np.random.default_rng(1).lognormal(size=200_000)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_depends_on_the_seed_alone_and_not_on_the_order():
    values = np.random.default_rng(1).random(5000)
    correct = values > 0.4
    assert mean_interval(values) == mean_interval(values[::-1]) != mean_interval(values, seed=1)
    assert calibration_interval(values, correct) == calibration_interval(values[::-1], correct[::-1])


@pytest.mark.parametrize("count", [1, 2, 20])
def test_of_few_samples(count):
    values = np.full(count, 0.25)
    assert mean_interval(values) == (0.25, 0.25)
    low, high = calibration_interval(np.ones(count), np.ones(count, dtype=bool))
    assert (low, high) == (0.0, 0.0)
    low, high = calibration_interval(np.ones(count), np.zeros(count, dtype=bool))
    assert (low, high) == (1.0, 1.0)


@pytest.mark.parametrize(("shift", "least"), [(0.0, 0.85), (0.1, 0.8)])
def test_the_interval_of_the_calibration_error_holds_the_true_error(shift, least):
    random = np.random.default_rng(5)
    held = 0
    for trial in range(40):
        confidence = random.random(800) * 0.7 + 0.3
        low, high = calibration_interval(confidence, random.random(800) < confidence - shift, trial)
        held += low <= shift <= high
    assert held / 40 >= least
