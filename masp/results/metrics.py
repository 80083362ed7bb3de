"""From records to numbers: pure functions, nothing here reads or writes a file.

Conventions:
- A record whose `prediction` is None (under `generate` the line named no category) counts as wrong everywhere. In the
  confusion matrix it has a column of its own, the last one, which `confusion_columns` names None.
- What needs scores (top-2, likelihood, Brier, calibration) is None if any record has none, as under `generate`.
- Macro averages go over the categories that occur as a label or as a prediction; balanced accuracy over those that
  occur as a label. A precision or recall of nothing is 0.
- Probabilities are the softmax of a record's scores.
- scikit-learn computes what it has. Not from there: the likelihood, which it clips (a category's probability may well
  be 1e-40), top-2, where ties must go to the order of categories as in the prediction, the Brier score, for which it
  needs all probabilities at once, and intervals and calibration error, which it does not have.
- What is as large as all scores is made for some thousand samples at a time, so memory is a few numbers per sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, recall_score

from masp.errors import DataError
from masp.files.text import MAX_REASON, shortened, shown
from masp.results.intervals import NUM_BINS, calibration_interval, mean_interval, percentiles
from masp.results.ledger_format import Record
from masp.results.ledgers.table import CHUNK, RecordTable
from masp.results.probabilities.distributions import (
    DistributionMetrics,
    largest_expected_accuracy,
    log_softmax,
    measure_distributions,
    summarize,
)

Z95 = 1.959963984540054

_NUM_RESAMPLES = 10_000
_MAX_RESAMPLED_CELLS = 20_000_000
"""Cells of all resampled confusion matrices together: with a hundred categories fewer of them are drawn."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True)
class CategoryMetrics:
    """Metrics of one category."""

    precision: Share
    recall: Share
    f1: Share
    support: Count
    """Samples of the category."""
    num_predicted: Count


@dataclass(frozen=True)
class CalibrationBin:
    """The samples whose prediction has a probability in one range."""

    start: Annotated[Share, Field(alias="from")]
    stop: Annotated[Share, Field(alias="to")]
    num_samples: Count
    mean_confidence: Share | None = None
    """Mean probability of the predictions; None of no samples."""
    accuracy: Share | None = None

    def __post_init__(self) -> None:
        if self.num_samples and self.accuracy is None:
            raise ValueError("must have an accuracy, since it holds samples")

    def to_json(self) -> dict[str, Any]:
        """The bin as `metrics.json` spells it."""
        means = {"mean_confidence": self.mean_confidence, "accuracy": self.accuracy}
        return {"from": self.start, "to": self.stop, "num_samples": self.num_samples, **means}


@dataclass(frozen=True)
class Metrics:
    """All metrics of answers that are one of some categories."""

    num_samples: int
    num_expected: int
    coverage: float
    """Their ratio."""
    num_correct: int
    num_unparsable: int
    """Generated lines that name no category."""
    accuracy: float
    accuracy_ci95: tuple[float, float]
    """Wilson's interval."""
    accuracy_ci95_bootstrap: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    weighted_f1: float
    per_category: dict[str, CategoryMetrics]
    macro_f1_ci95: tuple[float, float]
    """Bootstrap."""
    categories: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """A row per label, a column per prediction."""
    confusion_columns: tuple[str | None, ...]
    """None: a line that names no category."""
    top2_accuracy: float | None = None
    nll: float | None = None
    """Mean negative log-likelihood of the label, nats."""
    brier: float | None = None
    """0 to 2."""
    ece: float | None = None
    """Expected calibration error."""
    calibration: tuple[CalibrationBin, ...] | None = None
    accuracy_by_mean_score: float | None = None
    """What the accuracy would be if the largest score per token won."""
    nll_ci95: tuple[float, float] | None = None
    """Bootstrap, see `masp.results.intervals`; so are the next two."""
    brier_ci95: tuple[float, float] | None = None
    ece_ci95: tuple[float, float] | None = None
    distributions: DistributionMetrics | None = None
    """Against the distributions that the data have; None if they have none."""

    def to_json(self) -> dict[str, Any]:
        """The metrics as `metrics.json` spells them."""
        bins = None if self.calibration is None else [bin_.to_json() for bin_ in self.calibration]
        values = {**asdict(self), "calibration": bins}
        if self.distributions is None:  # most datasets have labels alone
            del values["distributions"]
        return values


