"""`masp compare`: runs on the same samples beside each other."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.runtime.log import show

_DETAILS = """\
McNemar's exact test and a bootstrap interval of the difference of accuracies for every pair, with p-values corrected
for their number (Holm). Runs that differ in nothing but their seed are grouped: mean and standard deviation, and the
groups are compared over seeds and images. Writes compare.json, compare.md, compare.png and its tables as CSV and LaTeX.
Runs on other samples are refused. Choose among learning rates on the validation split, not on the test split.

  masp compare outputs/run outputs/other --output outputs/compare
  masp compare --split val outputs/a outputs/b      after masp evaluate … evaluate.validation=true"""


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "compare runs on the same samples: paired tests, a table and a plot"
    parser = add_command(commands, "compare", summary, _DETAILS)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or records.h5 files")
    parser.add_argument("--output", metavar="DIR", default="outputs/compare", help="default outputs/compare")
    parser.add_argument(
        "--split", choices=["val"], help="compare on the validation split, as evaluate.validation=true scored it"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, write the files and print the table."""
    from masp.experiments.compare import compare, markdown

    show(*markdown(compare(arguments.runs, arguments.output, arguments.split)).splitlines())
    show(f"compare: {arguments.output}")
    return 0
