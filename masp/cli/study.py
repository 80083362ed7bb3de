"""`masp study`: the ablations of the method over several seeds."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings

_DETAILS = """\
Trains and evaluates the method and its ablations: without each aspect, without all of them, without vision features,
without soft prompt; other lengths of the soft prompt, other numbers of queries, the other layout. Call it again and it
goes on where it stopped. Soft prompts behind the same aspect modules are trained together. Writes study.json, study.md,
study.png and its tables as CSV and LaTeX to OUTPUT_DIR/study. Without annotations it is a study of the soft prompt
alone, unless checkpoint.aspect names given aspect modules. With fewer than five seeds, nothing is claimed about other
seeds. docs/evaluation.md

  masp study --config configs/train.yaml --list                        what would run
  masp study --config configs/train.yaml --seeds 1,2,3 --only without_aspects"""


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs a study has."""
    parser.add_argument("--seeds", metavar="N,N…", default="1,2,3", help="seeds of training (default 1,2,3)")
    parser.add_argument("--only", metavar="NAME,NAME…", help="some variants; `masp` is always among them")


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "the ablations of the method over several seeds: a table and a plot"
    parser = add_command(commands, "study", summary, _DETAILS)
    add_settings(parser)
    add_choice(parser)
    parser.add_argument("--list", action="store_true", help="only print the variants and the commands that make them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the study, or list its variants."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.demo.data import draw_demo_data
    from masp.experiments.study.run import run_study

    if not arguments.list:
        draw_demo_data(config)
    file = ["--config", arguments.config] if arguments.config else []
    run_study(config, arguments.seeds, arguments.only, arguments.list, [*file, *arguments.overrides])
    return 0