def wilson_interval(num_correct: int, num_samples: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval, right for few samples and near 0 and 1 too)."""
    share, squared = num_correct / num_samples, Z95**2 / num_samples
    center = (share + squared / 2) / (1 + squared)
    half = Z95 * math.sqrt(share * (1 - share) / num_samples + squared / (4 * num_samples)) / (1 + squared)
    # rounding must not put the share itself outside, where it is 0 or 1
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def compute_metrics(
    records: Sequence[Record],
    categories: Sequence[str],
    num_expected: int | None = None,
    seed: int = 0,
    distributions: np.ndarray | None = None,
) -> Metrics:
    """All metrics of an evaluation.

    Args:
        records: Merged records, see `masp.results.ledger`.
        categories: All categories, in the order of the scores.
        num_expected: Number of samples that the evaluation has; None: as many as there are records.
        seed: Seed of the bootstrap.
        distributions: `[N, C]`, the data's distribution of each record, zeros where it has none; None if none has one.

    Raises:
        DataError: No record was given, or a record names something that is not a category or has the wrong number of
            scores.
    """
    if not records:
        raise DataError("no records: there is nothing to compute metrics from")
    table = RecordTable.of(records)
    labels, predictions = _indices(table, categories)
    num_samples, num_correct = len(records), int((labels == predictions).sum())
    num_expected = num_samples if num_expected is None else num_expected
    confusion = confusion_counts(labels, predictions, len(categories))
    num_resamples = max(1000, min(_NUM_RESAMPLES, _MAX_RESAMPLED_CELLS // confusion.size))
    resampled = (
        np.random.default_rng(seed)
        .multinomial(num_samples, confusion.ravel() / num_samples, size=num_resamples)
        .reshape(-1, *confusion.shape)
    )

    scored = bool((table.scores.widths >= 0).all())
    columns = tuple(categories) if scored else (*categories, None)
    return Metrics(
        num_samples=num_samples,
        num_expected=num_expected,
        coverage=num_samples / num_expected,
        num_correct=num_correct,
        num_unparsable=int((predictions == len(categories)).sum()),
        accuracy=num_correct / num_samples,
        accuracy_ci95=wilson_interval(num_correct, num_samples),
        accuracy_ci95_bootstrap=percentiles(_diagonal(resampled).sum(-1) / num_samples),
        **_category_metrics(labels, predictions, categories),
        macro_f1_ci95=percentiles(_macro_f1(resampled)),
        categories=tuple(categories),
        confusion=tuple(map(tuple, confusion[:, : len(columns)].tolist())),
        confusion_columns=columns,
        **(_score_metrics(table, labels, len(categories), seed) if scored else {}),
        distributions=_distributions(table, predictions, distributions, scored, seed),
    )


def softmax(scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Probabilities from rows of log-likelihoods, in double precision."""
    return np.exp(log_softmax(scores))


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, num_categories: int) -> np.ndarray:
    """Counts `[label, prediction]` of category indices; the last of `num_categories + 1` columns is 'no category'."""
    return confusion_matrix(labels, predictions, labels=np.arange(num_categories + 1))[:-1]


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[CalibrationBin, ...]:
    """Samples by the probability of their prediction, in bins of equal width; empty bins have None as their means."""
    number = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    bins = []
    for index in range(num_bins):
        inside = number == index
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(correct[inside].mean())) if count else (None, None)
        bins.append(CalibrationBin(index / num_bins, (index + 1) / num_bins, count, *means))
    return tuple(bins)


