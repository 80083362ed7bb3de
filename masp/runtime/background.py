"""Work that follows behind in a thread of its own, a bounded number of items late."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
_LOOK_S = 0.05
"""How often a full queue looks whether the thread has failed."""


class Background(Generic[Item]):
    """Calls `work` on items, in order, in one thread. What `work` raises is raised by the next `put` or by `close`.

    A daemon thread: it never keeps a process from ending.
    """

    def __init__(self, work: Callable[[Item], object], depth: int):
        """Start the thread.

        Args:
            work: what to do with an item.
            depth: how many items may wait; `put` blocks while there are as many.
        """
        self._work = work
        self._items: queue.Queue = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over an item."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._items.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue

    def close(self) -> None:
        """Wait until everything is done."""
        self.stop(drop=False)
        if self._error is not None:
            raise self._error

    def stop(self, drop: bool) -> None:
        """End the thread; raises nothing.

        Args:
            drop: forget what waits, and wait only for the item in hand; else do all of it first.
        """
        self._dropping = self._dropping or drop
        if self._thread.is_alive():
            self._items.put(None)  # the thread takes items until the end, also after a failure
            self._thread.join()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._dropping or self._error is not None:
                continue
            try:
                self._work(item)
            except BaseException as error:  # whatever it is, the thread that hands over items raises it
                self._error = error
