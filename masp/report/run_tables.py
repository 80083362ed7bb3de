"""The tables of a run as files: what `masp report --tables DIR` writes.

`metrics`, `categories`, `confusion`, `calibration`, `aspect-values`, and where they exist `aspects`, `datasets`,
`prompts` and `variants`, each as CSV and LaTeX; `records.csv` has a line per image. `masp.report.export` says how cells
are spelled. Columns keep their order; new ones come last.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masp.errors import InputError
from masp.files.atomic import replacing
from masp.files.text import reason
from masp.report.export import Cell, Interval, Table, spreadsheet_text, write_tables
from masp.report.images import shown_name
from masp.report.tables import AspectRow, ShownDataset, ShownVariant
from masp.results.metrics import softmax
from masp.results.metrics_file import MetricsFile, PromptTable
from masp.results.records import FILE, read_records_file

_METRICS = (
    "accuracy", "accuracy_of_split", "balanced_accuracy", "macro_f1", "weighted_f1", "top2_accuracy", "nll", "brier",
    "ece", "coverage",
)  # fmt: skip
_COUNTS = ("num_samples", "num_correct", "num_in_split", "num_quarantined", "num_left_out", "num_unparsable")
_CHUNK = 10_000


def write_run_tables(
    directory: Path,
    evaluate_dir: Path,
    metrics: MetricsFile,
    aspects: Sequence[AspectRow] = (),
    datasets: Sequence[ShownDataset] = (),
    variants: Sequence[ShownVariant] = (),
    prompts: PromptTable | None = None,
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
    ]
    written = write_tables(directory, [table for table in tables if table.rows], "--tables")
    if metrics.per_aspect is None and (evaluate_dir / FILE).is_file():
        written.append(_write_records(directory / "records.csv", evaluate_dir / FILE))
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


def _write_records(path: Path, source: Path) -> Path:
    """Write a line per image: what it is, what was predicted, and the probability and score of every category."""
    records = read_records_file(source)
    fixed = ["sample_key", "image", "label", "prediction", "correct", "probability", "label_probability"]
    names = [f"probability {c}" for c in records.categories] + [f"score {c}" for c in records.categories]
    position = {category: index for index, category in enumerate(records.categories)}
    try:
        with (
            replacing(path) as temporary,
            open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*fixed, *map(spreadsheet_text, names)])
            for start in range(0, len(records.keys), _CHUNK):
                scores = records.scores[start : start + _CHUNK]
                probabilities = softmax(scores)
                for offset in range(len(scores)):
                    row = start + offset
                    key, label, prediction = records.keys[row], records.labels[row], records.predictions[row]
                    chances = probabilities[offset]
                    of = ["" if name is None or np.isnan(chances).any() else repr(float(chances[position[name]]))
                          for name in (prediction, label)]  # fmt: skip
                    writer.writerow(
                        [
                            *map(spreadsheet_text, (key, shown_name(key), label, prediction or "")),
                            int(label == prediction),
                            *of,
                            *("" if np.isnan(value) else repr(float(value)) for value in (*chances, *scores[offset])),
                        ]
                    )
    except OSError as error:
        raise InputError(f"--tables {path.parent}: {path.name} cannot be written: {reason(error)}") from None
    return path
