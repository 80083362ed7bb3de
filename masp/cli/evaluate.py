"""`masp evaluate`: scores a split."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command, add_local_rank
from masp.cli.settings import add_settings

_DETAILS = """\
Scores checkpoint.aspect and checkpoint.soft_prompt (default: what this run trained; `none`: without). Runs alone or on
several ranks, each of which writes its own ledger; after a stop, it scores only what is missing when called again.

--on FILE evaluates the same on another dataset too, whose configuration names its dataset and cache; a table over all
datasets is written to datasets.json. Categories that were not trained need evaluate.category_map. docs/evaluation.md

  masp evaluate --config configs/train.yaml
  masp evaluate --config configs/train.yaml --on configs/datasets/artphoto.yaml
  masp evaluate --config configs/train.yaml checkpoint.aspect=none checkpoint.soft_prompt=none    the VLM alone"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "evaluate", "score a split and write records.h5 and metrics.json", _DETAILS)
    parser.add_argument("--on", action="append", default=[], metavar="FILE", help="also on this dataset (repeatable)")
    add_settings(parser)
    add_local_rank(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate on the run's own dataset, and on others where they are given."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.on:
        from masp.evaluation.transfer import evaluate_on

        evaluate_on(config, arguments.on)
    else:
        from masp.evaluation.run import evaluate

        evaluate(config)
    return 0
