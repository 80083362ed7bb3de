"""Where a message goes.

The rule:

- *Results and progress that the user asked for* go to stdout as plain text, from rank 0 only: `say(text)`. Scripts read
  them, so nothing is put in front of them.
- *Notes, warnings and diagnostics* go through `logging` to stderr, from every rank, with the time and, where there are
  several ranks, the rank: `LOG = logging.getLogger(__name__)` at the top of a module, then `LOG.info` for what is good
  to know (shown as `note:`), `LOG.warning` for what the user should look at, and `LOG.debug` for what only a developer
  reads.
- *The error that ends a command* is the command line's: one line `error: ...` on stderr. Nobody logs it as well.

A line of the log: `13:48:52 rank 3 warning: text`.
"""

from __future__ import annotations

import logging
import os
import sys

from masp.errors import one_line

_PACKAGES = ("masp", "launch", "tools")
_LEVELS = {logging.INFO: "note", logging.WARNING: "warning", logging.ERROR: "error", logging.DEBUG: "debug"}


def rank_of_environment() -> int:
    """The rank that a launcher gave this process; 0 without a launcher."""
    return max(0, _number("RANK", "SLURM_PROCID") or 0)


def say(text: str) -> None:
    """Print a result or progress for the user on stdout: rank 0 only, at once."""
    if rank_of_environment() == 0:
        print(text, flush=True)


def setup(rank: int | None = None, level: int = logging.INFO) -> None:
    """Send what MASP logs to stderr; called once by each command, a further call replaces the settings.

    Args:
        rank: of this process; None takes it from the environment. Named in each line if there are several ranks.
        level: the lowest level that is shown.
    """
    if rank is None:
        rank = rank_of_environment()
    several = rank > 0 or (_number("WORLD_SIZE", "SLURM_NTASKS") or 1) > 1
    handler = _ToStderr()
    handler.setFormatter(_OneLine(f"%(asctime)s {f'rank {rank} ' if several else ''}%(message)s", "%H:%M:%S"))
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False  # libraries that set up the root logger would print everything twice
        logger.setLevel(level)


class _ToStderr(logging.StreamHandler):
    """To what is stderr when a line is written, not when logging was set up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """One line per message, whatever it repeats of a file; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = _LEVELS.get(record.levelno, record.levelname.lower())
        record.message = f"{level}: {one_line(record.message)}"
        return super().formatMessage(record)


def _number(*names: str) -> int | None:
    found = next((os.environ[name] for name in names if name in os.environ), "")
    return int(found) if found.isdecimal() else None
