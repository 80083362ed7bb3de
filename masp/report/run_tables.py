"""The tables of a run as files: what `masp report --tables DIR` writes.

`metrics`, `categories`, `confusion`, `calibration`, `aspect-values`, and where they exist `aspects`, `datasets`,
`prompts`, `variants` and `contributions`, each as CSV and LaTeX; `records.csv` has a line per image,
`records-stage1.csv` one per annotated aspect of an image (`masp.report.record_tables`), and `explanations.csv` one per
explained image (`masp.report.explanations.tables`). `masp.report.export` says how cells are spelled. Columns
keep their order; new ones come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masp.files.regular import is_file
from masp.report.explanations.tables import contributions_table, write_explanation_table
from masp.report.export import Cell, Interval, Table, write_tables
from masp.report.record_tables import write_aspect_table, write_target_table
from masp.report.tables import AspectRow, ShownDataset, ShownVariant
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.explanations.explanations_file import ExplanationsFile
from masp.results.metrics_file import MetricsFile, PromptTable
from masp.results.records import FILE

_METRICS = (
    "accuracy", "accuracy_of_split", "balanced_accuracy", "macro_f1", "weighted_f1", "top2_accuracy", "nll", "brier",
    "ece", "coverage",
)  # fmt: skip
_COUNTS = ("num_samples", "num_correct", "num_in_split", "num_quarantined", "num_left_out", "num_unparsable")


def write_run_tables(
    directory: Path,
    evaluate_dir: Path,
    metrics: MetricsFile,
    aspects: Sequence[AspectRow] = (),
    datasets: Sequence[ShownDataset] = (),
    variants: Sequence[ShownVariant] = (),
    prompts: PromptTable | None = None,
    explanations: ExplanationsFile | None = None,
) -> list[Path]:
    """Write all tables; the arguments are what the page shows.

    Raises:
        InputError: they cannot be written. DataError: `records.h5` is damaged.
    """
    tables = [
        _metrics(metrics),
        _categories(metrics),
        _confusion(metrics),
        _calibration(metrics),
        _values(metrics),
        *_others(aspects, datasets, variants, prompts),
        *([contributions_table(explanations)] if explanations else []),
    ]
    written = write_tables(directory, [table for table in tables if table.rows], "--tables")
    is_stage1 = metrics.per_aspect is not None
    stage1 = (evaluate_dir if is_stage1 else evaluate_dir.parent / STAGE1) / FILE
    if not is_stage1 and is_file(evaluate_dir / FILE):
        written.append(write_target_table(directory / "records.csv", evaluate_dir / FILE))
    if is_file(stage1):
        written.append(write_aspect_table(directory / "records-stage1.csv", stage1))
    if explanations is not None:
        written.append(write_explanation_table(directory / "explanations.csv", explanations))
    return written


def _metrics(metrics: MetricsFile) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, float(value), Interval(getattr(metrics, f"{name}_ci95", None)))
        for name in _METRICS
        if (value := getattr(metrics, name)) is not None
    ]
    rows += [(name, value, Interval(None)) for name in _COUNTS if (value := getattr(metrics, name)) is not None]
    if guess := metrics.majority_class:
        rows.append(("majority class accuracy", guess.accuracy, Interval(guess.accuracy_ci95)))
    scaling = metrics.temperature_scaling
    if scaling and scaling.temperature is not None and scaling.scaled:
        rows.append(("temperature", scaling.temperature, Interval(None)))
        for name, value in vars(scaling.scaled).items():
            rows.append((f"{name} at that temperature", value, Interval(None)))
    if found := metrics.distributions:
        rows += [(name, value, Interval(interval)) for name, value, interval in found.rows()]
        rows.append(("expected_accuracy_limit", found.expected_accuracy_limit, Interval(None)))
        rows.append(("num_with_distribution", found.num_samples, Interval(None)))
    return Table("metrics", "Metrics of the evaluation", ("metric", "value", "95 %"), rows, 4)


def _categories(metrics: MetricsFile) -> Table:
    columns = ("category", "precision", "recall", "F1", "samples", "predicted")
    rows: list[tuple[Cell, ...]] = [
        (category, v.precision, v.recall, v.f1, v.support, v.num_predicted)
        for category, v in (metrics.per_category or {}).items()
    ]
    return Table("categories", "Metrics per category", columns, rows)


def _confusion(metrics: MetricsFile) -> Table:
    categories = metrics.categories or tuple(metrics.per_category or ())
    columns = metrics.confusion_columns or categories
    rows: list[tuple[Cell, ...]] = [
        (category, *counts)
        for category, counts in zip(categories, metrics.confusion or (), strict=False)
        if len(counts) == len(columns)
    ]
    names = ("category", *("no category" if column is None else column for column in columns))
    return Table("confusion", "Confusion matrix: a row per category, a column per prediction", names, rows)


def _calibration(metrics: MetricsFile) -> Table:
    columns = ("from", "to", "samples", "mean probability", "accuracy")
    rows: list[tuple[Cell, ...]] = [
        (b.start, b.stop, b.num_samples, b.mean_confidence, b.accuracy) for b in metrics.calibration or ()
    ]
    return Table("calibration", "Predictions by their probability", columns, rows)


def _values(metrics: MetricsFile) -> Table:
    columns = ("aspect", "value", "samples", "right", "accuracy", "95 %", "few samples")
    rows: list[tuple[Cell, ...]] = [
        (aspect, value, g.num_samples, g.num_correct, g.accuracy, Interval(g.accuracy_ci95), "yes" * g.is_small)
        for aspect, values in (metrics.by_value or {}).items()
        for value, g in values.items()
    ]
    return Table("aspect-values", "Accuracy per annotated value of an aspect", columns, rows)


def _others(
    aspects: Sequence[AspectRow],
    datasets: Sequence[ShownDataset],
    variants: Sequence[ShownVariant],
    prompts: PromptTable | None,
) -> list[Table]:
    interval = "95 %"
    return [
        Table(
            "aspects", "Stage 1 per aspect", ("aspect", "accuracy", interval, "F1", "F1 is", "samples"),
            [(r.aspect, r.accuracy, Interval(r.ci), r.other, r.other_name, r.num_samples) for r in aspects],
        ),
        Table(
            "datasets", "Several datasets",
            ("dataset", "samples", "in split", "accuracy", interval, "macro F1", "accuracy of split", "mapped"),
            [
                (r.name, r.num_samples, r.num_in_split, r.accuracy, Interval(r.accuracy_ci95), r.macro_f1,
                 r.accuracy_of_split, r.mapped)
                for r in datasets
            ],
        ),
        Table(
            "prompts", "Wordings of the question",
            ("wording", "template", "order", "accuracy", interval, "macro F1", "nll", "same as first", "question"),
            [
                (name, r.template, r.order, r.accuracy, Interval(r.accuracy_ci95), r.macro_f1, r.nll, r.agreement,
                 r.question)
                for name, r in (prompts.rows if prompts else {}).items()
            ],
        ),
        Table(
            "variants", "Variants of the demo", ("variant", "accuracy", interval),
            [(r.title, r.accuracy, Interval(r.ci)) for r in variants],
        ),
    ]  # fmt: skip
