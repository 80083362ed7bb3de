"""How near a model's probabilities are to a distribution over the categories that raters gave.

For each sample that has one, `p` is its distribution and `q` the model's, the softmax of the record's scores:

- expected accuracy: `p(predicted category)`, how often a rater drawn at random agrees with the prediction. Its limit is
  the mean of `max p`, which always answering the raters' most frequent category reaches.
- Kullback-Leibler divergence `KL(p || q) = sum p ln(p / q)`, from 0 (Kullback and Leibler, On Information and
  Sufficiency, 1951).
- Jensen-Shannon divergence `(KL(p || m) + KL(q || m)) / 2` with `m = (p + q) / 2`, from 0 to ln 2 (Lin, Divergence
  Measures Based on the Shannon Entropy, 1991).
- cosine similarity `p . q / (|p| |q|)`, from 0 to 1.

The last three are usual where distributions of labels are learned (Geng, Label Distribution Learning, 2016). Logarithms
are natural, so divergences are in nats. `0 ln 0 = 0`. There is no floor under `q`: `ln q` comes from the scores, before
any exponential, so it is finite also where `q` is rounded to 0. `p` is divided by its sum, which may be 1e-6 off.

All are means over samples, with percentile intervals of the bootstrap over samples (`masp.results.intervals`). What is
as large as all scores is made for some thousand samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.special import rel_entr, xlogy

from masp.results.intervals import mean_interval
from masp.results.ledgers.table import CHUNK

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]

MEASURES = {
    "expected_accuracy": "expected accuracy",
    "kl_divergence": "KL divergence",
    "js_divergence": "JS divergence",
    "cosine_similarity": "cosine similarity",
}
"""Name of each measure -> what tables call it; without scores there is only the first."""

Measured = Mapping[str, np.ndarray]
"""Name of a measure -> `[n]`, its value for each sample that has a distribution."""


@dataclass(frozen=True)
class DistributionMetrics:
    """Means over the samples that have a distribution, each with its 95 % interval."""

    num_samples: Annotated[int, Field(ge=1)]
    """Samples that have one."""
    expected_accuracy: Share
    expected_accuracy_ci95: tuple[Share, Share]
    expected_accuracy_limit: Share
    """The largest that any predictions could reach."""
    kl_divergence: NotNegative | None = None
    """Nats; this and what follows is None where answers were generated."""
    kl_divergence_ci95: tuple[NotNegative, NotNegative] | None = None
    js_divergence: NotNegative | None = None
    """Nats, 0 to ln 2."""
    js_divergence_ci95: tuple[NotNegative, NotNegative] | None = None
    cosine_similarity: Share | None = None
    cosine_similarity_ci95: tuple[Share, Share] | None = None

    def rows(self) -> list[tuple[str, float, tuple[float, float]]]:
        """Name, value and interval of each measure that there is."""
        values = vars(self)
        return [(name, values[name], values[f"{name}_ci95"]) for name in MEASURES if values[name] is not None]


def log_softmax(scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Logarithms of probabilities from rows of log-likelihoods, in double precision."""
    scores = np.asarray(scores, dtype=np.float64)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def measure_distributions(
    distributions: np.ndarray, predictions: np.ndarray, scores: Callable[[np.ndarray], np.ndarray] | None
) -> Measured:
    """The measures of each sample that has a distribution.

    Args:
        distributions: `[N, C]`, the data's; rows of zeros where a sample has none.
        predictions: `[N]` predicted categories by number; anything outside of 0 to C - 1 is none, and never right.
        scores: Gives the scores `[n, C]` of some rows; None if there are none.
    """
    rows, width = np.flatnonzero(distributions.any(axis=1)), distributions.shape[1]
    found = {name: np.zeros(len(rows)) for name in (MEASURES if scores else list(MEASURES)[:1])}
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        here = slice(start, start + len(part))
        p = distributions[part] / distributions[part].sum(axis=1, keepdims=True)
        predicted = predictions[part]
        is_named = (predicted >= 0) & (predicted < width)
        found["expected_accuracy"][here][is_named] = p[is_named, predicted[is_named]]
        if scores is None:
            continue
        log_q = log_softmax(scores(part))
        q = np.exp(log_q)
        middle = (p + q) / 2
        # rounding must not put what is 0 below it, or a cosine of 1 above
        found["kl_divergence"][here] = np.maximum((xlogy(p, p) - p * log_q).sum(axis=1), 0)
        found["js_divergence"][here] = np.maximum((rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2, 0)
        lengths = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
        found["cosine_similarity"][here] = np.minimum((p * q).sum(axis=1) / lengths, 1)
    return found


def summarize(measured: Measured, limit: float, seed: int = 0) -> DistributionMetrics | None:
    """The means of measures with their intervals; None if no sample has a distribution.

    Args:
        measured: See `measure_distributions`.
        limit: See `largest_expected_accuracy`.
        seed: Seed of the bootstrap.
    """
    count = len(measured["expected_accuracy"])
    if not count:
        return None
    values: dict[str, Any] = {name: float(found.mean()) for name, found in measured.items()}
    values |= {f"{name}_ci95": mean_interval(found, seed) for name, found in measured.items()}
    return DistributionMetrics(num_samples=count, expected_accuracy_limit=limit, **values)


def largest_expected_accuracy(distributions: np.ndarray) -> float:
    """The expected accuracy of always answering the raters' most frequent category, of `[N, C]` as above."""
    sums = distributions.sum(axis=1)
    there = sums > 0
    return float((distributions.max(axis=1)[there] / sums[there]).mean()) if there.any() else 0.0


def asked_distributions(
    distributions: np.ndarray, own: Sequence[str], means: Mapping[str, str], asked: Sequence[str]
) -> np.ndarray:
    """Distributions over the categories that are asked.

    Probabilities of categories that mean the same are added. Those of categories that are left out are dropped, and the
    others divided by their sum.

    Args:
        distributions: `[N, C]` over the dataset's own categories; rows of zeros where a sample has none.
        own: The dataset's categories.
        means: Category of the dataset -> category that is asked; others are left out.
        asked: Categories that are asked.

    Returns:
        `[N, len(asked)]`.
    """
    if list(own) == list(asked) and all(means.get(category) == category for category in own):
        return distributions
    found = np.zeros((len(distributions), len(asked)))
    for number, category in enumerate(own):
        if category in means:
            found[:, asked.index(means[category])] += distributions[:, number]
    sums = found.sum(axis=1, keepdims=True)
    return np.divide(found, sums, out=found, where=sums > 0)
