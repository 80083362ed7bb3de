"""Where a message goes.

The rule:

- *Results and progress that the user asked for* go to stdout as plain text, from rank 0 only: `say(text)`, or
  `show(text)` where the caller decides which rank. Scripts read them, so nothing is put in front of them. Nothing else
  prints: names from outside must not reach a terminal as they are.
- *Notes, warnings and diagnostics* go through `logging` to stderr: `LOG = logging.getLogger(__name__)` at the top of a
  module, then `LOG.info` for what is good to know (shown as `note:`), `LOG.warning` for what the user should look at,
  and `LOG.debug` for what only a developer reads. Several ranks share one screen or file, so each line then begins with
  time and rank: `13:48:52 rank 3 warning: text`. One process writes `warning: text`.
- *The error that ends a command* is one line `error: ...` on stderr: `say_error(error)`. Nobody logs it as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TextIO

from masp.errors import one_line

_PACKAGES = ("masp", "launch", "tools")
_LEVELS = {logging.INFO: "note", logging.WARNING: "warning", logging.ERROR: "error", logging.DEBUG: "debug"}


def rank_of_environment() -> int:
    """The rank that a launcher gave this process; 0 without a launcher."""
    return max(0, _number("RANK", "SLURM_PROCID") or 0)


def say(*lines: str) -> None:
    """Print a result or progress for the user on stdout: rank 0 only, at once."""
    if rank_of_environment() == 0:
        show(*lines)


def show(*lines: str, to: TextIO | None = None) -> None:
    """Print lines for the user at once, from every rank.

    Names of files, categories and samples come from anywhere: what a terminal would take for commands, and line ends
    within a line, are escaped.

    Args:
        lines: What is printed, a line each.
        to: Where to; None for stdout.
    """
    print("\n".join(map(one_line, lines)), file=to, flush=True)


def say_error(error: BaseException | str) -> None:
    """Print the error that ends a command on stderr: one line, from every rank that has one."""
    with _bars_aside():
        print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)


def setup(rank: int | None = None, level: int = logging.INFO) -> None:
    """Send what MASP logs to stderr; called once by each command, a further call replaces the settings.

    Args:
        rank: Rank of this process; None takes it from the environment.
        level: Lowest level that is shown.
    """
    if rank is None:
        rank = rank_of_environment()
    several = rank > 0 or (_number("WORLD_SIZE", "SLURM_STEP_NUM_TASKS") or 1) > 1
    handler = _ToStderr()
    handler.setFormatter(_OneLine(f"%(asctime)s rank {rank} %(message)s" if several else "%(message)s", "%H:%M:%S"))
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False  # libraries that set up the root logger would print everything twice
        logger.setLevel(level)
    # When it is imported, DeepSpeed sets its own level, and warns on stdout of each machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(_errors_only)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or os.environ.get("MASP_DEBUG") == "1"


class _ToStderr(logging.StreamHandler):
    """To what is stderr when a line is written, not when logging was set up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        with _bars_aside():
            super().emit(record)


class _OneLine(logging.Formatter):
    """One line per message, whatever it repeats of a file; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = _LEVELS.get(record.levelno, record.levelname.lower())
        record.message = f"{level}: {one_line(record.message)}"
        return super().formatMessage(record)


def _bars_aside() -> contextlib.AbstractContextManager[None]:
    """Take progress bars off the screen for as long as a line is written, which would otherwise end up inside one."""
    tqdm = sys.modules.get("tqdm")  # not imported, no bar
    return contextlib.nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=sys.stderr)


def _number(*names: str) -> int | None:
    found = next((os.environ[name] for name in names if name in os.environ), "")
    return int(found) if found.isdecimal() and len(found) < 10 else None
