"""The images on which a model was most surely wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, load_image
from masp.errors import DataError, MaspError
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


class WrongPredictions:
    """All wrong predictions of an evaluation, the ones that the model was surest of first.

    Args:
        records: Records of the evaluation.
        images: Finds the images.
    """

    def __init__(self, records: Records, images: Images):
        self.records, self.images = records, images
        wrong = np.flatnonzero(~records.is_right)
        self.by_confidence = bool(len(wrong)) and not np.isnan(records.scores).any()
        """Whether the surest come first; otherwise, under `generate`, they are in the order of the records."""
        if self.by_confidence:
            parts = [softmax(records.scores[wrong[i : i + CHUNK]]).max(axis=1) for i in range(0, len(wrong), CHUNK)]
            # among equals, in the order of the records
            wrong = wrong[np.argsort(-np.concatenate(parts), kind="stable")]
        self._rows = wrong

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, number: int) -> tuple[str, str, Location | None]:
        """Name, label and image of a mistake; None if the image is not there."""
        key, label, _ = self.records.outcome(int(self._rows[number]))
        name, image = self.images.find(key)
        return name, label, image

    def shown(self, start: int, count: int) -> tuple[Mistake, ...]:
        """Up to `count` of them, from number `start` on, with thumbnails."""
        found = []
        for number, row in enumerate(self._rows[start : start + count].tolist(), start):
            _, label, prediction = self.records.outcome(row)
            name, _, image = self.place(number)
            probabilities: dict[str | None, float] = {}
            if self.by_confidence:
                shares = softmax(self.records.scores[row : row + 1])[0].tolist()
                probabilities = dict(zip(self.records.categories, shares, strict=True))
            found.append(
                Mistake(
                    name=name,
                    label=label,
                    prediction=prediction,
                    text=self.records.columns["text"][row].decode() or None,
                    probability=probabilities.get(prediction),
                    label_probability=probabilities.get(label),
                    image=_thumbnail(image) if image else None,
                )
            )
        return tuple(found)


def read_wrong_predictions(evaluate_dir: Path, metrics: MetricsFile, images: Images) -> WrongPredictions:
    """The wrong predictions of an evaluation.

    Args:
        evaluate_dir: Directory of the evaluation.
        metrics: Its metrics.
        images: Finds the images.

    Raises:
        MaspError: The records cannot be read, or are not those of the metrics.
    """
    try:
        records = read_records_file(evaluate_dir / FILE)
    except MaspError as error:
        raise DataError(f"The records cannot be read: {error}") from None
    if metrics.records_digest not in (None, records.digest):
        raise DataError(f"{evaluate_dir / FILE} is not the file that metrics.json was written with.")
    return WrongPredictions(records, images)


def mistakes(evaluate_dir: Path, metrics: MetricsFile, images: Images) -> Mistakes:
    """The wrong predictions that the model was surest of, with thumbnails; under `generate` the first ones.

    Args:
        evaluate_dir: Directory of the evaluation.
        metrics: Its metrics.
        images: Finds the images.
    """
    try:
        wrong = read_wrong_predictions(evaluate_dir, metrics, images)
    except MaspError as error:
        return Mistakes((), 0, False, False, str(error))
    shown = wrong.shown(0, _NUM_MISTAKES)
    has_images = any(mistake.image for mistake in shown)
    problem = None
    if shown and not has_images:
        problem = f"The images are not here: no readable image under {images.root or 'the dataset root of the config'}."
    return Mistakes(shown, len(wrong), wrong.by_confidence, has_images, problem)


def _thumbnail(image: Location) -> str | None:
    """The image, small, as a data address; None if it cannot be read."""
    try:
        return data_address(load_image(image, SIDE))
    except (UnreadableImage, OSError):
        return None
