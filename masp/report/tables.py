"""Tables of the report: confusion matrices, aspects, datasets, variants, lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.data.findings import Finding, load_findings
from masp.errors import MaspError
from masp.files.regular import is_file
from masp.report.charts import calibration_chart
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.metrics_file import (
    DATASETS,
    METRICS,
    DatasetRow,
    MetricsFile,
    ProbeFile,
    VariantRow,
    read_datasets,
    read_metrics,
)

MAX_ANSWERS_SHOWN = 12
"""A closed aspect with more answers has no table of them on the page."""

_VARIANT_TITLES = {
    "zero_shot": "Zero-shot",
    "linear_probe": "Linear probe on mean features",
    "soft_prompt_only": "Soft prompt without aspects",
    "aspects_only": "Aspects without soft prompt",
    "masp": "MASP",
    "best_possible": "Best possible",
}


@dataclass(frozen=True)
class ConfusionCell:
    """How often one category was predicted for another."""

    count: int
    share: float
    """Of the row."""
    is_correct: bool
    column: str


@dataclass(frozen=True)
class ConfusionRow:
    """One true category."""

    category: str
    cells: tuple[ConfusionCell, ...]
    total: int


@dataclass(frozen=True)
class ConfusionTable:
    """A confusion matrix as rows of cells."""

    columns: tuple[str | None, ...]
    rows: tuple[ConfusionRow, ...]


@dataclass(frozen=True)
class AspectRow:
    """One aspect of stage 1."""

    aspect: str
    accuracy: float
    ci: tuple[float, float] | None
    num_samples: int | None
    how: str
    """How it answers."""
    other_name: str
    other: float | None
    """Macro F1 or token F1."""
    confusion: ConfusionTable | None
    calibration: str | None
    """An SVG element."""
    metrics: MetricsFile
    """All of its metrics."""


@dataclass(frozen=True)
class ShownDataset:
    """One of several datasets that were evaluated in one call."""

    name: str
    accuracy: float
    accuracy_ci95: tuple[float, float] | None
    macro_f1: float | None
    num_samples: int | None
    mapped: str
    """Categories counted as others."""
    num_in_split: int | None = None
    accuracy_of_split: float | None = None
    """With images that were not scored counted as wrong."""


@dataclass(frozen=True)
class ShownCounts:
    """Images of each split that have a category, or are annotated with an aspect."""

    title: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    """Name, and the number of images of each split."""


@dataclass(frozen=True)
class ShownHoldings:
    """What the dataset holds."""

    splits: tuple[str, ...]
    num_images: tuple[int, ...]
    """Of each split."""
    tables: tuple[ShownCounts, ...]
    findings: tuple[Finding, ...]
    """The serious ones first."""


@dataclass(frozen=True)
class ShownVariant:
    """One variant of the demo."""

    key: str
    title: str
    accuracy: float
    ci: tuple[float, float] | None


@dataclass(frozen=True)
class LineageRow:
    """One field of a lineage."""

    of: str
    """What it belongs to, such as `soft_prompt / aspect`."""
    name: str
    value: str


def confusion_table(metrics: MetricsFile) -> ConfusionTable | None:
    """The confusion matrix of an evaluation; None without one."""
    categories = metrics.categories or tuple(metrics.per_category or ())
    if not metrics.confusion or len(metrics.confusion) != len(categories):
        return None
    columns: tuple[str | None, ...] = metrics.confusion_columns or categories
    rows = []
    for category, counts in zip(categories, metrics.confusion, strict=True):
        total = sum(counts)
        cells = tuple(
            ConfusionCell(
                count=count,
                share=count / total if total else 0.0,
                is_correct=column == category,
                column="no category" if column is None else column,
            )
            for column, count in zip(columns, counts, strict=False)
        )
        rows.append(ConfusionRow(category, cells, total))
    return ConfusionTable(columns, tuple(rows))


def aspect_rows(evaluate_dir: Path, metrics: MetricsFile, problems: list[str]) -> list[AspectRow]:
    """Stage 1 per aspect: from this evaluation if it is one of stage 1, else from the one beside it.

    Args:
        evaluate_dir: Directory of the evaluation that the report is about.
        metrics: Its metrics.
        problems: What is damaged is left out, and a line appended that says so.
    """
    if metrics.per_aspect is None:
        path = evaluate_dir.parent / STAGE1 / METRICS
        try:
            metrics = read_metrics(path, problems) if is_file(path) else MetricsFile()
        except MaspError as error:
            problems.append(str(error))
    rows = []
    for index, (aspect, values) in enumerate((metrics.per_aspect or {}).items()):
        if values.accuracy is None:
            continue
        is_closed = values.kind == "closed"
        choices = values.categories or ()
        rows.append(
            AspectRow(
                aspect=aspect.replace("_", " "),
                accuracy=values.accuracy,
                ci=values.accuracy_ci95,
                num_samples=values.num_samples,
                how=f"likeliest of {len(choices)} answers" if is_closed else "written, exactly the same",
                other_name="macro F1" if is_closed else "token F1",
                other=values.macro_f1 if is_closed else values.token_f1,
                confusion=confusion_table(values) if len(choices) <= MAX_ANSWERS_SHOWN else None,
                calibration=calibration_chart(f"calibration-{index}", values.calibration)
                if values.calibration
                else None,
                metrics=values,
            )
        )
    return rows


def dataset_rows(evaluate_dir: Path, problems: list[str]) -> list[ShownDataset]:
    """The datasets that were evaluated in one call; what is damaged is left out, and a line of `problems` says so."""
    path = evaluate_dir / DATASETS
    rows: Mapping[str, DatasetRow] = {}
    try:
        rows = read_datasets(path, problems) if is_file(path) else {}
    except MaspError as error:
        problems.append(str(error))
    return [
        ShownDataset(
            name=name,
            accuracy=row.accuracy,
            accuracy_ci95=row.accuracy_ci95,
            macro_f1=row.macro_f1,
            num_samples=row.num_samples,
            mapped=", ".join(f"{a} → {b}" for a, b in row.category_map.items() if a != b),
            num_in_split=row.num_in_split,
            accuracy_of_split=row.accuracy_of_split,
        )
        for name, row in rows.items()
        if row.accuracy is not None
    ]


def shown_holdings(evaluate_dir: Path, problems: list[str]) -> ShownHoldings | None:
    """What the dataset of an evaluation holds; None where that is not recorded. Damage is a line of `problems`."""
    try:
        record = load_findings(evaluate_dir)
    except MaspError as error:
        problems.append(str(error))
        return None
    if record is None:
        return None
    holdings = record.holdings
    tables = [
        ShownCounts(title, tuple((name, tuple(counts[s].get(name, 0) for s in holdings.splits)) for name in names))
        for title, counts in (("Category", holdings.categories), ("Annotated with", holdings.aspects))
        if (names := sorted({name for split in counts.values() for name in split}))
    ]
    return ShownHoldings(
        splits=holdings.splits,
        num_images=tuple(map(holdings.num_images, holdings.splits)),
        tables=tuple(tables),
        findings=tuple(sorted(record.findings, key=lambda finding: not finding.serious)),
    )


def variant_rows(summary: Mapping[str, VariantRow]) -> list[ShownVariant]:
    """The variants of the demo, those that are known by name first."""
    names = [*(n for n in _VARIANT_TITLES if n in summary), *(n for n in summary if n not in _VARIANT_TITLES)]
    return [
        ShownVariant(name, _VARIANT_TITLES.get(name, name.replace("_", " ")), row.accuracy, row.accuracy_ci95)
        for name in names
        if (row := summary[name]).accuracy is not None
    ]


def yardstick_rows(metrics: MetricsFile, probe: ProbeFile | None) -> list[ShownVariant]:
    """The run beside what a guess and a linear probe give; nothing where no guess is known."""
    guess = metrics.majority_class
    if guess is None or metrics.accuracy is None:
        return []
    rows = [
        ShownVariant("masp", "This run", metrics.accuracy, metrics.accuracy_ci95),
        ShownVariant(
            "majority",
            f"Always “{guess.category}”, the largest category of {guess.split}",
            guess.accuracy,
            guess.accuracy_ci95,
        ),
    ]
    if probe is not None:
        title = f"Linear probe on mean features of {probe.num_train:,} training images"
        rows.append(ShownVariant("linear_probe", title, probe.accuracy, probe.accuracy_ci95))
    return rows


def lineage_rows(lineage: Mapping[str, Any] | None) -> list[LineageRow]:
    """A nested lineage as rows."""
    return [
        LineageRow(" / ".join(path[:-1]), path[-1], value if isinstance(value, str) else json.dumps(value))
        for path, value in _leaves(lineage or {}, ())
    ]


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _leaves(entry, (*path, str(name)))
    elif path:
        yield path, value
