"""The heat map: which part of the prompt speaks for which category, as an SVG element that the template draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masp.config.aspects import VISION_FEATURES
from masp.report.html import signed
from masp.results.explanations.averages import Mean, Means

FEW = 10
"""Images below which a column is marked: its means say little."""

FOR, AGAINST, NEUTRAL = (33, 102, 172), (179, 88, 6), (247, 247, 247)
"""Colors of +, - and 0: a blue and an orange, which people with any color vision tell apart (ColorBrewer)."""
_CELL, _ROW, _NAMES, _HEAD = 86, 34, 132, 40
"""Width and height of a cell, width of the names on the left, height of the head; in SVG units, which are pixels."""
_LONGEST = 13
"""Characters of a category's name that fit above its column."""


@dataclass(frozen=True)
class HeatCell:
    """The mean contribution of one part over the images of one category."""

    x: int
    y: int
    fill: str
    ink: str
    """Color of the number, for contrast with `fill`."""
    text: str
    title: str
    """In words, with the interval."""


@dataclass(frozen=True)
class HeatColumn:
    """One category."""

    x: int
    """Of its middle."""
    name: str
    shown: str
    """The name, shortened."""
    num_images: int
    is_few: bool


@dataclass(frozen=True)
class HeatMap:
    """A row per part, a column per category."""

    width: int
    height: int
    cell_width: int
    cell_height: int
    columns: tuple[HeatColumn, ...]
    rows: tuple[tuple[int, str], ...]
    """Where each row begins, and its name."""
    cells: tuple[HeatCell, ...]
    description: str
    """What it shows, for whoever does not see it."""
    has_few: bool


def heat_map(columns: Sequence[tuple[str, Means]], aspects: Sequence[str], of: str) -> HeatMap:
    """Draw mean contributions of the aspects and of the vision features.

    Args:
        columns: Categories, each with the means over its images; at least one.
        aspects: Aspects in the order of the rows.
        of: Which images a column is of, in words: `predicted as`.
    """
    rows = (*aspects, VISION_FEATURES)
    parts = [{name: mean for name, mean in means.parts(aspects) if name in rows} for _, means in columns]
    largest = max((abs(mean.mean) for part in parts for mean in part.values() if mean is not None), default=0.0)
    names = [name for name in rows if any(part[name] is not None for part in parts)]
    cells, said = [], []
    for number, ((category, _), part) in enumerate(zip(columns, parts, strict=True)):
        for row, name in enumerate(names):
            x, y, mean = _NAMES + number * _CELL, _HEAD + row * _ROW, part[name]
            title = f"{words(name)}, images {of} {category}: {_in_words(mean)}"
            cells.append(HeatCell(x, y, *_colors(mean, largest), signed(mean.mean) if mean else "–", title))
        if strongest := max(((mean.mean, name) for name, mean in part.items() if mean is not None), default=None):
            said.append(f"{category}: most by {words(strongest[1])} ({signed(strongest[0])})")
    return HeatMap(
        width=_NAMES + len(columns) * _CELL,
        height=_HEAD + len(names) * _ROW,
        cell_width=_CELL,
        cell_height=_ROW,
        columns=tuple(
            HeatColumn(
                _NAMES + number * _CELL + _CELL // 2,
                category,
                category if len(category) <= _LONGEST else category[: _LONGEST - 1] + "…",
                means.num_images,
                means.num_images < FEW,
            )
            for number, (category, means) in enumerate(columns)
        ),
        rows=tuple((_HEAD + row * _ROW, words(name)) for row, name in enumerate(names)),
        cells=tuple(cells),
        description=f"Mean contribution in nats, by the category that images are {of}. {'; '.join(said)}.",
        has_few=any(means.num_images < FEW for _, means in columns),
    )


def words(name: str) -> str:
    """The name of a part as people write it."""
    return name.replace("_", " ")


def _in_words(mean: Mean | None) -> str:
    if mean is None:
        return "no image"
    interval = "" if mean.ci95 is None else f" (95 % interval {' to '.join(map(signed, mean.ci95))})"
    return f"{signed(mean.mean)} nats{interval}"


def _colors(mean: Mean | None, largest: float) -> tuple[str, str]:
    """Of a cell and of the number in it."""
    share = mean.mean / largest if mean is not None and largest else 0.0
    end = FOR if share > 0 else AGAINST
    red, green, blue = (round(n + (e - n) * abs(share)) for n, e in zip(NEUTRAL, end, strict=True))
    # relative luminance decides which of black and white is the more readable
    linear = [(c / 255) ** 2.2 for c in (red, green, blue)]
    is_dark = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.18
    return f"rgb({red}, {green}, {blue})", "#fff" if is_dark else "#111"
