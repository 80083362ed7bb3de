"""Stopping on request: signals only set a flag, and the work looks at it where it can stop cleanly."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


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
        self._previous: dict[int, object] = {}

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
        print(f"\n{signal.Signals(number).name}: stopping as soon as that is clean", file=sys.stderr)


def ignore_stop_signals() -> None:
    """For worker processes: a signal to the whole group must not take them before the main process has stopped."""
    for number in StopFlag.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
