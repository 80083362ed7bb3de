"""Figures of their own (PNG), for documents; the report's own charts are in `masp/report/charts.py`."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = tuple[str, float, Sequence[float] | None]
"""A name, a value, and the ends of its interval."""

Panel = tuple[str, Sequence[Row], float | None]
"""A title, rows from the top down, and where to draw a line (0 for differences), or None."""

_BLUE, _GRAY = "#2f6fde", "#5d6778"


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


def _short(name: str, limit: int = 44) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
