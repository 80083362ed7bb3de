"""`masp …`: parses the command line, runs the command, turns errors into one line and an exit code.

What parses is imported when signals are heeded already (`run_process`), so that none arrives unheard meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from masp.cli.ending import exit_code
from masp.runtime import parent as _parent  # noqa: F401 - notes the launcher at once
from masp.runtime.log import say_error
from masp.runtime.stop import end_process, stop_at_once


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: `--help`, `--version`, or a command line that cannot be parsed.
    """
    return _run(argv, lambda: None)


def _run(argv: Sequence[str] | None, begin: Callable[[], object]) -> int:
    def command() -> int:
        from masp.cli.commands import build_parser
        from masp.cli.settings import parse_arguments

        arguments = parse_arguments(build_parser(), argv)
        return arguments.run(arguments)

    again = "interrupted; run the same command again, it goes on where it can"
    return exit_code(command, lambda: say_error(again), begin)


def run_process(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line as this process and end it: the entry point of the console script.

    Args:
        argv: As of `main`.

    Raises:
        SystemExit: As `main`.
    """
    end_process(_run(argv, stop_at_once))
