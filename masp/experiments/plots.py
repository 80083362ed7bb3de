"""Figures of several runs, for documents; the report's own charts are in `masp/report/charts.py`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from masp.files.text import shortened
from masp.report.export import visible
from masp.report.paper.drawing import COLUMN, Drawn, label, new_figure, saved, style

Row = tuple[str, float, Sequence[float] | None]
"""A name, a value, and the ends of its interval."""

Panel = tuple[str, Sequence[Row], float | None]
"""A title, rows from the top down, and where to draw a line (0 for differences), or None."""

_BLUE, _GRAY = "#2f6fde", "#5d6778"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of lines in one figure, after Okabe and Ito (2008): different for color-blind readers too."""
MAX_LINES = len(_COLORS)
_MAX_NAME = 64
_MAX_TICKS = 8
"""Values of a numeric axis up to which each has a tick."""
_APART = 2.5
"""Points of print between lines at the same place, so that their intervals can be told apart."""

Scale = Literal["linear", "log", "categories"]


@dataclass(frozen=True)
class Axis:
    """What is drawn from left to right."""

    title: str
    values: Sequence[Any]
    """Its values in order; categories stand beside one another in this order."""
    scale: Scale


@dataclass(frozen=True)
class Line:
    """Means with their intervals along an axis."""

    name: str
    """For the legend; empty: without a line there."""
    points: Sequence[tuple[Any, float, Sequence[float] | None]]
    """Value of the axis, mean, and the ends of its interval."""
    is_joined: bool = True
    """Whether a line joins the points."""


def intervals_figure(panels: Sequence[Panel]) -> bytes:
    """Values with their intervals, one line each, in panels below one another.

    Args:
        panels: Panels from the top down.

    Returns:
        A PNG file.
    """
    heights = [0.9 + 0.28 * len(rows) for _, rows, _ in panels]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.5, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (title, rows, line) in zip(axes, panels, strict=True):
            for place, (_, value, interval) in enumerate(rows):
                low, high = interval or (value, value)
                axis.plot([low, high], [place, place], color=_BLUE, linewidth=2, solid_capstyle="butt")
                axis.plot([value], [place], "o", color=_BLUE, markersize=5)
            if line is not None:
                axis.axvline(line, color=_GRAY, linewidth=1, linestyle=(0, (4, 3)))
            # "$" would begin a formula
            names = [_short(name).replace("$", r"\$") for name, *_ in rows]
            axis.set_yticks(range(len(rows)), names)
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.set_xlabel(title)
            axis.grid(axis="x", color="#dfe3ea", linewidth=0.6)
            axis.set_axisbelow(True)
        with io.BytesIO() as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
            return file.getvalue()


def axis_figure(
    axis: Axis, title: str, dots: Sequence[tuple[Any, float]], lines: Sequence[Line]
) -> tuple[bytes, Drawn]:
    """Values over an axis: single runs as light dots, means with their intervals as lines.

    Args:
        axis: The axis.
        title: What is drawn upwards.
        dots: Value of the axis and value of each run.
        lines: At most `MAX_LINES`.

    Returns:
        A PNG file, and the same figure as SVG and PDF.
    """
    is_named = any(line.name for line in lines)
    places = {repr(value): place for place, value in enumerate(axis.values)}

    def place_of(value: Any) -> float:
        return places[repr(value)] if axis.scale == "categories" else value

    with style():
        figure = new_figure(COLUMN, 2.4 + (0.16 * len(lines) if is_named else 0))
        plot = figure.subplots()
        if axis.scale == "log":
            plot.set_xscale("log")
        if axis.scale == "categories":
            plot.set_xticks(range(len(axis.values)), [label(str(value)) for value in axis.values])
            plot.set_xlim(-0.5, len(axis.values) - 0.5)
        elif len(axis.values) <= _MAX_TICKS:
            plot.set_xticks(list(axis.values), [f"{value:g}" for value in axis.values])
            plot.set_xticks([], minor=True)
        plot.scatter([place_of(x) for x, _ in dots], [y for _, y in dots], s=9, color="#B5B5B5", linewidths=0)
        for number, line in enumerate(lines):
            move = ScaledTranslation((number - (len(lines) - 1) / 2) * _APART / 72, 0, figure.dpi_scale_trans)
            color, where = _COLORS[number], plot.transData + move
            xs, ys = [place_of(x) for x, *_ in line.points], [y for _, y, _ in line.points]
            for x, y, interval in line.points:
                plot.plot([place_of(x)] * 2, interval or (y, y), color=color, linewidth=1, transform=where)
                plot.update_datalim([(place_of(x), end) for end in interval or (y,)])  # not done for moved lines
            kind, name = "-" if line.is_joined else "", shortened(visible(line.name), _MAX_NAME)
            plot.plot(xs, ys, kind, marker="o", markersize=3.5, color=color, label=name or None, transform=where)
        plot.autoscale_view()
        plot.set_xlabel(label(axis.title))
        plot.set_ylabel(title)
        plot.grid(axis="y")
        plot.set_axisbelow(True)
        if is_named:
            figure.legend(loc="outside lower left")
        drawn = saved(figure)
        FigureCanvasAgg(figure)
        with io.BytesIO() as file:
            figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
            return file.getvalue(), drawn


def _short(name: str, limit: int = 44) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
