"""Several runs against the distributions that their data have: the measures of each, and their paired differences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masp.errors import InputError
from masp.report.export import Cell, Interval, Signed, Table
from masp.results.intervals import mean_interval
from masp.results.probabilities.distributions import (
    MEASURES,
    DistributionMetrics,
    Measured,
    largest_expected_accuracy,
    measure_distributions,
    summarize,
)
from masp.results.records import Records


@dataclass(frozen=True)
class MeasurePair:
    """A measure of two runs on the same samples."""

    first: str
    second: str
    measure: str
    difference: float
    """Mean over samples: the second minus the first."""
    difference_ci95: tuple[float, float]
    """Bootstrap over samples."""


def measures_of(records: Records) -> Measured | None:
    """The measures of an evaluation, in the order of its keys; None if its data have no distributions."""
    if records.distribution is None:
        return None
    order = records.order
    position = {category: number for number, category in enumerate(records.categories)}
    predictions = np.array([-1 if p is None else position[p] for p in records.predictions])[order]
    has_scores = not np.isnan(records.scores).any()
    scores = (lambda rows: records.scores[order[rows]]) if has_scores else None
    return measure_distributions(records.distribution[order], predictions, scores)


def check_same_distributions(name: str, ours: Records, other: str, theirs: Records) -> None:
    """Refuse to compare evaluations whose data have other distributions.

    Raises:
        InputError: Names a sample whose distribution differs, or the run whose data have none.
    """
    one, two = ours.distribution, theirs.distribution
    if one is None and two is None:
        return
    remedy = "evaluate both on the same cache"
    if one is None or two is None:
        without = name if one is None else other
        raise InputError(f"compare: not on the same data: {without} was evaluated without distributions; {remedy}")
    if set(ours.categories) != set(theirs.categories):
        raise InputError(f"compare: the distributions of {name} and {other} are over other categories; {remedy}")
    columns = [theirs.categories.index(category) for category in ours.categories]
    differ = np.flatnonzero((one[ours.order] != two[theirs.order][:, columns]).any(axis=1))
    if len(differ):
        key = ours.ordered("sample_key")[differ[0]].decode()
        raise InputError(
            f"compare: not on the same data: the distribution of {key} is another in {other} than in {name} "
            f"({len(differ)} samples differ); {remedy}"
        )


def summary_of(records: Records, measured: Measured | None) -> DistributionMetrics | None:
    """The means of what `measures_of` gives."""
    if measured is None or records.distribution is None:
        return None
    return summarize(measured, largest_expected_accuracy(records.distribution))


def measure_pairs(runs: Mapping[str, Measured]) -> tuple[MeasurePair, ...]:
    """Paired differences of every two runs, in each measure that both have."""
    return tuple(
        MeasurePair(a, b, name, float(change.mean()), mean_interval(change))
        for a, b in itertools.combinations(runs, 2)
        for name in MEASURES
        if name in runs[a] and name in runs[b]
        for change in [runs[b][name] - runs[a][name]]
    )


class SeedMeans:
    """The measures of runs that differ in their seed: of each sample the mean over the runs."""

    def __init__(self) -> None:
        """No run yet."""
        self._sums: dict[str, np.ndarray] = {}
        self._count, self._limit = 0, 0.0

    def add(self, records: Records) -> None:
        """Take in a run; runs without distributions count nothing."""
        measured = measures_of(records)
        if measured is None or records.distribution is None:
            return
        self._limit = largest_expected_accuracy(records.distribution)
        self._sums = {name: self._sums.get(name, 0.0) + values for name, values in measured.items()}
        self._count += 1

    def summary(self) -> DistributionMetrics | None:
        """Means over samples and runs, with intervals over samples: the seeds are those that were run."""
        if not self._count:
            return None
        return summarize({name: total / self._count for name, total in self._sums.items()}, self._limit)


def distribution_table(name: str, rows: Mapping[str, DistributionMetrics | None], of: str, title: str) -> Table:
    """A row per run or variant, of those whose data have distributions.

    Args:
        name: Name of its files.
        rows: Name of the run or variant -> its measures.
        of: Title of the first column.
        title: Title of the table.
    """
    columns = [of, "images", "best expected accuracy"]
    for shown in MEASURES.values():
        columns += [shown, f"{shown} 95 %"]
    cells: list[Sequence[Cell]] = []
    for row, found in rows.items():
        if found is not None:
            values = vars(found)
            measured: list[Cell] = []
            for measure in MEASURES:
                measured += [values[measure], Interval(values[f"{measure}_ci95"])]
            cells.append((row, found.num_samples, found.expected_accuracy_limit, *measured))
    return Table(name, title, tuple(columns), cells, 4)


def measure_pair_table(pairs: Sequence[MeasurePair]) -> Table:
    """A row per pair and measure."""
    rows = [
        (f"{p.second} − {p.first}", MEASURES[p.measure], Signed(p.difference), Interval(p.difference_ci95))
        for p in pairs
    ]
    columns = ("second − first", "measure", "difference", "95 % interval")
    return Table("distribution-pairs", "Pairs of runs against the distributions of the data", columns, rows, 4)
