"""`masp predict`: prints the target of each image, and writes the page that shows where the aspects look."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from masp.cli.parser import Commands, add_command
from masp.cli.settings import separate_settings
from masp.data.reading import opened
from masp.errors import InputError
from masp.files.text import reason
from masp.runtime.log import show

if TYPE_CHECKING:  # they import torch, and `masp --help` does without
    from masp.inference.model import Prediction
    from masp.report.attention import PageEntry
    from masp.results.explanations.explanation import Explanation

LOG = logging.getLogger(__name__)

_DETAILS = """\
  masp predict --config configs/train.yaml photo.jpg other.png
  masp predict --config configs/train.yaml photo.jpg --attention where.html
  masp predict --config configs/train.yaml photo.jpg --explain
  masp predict --config configs/train.yaml photo.jpg checkpoint.soft_prompt=none    without the soft prompt"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(
        commands, "predict", "predict the emotion (or other target) of images, with probabilities", _DETAILS
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; `key=value` sets a setting")
    parser.add_argument("--config", required=True, metavar="FILE", help="the configuration of the run that trained")
    parser.add_argument("--json", action="store_true", help="one JSON line per image")
    parser.add_argument("--explain", action="store_true", help="also what each aspect answers and did for the decision")
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
    from masp.inference.images import named_images
    from masp.inference.model import Model, Unreadable, readable
    from masp.report.attention import page_entry, write_page
    from masp.vlm.preprocessor import load_token_grid

    named = named_images(paths)
    _check_images(paths)
    model = Model(config)
    for note in model.notes:
        LOG.info("%s", note)
    for option, given in (("--attention", arguments.attention), ("--explain", arguments.explain)):
        if given and not model.aspects:
            raise InputError(f"{option}: this run has no aspect modules to show")
    if arguments.attention:
        load_token_grid(config.vlm, f"--attention {arguments.attention}")
    target = None if config.target.name == EMOTION else config.target.name
    broken: list[str] = []
    entries: list[PageEntry] = []
    with model.sharing_vlm() as answers:
        for batch in model.requests(named if answers else ()):
            broken += [f"{each.image} ({each.reason})" for each in batch if isinstance(each, Unreadable)]
            requests = readable(batch)
            explanations: Sequence[Explanation | None] = [None] * len(requests)
            if arguments.explain:
                explanations = model.explainer.explain(requests)
            for request, found, why in zip(requests, model.predict_requests(requests), explanations, strict=True):
                if arguments.attention:
                    image = load_image(found.image, config.vlm.max_side, transparency=config.vlm.transparency)
                    (maps,) = model.scorer.attention([request])
                    seen = dict(zip(model.aspects, maps, strict=True))
                    entries.append(page_entry(found.image, image, found.label, found.probabilities, seen))
                show(*([_as_json(found, target, why)] if arguments.json else _as_text(found, target, why)))
    if entries:
        show(f"attention: {write_page(arguments.attention, entries)}", to=sys.stderr)
    if broken:
        raise InputError(f"{len(broken)} of {len(paths)} images cannot be read: {', '.join(broken)}")
    return 0


def _check_images(images: Sequence[str]) -> None:
    """Look for the images before anything is loaded.

    Raises:
        InputError: There is none of them.
    """
    reasons = [(image, _why_unreadable(image)) for image in images]
    if all(why for _, why in reasons):
        named = ", ".join(f"{image} ({why})" for image, why in reasons)
        raise InputError(f"{len(reasons)} of {len(reasons)} images cannot be read: {named}")


def _why_unreadable(image: str) -> str:
    """Why a path cannot be that of an image, from the path alone; empty where it can."""
    try:
        with opened(image):
            return ""
    except FileNotFoundError:
        return "file not found"
    except IsADirectoryError:
        return "a directory; name the image files in it"
    except (OSError, ValueError) as error:
        return reason(error)


def _as_json(found: Prediction, target: str | None, why: Explanation | None) -> str:
    of_target = {} if target is None else {"target": target}
    line = {"image": found.image, **of_target, "prediction": found.label, "probabilities": found.probabilities}
    return json.dumps(line | ({} if why is None else why.to_json()))


def _as_text(found: Prediction, target: str | None, why: Explanation | None) -> list[str]:
    ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])
    shares = "  ".join(f"{name} {share:.3f}" for name, share in ranked)
    of_target = "" if target is None else f"{target} "
    return [f"{found.image}: {of_target}{found.label}", f"    {shares}", *([] if why is None else _explained(why))]


def _explained(why: Explanation) -> list[str]:
    """The sentence, then a line per aspect."""
    lines = [f"    {why.sentence}"]
    for aspect in why.aspects:
        change = "" if aspect.contribution is None else f"{aspect.contribution:+.2f}"
        lines.append(
            f"      {aspect.aspect.replace('_', ' '):<20} {change:>7}  {aspect.answer} ({aspect.probability:.2f})"
        )
    together = [("all aspects", why.all_aspects), ("interaction of them", why.interaction)]
    together += [("vision features", why.vision_features)]
    lines += [f"      {name:<20} {value:>+7.2f}" for name, value in together if value is not None]
    return lines
