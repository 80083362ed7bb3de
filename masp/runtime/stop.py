"""Stopping on request: signals only set a flag, and the work looks at it where it can stop cleanly."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

LOG = logging.getLogger(__name__)


class StopFlag:
    """Set by SIGTERM, SIGINT and SIGUSR2 while it is entered; a second SIGINT interrupts as usual.

    SIGUSR2 is what schedulers send ahead of a time limit (`sbatch --signal=USR2@90`).

    Use as `with StopFlag() as stop: … if stop: …`. Outside the main thread, where Python allows no handlers, only
    `set` sets it.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self):
        self._set = False
        self.received: set[int] = set()
        """The numbers of the signals that came."""
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | signal.Handlers | None] = {}

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        """Ask to stop."""
        self._set = True

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        self.received.add(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))
        LOG.info("%s: stopping as soon as that is clean", signal.Signals(number).name)


class StopRequests:
    """All that may ask a training run to stop: signals, the file `STOP`, and a time limit, in this order.

    Args:
        flag: the signals.
        folder: the run directory, in which a person may put a file `STOP`.
        time_limit_min: minutes from now; None for no limit.
        is_lead: the lead rank alone looks at file and clock.
    """

    FILE = "STOP"
    LOOK_EVERY_S = 1.0
    """A look at a network disk takes a while: at most one in so many seconds."""

    def __init__(self, flag: StopFlag, folder: Path, time_limit_min: float | None, is_lead: bool):
        self.flag, self.path, self.time_limit_min, self.is_lead = flag, folder / self.FILE, time_limit_min, is_lead
        self._started, self._looked, self._there = time.monotonic(), float("-inf"), False

    def raised(self) -> list[bool]:
        """Which requests this rank knows of, to be summed over the ranks at a step boundary."""
        now = time.monotonic()
        if self.is_lead and now - self._looked >= self.LOOK_EVERY_S:
            self._there, self._looked = self.path.exists(), now
        over = self.time_limit_min is not None and now - self._started >= 60 * self.time_limit_min
        return [bool(self.flag), self._there, self.is_lead and over]

    def why(self, raised: list[bool]) -> str:
        """The first request that was raised on any rank, in words that follow "stopped"; empty if none was."""
        words = (
            "on request",
            f"by the file {self.path}",
            f"at its time limit, engine.time_limit_min = {self.time_limit_min},",
        )
        return next((text for text, there in zip(words, raised, strict=True) if there), "")

    def done(self) -> None:
        """The run has stopped: the file has had its effect, and the same command is to go on."""
        if self.is_lead:
            self.path.unlink(missing_ok=True)


def ignore_stop_signals() -> None:
    """For worker processes: a signal to the whole group must not take them before the main process has stopped."""
    for number in StopFlag.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
