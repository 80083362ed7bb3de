"""The tables of a run as files: what `masp report --tables DIR` writes.

`metrics`, `categories`, `confusion`, `calibration`, `aspect-values`, and where they exist `datasets`, `prompts`,
`variants`, `yardsticks`, `aspects` (with `confusion-` and `calibration-` of each), `dataset`, `training` and `lineage`,
each as CSV and LaTeX; `records.csv` has a line per image, and `records-stage1.csv` one per
annotated aspect of an image (`masp.report.paper.record_tables`). `masp.report.export` says how cells are spelled.
Columns keep their order; new ones come last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from masp.files.regular import is_file
from masp.report.content import Content
from masp.report.export import Cell, Interval, Table, file_name, write_tables
from masp.report.paper.record_tables import write_aspect_table, write_target_table
from masp.report.tables import ShownVariant
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.metrics_file import MetricsFile
from masp.results.records import FILE

_METRICS = (
    "accuracy", "accuracy_of_split", "balanced_accuracy", "macro_f1", "weighted_f1", "top2_accuracy", "nll", "brier",
    "ece", "coverage",
)  # fmt: skip
_INTERVAL = "95 %"
_COUNTS = ("num_samples", "num_correct", "num_in_split", "num_quarantined", "num_left_out", "num_unparsable")


def run_tables(content: Content) -> list[Table]:
    """Every table of a run that has rows."""
    return [table for part in _PARTS for table in part(content) if table.rows]


def write_run_tables(directory: Path, content: Content) -> list[Path]:
    """Write all tables, and the records.

    Raises:
        InputError: They cannot be written. DataError: `records.h5` is damaged.
    """
    written = write_tables(directory, run_tables(content), "--tables")
    evaluate_dir, is_stage1 = content.evaluate_dir, content.metrics.per_aspect is not None
    stage1 = (evaluate_dir if is_stage1 else evaluate_dir.parent / STAGE1) / FILE
    if not is_stage1 and is_file(evaluate_dir / FILE):
        written.append(write_target_table(directory / "records.csv", evaluate_dir / FILE))
    if is_file(stage1):
        written.append(write_aspect_table(directory / "records-stage1.csv", stage1))
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
    return Table("metrics", "Metrics of the evaluation", ("metric", "value", _INTERVAL), rows, 4)


def _categories(metrics: MetricsFile) -> Table:
    columns = ("category", "precision", "recall", "F1", "samples", "predicted")
    rows: list[tuple[Cell, ...]] = [
        (category, v.precision, v.recall, v.f1, v.support, v.num_predicted)
        for category, v in (metrics.per_category or {}).items()
    ]
    return Table("categories", "Metrics per category", columns, rows)


def _confusion(metrics: MetricsFile, name: str = "confusion", of: str = "") -> Table:
    categories = metrics.categories or tuple(metrics.per_category or ())
    columns = metrics.confusion_columns or categories
    rows: list[tuple[Cell, ...]] = [
        (category, *counts)
        for category, counts in zip(categories, metrics.confusion or (), strict=False)
        if len(counts) == len(columns)
    ]
    names = ("category", *("no category" if column is None else column for column in columns))
    return Table(name, f"Confusion matrix{of}: a row per category, a column per prediction", names, rows)


def _calibration(metrics: MetricsFile, name: str = "calibration", of: str = "") -> Table:
    columns = ("from", "to", "samples", "mean probability", "accuracy")
    rows: list[tuple[Cell, ...]] = [
        (b.start, b.stop, b.num_samples, b.mean_confidence, b.accuracy) for b in metrics.calibration or ()
    ]
    return Table(name, f"Predictions{of} by their probability", columns, rows)


def _values(metrics: MetricsFile) -> Table:
    columns = ("aspect", "value", "samples", "right", "accuracy", _INTERVAL, "few samples")
    rows: list[tuple[Cell, ...]] = [
        (aspect, value, g.num_samples, g.num_correct, g.accuracy, Interval(g.accuracy_ci95), "yes" * g.is_small)
        for aspect, values in (metrics.by_value or {}).items()
        for value, g in values.items()
    ]
    return Table("aspect-values", "Accuracy per annotated value of an aspect", columns, rows)


def _of_metrics(content: Content) -> list[Table]:
    metrics = content.metrics
    return [_metrics(metrics), _categories(metrics), _confusion(metrics), _calibration(metrics), _values(metrics)]


def _of_aspects(content: Content) -> list[Table]:
    rows = content.aspects
    tables = [
        Table(
            "aspects", "Stage 1 per aspect", ("aspect", "accuracy", _INTERVAL, "F1", "F1 is", "samples"),
            [(r.aspect, r.accuracy, Interval(r.ci), r.other, r.other_name, r.num_samples) for r in rows],
        )
    ]  # fmt: skip
    for row in rows:
        name, of = file_name(row.aspect), f" of {row.aspect}"
        if row.confusion:
            tables.append(_confusion(row.metrics, f"confusion-{name}", of))
        tables.append(_calibration(row.metrics, f"calibration-{name}", of))
    return tables


def _of_others(content: Content) -> list[Table]:
    prompts = content.prompts
    return [
        Table(
            "datasets", "Several datasets",
            ("dataset", "samples", "in split", "accuracy", _INTERVAL, "macro F1", "accuracy of split", "mapped"),
            [
                (r.name, r.num_samples, r.num_in_split, r.accuracy, Interval(r.accuracy_ci95), r.macro_f1,
                 r.accuracy_of_split, r.mapped)
                for r in content.datasets
            ],
        ),
        Table(
            "prompts", "Wordings of the question",
            ("wording", "template", "order", "accuracy", _INTERVAL, "macro F1", "nll", "same as first", "question"),
            [
                (name, r.template, r.order, r.accuracy, Interval(r.accuracy_ci95), r.macro_f1, r.nll, r.agreement,
                 r.question)
                for name, r in (prompts.rows if prompts else {}).items()
            ],
        ),
        _accuracies("variants", "Variants of the demo", "variant", content.variants),
        _accuracies("yardsticks", "The run beside a guess", "what answers", content.yardsticks),
    ]  # fmt: skip


def _accuracies(name: str, title: str, first: str, rows: Sequence[ShownVariant]) -> Table:
    return Table(name, title, (first, "accuracy", _INTERVAL), [(r.title, r.accuracy, Interval(r.ci)) for r in rows])


def _of_dataset(content: Content) -> list[Table]:
    found = content.holdings
    if found is None:
        return []
    tables = [
        Table(f"dataset-{file_name(counts.title)}", f"Images per split: {counts.title.lower()}",
              (counts.title.lower(), *found.splits), [(name, *numbers) for name, numbers in counts.rows])
        for counts in found.tables
    ]  # fmt: skip
    return [*tables, Table("dataset", "Images per split", ("", *found.splits), [("images", *found.num_images)])]


def _of_training(content: Content) -> list[Table]:
    columns = ("stage", "steps", "epochs", "last loss", "samples per second", "best step")
    rows: list[tuple[Cell, ...]] = [
        (s.title, s.num_steps, s.epoch, s.loss, s.samples_per_second, s.best_step) for s in content.stages
    ]
    return [Table("training", "Training", columns, rows)]


def _of_lineage(content: Content) -> list[Table]:
    rows = [(row.of, row.name, row.value) for row in content.lineage]
    return [Table("lineage", "What the numbers were made from", ("of", "field", "value"), rows)]


_PARTS: tuple[Callable[[Content], list[Table]], ...] = (
    _of_metrics, _of_others, _of_aspects, _of_dataset, _of_training, _of_lineage,
)  # fmt: skip
"""What the tables come from, in their order."""
