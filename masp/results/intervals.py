"""95 % intervals by the bootstrap over samples, with memory that does not grow with their number.

A resample of N samples is how often each was drawn, and that is multinomial. So counts of samples are drawn rather than
samples (as for the confusion matrix in `masp.results.metrics`), and samples that are nearly equal are drawn together:
up to `_MAX_CELLS` samples are each a cell of their own, which is the ordinary bootstrap; more are cut, in the order of
their values, into that many cells of nearly equal size, each with the mean of its values. The variance that this leaves
out is that within a cell, a millionth of the whole for values that are spread evenly.

Means (negative log-likelihood, Brier score) have percentile intervals (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). The calibration error is biased upwards, since noise within a bin counts as error, and a
resample is biased once more by about as much; its interval is the basic one, `2 x - quantiles` (Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 5.2), which takes that bias out. It may therefore lie below the
error itself, and it begins at 0 where predictions that are right as often as their probabilities say would, by chance,
have as large an error (97.5 % of them a smaller one; Bröcker and Smith, Weather and Forecasting 22, 2007).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

NUM_BINS = 15
"""Bins of the calibration error."""

_NUM_RESAMPLES = 2000
_MAX_CELLS = 1000
_CHUNK = 250
"""Resamples that are drawn at once."""


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of a mean.

    Args:
        values: `[N]`, one per sample.
        seed: Seed of the resamples.
    """
    means, counts = _cells(values, _MAX_CELLS)
    found = np.concatenate([draws @ means for draws in _draws(counts, seed)]) / len(values)
    return percentiles(found)


def calibration_interval(confidence: np.ndarray, correct: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of the expected calibration error.

    Args:
        confidence: `[N]`, the probability of each prediction.
        correct: `[N]` bool, whether it is right.
        seed: Seed of the resamples.
    """
    number = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    counts, gaps, bins = [], [], []
    for index in range(NUM_BINS):
        for hit in (False, True):
            inside = (number == index) & (correct == hit)
            if inside.any():
                means, sizes = _cells(confidence[inside], _MAX_CELLS // NUM_BINS)
                counts.append(sizes)
                gaps.append(hit - means)
                bins.append(np.full(len(sizes), index))
    place = np.concatenate(bins)
    # what one drawn sample adds to the sum of its bin, whose absolute value counts
    adds = np.zeros((len(place), NUM_BINS))
    adds[np.arange(len(place)), place] = np.concatenate(gaps)
    sizes = np.concatenate(counts)
    error = float(np.abs(sizes @ adds).sum() / len(confidence))
    found = np.concatenate([np.abs(draws @ adds).sum(axis=1) for draws in _draws(sizes, seed)]) / len(confidence)
    low, high = percentiles(found)
    low, high = (min(1.0, max(0.0, 2 * error - end)) for end in (high, low))
    if error <= np.percentile(_errors_of_the_calibrated(confidence, number, seed), 97.5):
        low = 0.0
    return low, high


def _errors_of_the_calibrated(confidence: np.ndarray, number: np.ndarray, seed: int) -> np.ndarray:
    """Resampled errors of predictions that are right as often as their probabilities say.

    The number of right ones in a bin is then a sum of coins of known biases; in its stead, a normal number of the same
    mean and variance.
    """
    variance = np.bincount(number, confidence * (1 - confidence), minlength=NUM_BINS)
    noise = np.random.default_rng(seed).normal(size=(_NUM_RESAMPLES, NUM_BINS))
    return np.abs(noise * np.sqrt(np.maximum(variance, 0))).sum(axis=1) / len(confidence)


def _cells(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Values that are drawn together: the mean and the number of each cell."""
    values = np.sort(np.asarray(values, dtype=np.float64))
    count = min(most, len(values))
    starts = np.arange(count) * len(values) // count
    sizes = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(values, starts) / sizes, sizes


def _draws(counts: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """How often each cell is drawn, `[chunk, cells]` after `[chunk, cells]`."""
    random, total = np.random.default_rng(seed), int(counts.sum())
    for _ in range(0, _NUM_RESAMPLES, _CHUNK):
        yield random.multinomial(total, counts / total, size=_CHUNK)
