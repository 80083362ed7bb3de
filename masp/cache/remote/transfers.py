"""Threads that move files, with one progress bar for all of them, that stop at once when they are to."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

from tqdm import tqdm

from masp.cache.remote.place import Advance, ArrivedDamaged, Unreachable
from masp.errors import StoppedEarly
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)

WAITS_S = (1.0, 5.0)
"""Seconds before each further try of what failed."""

_CHECK_EVERY_S = 0.1
_END_WITHIN_S = 2.0
"""Seconds that threads are waited for that do nothing useful any more; one may be inside a library."""

T = TypeVar("T")
R = TypeVar("R")


class Transfers:
    """Use as `with Transfers(…) as transfers`.

    Args:
        stage: What the bar shows: files are compared, sent or fetched.
        num_bytes: Bytes that will be moved.
        num_threads: Files that are moved at the same time.
        stop: Set when the command is to stop.
    """

    def __init__(self, stage: Literal["check", "push", "pull"], num_bytes: int, num_threads: int, stop: StopFlag):
        self._num_threads, self._stop = num_threads, stop
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        pause_s = 0.1 if sys.stderr.isatty() else 30.0  # a log file is not a screen
        self._bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc=stage, mininterval=pause_s)

    def __enter__(self) -> Transfers:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        with self._lock:
            self._bar.close()

    @contextlib.contextmanager
    def counting(self) -> Iterator[Advance]:
        """Count the bytes of one attempt, which are taken back if it fails."""
        moved = 0

        def advance(num_bytes: int) -> None:
            nonlocal moved
            if self._stop or self._is_over.is_set():
                raise stopped()
            moved += num_bytes
            self._update(num_bytes)

        try:
            yield advance
        except BaseException:
            self._update(-moved)
            raise

    def _update(self, num_bytes: int) -> None:
        with self._lock:
            if not self._is_over.is_set():
                self._bar.update(num_bytes)

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Call `work` for every item, in threads.

        Yields:
            Items and what `work` returned, in the order in which they are done.

        Raises:
            StoppedEarly: The command is to stop.
            Exception: The first that `work` raised; what runs beside it ends at its next step.
        """
        waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[T, R | None, BaseException | None]] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)
        over = threading.Event()

        def run() -> None:
            while not (over.is_set() or self._is_over.is_set()):
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((item, work(item), None))
                except BaseException as error:
                    over.set()  # nothing else is begun
                    done.put((item, None, error))

        # As daemons they do not keep a process that was stopped from ending while one of them is inside a library.
        threads = [threading.Thread(target=run, daemon=True) for _ in range(min(self._num_threads, len(items)))]
        for thread in threads:
            thread.start()
        try:
            for _ in items:
                item, result, error = self._next(done)
                if error is not None:
                    self._is_over.set()
                    raise error
                yield item, result  # type: ignore[misc] # without an error it is what `work` returned
        finally:
            over.set()
            deadline = time.monotonic() + _END_WITHIN_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _next(self, done: queue.SimpleQueue[T]) -> T:
        while True:
            if self._stop:
                raise stopped()
            with contextlib.suppress(queue.Empty):
                return done.get(timeout=_CHECK_EVERY_S)


def stopped() -> StoppedEarly:
    """The error of a transfer that was asked to stop."""
    return StoppedEarly("stopped; what has arrived is kept: the same command goes on from there")


def size_text(num_bytes: int) -> str:
    """Bytes for people, such as `1.23GB`."""
    return tqdm.format_sizeof(num_bytes, "B")


def patiently(attempt: Callable[[], R]) -> R:
    """Call `attempt`, and again if it fails in a way that may pass; each failure is said.

    Raises:
        Unreachable, ArrivedDamaged: The last try failed, too.
        Exception: Whatever else it raises, at once.
    """
    for wait_s in WAITS_S:
        try:
            return attempt()
        except (Unreachable, ArrivedDamaged) as error:
            LOG.warning("%s; trying again in %g s", error, wait_s)
            time.sleep(wait_s)
    return attempt()
