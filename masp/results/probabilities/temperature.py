"""Temperature scaling: one number, fitted on another split, that makes probabilities as sure as they are right.

Probabilities become the softmax of the scores divided by a temperature, the one under which the labels of the
validation split are likeliest (Guo et al., On Calibration of Modern Neural Networks, 2017). Dividing by a positive
number keeps the order of the scores, so no prediction changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.optimize import minimize_scalar

from masp.files.fields import SplitOf
from masp.results.intervals import NUM_BINS

LOWEST, HIGHEST = 0.01, 100.0
"""The range of temperatures. The best one is at an end where every label, or none, is predicted."""

_CHUNK = 1 << 16
"""Samples whose probabilities are in memory at once."""

NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Calibration:
    """How well probabilities agree with what happens."""

    nll: NotNegative
    """Mean negative log-likelihood of the label, nats."""
    brier: Annotated[float, Field(ge=0, le=2)]
    ece: Annotated[float, Field(ge=0, le=1)]
    """Expected calibration error."""


@dataclass(frozen=True)
class TemperatureScaling:
    """The calibration of an evaluation under the temperature that another split gives."""

    temperature: Annotated[float, Field(gt=0)] | None = None
    """None: there is none, for the `reason`."""
    fitted_on: SplitOf | None = None
    """The split."""
    num_fitted: Annotated[int, Field(ge=0)] | None = None
    """Its number of samples."""
    at_limit: bool = False
    """Whether the temperature is at an end of the range that is searched, so that the best one is beyond it."""
    scaled: Calibration | None = None
    """Of the samples that are evaluated, under the temperature. Without it: `nll`, `brier` and `ece` of the metrics."""
    reason: str | None = None


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which the labels are likeliest, from `LOWEST` to `HIGHEST`.

    Args:
        scores: `[N, C]` log-likelihoods.
        labels: `[N]` columns of the labels.
    """

    def nll(log_temperature: float) -> float:
        return calibration(scores, labels, float(np.exp(log_temperature))).nll

    # the likelihood is concave in 1 / temperature, so there is one minimum
    found = minimize_scalar(nll, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def is_at_limit(temperature: float) -> bool:
    """Whether a fitted temperature is at an end of the range."""
    return not LOWEST * 1.001 < temperature < HIGHEST / 1.001


def calibration(scores: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Calibration:
    """Calibration under a temperature, as `masp.results.metrics` computes it; arguments as `fit_temperature`."""
    nll = brier = 0.0
    # per bin, how much more often than its predictions say, or less, it is right
    gaps = np.zeros(NUM_BINS)
    for chunk_scores, chunk_labels in _chunks(scores, labels):
        scaled = np.asarray(chunk_scores, dtype=np.float64) / temperature
        rows = np.arange(len(scaled))
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        probabilities = np.exp(log_probabilities)
        predictions = np.argmax(chunk_scores, axis=1)  # the first of equals, as in scoring
        confidence = probabilities[rows, predictions]
        number = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        gaps += np.bincount(number, (predictions == chunk_labels) - confidence, minlength=NUM_BINS)
        nll -= float(log_probabilities[rows, chunk_labels].sum())
        brier += float((probabilities**2).sum() - 2 * probabilities[rows, chunk_labels].sum() + len(rows))
    count = len(labels)
    return Calibration(nll / count, max(0.0, brier / count), float(np.abs(gaps).sum() / count))


def _chunks(scores: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(labels), _CHUNK):
        yield scores[start : start + _CHUNK], labels[start : start + _CHUNK]
