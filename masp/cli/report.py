"""`masp report`: one HTML page about a run."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.runtime.log import show

_DETAILS = """\
  masp report outputs/run
  masp report outputs/run --tables outputs/run/tables
  masp report outputs/run --latex outputs/run/paper"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "report", "write one HTML page about a run", _DETAILS)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run's output_dir")
    parser.add_argument("--output", metavar="FILE", default=None, help="the page (default RUN_DIR/report.html)")
    parser.add_argument(
        "--tables",
        metavar="DIR",
        default=None,
        help="also write every table there as CSV and LaTeX, records.csv and records-stage1.csv",
    )
    parser.add_argument(
        "--latex",
        metavar="DIR",
        default=None,
        help="also write there what a paper needs: tables (CSV, LaTeX), figures (SVG, PDF), and the methods of the run",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    from masp.report.page import write_report

    page = write_report(arguments.run_dir, arguments.output, arguments.tables, arguments.latex)
    show(f"report: {page}")
    if arguments.tables:
        show(f"report: tables: {arguments.tables}")
    if arguments.latex:
        show(f"report: for a paper: {arguments.latex}")
    return 0
