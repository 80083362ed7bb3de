"""Work that is done in a thread of its own, a bounded number of items behind."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
_CHECK_S = 0.05
"""Seconds after which `put` into a full queue checks whether the thread has failed."""


class Background(Generic[Item]):
    """Calls `work` on items, in order, in one thread. What `work` raises is raised by the next `put` or by `close`.

    A daemon thread: it never keeps a process from ending.
    """

    def __init__(self, work: Callable[[Item], object], depth: int):
        """Start the thread.

        Args:
            work: Function to call with each item.
            depth: Largest number of items that wait; `put` blocks while there are as many.
        """
        self._work = work
        self._items: queue.Queue = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand an item to the thread; blocks while `depth` items wait."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._items.put(item, timeout=_CHECK_S)
            except queue.Full:
                continue

    def close(self) -> None:
        """Wait until all items are done, and end the thread."""
        self.stop(drop=False)
        if self._error is not None:
            raise self._error

    def stop(self, drop: bool, timeout_s: float | None = None) -> bool:
        """End the thread; raises nothing.

        Args:
            drop: Discard the waiting items, and finish only the current one; otherwise finish all of them first.
            timeout_s: Longest time to wait for it; None: for as long as it takes.

        Returns:
            Whether it has ended; if not, it goes on until the process ends.
        """
        self._dropping = self._dropping or drop
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._thread.is_alive():
            try:
                self._items.put(None, timeout=timeout_s)  # the thread takes items until the end, even after a failure
            except queue.Full:
                return False
            self._thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._dropping or self._error is not None:
                continue
            try:
                self._work(item)
            except BaseException as error:  # whatever it is, the thread that calls `put` raises it
                self._error = error
