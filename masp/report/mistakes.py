"""The images on which a model was most surely wrong."""

from pathlib import Path, PurePosixPath
from typing import Any

from masp.data.images import UnreadableImage, load_image
from masp.data.keys import split_key
from masp.errors import MaspError
from masp.report.html import SIDE, data_address
from masp.results.ledger import FOLDER, read_records
from masp.results.metrics import softmax

_NUM_MISTAKES = 12


def mistakes(evaluate_dir: Path, metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The wrong predictions that the model was surest of, with thumbnails; under `generate` the first ones.

    Returns:
        `entries` (name, label, prediction, text, probability, label_probability, picture), `num_mistakes`,
        `by_confidence`, `has_pictures`, and `problem`: why there are no records or no pictures, or None.
    """
    try:
        records, problem = read_records(evaluate_dir / FOLDER), None
    except MaspError as error:
        records, problem = [], f"The ledgers cannot be read: {error}"
    categories = metrics.get("categories") or list(metrics.get("per_category") or {})
    entries = []
    for record in records:
        if record["prediction"] == record["label"]:
            continue
        scores = record.get("scores")
        if scores and len(scores) == len(categories) and {record["label"], record["prediction"]} <= set(categories):
            probabilities = dict(zip(categories, softmax(scores).tolist(), strict=True))
        else:
            probabilities = {}
        entries.append(
            {
                "key": record["sample_key"],
                "label": record["label"],
                "prediction": record["prediction"],
                "text": record.get("text"),
                "probability": probabilities.get(record["prediction"]),
                "label_probability": probabilities.get(record["label"]),
            }
        )
    by_confidence = any(entry["probability"] is not None for entry in entries)
    shown = sorted(entries, key=lambda entry: -(entry["probability"] or 0))[:_NUM_MISTAKES]
    root = (config.get("dataset") or {}).get("root")
    for entry in shown:
        entry["name"], path = image_of(entry["key"], Path(root) if isinstance(root, str) else None)
        entry["picture"] = _thumbnail(path) if path else None
    has_pictures = any(entry["picture"] for entry in shown)
    if shown and not has_pictures:
        problem = f"The pictures are not here: no readable image under {root or 'the dataset root of the config'}."
    return {
        "entries": shown,
        "num_mistakes": len(entries),
        "by_confidence": by_confidence,
        "has_pictures": has_pictures,
        "problem": problem,
    }


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
    # Datasets listed by index files name images from the root, folders of pictures from the split's folder.
    candidates = (root / split / relative, root / relative)
    return name, next((path for path in candidates if path.is_file()), None)


def _thumbnail(path: Path) -> str | None:
    """The image, small, as a data address; None if it cannot be read."""
    try:
        return data_address(load_image(path, SIDE))
    except (UnreadableImage, OSError):
        return None
