"""`masp run`: all steps of a run, one after the other."""

from __future__ import annotations

import argparse
import shlex

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings

_DETAILS = """\
Plans, extracts, trains both stages, evaluates and writes the report, as one process that asks for nothing. What an
earlier call finished is not done again; a run that was stopped (exit code 75) goes on with the same command.

  masp init data/mine --output mine.yaml
  masp run --config mine.yaml"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "run", "take all steps of a run, from the images to the report", _DETAILS)
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Take all steps."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.start.pipeline import run_pipeline

    given = ["--config", arguments.config] if arguments.config else []
    run_pipeline(config, shlex.join([*given, *arguments.overrides]))
    return 0
