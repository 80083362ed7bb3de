"""How a process stops: on request, where the work can stop cleanly, and at its end.

While work is done that stops between two of its pieces, a signal only sets a flag (`StopFlag`). Before and after, where
nothing looks at a flag, it raises `StopNow` (`stop_at_once`). A process whose work is done ends without the teardown of
the interpreter, which could fail.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from masp.files.regular import exists

LOG = logging.getLogger(__name__)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""What asks a process to stop. Schedulers send SIGUSR2 ahead of a time limit (`sbatch --signal=USR2@90`)."""

_process: int | None = None
"""The process whose signals raise `StopNow`; those that it forks have none to stop."""
_is_raised = False
"""Whether `StopNow` was raised."""
_RAISE_AGAIN_S = 3.0
"""Seconds after which it is raised again if the process has not begun to end by then."""
_entered: list[StopFlag] = []
"""Flags that the signals set now."""


class StopNow(KeyboardInterrupt):
    """A request to stop that arrived where nothing looks at a flag: while modules are imported or a dataset is read.

    Like an interruption, which it is, it is not an `Exception`, so that no library takes it for a failure of its own.
    """


def is_stop_raised() -> bool:
    """Whether `StopNow` was raised: another error may then be what a library has made of it."""
    return _is_raised


def is_stop_requested() -> bool:
    """Whether a signal has asked this process to stop, wherever it arrived."""
    return _is_raised or any(_entered)


def stop_at_once() -> None:
    """From now on the signals raise `StopNow`, save where a `StopFlag` is entered; for entry points of processes.

    It may be raised where Python or a library cannot pass it on: in a finalizer, or while an extension is imported.
    Then it is raised again, or sets the next flag. A second SIGINT interrupts as usual.
    """
    global _process
    if threading.current_thread() is threading.main_thread():
        _process = os.getpid()
        sys.unraisablehook = _hide_stop(sys.unraisablehook)
        for number in (*STOP_SIGNALS, signal.SIGALRM):
            signal.signal(number, _stop_now)


def _stop_now(number: int, frame: FrameType | None) -> None:
    global _is_raised
    if os.getpid() != _process:  # a fork that has no handlers of its own yet: its parent stops it
        return
    _is_raised = True
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_S)
    raise StopNow


def _hide_stop(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook for exceptions that Python cannot pass on which says nothing of `StopNow`: it will be raised again."""
    return lambda args: None if isinstance(args.exc_value, StopNow) else hook(args)


def stop_no_more() -> None:
    """After `stop_at_once`, ignore the signals: what the process does is done, or it is stopping already."""
    if _process == os.getpid() and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)
        ignore_stop_signals()


class StopFlag:
    """Set by SIGTERM, SIGINT and SIGUSR2 while it is entered; a second SIGINT interrupts as usual.

    It is set from the beginning if a library has swallowed a `StopNow`.

    Use as `with StopFlag() as stop: … if stop: …`. Outside the main thread, where Python allows no signal handlers,
    only `set` sets it.
    """

    def __init__(self):
        self._set = False
        self.received: set[int] = set()
        """Numbers of the signals that were received."""
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | signal.Handlers | None] = {}

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        """Request a stop."""
        self._set = True

    def done(self) -> None:
        """There is nothing left to stop: once this is left, the signals are ignored until the process ends.

        Otherwise one that arrives while Python shuts down would make a process fail that has done its work.
        """
        self._previous = dict.fromkeys(self._previous, signal.SIG_IGN)

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            if _is_raised:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._set = True
            _entered.append(self)
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
        if self in _entered:
            _entered.remove(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        self.received.add(number)
        if number == signal.SIGINT:
            before = self._previous.pop(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler if before is _stop_now else before)
        LOG.info("%s: stopping as soon as that is clean", signal.Signals(number).name)


class StopRequests:
    """The requests that may stop a training run: signals, a file `STOP`, and a time limit, in this order.

    Args:
        flag: Flag that the signals set.
        directory: Run directory, in which the user may create a file `STOP`.
        time_limit_min: Minutes from now; None for no limit.
        is_rank_0: Whether this is rank 0, which alone checks file and clock.
    """

    FILE = "STOP"
    CHECK_EVERY_S = 1.0
    """Seconds between two checks for the file, which take a while on a network disk."""

    def __init__(self, flag: StopFlag, directory: Path, time_limit_min: float | None, is_rank_0: bool):
        self.flag, self.path, self.time_limit_min, self.is_rank_0 = (
            flag,
            directory / self.FILE,
            time_limit_min,
            is_rank_0,
        )
        self._started, self._checked, self._exists = time.monotonic(), float("-inf"), False

    def raised(self) -> list[bool]:
        """Whether this rank knows of each request, to be summed over the ranks at a step boundary."""
        now = time.monotonic()
        if self.is_rank_0 and now - self._checked >= self.CHECK_EVERY_S:
            self._exists, self._checked = exists(self.path), now
        over = self.time_limit_min is not None and now - self._started >= 60 * self.time_limit_min
        return [bool(self.flag), self._exists, self.is_rank_0 and over]

    def why(self, raised: list[bool]) -> str:
        """Describe the first request that was raised on any rank, in words that follow "stopped"; empty if none was."""
        words = (
            "on request",
            f"by the file {self.path}",
            f"at its time limit, engine.time_limit_min = {self.time_limit_min},",
        )
        return next((text for text, there in zip(words, raised, strict=True) if there), "")

    def done(self) -> None:
        """Remove the file once the run has stopped, so that the same command continues it."""
        if self.is_rank_0:
            self.path.unlink(missing_ok=True)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a number without a name, such as that of a real-time signal, is shown as it is."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def ignore_stop_signals() -> None:
    """For worker processes: a signal to the whole process group must not end them before the main process stops."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


_ending = False


def is_ending() -> bool:
    """Whether `end_process` was called: what the operating system frees need not be torn down."""
    return _ending


def end_process(code: int) -> NoReturn:
    """End the process with an exit code that nothing can change any more.

    Python's own end destroys whatever libraries left behind while their threads still run; now and then one of them
    aborts the process, and a job that has written its results counts as failed. So this function does what belongs to
    an orderly end (waiting for threads, functions registered with `atexit`, writing out the streams) and leaves the
    rest to the operating system.

    Args:
        code: Exit code.
    """
    global _ending
    _ending = True
    stop_no_more()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as it is if the process was started without one
                stream.flush()
        except OSError:
            code = code or 1  # what was printed last is lost, and there is nowhere to say so
    os._exit(code)
