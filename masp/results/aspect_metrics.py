"""From the records of stage 1 to numbers, per aspect; pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from masp.errors import DataError
from masp.results.intervals import percentiles, wilson_interval
from masp.results.metrics import compute_metrics

_NUM_RESAMPLES = 2000


def compute_aspect_metrics(
    records: Sequence[dict[str, Any]],
    aspects: Sequence[str],
    closed: Mapping[str, Sequence[str]],
    num_expected: int,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of an evaluation of stage 1.

    Args:
        records: each with `aspect` beside what a record of the ledger has.
        aspects: in order; those without a record are left out.
        closed: aspect -> its answers, where likelihoods were compared.
        num_expected: how many answers the evaluation has.
        seed: of the bootstrap.

    Returns:
        `num_samples, num_expected, coverage, num_correct, accuracy, accuracy_ci95` over all answers, `mean_accuracy`
        over aspects, and `per_aspect`: for a closed aspect all of
        `masp.results.metrics.compute_metrics`, for an open one
        `num_samples, num_correct, accuracy` (exact match) with its interval, `token_f1, token_f1_ci95` and `answers`
        (how many different ones). `kind` says which.
    """
    if not records:
        raise DataError("no records: there is nothing to compute metrics from")
    per_aspect = {}
    for aspect in aspects:
        mine = [record for record in records if record["aspect"] == aspect]
        if not mine:
            continue
        if aspect in closed:
            values = {"kind": "closed", **compute_metrics(mine, closed[aspect], seed=seed)}
        else:
            values = {"kind": "open", **open_metrics(mine, seed)}
        per_aspect[aspect] = values
    num_correct = sum(values["num_correct"] for values in per_aspect.values())
    return {
        "num_samples": len(records),
        "num_expected": num_expected,
        "coverage": len(records) / num_expected,
        "num_correct": num_correct,
        "accuracy": num_correct / len(records),
        "accuracy_ci95": list(wilson_interval(num_correct, len(records))),
        "mean_accuracy": float(np.mean([values["accuracy"] for values in per_aspect.values()])),
        "per_aspect": per_aspect,
    }


def open_metrics(records: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Exact match and token F1 of written answers, each with a 95 % interval."""
    exact = [record["prediction"] == record["label"] for record in records]
    f1 = np.array([token_f1(record["prediction"] or "", record["label"]) for record in records])
    random = np.random.default_rng(seed)
    resampled = [f1[random.integers(len(f1), size=len(f1))].mean() for _ in range(_NUM_RESAMPLES)]
    return {
        "num_samples": len(records),
        "num_correct": sum(exact),
        "accuracy": sum(exact) / len(records),
        "accuracy_ci95": list(wilson_interval(sum(exact), len(records))),
        "token_f1": float(f1.mean()),
        "token_f1_ci95": percentiles(resampled),
        "answers": len({record["label"] for record in records}),
    }


def token_f1(written: str, answer: str) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as it occurs in both."""
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (written, answer))
    both = sum((ours & theirs).values())
    return 2 * both / (sum(ours.values()) + sum(theirs.values())) if both else 0.0
