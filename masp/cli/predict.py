"""`masp predict`: prints the target of each image, and writes the page that shows where the aspects look."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING

from masp.cli.parser import Commands, add_command
from masp.cli.settings import separate_settings
from masp.errors import InputError
from masp.runtime.log import show

if TYPE_CHECKING:  # they import torch, and `masp --help` does without
    from masp.evaluation.predict import Prediction
    from masp.report.attention import PageEntry

LOG = logging.getLogger(__name__)

_DETAILS = """\
  masp predict --config configs/train.yaml photo.jpg other.png
  masp predict --config configs/train.yaml photo.jpg --attention where.html
  masp predict --config configs/train.yaml photo.jpg checkpoint.soft_prompt=none    without the soft prompt"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(
        commands, "predict", "predict the emotion (or other target) of images, with probabilities", _DETAILS
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; `key=value` sets a setting")
    parser.add_argument("--config", required=True, metavar="FILE", help="the configuration of the run that trained")
    parser.add_argument("--json", action="store_true", help="one JSON line per image")
    parser.add_argument("--attention", metavar="FILE", help="also an HTML page that shows where each aspect looked")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict and print.

    Raises:
        InputError: an image cannot be read (the others are printed first), nothing says what the categories are, or
            there are no aspect modules whose attention could be shown.
    """
    from masp.config import load_config

    paths, settings = separate_settings(arguments.images)
    config = load_config(arguments.config, settings, unused=["cache.dir", "dataset.root"])
    from masp.data.images import load_image
    from masp.data.questions import EMOTION
    from masp.evaluation.predict import Predictor, Unreadable, check_images
    from masp.report.attention import page_entry, write_page
    from masp.vlm.preprocessor import load_token_grid

    check_images(paths)
    predictor = Predictor(config)
    for note in predictor.notes:
        LOG.info("%s", note)
    if arguments.attention and predictor.trained.aspects is None:
        raise InputError(f"--attention {arguments.attention}: this run has no aspect modules to show")
    if arguments.attention:
        load_token_grid(config.vlm, f"--attention {arguments.attention}")
    target = None if config.target.name == EMOTION else config.target.name
    broken: list[str] = []
    entries: list[PageEntry] = []
    for found in predictor.predict(paths, attention=bool(arguments.attention)):
        if isinstance(found, Unreadable):
            broken.append(f"{found.image} ({found.reason})")
            continue
        if arguments.attention:
            image = load_image(found.image, config.vlm.max_side, transparency=config.vlm.transparency)
            entries.append(page_entry(found.image, image, found.prediction, found.probabilities, found.attention))
        show(*([_as_json(found, target)] if arguments.json else _as_text(found, target)))
    if entries:
        show(f"attention: {write_page(arguments.attention, entries)}", to=sys.stderr)
    if broken:
        raise InputError(f"{len(broken)} of {len(paths)} images cannot be read: {', '.join(broken)}")
    return 0


def _as_json(found: Prediction, target: str | None) -> str:
    of_target = {} if target is None else {"target": target}
    return json.dumps(
        {"image": found.image, **of_target, "prediction": found.prediction, "probabilities": found.probabilities}
    )


def _as_text(found: Prediction, target: str | None) -> list[str]:
    ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])
    shares = "  ".join(f"{name} {share:.3f}" for name, share in ranked)
    of_target = "" if target is None else f"{target} "
    return [f"{found.image}: {of_target}{found.prediction}", f"    {shares}"]
