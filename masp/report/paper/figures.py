"""The figures of a run: confusion matrices, calibration, training curves, what aspects did, and where they look."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from masp.config.aspects import VISION_FEATURES
from masp.report.attention import Attended
from masp.report.charts import running_mean
from masp.report.content import Content
from masp.report.explanations.heat_map import FEW
from masp.report.export import file_name
from masp.report.paper.contributions import draw_contributions, draw_heat_map, is_wide
from masp.report.paper.drawing import (
    BLUE,
    COLUMN,
    GRAY,
    MAX_NAMED,
    MAX_NUMBERED,
    ORANGE,
    PAGE,
    SHADES,
    label,
    new_figure,
)
from masp.report.tables import ConfusionTable
from masp.report.training_curves import Curve
from masp.results.metrics import CalibrationBin

_DASHED = (0, (4, 2))
_DARK = 0.55
"""Share from which a cell is so dark that its number is white."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure to be drawn."""

    name: str
    """Of its files, without suffix."""
    caption: str
    """What it shows, one or two sentences with names of the run as they are."""
    draw: Callable[[], Figure]
    is_wide: bool = False
    """Whether it takes both columns of a page."""


def figures_of(content: Content) -> list[PaperFigure]:
    """Every figure of a run, in the order of the report."""
    return [figure for part in _PARTS for figure in part(content)]


def _training(content: Content) -> list[PaperFigure]:
    found = []
    for stage in content.stages:
        for curve in stage.curves:
            held_out = " The dashed line is the loss on held-out images." if curve.held_out else ""
            caption = f"{stage.title}: {curve.label} over the optimizer steps.{held_out}"
            name = f"{stage.name}-{file_name(curve.name)}"
            found.append(PaperFigure(name, caption, lambda curve=curve: draw_curve(curve)))  # type: ignore[misc]
    return found


def _calibration(content: Content) -> list[PaperFigure]:
    found = [("calibration", "", content.metrics)]
    found += [(f"calibration-{file_name(row.aspect)}", f" of {row.aspect}", row.metrics) for row in content.aspects]
    return [
        PaperFigure(
            name,
            f"Share of right predictions{of} by their probability. Where a bar ends on the dashed line, the "
            "probability is right; darker bars hold more samples.",
            lambda bins=metrics.calibration: draw_calibration(bins),  # type: ignore[misc]
        )
        for name, of, metrics in found
        if metrics.calibration
    ]


def _confusion(content: Content) -> list[PaperFigure]:
    found = [("confusion", "", content.confusion)]
    found += [(f"confusion-{file_name(row.aspect)}", f" of {row.aspect}", row.confusion) for row in content.aspects]
    return [
        PaperFigure(
            name,
            f"Confusion matrix{of}: a row per true category, a column per prediction. The shade is the share of the "
            "row, numbers are counts.",
            lambda table=table: draw_confusion(table),  # type: ignore[misc]
            is_wide=len(table.columns) > MAX_NUMBERED,
        )
        for name, of, table in found
        if table is not None
    ]


def _explanations(content: Content) -> list[PaperFigure]:
    found = content.explanations
    if found is None:
        return []
    averages, aspects, figures = found.averages, found.aspects, list[PaperFigure]()
    what = "A contribution is the log-likelihood of the predicted category with a part of the prompt minus without it."
    known = [mean for _, mean in averages.signed.parts(aspects) if mean is not None]
    if known:
        with_intervals = any(mean.ci95 is not None for mean in known)
        images = "1 image" if found.num_images == 1 else f"{found.num_images:,} images"
        caption = (
            f"Mean contributions of the parts of the prompt over {images}"
            f"{', with 95 % intervals (bootstrap over images)' if with_intervals else ''}. {what}"
        )
        figures.append(PaperFigure("contributions", caption, lambda: draw_contributions(averages.signed, aspects)))
    for name, of, by in (
        ("prediction", "predicted as", averages.by_prediction),
        ("label", "labeled", averages.by_label),
    ):
        columns = found.means_in_order(by)
        parts = [dict(means.parts(aspects)) for _, means in columns]
        if not any(part[row] is not None for part in parts for row in (*aspects, VISION_FEATURES)):
            continue
        few = f" Of fewer than {FEW} images, a mean says little." if any(m.num_images < FEW for _, m in columns) else ""
        caption = (
            f"Mean contributions over the images {of} each category, whose number is in parentheses. {what} Blue is "
            f"for the prediction, orange against it.{few}"
        )
        figures.append(
            PaperFigure(
                f"contributions-by-{name}",
                caption,
                lambda columns=columns, of=of: draw_heat_map(columns, aspects, of),  # type: ignore[misc]
                is_wide=is_wide(columns),
            )
        )
    return figures


def _attention(content: Content) -> list[PaperFigure]:
    if not content.attended:
        return []
    caption = (
        "Where the aspects look: the attention of each aspect module, a mean over its queries, laid over the image and "
        "scaled to its own largest value."
    )
    return [PaperFigure("attention", caption, lambda: draw_attention(content.attended), is_wide=True)]


