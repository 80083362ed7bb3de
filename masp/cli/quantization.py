"""`masp quantization`: measures what quantizing the language half costs."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_sample

_DETAILS = """\
Scores a sample of the cached images with the language half as it is, and with each value of vlm.quantization, with what
the run has trained (zero-shot if it has trained nothing): memory, how far the log-likelihoods move, which predictions
change, and the accuracy. Takes the validation split if the dataset has one, otherwise evaluate.split.

  masp quantization --config configs/train.yaml
  masp quantization --config configs/train.yaml --kind int4 --num-images 1000"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "quantization", "measure what vlm.quantization costs in accuracy", _DETAILS)
    add_sample(parser, "--kind", "int8 or int4")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.experiments.quantization_cost import report

    report(config, arguments.kind, arguments.num_images, as_json=arguments.json)
    return 0
