"""The images on which a model was most surely wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from masp.data.images import UnreadableImage, load_image
from masp.data.keys import split_key
from masp.errors import MaspError
from masp.report.html import SIDE, data_address
from masp.results.ledger import DIRECTORY, read_records
from masp.results.ledger_format import Record
from masp.results.metrics import softmax
from masp.results.metrics_file import MetricsFile

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


def mistakes(evaluate_dir: Path, metrics: MetricsFile, root: Path | None) -> Mistakes:
    """The wrong predictions that the model was surest of, with thumbnails; under `generate` the first ones.

    Args:
        evaluate_dir: Directory of the evaluation.
        metrics: Its metrics.
        root: Directory of the dataset, if it is known.
    """
    problem = None
    records: list[Record] = []
    try:
        records = read_records(evaluate_dir / DIRECTORY)
    except MaspError as error:
        problem = f"The ledgers cannot be read: {error}"
    categories = metrics.categories or tuple(metrics.per_category or ())
    wrong = [(record, _probabilities(record, categories)) for record in records if record.prediction != record.label]
    by_confidence = any(probabilities for _, probabilities in wrong)
    wrong.sort(key=lambda pair: -pair[1].get(pair[0].prediction, 0.0))
    shown = []
    for record, probabilities in wrong[:_NUM_MISTAKES]:
        name, path = image_of(record.sample_key, root)
        shown.append(
            Mistake(
                name=name,
                label=record.label,
                prediction=record.prediction,
                text=record.text,
                probability=probabilities.get(record.prediction),
                label_probability=probabilities.get(record.label),
                image=_thumbnail(path) if path else None,
            )
        )
    has_images = any(mistake.image for mistake in shown)
    if shown and not has_images:
        problem = f"The images are not here: no readable image under {root or 'the dataset root of the config'}."
    return Mistakes(tuple(shown), len(wrong), by_confidence, has_images, problem)


def _probabilities(record: Record, categories: tuple[str, ...]) -> dict[str | None, float]:
    """Category -> probability; empty where the record has no scores of these categories."""
    scores = record.scores
    if not scores or len(scores) != len(categories) or not {record.label, record.prediction} <= set(categories):
        return {}
    return dict(zip(categories, softmax([scores])[0].tolist(), strict=True))


def image_of(key: str, root: Path | None) -> tuple[str, Path | None]:
    """A sample's name to show, and its image if there is one below `root`."""
    try:
        split, relative = split_key(key)
    except ValueError:
        return key, None
    name = f"{split}/{relative}"
    # Records are read from a file that anybody may have written: what they name must not lead out of the dataset.
    if root is None or ".." in PurePosixPath(relative).parts or ".." in split or "/" in split:
        return name, None
    # Datasets listed by index files name images from the root, image folders from the split's directory.
    candidates = (root / split / relative, root / relative)
    return name, next((path for path in candidates if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a directory that may not be searched
        return False


def _thumbnail(path: Path) -> str | None:
    """The image, small, as a data address; None if it cannot be read."""
    try:
        return data_address(load_image(path, SIDE))
    except (UnreadableImage, OSError):
        return None