_PARTS: tuple[Callable[[Content], list[PaperFigure]], ...] = (
    _confusion, _calibration, _training, _explanations, _attention,
)  # fmt: skip
"""What the figures come from, in their order."""


def draw_curve(curve: Curve) -> Figure:
    """A quantity over the steps of training; a noisy one thin, under its running mean."""
    figure = new_figure(COLUMN, 2.0)
    axes = figure.add_subplot()
    steps, values = ([point[place] for point in curve.points] for place in (0, 1))
    with_mean = curve.smooth and len(values) >= 10
    marker = "o" if len(values) < 2 else None
    thin = {"linewidth": 0.6, "alpha": 0.4} if with_mean else {"label": "training"}
    axes.plot(steps, values, color=BLUE, marker=marker, **thin)
    if with_mean:
        axes.plot(steps, running_mean(values, max(2, len(values) // 25)), color=BLUE, label="training")
    if curve.held_out:
        axes.plot(*zip(*curve.held_out, strict=True), color=ORANGE, linestyle=_DASHED, marker="o", markersize=2.5,
                  label="held-out images")  # fmt: skip
        axes.legend()
    axes.set(xlabel="step", ylabel=label(curve.label))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(True)
    axes.set_axisbelow(True)
    return figure


def draw_calibration(bins: Sequence[CalibrationBin]) -> Figure:
    """How often predictions of each probability are right."""
    figure = new_figure(COLUMN, 2.6)
    axes = figure.add_subplot()
    largest = max((b.num_samples for b in bins), default=1) or 1
    for b in bins:
        if b.accuracy is not None:
            strength = 0.3 + 0.7 * b.num_samples / largest
            axes.bar(b.start, b.accuracy, b.stop - b.start, align="edge", color=BLUE, alpha=strength, edgecolor="white",
                     linewidth=0.4)  # fmt: skip
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=_DASHED)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the prediction", ylabel="share that is right")
    axes.grid(True)
    axes.set_axisbelow(True)
    return figure


def draw_confusion(table: ConfusionTable) -> Figure:
    """A confusion matrix as a heat map: the shade of a cell is its share of the row."""
    count = len(table.columns)
    is_small = count <= MAX_NUMBERED
    width = COLUMN if is_small else PAGE
    figure = new_figure(width, min(9.0, (0.85 if is_small else 0.9) * width))
    axes = figure.add_subplot()
    shares = np.array([[cell.share for cell in row.cells] for row in table.rows])
    image = axes.imshow(shares, cmap=SHADES, norm=Normalize(0, 1), aspect="auto", interpolation="nearest")
    size = 7 if is_small else max(3.5, 7 - 0.06 * count)
    if count <= MAX_NAMED:
        axes.set_xticks(range(count), list(map(label, table.columns)), rotation=45, ha="right", fontsize=size,
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(table.rows)), [label(row.category) for row in table.rows], fontsize=size)
    if is_small:
        for y, row in enumerate(table.rows):
            for x, cell in enumerate(row.cells):
                color = "white" if cell.share > _DARK else "black"
                axes.text(x, y, f"{cell.count:,}", ha="center", va="center", color=color, fontsize=6.5)
    order = "" if count <= MAX_NAMED else ", in the order of confusion.csv"
    axes.set(xlabel=f"prediction{order}", ylabel=f"category{order}")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("share of the row")
    bar.outline.set_visible(False)
    return figure


def draw_attention(attended: Sequence[Attended]) -> Figure:
    """A row per image: the image, then the attention of each aspect laid over it."""
    columns = 1 + max(len(entry.aspects) for entry in attended)
    height = sum(_height(_decoded(entry.image)) for entry in attended) * PAGE / columns + 0.2 * len(attended)
    figure = new_figure(PAGE, min(9.0, height))
    all_axes = figure.subplots(len(attended), columns, squeeze=False)
    for axes, entry in zip(all_axes, attended, strict=True):
        pictures = [("image", entry.image), *((look.aspect, look.image) for look in entry.aspects)]
        for axis in axes:
            axis.axis("off")
        for axis, (title, address) in zip(axes, pictures, strict=False):
            axis.imshow(np.asarray(_decoded(address)), interpolation="none")
            axis.set_title(label(title), fontsize=min(8.0, 44 / columns), pad=2)
        right = entry.prediction == entry.label
        found = label(entry.label) if right else f"{label(entry.label)}, predicted {label(entry.prediction)}"
        axes[0].set_title(found, fontsize=min(8.0, 44 / columns), pad=2)
    return figure


def _decoded(address: str) -> Image.Image:
    """The image in a data address that the report made."""
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return image.convert("RGB")


def _height(image: Image.Image) -> float:
    return min(2.0, image.height / max(1, image.width))
