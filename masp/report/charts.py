"""The report's line charts: matplotlib draws them, the page's style sheet colors them.

A chart is an SVG element to be placed inside an HTML page. Its text stays text and its colors are variables of the
page, so it follows the page's font and its light or dark scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from masp.results.metrics import CalibrationBin

# Drawn with colors that nothing else uses, then replaced by what the page defines.
_INK, _MUTED, _GRID, _ACCENT = "#010101", "#020202", "#030303", "#040404"
_PAGE_COLORS = {_INK: "currentColor", _MUTED: "var(--muted)", _GRID: "var(--line)", _ACCENT: "var(--accent)"}

_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.formatter.useoffset": False,
}


def training_curve(
    name: str,
    steps: Sequence[int],
    values: Sequence[float],
    label: str,
    *,
    smooth: bool = False,
    held_out: Sequence[tuple[int, float]] = (),
) -> str:
    """A quantity over the steps of a training stage.

    Args:
        name: unique on the page: letters, digits and dashes.
        steps, values: the points.
        label: what the values are, also read out by screen readers; plain text of ours.
        smooth: draw the points thin and a running mean over them.
        held_out: steps and values on held-out images.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _axes(5.2, 2.3)
    with_mean = smooth and len(values) >= 10
    axes.plot(
        steps,
        values,
        color=_ACCENT,
        linewidth=0.9 if with_mean else 1.8,
        alpha=0.35 if with_mean else 1,
        marker="o" if len(values) < 2 else None,
    )
    if with_mean:
        axes.plot(steps, running_mean(values, max(2, len(values) // 25)), color=_ACCENT, linewidth=1.8)
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), marker="o", markersize=3
        )
    axes.set_title(label, loc="left")
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, name, f"{label} over {len(steps)} logged steps")


def calibration_chart(name: str, bins: Sequence[CalibrationBin]) -> str:
    """How often predictions of each confidence are right; see `masp.results.metrics.calibration_bins`.

    Args:
        name: unique on the page: letters, digits and dashes.
        bins: the bins.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _axes(4.2, 3.4)
    largest = max((b.num_samples for b in bins), default=1)
    for b in bins:
        if b.accuracy is None:
            continue
        # The bar's width is the bin's, its strength the share of samples in it: a bin of three says little.
        axes.bar(
            b.start,
            b.accuracy,
            width=b.stop - b.start,
            align="edge",
            color=_ACCENT,
            linewidth=0,
            alpha=0.25 + 0.65 * b.num_samples / largest,
        )
    axes.set_axisbelow(True)
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the prediction", ylabel="share that is right")
    return _svg(figure, name, "Share of right predictions by their probability; on the dashed line they agree")


def _axes(width: float, height: float) -> tuple[Any, Any]:
    # A canvas of its own, and no pyplot: no window system is asked for and no global figure is left behind.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        return figure, figure.add_subplot()


def _svg(figure: Any, name: str, description: str) -> str:
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}), io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
        svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside HTML the name spaces are implied, and a page without any address is easy to prove self-contained.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # It would rule the page.
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for drawn, color in _PAGE_COLORS.items():
        svg = svg.replace(drawn, color)
    return svg.replace("<svg", f'<svg class="chart" role="img" aria-label="{description}"', 1)


def running_mean(values: Sequence[float], half_window: int) -> list[float]:
    """The mean over up to `half_window` neighbors on each side, fewer at the ends."""
    windows = (values[max(0, i - half_window) : i + half_window + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
