"""From records to numbers: pure functions, nothing here reads or writes a file.

Conventions:
- A record whose `prediction` is None (under `generate` the line named no category) counts as wrong everywhere. In the
  confusion matrix it has a column of its own, the last one, which `confusion_columns` names None.
- What needs scores (top-2, likelihood, Brier, calibration) is None if any record has none, as under `generate`.
- Macro averages go over the categories that occur as a label or as a prediction; balanced accuracy over those that
  occur as a label. A precision or recall of nothing is 0.
- Probabilities are the softmax of a record's scores.
- scikit-learn computes what it has. Not from there: the likelihood, which it clips (a category's probability may well
  be 1e-40), top-2, where ties must go to the order of categories as in the prediction, and intervals and calibration
  error, which it does not have.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, precision_recall_fscore_support, recall_score

from masp.errors import DataError
from masp.results.intervals import percentiles, wilson_interval

_NUM_BINS = 15


_NUM_RESAMPLES = 10_000


_MAX_RESAMPLED_CELLS = 20_000_000
"""Cells of all resampled confusion matrices together: with a hundred categories fewer of them are drawn."""


def compute_metrics(
    records: Sequence[dict[str, Any]],
    categories: Sequence[str],
    num_expected: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of an evaluation.

    Args:
        records: the merged records, see `masp.results.ledger`.
        categories: all categories, in the order of the scores.
        num_expected: how many samples the evaluation has; None: as many as there are records.
        seed: of the bootstrap.

    Returns:
        What goes into `metrics.json`, ready for JSON:
        `num_samples, num_expected, coverage` (their ratio), `num_correct, num_unparsable`,
        `accuracy, accuracy_ci95` (Wilson), `accuracy_ci95_bootstrap`, `balanced_accuracy`,
        `macro_f1, macro_f1_ci95` (bootstrap), `weighted_f1`,
        `per_category` (category to `precision, recall, f1, support, num_predicted`),
        `categories`, `confusion` (a row per label, a column per prediction), `confusion_columns`,
        `top2_accuracy, nll` (mean, in nats), `brier` (0 to 2), `ece`, `calibration` (a list of bins), and
        `accuracy_by_mean_score`: what the accuracy would be if the largest score per token won.

    Raises:
        DataError: there is no record, or a record names something that is not a category or has the wrong number of
            scores.
    """
    if not records:
        raise DataError("no records: there is nothing to compute metrics from")
    labels, predictions = _indices(records, categories)
    num_samples, num_correct = len(records), int((labels == predictions).sum())
    num_expected = num_samples if num_expected is None else num_expected
    confusion = confusion_counts(labels, predictions, len(categories))
    num_resamples = max(1000, min(_NUM_RESAMPLES, _MAX_RESAMPLED_CELLS // confusion.size))
    resampled = (
        np.random.default_rng(seed)
        .multinomial(num_samples, confusion.ravel() / num_samples, size=num_resamples)
        .reshape(-1, *confusion.shape)
    )

    scored = all(record.get("scores") is not None for record in records)
    columns = list(categories) if scored else [*categories, None]
    metrics: dict[str, Any] = {
        "num_samples": num_samples,
        "num_expected": num_expected,
        "coverage": num_samples / num_expected,
        "num_correct": num_correct,
        "num_unparsable": int((predictions == len(categories)).sum()),
        "accuracy": num_correct / num_samples,
        "accuracy_ci95": list(wilson_interval(num_correct, num_samples)),
        "accuracy_ci95_bootstrap": percentiles(_diagonal(resampled).sum(-1) / num_samples),
        **_category_metrics(labels, predictions, categories),
        "macro_f1_ci95": percentiles(_macro_f1(resampled)),
        "categories": list(categories),
        "confusion": confusion[:, : len(columns)].tolist(),
        "confusion_columns": columns,
    }
    return metrics | (_score_metrics(records, labels) if scored else dict.fromkeys(_SCORE_METRICS))


def softmax(scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Probabilities from rows of log-likelihoods, in double precision."""
    return np.exp(_log_softmax(scores))


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, num_categories: int) -> np.ndarray:
    """Counts `[label, prediction]` of category indices; the last of `num_categories + 1` columns is 'no category'."""
    return confusion_matrix(labels, predictions, labels=np.arange(num_categories + 1))[:-1]


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, num_bins: int = _NUM_BINS) -> list[dict[str, Any]]:
    """Samples by the probability of their prediction, in bins of equal width; empty bins have None as their means."""
    number = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    bins = []
    for index in range(num_bins):
        inside = number == index
        count = int(inside.sum())
        bins.append(
            {
                "from": index / num_bins,
                "to": (index + 1) / num_bins,
                "num_samples": count,
                "mean_confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(correct[inside].mean()) if count else None,
            }
        )
    return bins


def _indices(records: Sequence[dict[str, Any]], categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions as positions in `categories`; `len(categories)` stands for a prediction of None."""
    position = {category: index for index, category in enumerate(categories)}
    labels, predictions = [], []
    for record in records:
        label, prediction, scores = record["label"], record["prediction"], record.get("scores")
        for name, value in (("label", label), ("prediction", prediction)):
            if value not in position and not (name == "prediction" and value is None):
                raise DataError(
                    f"record of sample {record['sample_key']}: {name} {value!r} is no category; "
                    f"categories: {', '.join(categories)}"
                )
        if scores is not None and len(scores) != len(categories):
            raise DataError(
                f"record of sample {record['sample_key']}: {len(scores)} scores for {len(categories)} categories"
            )
        labels.append(position[label])
        predictions.append(len(categories) if prediction is None else position[prediction])
    return np.array(labels), np.array(predictions)


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
        # sklearn's balanced_accuracy_score is this too, but warns where a prediction is no label
        "balanced_accuracy": mean(recall_score, "macro", np.flatnonzero(support > 0)),
        "macro_f1": mean(f1_score, "macro", seen),
        "weighted_f1": mean(f1_score, "weighted", seen),
        "per_category": {
            category: {
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "support": int(support[index]),
                "num_predicted": int(num_predicted[index]),
            }
            for index, category in enumerate(categories)
        },
    }


_SCORE_METRICS = ("top2_accuracy", "nll", "brier", "ece", "calibration", "accuracy_by_mean_score")


def _score_metrics(records: Sequence[dict[str, Any]], labels: np.ndarray) -> dict[str, Any]:
    log_probabilities = _log_softmax([record["scores"] for record in records])
    probabilities = np.exp(log_probabilities)
    rows, columns = np.arange(len(labels)), np.arange(probabilities.shape[1])
    # A stable sort keeps the order of categories among equals, as the prediction does.
    ranked = np.argsort(-log_probabilities, axis=1, kind="stable")
    bins = calibration_bins(probabilities.max(axis=1), ranked[:, 0] == labels)
    ece = sum(b["num_samples"] * abs(b["accuracy"] - b["mean_confidence"]) for b in bins if b["num_samples"])
    # of one category everything is certain, which sklearn has no word for
    brier = brier_score_loss(labels, probabilities, labels=columns, scale_by_half=False) if len(columns) > 1 else 0.0
    means = [record.get("mean_scores") for record in records]
    values = (
        float((ranked[:, :2] == labels[:, None]).any(axis=1).mean()),
        float(-log_probabilities[rows, labels].mean()),
        float(brier),
        float(ece / len(labels)),
        bins,
        None if None in means else float((np.array(means).argmax(axis=1) == labels).mean()),
    )
    return dict(zip(_SCORE_METRICS, values, strict=True))


def _log_softmax(scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _diagonal(confusions: np.ndarray) -> np.ndarray:
    """The correct counts per category; the extra column is cut off by the shorter axis."""
    return np.diagonal(confusions, axis1=-2, axis2=-1)


def _macro_f1(confusions: np.ndarray) -> np.ndarray:
    """Macro F1 of each of many confusion matrices `[..., C, C + 1]`."""
    total = confusions.sum(axis=-1) + confusions[..., :-1].sum(axis=-2)  # Support plus predicted, per category.
    f1 = 2 * _diagonal(confusions) / np.maximum(total, 1)
    return f1.sum(axis=-1) / (total > 0).sum(axis=-1)
