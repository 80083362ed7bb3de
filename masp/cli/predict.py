"""`masp predict`: the emotion of single images."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.cli.settings import separate_settings

_DETAILS = """\
  masp predict --config configs/train.yaml photo.jpg other.png
  masp predict --config configs/train.yaml photo.jpg --attention where.html
  masp predict --config configs/train.yaml photo.jpg checkpoint.soft_prompt=none    without the soft prompt"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "predict", "predict the emotion of images, with probabilities", _DETAILS)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; `key=value` sets a setting")
    parser.add_argument("--config", required=True, metavar="FILE", help="the configuration of the run that trained")
    parser.add_argument("--json", action="store_true", help="one JSON line per image")
    parser.add_argument("--attention", metavar="FILE", help="also an HTML page that shows where each aspect looked")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    from masp.config import load_config

    images, settings = separate_settings(arguments.images)
    config = load_config(arguments.config, settings)
    from masp.evaluation.predict import predict

    predict(config, images, arguments.json, arguments.attention)
    return 0
