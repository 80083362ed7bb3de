"""Train on one dataset, evaluate on several, in one call: `masp evaluate --config C --on FILE --on FILE`."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.trained import default_aspect_path, default_soft_prompt_path
from masp.config import Config, load_config
from masp.errors import DataError, InputError
from masp.evaluation.feed import open_feed
from masp.evaluation.group.parts import evaluate_dir, plain_write_errors
from masp.evaluation.run import evaluate, open_evaluation
from masp.evaluation.target import parse_map
from masp.files.text import shown
from masp.results.metrics_file import DATASETS, METRICS, DatasetRow, read_metrics, write_rows
from masp.runtime.log import show
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)


def evaluate_on(config: Config, files: Sequence[str], stop: StopFlag | None = None) -> Path | None:
    """Evaluate what a run trained on its own dataset and on others.

    Every dataset is checked before the first is scored. Each has a directory, ledgers and metrics of its own, so the
    call resumes anywhere and on any number of ranks; whichever rank finds all metrics there writes the table.

    Args:
        config: Run configuration.
        files: A configuration per dataset, of which `dataset`, `cache.dir`, `target.labels`, `target.categories`,
            `evaluate.split` and `evaluate.category_map` count; one that is the same as another, or as the run's own, is
            skipped.
        stop: See `masp.evaluation.run.evaluate`.

    Returns:
        `datasets.json`; None if other ranks still have samples to score.

    Raises:
        InputError: a file is wrong or of another target, two datasets have one name, or categories are neither trained
            nor mapped.
        DataError: data of some datasets are damaged; the others are scored.
    """
    configs = dataset_configs(config, files)
    feeds = {name: open_feed(each) for name, each in configs.items()}
    known = sorted({category for feed in feeds.values() for category in feed.categories})
    for name, each in configs.items():
        open_evaluation(each, evaluate_dir(each), feeds[name], known)
    feeds.clear()
    table = evaluate_dir(config) / DATASETS
    damaged: list[str] = []
    for name, each in configs.items():
        show(f"evaluate: on {name}")
        try:
            evaluate(each, stop, known, [table])
        except DataError as error:  # of this dataset; the others are scored all the same
            damaged.append(f"{name}: {error}")
    if damaged:
        raise DataError("; ".join(damaged))
    return _write_table(table, configs)


def dataset_configs(config: Config, files: Sequence[str]) -> dict[str, Config]:
    """The configuration of each evaluation, the run's own first, by the name of its dataset."""
    configs: dict[str, Config] = {config.dataset.name: config}
    sources = {_what_is_scored(config): "the run's own dataset"}
    for file in files:
        other, name = load_config(file, unused=["vlm.path"]), Path(file).stem
        if other.target.name != config.target.name:
            raise InputError(
                f"--on {file}: target.name = {shown(other.target.name)} there, but {shown(config.target.name)} in this "
                "run; a soft prompt is evaluated on its own target: give the file this target.name and its labels"
            )
        mapping = parse_map(config.evaluate.category_map) | parse_map(other.evaluate.category_map)
        other.evaluate.category_map = [f"{theirs}={ours or ''}" for theirs, ours in mapping.items()] or None
        scored = _what_is_scored(other)
        if scored in sources:
            LOG.info("--on %s is skipped: it is the same as %s", file, sources[scored])
            continue
        sources[scored] = f"--on {file}"
        if name in configs:
            raise InputError(
                f"--on {file}: another dataset of this call is called {name!r}; give the file another name"
            )
        changed = copy.deepcopy(config)
        changed.dataset, changed.cache.dir = other.dataset, other.cache.dir
        changed.target.labels, changed.target.categories = other.target.labels, other.target.categories
        changed.evaluate.split = other.evaluate.split
        changed.evaluate.output_dir = str(evaluate_dir(config) / "on" / name)
        changed.evaluate.category_map = other.evaluate.category_map
        changed.checkpoint.aspect = config.checkpoint.aspect or str(default_aspect_path(config))
        changed.checkpoint.soft_prompt = config.checkpoint.soft_prompt or str(default_soft_prompt_path(config))
        configs[name] = changed
    return configs


def _what_is_scored(config: Config) -> tuple:
    """What must differ between two datasets of a call, however their paths are spelt."""
    dataset, target, mapping = config.dataset, config.target, parse_map(config.evaluate.category_map)
    return (
        Path(dataset.root).resolve(),
        config.cache.dir and Path(config.cache.dir).resolve(),
        dataset.name,
        tuple(dataset.categories or ()),
        target.labels,
        tuple(target.categories or ()),
        config.evaluate.split,
        frozenset(mapping.items()),
    )


def _write_table(table: Path, configs: dict[str, Config]) -> Path | None:
    rows = {}
    for name, each in configs.items():
        path = evaluate_dir(each) / METRICS
        if not path.is_file():
            return None
        problems: list[str] = []
        metrics = read_metrics(path, problems)
        if problems:
            raise DataError(f"{problems[0]}; run `masp evaluate` again")
        rows[name] = DatasetRow(
            num_samples=metrics.num_samples,
            num_correct=metrics.num_correct,
            accuracy=metrics.accuracy,
            accuracy_ci95=metrics.accuracy_ci95,
            macro_f1=metrics.macro_f1,
            balanced_accuracy=metrics.balanced_accuracy,
            category_map=metrics.category_map or {},
            split=metrics.split,
            metrics=os.path.relpath(path, table.parent),
            num_in_split=metrics.num_in_split,
            coverage=metrics.coverage,
            accuracy_of_split=metrics.accuracy_of_split,
        )
    with plain_write_errors(table.parent):
        write_rows(table, {name: row.to_json() for name, row in rows.items()})
    show(*_as_text(rows))
    show(f"evaluate: {len(rows)} datasets: {table}")
    return table


def _as_text(rows: dict[str, DatasetRow]) -> list[str]:
    """The datasets in lines of text."""
    width = max(10, *map(len, rows))
    lines = [
        f"{'dataset':<{width}} {'images':>8} {'of':>8} {'accuracy':>9}  {'95 % interval':<16} {'macro F1':>9} "
        f"{'of split':>9}"
    ]
    for name, row in rows.items():
        low, high = row.accuracy_ci95 or (0.0, 0.0)
        f1, whole = ("" if value is None else f"{value:.4f}" for value in (row.macro_f1, row.accuracy_of_split))
        total = "" if row.num_in_split is None else f"{row.num_in_split:,}"
        lines.append(
            f"{name:<{width}} {row.num_samples or 0:>8,} {total:>8} {row.accuracy or 0.0:>9.4f}  "
            f"{f'{low:.4f} to {high:.4f}':<16} {f1:>9} {whole:>9}"
        )
    lines.append("of: all images of the split; of split: the accuracy with those that were not scored counted as wrong")
    return lines
