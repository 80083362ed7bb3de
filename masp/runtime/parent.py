"""The process that started this one, a launcher such as torchrun: noticing that it is gone.

Imported early by every entry point, since the parent must be noted while it is there.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

_CHECK_S = 1.0
_parent = os.getppid()


def parent() -> int:
    """Process id of the parent that this process had first, or nearly: a process whose parent ends gets another one."""
    return _parent


def _note_parent() -> None:
    global _parent
    _parent = os.getppid()


os.register_at_fork(after_in_child=_note_parent)


@contextlib.contextmanager
def watching_parent(on_end: Callable[[], object]) -> Iterator[None]:
    """While entered, check whether the parent is still there, on a thread of its own.

    Args:
        on_end: Called once if it is gone; the main thread may be waiting in a library for ever.
    """
    left = threading.Event()

    def watch() -> None:
        while os.getppid() == _parent:
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
