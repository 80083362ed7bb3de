"""The table and the plot of a study, from the records that its runs left."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from masp.config.yaml_text import read_yaml
from masp.errors import InputError
from masp.experiments.compare import check_same_samples, correctness
from masp.experiments.distribution_tables import SeedMeans, check_same_distributions, distribution_table
from masp.experiments.plots import Panel, intervals_figure
from masp.experiments.seed_statistics import Corrected, SeedTest, claims, compare_seeds, correct
from masp.experiments.study.variants import FULL, Variant
from masp.files.atomic import write_bytes
from masp.files.text import reason, shortened
from masp.report.export import Interval, Signed, Table, markdown_table, write_tables
from masp.results.intervals import percentiles
from masp.results.metrics_file import check_written_with
from masp.results.probabilities.distributions import DistributionMetrics
from masp.results.records import FILE as RECORDS
from masp.results.records import Records, read_records_file
from masp.runtime.log import show

LOG = logging.getLogger(__name__)

FILE = "study.json"

_NUM_RESAMPLES = 5000


@dataclass(frozen=True)
class StudyRow:
    """One variant of a study."""

    title: str
    group: str
    removes: bool
    """Whether it leaves out a part of the method."""
    accuracies: dict[int, float]
    """Seed -> accuracy."""
    accuracy: float
    """Mean over seeds."""
    spread: float | None
    """Standard deviation over seeds; None of fewer than two."""
    accuracy_ci95: tuple[float, float]
    """Bootstrap over samples of the mean over seeds: the seeds are those that were run."""
    difference: float | None
    """From the method, over the seeds that both have."""
    difference_ci95: tuple[float, float] | None
    """Over images, for the seeds that were run."""
    behind: bool
    """Whether it may be claimed that it is behind the method: with five seeds or more, over seeds and images."""
    test: SeedTest | None
    """The difference over images, over seeds and over both; None of the method itself."""
    corrected: Corrected | None
    """p-values corrected for all comparisons of the table, and the claim."""
    distributions: DistributionMetrics | None = None
    """Against the distributions of the data, mean over seeds; None if they have none."""


@dataclass(frozen=True)
class Study:
    """What `study.json` holds."""

    seeds: list[int]
    """Those with a finished run."""
    num_samples: int
    missing: dict[str, list[int]]
    """Variant without a finished run -> seeds, empty if it needs none of its own."""
    notes: list[str]
    """What could not be checked, and settings that differ."""
    claims: list[str]
    """What the table may claim, in sentences; with fewer than five seeds, that nothing is claimed."""
    variants: Mapping[str, StudyRow]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Variant that the configuration makes impossible -> why."""

    def to_json(self) -> dict[str, Any]:
        """The study as `study.json` spells it."""
        return asdict(self)


def write_table(
    directory: Path, variants: Sequence[Variant], seeds: Sequence[int], left_out: Mapping[str, str] | None = None
) -> Path:
    """Write `study.json`, `study.md` and `study.png` from the runs that are finished; prints the table.

    Args:
        directory: Directory of the study.
        variants: Variants in the order of the table; the first is the method itself.
        seeds: Seeds of training.
        left_out: Variant that the configuration makes impossible -> why.

    Returns:
        `study.json`.

    Raises:
        InputError: runs are on different samples. DataError: records are damaged.
    """
    result = replace(study(directory, variants, seeds), left_out=dict(left_out or {}))
    text = markdown(result)
    path = directory / FILE
    rows = result.variants.values()
    accuracies = [(row.title, row.accuracy, row.accuracy_ci95) for row in rows]
    changes = [
        (row.title, row.difference, row.difference_ci95)
        for row in rows
        if row.difference is not None and row.difference_ci95 is not None
    ]
    panels: list[Panel] = [("accuracy, mean over seeds", accuracies, None)]
    if changes:
        panels.append(("difference from MASP", changes, 0.0))
    figure = intervals_figure(panels)
    try:
        write_bytes(path, json.dumps(result.to_json(), indent=1).encode() + b"\n")
        write_bytes(directory / "study.md", text.encode())
        write_bytes(directory / "study.png", figure)
        tables = (accuracy_table(result), difference_table(result), *distribution_tables(result))
        write_tables(directory, tables, "output_dir")
    except OSError as error:
        raise InputError(f"output_dir: {directory} cannot be written: {reason(error)}") from None
    missing = "; ".join(
        f"{name} (seed {', '.join(map(str, lacking))})" if lacking else name for name, lacking in result.missing.items()
    )
    show("", *text.split("\n"))
    for note in result.notes:
        LOG.info("%s", note)
    if missing:
        show(f"study: not finished, so not in the table: {missing}")
    show(f"study: {path}")
    return path


