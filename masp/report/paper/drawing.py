"""How figures of a paper are drawn and saved: SVG and PDF of the same drawing, readable in a column.

Letters are embedded (as TrueType in PDF, as outlines in SVG), colors differ for color-blind readers too (Okabe and Ito,
2008, maps of one hue, and blue against orange), and the same drawing gives the same bytes: no date, no random names.
Text is never taken for a formula, whatever is in it.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from masp.files.text import shortened
from masp.report.export import visible

COLUMN, PAGE = 3.35, 6.9
"""Widths of a column and of a page of two columns, in inches."""
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#5F5F5F"
SHADES = "Blues"
"""Color map of rising darkness."""
MAX_NUMBERED = 12
"""Categories up to which a matrix has a number in each cell."""
MAX_NAMED = 60
"""Categories up to which it names them."""
_MAX_NAME = 28
_MISSING = re.compile(r"Glyph (\d+) .*missing from")

_STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that all machines draw the same
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "masp",
    "image.composite_image": False,
}


@dataclass(frozen=True)
class Drawn:
    """A figure as files hold it."""

    svg: bytes
    pdf: bytes
    missing: str
    """Characters that the font does not have, which are drawn as boxes."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style of all figures, while they are drawn and saved."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; no window system is asked for and no global figure is left behind."""
    return Figure(figsize=(width, height), layout="constrained")


def saved(figure: Figure) -> Drawn:
    """A figure as SVG and PDF; to be called inside `style`."""
    found = dict[str, bytes]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for canvas, kind, nothing in (
            (FigureCanvasSVG, "svg", ("Creator", "Date", "Format", "Type")),
            (FigureCanvasPdf, "pdf", ("Creator", "Producer", "CreationDate")),
        ):
            canvas(figure)
            with io.BytesIO() as file:
                figure.savefig(file, format=kind, metadata=dict.fromkeys(nothing))
                found[kind] = file.getvalue()
    missing = set()
    for each in caught:
        glyph = _MISSING.search(str(each.message))
        if glyph is None:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        else:
            missing.add(chr(int(glyph[1])))
    return Drawn(found["svg"], found["pdf"], "".join(sorted(missing)))


def label(text: str | None) -> str:
    """A name of a run as text of a figure: one line, not too long."""
    return "no category" if text is None else shortened(visible(text), _MAX_NAME)