def _indices(records: RecordTable, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions as positions in `categories`; `len(categories)` stands for a prediction of None."""
    unknown, count = len(categories) + 1, len(categories)
    labels, predictions = (column.numbers_in(categories, unknown) for column in (records.labels, records.predictions))
    widths = records.scores.widths
    wrong = (labels == unknown) | (predictions == unknown) | ((widths >= 0) & (widths != count))
    if wrong.any():
        raise _not_fitting(records[int(wrong.argmax())], categories)
    return labels, np.where(predictions < 0, count, predictions)


def _not_fitting(record: Record, categories: Sequence[str]) -> DataError:
    for name, value in (("label", record.label), ("prediction", record.prediction)):
        if value not in categories and not (name == "prediction" and value is None):
            return DataError(
                f"record of sample {record.sample_key}: {name} {shown(value)} is not a category; "
                f"categories: {shortened(', '.join(categories), MAX_REASON)}"
            )
    return DataError(
        f"record of sample {record.sample_key}: {len(record.scores or ())} scores for {len(categories)} categories"
    )


def _category_metrics(labels: np.ndarray, predictions: np.ndarray, categories: Sequence[str]) -> dict[str, Any]:
    columns = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(categories)), average=None, zero_division=0
    )
    precision, recall, f1, support = (np.asarray(column) for column in columns)
    num_predicted = np.bincount(predictions, minlength=len(categories) + 1)[:-1]
    seen = np.flatnonzero((support > 0) | (num_predicted > 0))

    def mean(score: Callable, average: str, over: np.ndarray) -> float:
        return float(score(labels, predictions, labels=over, average=average, zero_division=0))

    return {
        # sklearn's balanced_accuracy_score is this too, but warns if a prediction never occurs as a label
        "balanced_accuracy": mean(recall_score, "macro", np.flatnonzero(support > 0)),
        "macro_f1": mean(f1_score, "macro", seen),
        "weighted_f1": mean(f1_score, "weighted", seen),
        "per_category": {
            category: CategoryMetrics(
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(support[index]),
                num_predicted=int(num_predicted[index]),
            )
            for index, category in enumerate(categories)
        },
    }


def _score_metrics(records: RecordTable, labels: np.ndarray, num_categories: int, seed: int) -> dict[str, Any]:
    nll, briers, confidence = (np.empty(len(labels)) for _ in range(3))
    correct, in_top2, by_mean = (np.empty(len(labels), dtype=bool) for _ in range(3))
    has_means = bool((records.mean_scores.widths == num_categories).all())
    for start in range(0, len(labels), CHUNK):
        part = np.arange(start, min(start + CHUNK, len(labels)))
        mine, rows = labels[part], np.arange(len(part))
        log_probabilities = log_softmax(records.scores.block(part, num_categories))
        probabilities = np.exp(log_probabilities)
        # A stable sort keeps the order of categories among equals, as the prediction does.
        ranked = np.argsort(-log_probabilities, axis=1, kind="stable")
        nll[part] = -log_probabilities[rows, mine]
        briers[part] = np.sum((np.eye(num_categories)[mine] - probabilities) ** 2, axis=1)
        confidence[part] = probabilities.max(axis=1)
        correct[part] = ranked[:, 0] == mine
        in_top2[part] = (ranked[:, :2] == mine[:, None]).any(axis=1)
        if has_means:
            by_mean[part] = records.mean_scores.block(part, num_categories).argmax(axis=1) == mine
    bins = calibration_bins(confidence, correct)
    ece = sum(
        b.num_samples * abs(b.accuracy - b.mean_confidence)
        for b in bins
        if b.accuracy is not None and b.mean_confidence is not None
    )
    return {
        "top2_accuracy": float(in_top2.mean()),
        "nll": float(nll.mean()),
        "brier": float(briers.mean()),
        "ece": float(ece / len(labels)),
        "calibration": bins,
        "accuracy_by_mean_score": float(by_mean.mean()) if has_means else None,
        "nll_ci95": mean_interval(nll, seed),
        "brier_ci95": mean_interval(briers, seed),
        "ece_ci95": calibration_interval(confidence, correct, seed),
    }


def _distributions(
    table: RecordTable, predictions: np.ndarray, distributions: np.ndarray | None, scored: bool, seed: int
) -> DistributionMetrics | None:
    if distributions is None:
        return None
    width = distributions.shape[1]
    scores = (lambda rows: table.scores.block(rows, width)) if scored else None
    measured = measure_distributions(distributions, predictions, scores)
    return summarize(measured, largest_expected_accuracy(distributions), seed)


def _diagonal(confusions: np.ndarray) -> np.ndarray:
    """The correct counts per category; the extra column is cut off by the shorter axis."""
    return np.diagonal(confusions, axis1=-2, axis2=-1)


def _macro_f1(confusions: np.ndarray) -> np.ndarray:
    """Macro F1 of each of many confusion matrices `[..., C, C + 1]`."""
    total = confusions.sum(axis=-1) + confusions[..., :-1].sum(axis=-2)  # Support plus predicted, per category.
    f1 = 2 * _diagonal(confusions) / np.maximum(total, 1)
    return f1.sum(axis=-1) / (total > 0).sum(axis=-1)
