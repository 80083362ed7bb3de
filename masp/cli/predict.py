"""`masp predict`: prints the emotion of each image, and writes the page that shows where the aspects look."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from masp.config import Config
from masp.data.images import load_image
from masp.errors import InputError
from masp.evaluation.predict import Prediction, Predictor, Unreadable
from masp.report.attention import PageEntry, page_entry, write_page


def print_predictions(
    config: Config, images: Sequence[str], as_json: bool = False, attention: str | None = None
) -> None:
    """Predict the emotions of images and print them.

    Args:
        config: Run configuration.
        images: Paths.
        as_json: Print one JSON line per image instead of a table.
        attention: HTML file that shows where each aspect looked; None writes none.

    Raises:
        InputError: an image cannot be read (the others are printed first), nothing says what the categories are, or
            there are no aspect modules whose attention could be shown.
    """
    predictor = Predictor(config)
    for note in predictor.notes:
        print(f"note: {note}", file=sys.stderr)
    if attention and predictor.trained.aspects is None:
        raise InputError(f"--attention {attention}: there are no aspect modules here to look with")
    broken: list[str] = []
    entries: list[PageEntry] = []
    for found in predictor.predict(images, attention=bool(attention)):
        if isinstance(found, Unreadable):
            broken.append(f"{found.image} ({found.reason})")
            continue
        if attention:
            image = load_image(found.image, config.vlm.max_side)
            entries.append(page_entry(found.image, image, found.prediction, found.probabilities, found.attention))
        print(_as_json(found) if as_json else _as_text(found))
    if attention and entries:
        print(f"attention: {write_page(attention, entries)}", file=sys.stderr)
    if broken:
        raise InputError(f"{len(broken)} of {len(images)} images cannot be read: {', '.join(broken)}")


def _as_json(found: Prediction) -> str:
    return json.dumps({"image": found.image, "prediction": found.prediction, "probabilities": found.probabilities})


def _as_text(found: Prediction) -> str:
    ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])
    shares = "  ".join(f"{name} {share:.3f}" for name, share in ranked)
    return f"{found.image}: {found.prediction}\n    {shares}"
