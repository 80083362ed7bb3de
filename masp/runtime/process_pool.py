"""Worker processes for independent pieces of work, of which none can leave the command waiting when it dies."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import TypeVar

from masp.errors import InputError, StoppedEarly
from masp.files.text import reason
from masp.runtime.stop import STOP_SIGNALS, is_stop_requested, signal_name

A = TypeVar("A")
R = TypeVar("R")

_AHEAD = 3
"""Pieces of work per process that are prepared before their results are taken."""


def default_processes() -> int:
    """How many processes read many files: on a network disk they mostly wait, so at least four."""
    return max(4, min(16, os.cpu_count() or 1))


@contextlib.contextmanager
def process_pool(num_processes: int, setting: str | None, work: str) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; spawned, because this one may hold threads by now, which a fork would leave without an owner.

    Args:
        num_processes: How many.
        setting: The setting or option that says how many, for messages; None if there is none.
        work: What one of them does, to follow "a process that": "reads image headers".

    Raises:
        InputError: One was killed, or none can be started.
        StoppedEarly: One ended by a signal to all processes that asked this one to stop.
    """
    processes: Mapping[int, BaseProcess] = {}
    what = f"{setting} {num_processes}: " if setting else ""
    then = "give a lower number" if setting else f"run the same command again with more memory ({num_processes} ran)"
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_leave_stopping_to_parent) as pool:
            processes = pool._processes  # which the pool itself forgets
            try:
                yield pool
            except BaseException as error:
                has_died = bool(pool._broken)
                # The pool ends its processes once and then waits for all of them, also for one that was being started
                # just then (Python 3.11), which would wait for work forever. After another error no result is wanted.
                for process in list(processes.values()):
                    process.terminate()
                if has_died and isinstance(error, OSError):  # from starting one for a pool that had just broken
                    raise BrokenProcessPool from error
                raise
    except BrokenProcessPool:
        if is_stop_requested():
            raise StoppedEarly("stopped on request; the same command goes on from there") from None
        codes = {pid: process.exitcode or 0 for pid, process in processes.items()}
        # the pool itself ends the others by SIGTERM
        pid, code = min(codes.items(), key=lambda entry: (entry[1] == -signal.SIGTERM, entry[1]))
        if code >= 0:
            raise  # not killed, but ended by a bug
        raise InputError(
            f"{what}a process that {work} was killed, most often because memory ran out"
            f" (process {pid}, {signal_name(-code)}); {then}"
        ) from None
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOMEM):
            raise
        raise InputError(f"{what}a process cannot be started: {reason(error)}; {then}") from None


def _leave_stopping_to_parent() -> None:
    """A signal to all processes must not end this one first; SIGTERM is what the pool itself ends it by."""
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def map_ahead(
    pool: ProcessPoolExecutor, num_processes: int, function: Callable[[A], R], work: Iterable[A], chunk: int = 1
) -> Iterator[R]:
    """Call a function for many pieces of work in a pool, in their order, not far ahead of what has been taken.

    `ProcessPoolExecutor.map` prepares all work at once and keeps every result until its turn: where this process is the
    slower one, that is everything at the same time.

    Args:
        pool: Worker processes.
        num_processes: How many there are.
        function: Can be pickled, as can what it returns.
        work: What it is called with; taken when its turn comes.
        chunk: How many pieces are sent to a process at a time.
    """
    pieces = iter(work)
    chunks = iter(lambda: list(islice(pieces, chunk)), [])
    waiting = deque(pool.submit(_call_each, function, each) for each in islice(chunks, _AHEAD * num_processes))
    while waiting:
        found = waiting.popleft().result()
        waiting.extend(pool.submit(_call_each, function, each) for each in islice(chunks, 1))
        yield from found


def _call_each(function: Callable[[A], R], work: list[A]) -> list[R]:
    return [function(each) for each in work]
