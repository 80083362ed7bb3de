"""How far two annotators agree: accuracy, Cohen's kappa and, for lists, the words in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from masp.files.fields import OMIT_NONE, Count
from masp.results.aspect_metrics import token_f1
from masp.results.intervals import mean_interval, percentiles
from masp.results.metrics import wilson_interval

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """How far given answers agree with those of people."""

    num_images: Count
    accuracy: float
    """Share of images with exactly the same answer; no answer is another one."""
    accuracy_ci95: tuple[float, float]
    """Wilson."""
    kappa: float
    """Cohen, A coefficient of agreement for nominal scales, 1960: the agreement beyond what chance would give two
    annotators with these frequencies of answers. 0 is chance, 1 the same answers."""
    kappa_ci95: tuple[float, float]
    """Bootstrap over images."""
    num_without: Count
    """Images for which no answer was given."""
    token_f1: Annotated[float | None, OMIT_NONE] = None
    """Of lists: the mean F1 over words."""
    token_f1_ci95: Annotated[tuple[float, float] | None, OMIT_NONE] = None
    """Bootstrap."""


def agreement(theirs: Sequence[str], given: Sequence[str | None], is_list: bool = False, seed: int = 0) -> Agreement:
    """Compare answers.

    Args:
        theirs: Answers of people, at least one.
        given: Answers to the same images; None for none.
        is_list: Whether they are lists.
        seed: Seed of the bootstrap.
    """
    pairs = Counter(zip(theirs, given, strict=True))
    num_right = sum(count for (label, answer), count in pairs.items() if label == answer)
    number_of = {text: number for number, text in enumerate(dict.fromkeys([*theirs, *given]))}
    cells = np.array([(number_of[label], number_of[answer]) for label, answer in pairs])
    counts, total = np.array(list(pairs.values())), len(theirs)
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=_NUM_RESAMPLES)
    kappas = cohens_kappa(cells, draws, len(number_of))
    f1 = np.array([token_f1(answer or "", label) for label, answer in zip(theirs, given, strict=True)])
    return Agreement(
        num_images=total,
        accuracy=num_right / total,
        accuracy_ci95=wilson_interval(num_right, total),
        kappa=float(cohens_kappa(cells, counts[None], len(number_of))[0]),
        kappa_ci95=percentiles(kappas),
        num_without=sum(answer is None for answer in given),
        token_f1=float(f1.mean()) if is_list else None,
        token_f1_ci95=mean_interval(f1, seed) if is_list else None,
    )


def cohens_kappa(cells: np.ndarray, counts: np.ndarray, num_answers: int) -> np.ndarray:
    """Cohen's kappa of tables of pairs of answers.

    Args:
        cells: `[P, 2]` the numbers of the two answers of each kind of pair.
        counts: `[R, P]` how often each kind occurs, in each of `R` tables.
        num_answers: Number of different answers.

    Returns:
        `[R]` fp64; 1 where both always give one and the same answer.
    """
    first, second = (np.eye(num_answers)[cells[:, side]] for side in (0, 1))
    total = counts.sum(axis=1)
    observed = counts[:, cells[:, 0] == cells[:, 1]].sum(axis=1) / total
    expected = ((counts @ first) * (counts @ second)).sum(axis=1) / total.astype(np.float64) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), 1.0)
