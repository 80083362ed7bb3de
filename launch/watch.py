"""Waiting for submitted jobs to end, with one line per change."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from launch.job.parts import PartName
from launch.submission.state import Overview, PartState, overview, table
from masp.errors import InputError, one_line
from masp.runtime.log import show

_POLL_S = 2.0


def watch(directory: Path) -> Overview:
    """Show a submission until it has ended: a live table on a terminal, elsewhere a line per change of state.

    Raises:
        InputError: the scheduler has not answered for ten minutes.
    """
    live = sys.stdout.isatty()
    shown: list[str] = []
    told: dict[PartName, str] = {}
    silent_since: float | None = None
    while True:
        try:
            found, silent_since = overview(directory), None
        except InputError as error:
            # the jobs do not depend on this process, and controllers are restarted now and then
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > 600:
                raise InputError(f"{error}, for ten minutes now; what was submitted goes on") from None
            time.sleep(_POLL_S)
            continue
        if live:
            if shown:
                sys.stdout.write(f"\x1b[{len(shown)}A\x1b[J")  # the table goes over the one before
            width = os.get_terminal_size().columns
            shown = [one_line(line)[: width - 1] for line in table(found.parts)]
            show(*shown)
        for part in found.parts:
            line = _line(part)
            if not live and told.get(part.name) != line:
                show(f"{part.name}: {line}")
            told[part.name] = line
        if not found.is_open:
            return found
        time.sleep(_POLL_S if found.record.executor == "slurm" else _POLL_S / 4)


def _line(part: PartState) -> str:
    """State of a part, for a log: it changes only when something happened."""
    restarts = f", started again {part.num_restarts} times" if part.num_restarts else ""
    return f"{part.state}{restarts}"
