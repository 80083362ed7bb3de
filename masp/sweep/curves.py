"""Learning curves: test accuracy over the number of training images, where a sweep varies that number.

Each size of the training set is a point. Members of a size that differ in `seed` or `dataset.subset_seed` are repeats;
of those that differ in anything else, the settings that are best on the validation split make the point.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import stats

from masp.config import Config
from masp.config.feature_source import evaluation_source
from masp.errors import InputError
from masp.evaluation.feed import CachedFeed, open_feed
from masp.evaluation.linear_probe import write_probe
from masp.evaluation.run import open_evaluation
from masp.evaluation.target import TargetEvaluation
from masp.files.atomic import write_bytes
from masp.files.sealed import digest_of
from masp.files.text import reason
from masp.report.export import Cell, Interval, Table, markdown_table, write_tables
from masp.report.paper.drawing import BLUE, COLUMN, ORANGE, new_figure, saved, style
from masp.results.metrics_file import PROBE, read_probe
from masp.runtime.log import show
from masp.sweep.table import Row, order

NAME = "learning-curve"
"""Of its files, without suffix."""
SIZES = ("dataset.fraction", "dataset.shots")
"""Settings that decide how many training images there are."""
REPEATS = ("seed", "dataset.subset_seed")
"""Settings whose values are repeats of the same experiment."""


@dataclass(frozen=True)
class Point:
    """A size of the training set and the settings that are best at it."""

    size: Mapping[str, Any]
    """Those of `SIZES` that are varied -> value."""
    settings: Mapping[str, Any]
    """What else is varied -> value."""
    rows: tuple[Row, ...]
    """The members with these, the repeats, as far as they were trained to their end."""


@dataclass(frozen=True)
class Measured:
    """A mean over repeats."""

    mean: float
    interval: tuple[float, float] | None
    """95 %, by Student's t distribution; None of fewer than two."""
    count: int
    """Repeats."""


@dataclass(frozen=True)
class PointResult:
    """A point of the curve."""

    point: Point
    num_images: int
    """Training images, the mean over subsets."""
    accuracy: Measured
    """On the test split."""
    probe: Measured | None
    """The same of linear probes, one per subset."""


def varies_size(values: Iterable[str]) -> bool:
    """Whether settings that are varied decide how many training images there are."""
    return not set(SIZES).isdisjoint(values)


