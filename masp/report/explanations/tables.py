"""Explanations as files for other programs: `explanations.csv` has a line per image, `contributions` a row per mean.

`masp.report.export` says how cells are spelled. Columns keep their order; new ones come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from masp.report.export import Cell, Interval, Table, spreadsheet_text
from masp.report.images import shown_name
from masp.report.paper.record_tables import write_lines
from masp.results.explanations.averages import Means
from masp.results.explanations.explanations_file import ExplanationsFile


def contributions_table(found: ExplanationsFile) -> Table:
    """The mean contribution of every part: over all explained images, then by category."""
    columns = ("images", "category", "part", "num images", "mean contribution", "95 %", "mean size")
    rows: list[tuple[Cell, ...]] = []

    def add(images: str, category: str, means: Means, absolute: Means | None = None) -> None:
        sizes = {} if absolute is None else dict(absolute.parts(found.aspects))
        for part, mean in means.parts(found.aspects):
            if mean is not None:
                size = sizes.get(part)
                rows.append((images, category, part, means.num_images, mean.mean, Interval(mean.ci95),
                             None if size is None else size.mean))  # fmt: skip

    add("all", "", found.averages.signed, found.averages.absolute)
    for category, means in found.means_in_order(found.averages.by_prediction):
        add("predicted as", category, means)
    for category, means in found.means_in_order(found.averages.by_label):
        add("labeled", category, means)
    return Table("contributions", "Mean contributions of the parts of the prompt, in nats", columns, rows)


def write_explanation_table(path: Path, found: ExplanationsFile) -> Path:
    """Write a line per explained image: what was predicted, the sentence, the contribution of every part, and of every
    aspect its answer, the probability of that answer, and what the dataset says.

    Args:
        path: CSV file.
        found: The explanations.

    Returns:
        `path`.

    Raises:
        InputError: It cannot be written.
    """
    names = ["sample_key", "image", "label", "prediction", "correct", "probability", "label_probability", "explanation"]
    names += [f"contribution {part}" for part in (*found.aspects, "all_aspects", "interaction", "vision_features")]
    names += [f"log_probability_change {aspect}" for aspect in found.aspects]
    for aspect in found.aspects:
        names += [f"answer {aspect}", f"answer_probability {aspect}", f"annotated {aspect}"]
    return write_lines(path, names, _lines(found))


def _lines(found: ExplanationsFile) -> Iterator[Sequence[str]]:
    for entry in found.images:
        why = found.explanation(entry)
        texts = map(spreadsheet_text, (entry.key, shown_name(entry.key), entry.label, entry.prediction))
        parts = [*(a.contribution for a in why.aspects), why.all_aspects, why.interaction, why.vision_features]
        line = [*texts, str(int(entry.is_right)), repr(why.probability), repr(why.probabilities[entry.label])]
        line += [spreadsheet_text(why.sentence), *map(_number, parts)]
        line += [_number(aspect.log_probability_change) for aspect in why.aspects]
        for aspect in entry.aspects:
            answer, annotated = spreadsheet_text(aspect.answer), spreadsheet_text(aspect.annotated or "")
            line += [answer, repr(aspect.probability), annotated]
        yield line


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