def study(directory: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> Study:
    """The numbers of the table.

    Args:
        directory: Directory of the study.
        variants: Variants in the order of the table.
        seeds: Seeds of training.

    Raises:
        InputError: runs are on different samples, or a configuration is damaged. DataError: records are damaged.
    """
    right: dict[str, dict[int, np.ndarray]] = {}
    first: tuple[str, Records] | None = None
    unsure: list[str] = []
    settings = _Settings()
    against: dict[str, DistributionMetrics | None] = {}
    for variant in variants:
        means = SeedMeans()
        for seed in seeds:
            path = directory / f"seed-{seed}" / variant.name / "evaluate" / RECORDS
            if path.is_file():
                records = read_records_file(path)
                check_written_with(path, records.digest)
                first = first or (str(path), records)
                note = check_same_samples(*first, str(path), records)
                unsure += [note] if note and records is not first[1] else []
                check_same_distributions(*first, str(path), records)
                means.add(records)
                settings.read(path.parents[1], variant)
                right.setdefault(variant.name, {})[seed] = correctness(records)
                if not variant.seeded:
                    break
        against[variant.name] = means.summary()
    full = right.get(FULL, {})
    rows: dict[str, StudyRow] = {}
    tests: dict[str, SeedTest] = {}
    for variant in variants:
        mine = right.get(variant.name)
        if not mine:
            continue
        values = {seed: float(hits.mean()) for seed, hits in mine.items()}
        # what depends on no seed was run once, and is set beside each of the method's runs
        once = {} if variant.seeded else dict.fromkeys(full, next(iter(mine.values())))
        theirs = once | mine
        both = [(full[seed], theirs[seed]) for seed in full if seed in theirs] if variant.name != FULL else []
        test = compare_seeds([ours for ours, _ in both], [other for _, other in both]) if both else None
        if test:
            tests[variant.name] = test
        rows[variant.name] = StudyRow(
            title=variant.title,
            group=variant.group,
            removes=variant.removes,
            accuracies=values,
            accuracy=statistics.mean(values.values()),
            spread=statistics.stdev(values.values()) if len(values) > 1 else None,
            accuracy_ci95=_interval(np.mean(list(mine.values()), axis=0)),
            difference=test.difference if test else None,
            difference_ci95=test.images_ci95 if test else None,
            behind=False,
            test=test,
            corrected=None,
            distributions=against[variant.name],
        )
    corrected = correct(tests)
    for name, result in corrected.items():
        rows[name] = replace(rows[name], corrected=result, behind=result.claim == "behind")
    titles = {name: rows[name].title for name in tests}
    missing = {v.name: [s for s in seeds if v.seeded and s not in right.get(v.name, {})] for v in variants}
    return Study(
        seeds=[seed for seed in seeds if any(seed in mine for mine in right.values())],
        num_samples=len(first[1]) if first else 0,
        missing={name: lacking for name, lacking in missing.items() if lacking or name not in right},
        notes=[*([f"{unsure[0]} ({len(unsure)} runs in all)"] if unsure else []), *settings.notes()],
        claims=claims(
            {titles[name]: test for name, test in tests.items()},
            {titles[name]: result for name, result in corrected.items()},
            rows[FULL].title if FULL in rows else FULL,
        ),
        variants=rows,
    )


class _Settings:
    """What training and evaluation of runs were told, compared with the first run's."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[str, dict[str, Any], set[str]]] = {}
        self.differing: dict[str, list[str]] = {}
        """What differs -> the files that say so."""

    def read(self, run: Path, variant: Variant) -> None:
        """Take in a run's settings, but for those that make the variant."""
        for part in (*variant.stages, "evaluate"):
            path = run / part / "config.yaml"
            if not path.is_file():
                continue
            mine = dict(_flat(read_yaml(path)[0]))
            name, theirs, changed = self.first.setdefault(part, (str(path), mine, set(variant.changes)))
            for key in sorted({*mine, *theirs} - {"seed", "output_dir", *changed, *variant.changes}):
                if mine.get(key) != theirs.get(key) and not key.startswith("checkpoint."):
                    what = f"{key} is {_spelled(mine.get(key))}, and {_spelled(theirs.get(key))} in {name}"
                    self.differing.setdefault(what, []).append(str(path))

    def notes(self) -> list[str]:
        """A line per difference."""
        return [f"{_some(paths)}: {what}" for what, paths in self.differing.items()]


def _spelled(value: object) -> str:
    return shortened(repr(value), 200)


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Bootstrap over samples of the mean of `[N]` values; few different ones, so resamples are drawn as counts."""
    levels, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=_NUM_RESAMPLES)
    return percentiles(draws @ levels / len(values))


def markdown(result: Study) -> str:
    """The study as Markdown: accuracies, then the differences from the method, then what may be claimed."""
    table = accuracy_table(result)
    lines = [
        f"Accuracy on {result.num_samples:,} images; mean and standard deviation over the training seeds.",
        "",
        *markdown_table(table),
    ]
    differences = difference_table(result)
    if count := len(differences.rows):
        lines += [
            "",
            f"Difference from {result.variants[FULL].title} on the same images, with 95 % intervals: over the images, "
            "for the seeds that were run (bootstrap); over the seeds (paired t); over both, drawn together (bootstrap)."
            f" Both p-values are corrected for {count} comparison{'s' * (count != 1)} (Holm).",
            "",
            *markdown_table(differences),
        ]
    for claim in result.claims:
        lines += ["", claim]
    for distributions in distribution_tables(result):
        lines += [
            "",
            "Against the distributions of the data, mean over the training seeds, with 95 % intervals over the images.",
            "",
            *markdown_table(distributions),
        ]
    if result.left_out:
        lines += ["", f"Left out: {'; '.join(f'{name} ({why})' for name, why in result.left_out.items())}."]
    return "\n".join(lines) + "\n"


def accuracy_table(result: Study) -> Table:
    """The accuracy of every variant and seed."""
    columns = ("variant", *(f"seed {seed}" for seed in result.seeds), "mean", "spread")
    rows = [
        (row.title, *(row.accuracies.get(seed) for seed in result.seeds), row.accuracy, row.spread)
        for row in result.variants.values()
    ]
    return Table("accuracies", "Accuracy of the variants over training seeds", columns, rows)


def distribution_tables(result: Study) -> list[Table]:
    """The variants against the distributions of the data; none where they have none."""
    rows = {row.title: row.distributions for row in result.variants.values()}
    title = "The variants against the distributions of the data"
    table = distribution_table("distributions", rows, "variant", title)
    return [table] if table.rows else []


def difference_table(result: Study) -> Table:
    """The difference of every variant from the method."""
    rows = [
        (
            row.title, row.test.num_seeds, Signed(row.test.difference), Interval(row.test.images_ci95),
            Interval(row.test.seeds_ci95), Interval(row.test.both_ci95), row.corrected.t_p, row.corrected.both_p,
        )
        for row in result.variants.values()
        if row.test and row.corrected
    ]  # fmt: skip
    columns = ("variant", "seeds", "difference", "over images", "over seeds", "over both", "t test p", "both p")
    return Table("differences", "Difference of the variants from the method", columns, rows)
