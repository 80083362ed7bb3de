"""From the records of stage 1 to numbers, per aspect; pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from masp.errors import DataError
from masp.results.ledger_format import Record
from masp.results.metrics import Metrics, compute_metrics, percentiles, wilson_interval

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class OpenMetrics:
    """Metrics of an aspect whose answers are written: exact match, and words in common."""

    num_samples: int
    num_correct: int
    """Answers that are exactly the label."""
    accuracy: float
    accuracy_ci95: tuple[float, float]
    token_f1: float
    token_f1_ci95: tuple[float, float]
    """Bootstrap."""
    answers: int
    """Number of different labels."""

    def to_json(self) -> dict[str, Any]:
        """The metrics as `metrics.json` spells them."""
        return asdict(self)


@dataclass(frozen=True)
class AspectMetrics:
    """All metrics of an evaluation of stage 1."""

    num_samples: int
    num_expected: int
    coverage: float
    """Their ratio."""
    num_correct: int
    accuracy: float
    """Over all answers."""
    accuracy_ci95: tuple[float, float]
    mean_accuracy: float
    """Over aspects."""
    per_aspect: dict[str, Metrics | OpenMetrics]
    """Aspect -> its metrics; `Metrics` where likelihoods were compared."""

    def to_json(self) -> dict[str, Any]:
        """The metrics as `metrics.json` spells them; an aspect's `kind` says which metrics it has."""
        per_aspect = {
            aspect: {"kind": "closed" if isinstance(values, Metrics) else "open", **values.to_json()}
            for aspect, values in self.per_aspect.items()
        }
        return {**vars(self), "per_aspect": per_aspect}


def compute_aspect_metrics(
    records: Sequence[Record],
    aspects: Sequence[str],
    closed: Mapping[str, Sequence[str]],
    num_expected: int,
    seed: int = 0,
) -> AspectMetrics:
    """All metrics of an evaluation of stage 1.

    Args:
        records: Merged records.
        aspects: Aspects in order; those without a record are left out.
        closed: Aspect -> its answers, where likelihoods were compared.
        num_expected: Number of answers that the evaluation has.
        seed: Seed of the bootstrap.

    Raises:
        DataError: No record was given, or one does not fit.
    """
    if not records:
        raise DataError("no records: there is nothing to compute metrics from")
    per_aspect: dict[str, Metrics | OpenMetrics] = {}
    for aspect in aspects:
        mine = [record for record in records if record.aspect == aspect]
        if mine:
            is_closed = aspect in closed
            per_aspect[aspect] = (
                compute_metrics(mine, closed[aspect], seed=seed) if is_closed else open_metrics(mine, seed)
            )
    num_correct = sum(values.num_correct for values in per_aspect.values())
    return AspectMetrics(
        num_samples=len(records),
        num_expected=num_expected,
        coverage=len(records) / num_expected,
        num_correct=num_correct,
        accuracy=num_correct / len(records),
        accuracy_ci95=wilson_interval(num_correct, len(records)),
        mean_accuracy=float(np.mean([values.accuracy for values in per_aspect.values()])),
        per_aspect=per_aspect,
    )


def open_metrics(records: Sequence[Record], seed: int = 0) -> OpenMetrics:
    """Exact match and token F1 of written answers, each with a 95 % interval."""
    exact = [record.prediction == record.label for record in records]
    f1 = np.array([token_f1(record.prediction or "", record.label) for record in records])
    random = np.random.default_rng(seed)
    resampled = [f1[random.integers(len(f1), size=len(f1))].mean() for _ in range(_NUM_RESAMPLES)]
    return OpenMetrics(
        num_samples=len(records),
        num_correct=sum(exact),
        accuracy=sum(exact) / len(records),
        accuracy_ci95=wilson_interval(sum(exact), len(records)),
        token_f1=float(f1.mean()),
        token_f1_ci95=percentiles(resampled),
        answers=len({record.label for record in records}),
    )


def token_f1(written: str, answer: str) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as it occurs in both."""
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (written, answer))
    both = sum((ours & theirs).values())
    return 2 * both / (sum(ours.values()) + sum(theirs.values())) if both else 0.0
