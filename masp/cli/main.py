"""`masp …`: parses the command line, runs the command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from masp import __version__
from masp.cli import cache, compare, demo, doctor, evaluate, extract, plan, predict, report, study, train
from masp.cli.parser import Parser, add_local_rank
from masp.cli.settings import parse_arguments
from masp.errors import InputError, MaspError, one_line
from masp.files.text import MAX_REASON, reason, shortened
from masp.runtime.log import say_error
from masp.runtime.log import setup as set_up_logging
from masp.runtime.stop import end_process

COMMANDS = (demo, plan, extract, train, evaluate, predict, report, compare, study, doctor, cache)
"""Command modules, in the order in which `masp --help` lists them."""

EPILOG = """\
The order of work:
  masp plan     --config C      what it will take: bytes, GPU-hours, free space
  masp extract  --config C      run the frozen encoder once per image, into the feature cache
  masp train --stage stage1 …   train the aspect modules on the cache
  masp train --stage stage2 …   train the soft prompt on top of them
  masp evaluate --config C      score a split, write metrics.json
  masp report   RUN_DIR         one HTML page: accuracy, confusion, curves

Settings: every command takes `--config FILE` and then `key=value` for single settings (docs/configuration.md).
Exit codes: 0 done; 2 something you gave is wrong; 3 data is damaged; 75 stopped early, resumable;
130 interrupted from the keyboard before anything could be saved; 1 a bug, or another rank was lost or failed.
"""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C where nothing could stop cleanly, the one that shells use."""
READER_GONE = 128 + signal.SIGPIPE
"""Exit code where the reader of the output has gone, as `masp study --list | head` would end if Python did not catch
the signal."""

_OF_A_PATH = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.ESTALE,
}
"""System errors that say of a path that it cannot be used as the user asked."""


def build_parser() -> Parser:
    """Build the parser of all commands."""
    parser = Parser(
        prog="masp",
        description="Recognize the emotion that an image evokes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"masp {__version__}")
    add_local_rank(parser)  # `deepspeed --module masp.cli train …` adds it before the command, other versions behind it
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: `--help`, `--version`, or a command line that cannot be parsed.
    """
    arguments = parse_arguments(build_parser(), argv)
    set_up_logging()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # File names may not be UTF-8, and a terminal may lack a character; neither is a reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = arguments.run(arguments)
        if sys.stdout is not None:  # as it is if the process was started without one
            sys.stdout.flush()
        return code
    except MaspError as error:
        say_error(error)
        return error.exit_code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE
    except OSError as error:
        message = _users_error(error)
        if message is None:
            raise
        say_error(message)
        return InputError.exit_code
    except KeyboardInterrupt:
        say_error("interrupted; run the same command again, it goes on where it can")
        return INTERRUPTED


def run_process() -> NoReturn:
    """Run the command line of this process and end it: the entry point of the console script.

    Raises:
        SystemExit: As `main`.
    """
    end_process(main())


def _users_error(error: OSError) -> str | None:
    """What to tell the user of an error that only they can mend: a full disk, or a path that cannot be used.

    Returns:
        One line; None for any other error, which is a bug.
    """
    name = shortened(one_line(str(error.filename)), MAX_REASON) if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {name}" if name else ""
        return f"no space is left{where}; free some and run the same command again"
    return f"{name}: {reason(error)}" if name and error.errno in _OF_A_PATH else None


def _reader_is_gone() -> bool:
    """Whether the reader of standard output has gone; if so, what is still to be written is discarded."""
    out = sys.stdout.fileno()
    states = select.poll()
    states.register(out, 0)
    if not any(state & select.POLLERR for _, state in states.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True
