"""What the parsers of all commands share: errors in one line, help as written, the rank that `deepspeed` appends."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn, TypeAlias

from masp.errors import one_line
from masp.files.text import shown

RUN_HELP = "what was trained: output_dir of a run, a directory that `masp export` wrote, or hf://owner/name"


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, like every other error of MASP, and says what a misspelled command may mean."""

    def error(self, message: str) -> NoReturn:
        see = " See" if message.endswith("?") else "; see"
        self.exit(2, f"error: {one_line(message)}{see} `{self.prog} --help`\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError:
            close = difflib.get_close_matches(str(value), map(str, action.choices or ()), n=1)
            if not close:
                raise
            raise argparse.ArgumentError(action, f"{shown(value)} is not valid; did you mean {close[0]}?") from None


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What `Parser.add_subparsers` returns."""


def add_command(commands: Commands, name: str, summary: str, details: str = "") -> Parser:
    """Add the parser of a command.

    Args:
        commands: Subparsers to add it to.
        name: Name of the command.
        summary: One line, shown in the list of commands and at the top of the command's own help.
        details: What the command's own help says below, shown with its line breaks.
    """
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary}.\n\n{details}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Accept `--local_rank=N`, which `deepspeed` adds to the command line; the environment says the same."""
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
