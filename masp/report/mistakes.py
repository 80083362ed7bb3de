"""The images on which a model was most surely wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, load_image
from masp.errors import MaspError
from masp.report.html import SIDE, data_address
from masp.report.images import Images
from masp.results.ledgers.table import CHUNK
from masp.results.metrics import softmax
from masp.results.metrics_file import MetricsFile
from masp.results.records import FILE, Records, read_records_file

_NUM_MISTAKES = 12


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction."""

    name: str
    label: str
    prediction: str | None
    text: str | None
    """The generated text."""
    probability: float | None
    """Of the prediction; None without scores."""
    label_probability: float | None
    image: str | None
    """The image, small, as a data address; None if it cannot be read."""


@dataclass(frozen=True)
class Mistakes:
    """The wrong predictions that the report shows."""

    shown: tuple[Mistake, ...]
    num_mistakes: int
    by_confidence: bool
    """Whether the surest come first; otherwise the first ones are shown."""
    has_images: bool
    problem: str | None
    """Why there are no records or no images."""


def mistakes(evaluate_dir: Path, metrics: MetricsFile, images: Images) -> Mistakes:
    """The wrong predictions that the model was surest of, with thumbnails; under `generate` the first ones.

    Args:
        evaluate_dir: Directory of the evaluation.
        metrics: Its metrics.
        images: Finds the images.
    """
    try:
        records = read_records_file(evaluate_dir / FILE)
    except MaspError as error:
        return Mistakes((), 0, False, False, f"The records cannot be read: {error}")
    if metrics.records_digest not in (None, records.digest):
        return Mistakes(
            (), 0, False, False, f"{evaluate_dir / FILE} is not the file that metrics.json was written with."
        )
    wrong = np.flatnonzero(~records.is_right)
    surest, by_confidence = _surest(records, wrong)
    shown = []
    for row, probabilities in surest:
        key, label, prediction = records.outcome(row)
        name, image = images.find(key)
        shown.append(
            Mistake(
                name=name,
                label=label,
                prediction=prediction,
                text=records.columns["text"][row].decode() or None,
                probability=probabilities.get(prediction),
                label_probability=probabilities.get(label),
                image=_thumbnail(image) if image else None,
            )
        )
    has_images = any(mistake.image for mistake in shown)
    problem = None
    if shown and not has_images:
        problem = f"The images are not here: no readable image under {images.root or 'the dataset root of the config'}."
    return Mistakes(tuple(shown), len(wrong), by_confidence, has_images, problem)


def _surest(records: Records, wrong: np.ndarray) -> tuple[list[tuple[int, dict[str | None, float]]], bool]:
    """The rows of the mistakes to show with the probabilities of all categories, and whether these decided."""
    if not len(wrong) or np.isnan(records.scores).any():
        return [(row, {}) for row in wrong[:_NUM_MISTAKES].tolist()], False
    best = np.concatenate(
        [softmax(records.scores[wrong[i : i + CHUNK]]).max(axis=1) for i in range(0, len(wrong), CHUNK)]
    )
    # among equals, in the order of the records
    rows = wrong[np.argsort(-best, kind="stable")[:_NUM_MISTAKES]]
    probabilities = softmax(records.scores[rows])
    return [
        (row, dict(zip(records.categories, values.tolist(), strict=True)))
        for row, values in zip(rows.tolist(), probabilities, strict=True)
    ], True


def _thumbnail(image: Location) -> str | None:
    """The image, small, as a data address; None if it cannot be read."""
    try:
        return data_address(load_image(image, SIDE))
    except (UnreadableImage, OSError):
        return None