def check_probe(config: Config, members: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a linear probe that could not be fitted after everything is trained.

    Args:
        config: What all members have in common.
        members: Of each what it varies.

    Raises:
        InputError: There are no features in a cache to fit it on, or stage 1 is what is scored.
    """
    if config.evaluate.linear_probe and any(map(varies_size, members)):
        if evaluation_source(config) == "live":
            raise InputError("evaluate.linear_probe = true: needs features in the cache; leave it out")
        if config.evaluate.stage == "stage1":
            raise InputError("evaluate.linear_probe = true: only of evaluations of stage 2; leave it out of stage 1")


def curve_points(rows: Sequence[Row]) -> list[Point]:
    """The points of the curve, in the order of the rows; none where no size is varied, or where nothing can be chosen.

    Args:
        rows: All members, with their scores on the validation split.
    """
    if not any(varies_size(row.values) for row in rows):
        return []
    sizes: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        others = {key: value for key, value in row.values.items() if key not in (*SIZES, *REPEATS)}
        sizes.setdefault(digest_of(_size(row)), {}).setdefault(digest_of(others), []).append(row)
    points = []
    for candidates in sizes.values():
        best = min(candidates.values(), key=_rank)
        kept = tuple(row for row in best if not row.failure and not row.dropped)
        if kept and (len(candidates) == 1 or _rank(best)[1:] != (math.inf, math.inf)):
            others = {key: value for key, value in best[0].values.items() if key not in (*SIZES, *REPEATS)}
            points.append(Point(_size(best[0]), others, kept))
    return points


def _size(row: Row) -> dict[str, Any]:
    return {key: row.values[key] for key in SIZES if key in row.values}


def _rank(rows: Sequence[Row]) -> tuple[float, float, float]:
    """The better, the smaller: repeats that failed, then the mean of what the rows are ordered by."""
    orders = [order(row) for row in rows if not row.failure and not row.dropped]
    accuracy, loss = np.mean(orders, axis=0).tolist() if orders else (math.inf, math.inf)
    return len(rows) - len(orders), accuracy, loss


def write_curve(directory: Path, configs: Mapping[str, Config], rows: Sequence[Row]) -> Path | None:
    """Write the learning curve as a table (CSV, LaTeX) and a figure (PNG, SVG, PDF), and print the table.

    With `evaluate.linear_probe`, a probe is fitted on each subset, unless an earlier call has done so.

    Args:
        directory: Directory of the sweep.
        configs: Name of a member -> its configuration.
        rows: All members, with their scores.

    Returns:
        The figure (PNG); None where no size is varied, or no member of a point has a score on the test split.

    Raises:
        InputError: They cannot be written. DataError: The cache is damaged.
    """
    points = curve_points(rows)
    results = [found for point in points if (found := _measure(directory, configs, point)) is not None]
    if not results:
        if any(varies_size(row.values) for row in rows):
            show(
                "sweep: no learning curve: "
                + (
                    "no member of it is scored on the test split; --test best scores them"
                    if points
                    else "nothing tells which settings are the best at a size: the dataset has no validation split, "
                    "and training held out no images (stage2.validate_every)"
                )
            )
        return None
    results.sort(key=lambda result: result.num_images)
    table = _table(results)
    write_tables(directory, [table], "output_dir")
    with style():
        figure = draw_curve(results)
        drawn = saved(figure)
        FigureCanvasAgg(figure)
        with io.BytesIO() as file:
            figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
            files = {".svg": drawn.svg, ".pdf": drawn.pdf, ".png": file.getvalue()}
    path = directory / f"{NAME}.png"
    try:
        for suffix, data in files.items():
            write_bytes(path.with_suffix(suffix), data)
    except OSError as error:
        raise InputError(f"output_dir {directory}: cannot be written: {reason(error)}") from None
    show("", *markdown_table(table), f"sweep: learning curve: {path}")
    return path


def _measure(directory: Path, configs: Mapping[str, Config], point: Point) -> PointResult | None:
    names: dict[Any, str] = {}  # seed of a subset -> one of its members
    by_member: dict[str, dict[Any, float]] = {}  # that -> seed -> accuracy
    for row in point.rows:
        if row.test_accuracy is not None:
            name = names.setdefault(row.values.get("dataset.subset_seed"), row.name)
            by_member.setdefault(name, {})[row.values.get("seed")] = row.test_accuracy
    subsets: dict[str | None, dict[Any, float]] = {}  # digest -> seed -> accuracy: all images are one subset
    numbers, probes = {}, {}
    for name, accuracies in by_member.items():
        config = copy.deepcopy(configs[name])
        config.evaluate.split = "test"
        feed = open_feed(config)
        digest = None if feed.subset is None else feed.subset.digest
        subsets.setdefault(digest, {}).update(accuracies)
        if digest not in numbers:
            numbers[digest] = sum(feed.category_counts("train").values())
            if config.evaluate.linear_probe:
                assert isinstance(feed, CachedFeed), "checked before"
                probes[digest] = _probe(directory, config, feed)
    if not subsets:
        return None
    by_subset = [list(accuracies.values()) for accuracies in subsets.values()]
    # seeds of one subset are alike: where there are several subsets, each counts once
    repeats = by_subset[0] if len(by_subset) == 1 else [float(np.mean(accuracies)) for accuracies in by_subset]
    probe = _over_repeats(list(probes.values())) if probes else None
    return PointResult(point, round(float(np.mean(list(numbers.values())))), _over_repeats(repeats), probe)


def _over_repeats(values: Sequence[float]) -> Measured:
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Measured(mean, None, count)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return Measured(mean, (max(0.0, mean - half), min(1.0, mean + half)), count)


def _probe(directory: Path, config: Config, feed: CachedFeed) -> float:
    """Accuracy of the linear probe of a subset on the test split: fitted once, whatever the seed of a member."""
    evaluation = open_evaluation(config, directory, feed)
    assert isinstance(evaluation, TargetEvaluation)
    means, subset, cache = evaluation.asked.means, feed.subset, feed.cache
    parts = [cache.manifest.index.sha256, subset and subset.digest, config.order_seed, means, cache.categories]
    place = directory / f"probe-{digest_of(parts)[:12]}"
    found = read_probe(place / PROBE)
    if found is None or found.data_digest != feed.data_digest:
        place.mkdir(parents=True, exist_ok=True)
        write_probe(cache, int(config.order_seed or 0), "test", means, feed.data_digest, place)
        found = read_probe(place / PROBE)
    assert found is not None, "just written"
    return found.accuracy


def _table(results: Sequence[PointResult]) -> Table:
    sizes = list(dict.fromkeys(key for result in results for key in result.point.size))
    others = list(dict.fromkeys(key for result in results for key in result.point.settings))
    has_probe = any(result.probe is not None for result in results)
    short = [key.rpartition(".")[2] for key in (*sizes, *others)]
    named = [name if short.count(name) == 1 else key for key, name in zip((*sizes, *others), short, strict=True)]
    columns = [*named, "training images"]
    columns += ["accuracy", "95 % interval", "repeats"]
    columns += ["linear probe", "probe 95 % interval"] if has_probe else []
    rows: list[list[Cell]] = []
    for result in results:
        values = {**result.point.size, **result.point.settings}
        row: list[Cell] = [_text(values.get(key)) for key in (*sizes, *others)]
        row += [result.num_images, result.accuracy.mean, Interval(result.accuracy.interval), result.accuracy.count]
        if has_probe:
            probe = result.probe
            row += [None, Interval(None)] if probe is None else [probe.mean, Interval(probe.interval)]
        rows.append(row)
    return Table(NAME, "Test accuracy over the number of training images", tuple(columns), rows)


def _text(value: Any) -> str:
    return "all" if value is None else str(value)


def draw_curve(results: Sequence[PointResult]) -> Figure:
    """Accuracy over the number of training images, on a logarithmic axis, with intervals where there are any."""
    figure = new_figure(COLUMN, 2.4)
    axes = figure.add_subplot()
    lines = [("soft prompt", BLUE, "o", "-", [(each.num_images, each.accuracy) for each in results])]
    if probes := [(each.num_images, each.probe) for each in results if each.probe is not None]:
        lines.append(("linear probe", ORANGE, "s", (0, (4, 2)), probes))  # type: ignore[arg-type]
    for name, color, marker, dashes, places in lines:
        numbers, means = [number for number, _ in places], [found.mean for _, found in places]
        ends = [found.interval or (found.mean, found.mean) for _, found in places]
        below = [mean - low for mean, (low, _) in zip(means, ends, strict=True)]
        above = [high - mean for mean, (_, high) in zip(means, ends, strict=True)]
        axes.errorbar(
            numbers, means, yerr=[below, above], color=color, marker=marker, markersize=3.5, linestyle=dashes,
            capsize=2, elinewidth=0.8, label=name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({each.num_images for each in results})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="training images", ylabel="accuracy on the test split")
    axes.legend()
    axes.grid(True)
    axes.set_axisbelow(True)
    return figure
