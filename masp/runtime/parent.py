"""The process that started this one, a launcher such as torchrun: noticing that it is gone.

Imported early by every entry point, since the parent must be noted while it is there.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

PARENT = os.getppid()
"""Process id of the parent when this module was imported. A process whose parent ends gets another one."""
_CHECK_S = 1.0


@contextlib.contextmanager
def watching_parent(on_end: Callable[[], object]) -> Iterator[None]:
    """While entered, check whether the parent is still there, on a thread of its own.

    Args:
        on_end: Called once if it is gone; the main thread may be waiting in a library for ever.
    """
    left = threading.Event()

    def watch() -> None:
        while os.getppid() == PARENT:
            if left.wait(_CHECK_S):
                return
        on_end()

    thread = threading.Thread(target=watch, name="parent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
