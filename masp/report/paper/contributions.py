"""Figures of explanations: what the parts of the prompt did for predictions, on average and by category."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from masp.config.aspects import VISION_FEATURES
from masp.report.explanations.heat_map import AGAINST, FOR, NEUTRAL, words
from masp.report.html import signed
from masp.report.paper.drawing import COLUMN, GRAY, MAX_NAMED, MAX_NUMBERED, PAGE, label, new_figure
from masp.results.explanations.averages import Mean, Means

_DARK = 0.6
"""Share of the largest contribution from which a cell is so dark that its number is white."""
_MAX_HEIGHT = 9.0
"""Of a figure, in inches."""


def draw_contributions(means: Means, aspects: Sequence[str]) -> Figure:
    """A bar per part of the prompt, with its interval.

    Args:
        means: Mean contributions, of which at least one is known.
        aspects: Aspects in the order of the prompt.
    """
    found = [(name, mean) for name, mean in means.parts(aspects) if mean is not None]
    figure = new_figure(COLUMN, min(_MAX_HEIGHT, 0.6 + 0.2 * len(found)))
    axes = figure.add_subplot()
    for place, (_, mean) in enumerate(found):
        axes.barh(place, mean.mean, 0.7, color=_color(FOR if mean.mean >= 0 else AGAINST))
        if mean.ci95 is not None:
            axes.plot(mean.ci95, (place, place), color="black", linewidth=0.8, marker="|", markersize=4)
    axes.axvline(0, color=GRAY, linewidth=0.8)
    axes.set_yticks(range(len(found)), [label(words(name)) for name, _ in found])
    axes.invert_yaxis()
    axes.set_xlabel("mean contribution (nats)")
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    return figure


def draw_heat_map(columns: Sequence[tuple[str, Means]], aspects: Sequence[str], of: str) -> Figure:
    """Mean contributions by category: a row per aspect and one of the vision features, a column per category.

    Args:
        columns: Categories, each with the means over its images; at least one mean is known.
        aspects: Aspects in the order of the prompt.
        of: Which images a column is of, in words: `predicted as`.
    """
    parts = [dict(means.parts(aspects)) for _, means in columns]
    names = [name for name in (*aspects, VISION_FEATURES) if any(part[name] is not None for part in parts)]
    values = np.array([[_value(part[name]) for part in parts] for name in names])
    largest = float(np.nanmax(np.abs(values))) or 1.0
    is_small, is_named = len(columns) <= MAX_NUMBERED, len(columns) <= MAX_NAMED
    width = PAGE if is_wide(columns) else COLUMN
    figure = new_figure(width, min(_MAX_HEIGHT, 1.1 + 0.24 * len(names)))
    axes = figure.add_subplot()
    colors = LinearSegmentedColormap.from_list("contributions", [_color(end) for end in (AGAINST, NEUTRAL, FOR)])
    image = axes.imshow(
        values, cmap=colors.with_extremes(bad="white"), norm=Normalize(-largest, largest), aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    size = 7 if is_small else max(3.5, 7 - 0.06 * len(columns))
    if is_named:
        shown = [f"{label(category)} ({means.num_images:,})" for category, means in columns]
        axes.set_xticks(range(len(columns)), shown, rotation=45, ha="right", fontsize=size, rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [label(words(name)) for name in names])
    if is_small:
        for (y, x), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else signed(float(value))
            color = "white" if abs(value) > _DARK * largest else "black"
            axes.text(x, y, text, ha="center", va="center", color=color, fontsize=6)
    axes.set_xlabel(f"images {of}{'' if is_named else ', in the order of contributions.csv'}")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("mean contribution (nats)")
    bar.outline.set_visible(False)
    return figure


def is_wide(columns: Sequence[tuple[str, Means]]) -> bool:
    """Whether a heat map of so many categories takes both columns of a page: numbers in its cells need the place."""
    return len(columns) > 4


def _value(mean: Mean | None) -> float:
    return float("nan") if mean is None else mean.mean


def _color(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in rgb)
    return red, green, blue
