"""Items of a dataset, prepared ahead by DataLoader workers that neither hang the process nor garble an error."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from masp.errors import InputError, MaspError
from masp.files.text import reason
from masp.runtime.stop import ignore_stop_signals, signal_name

_CAUSES: dict[int, str] = {
    signal.SIGKILL: "most often because memory ran out",
    signal.SIGBUS: "most often because shared memory (/dev/shm) ran out",
}


class _WorkerEnded(Exception):
    """Wakes a main thread that waits for a worker that is gone."""


class _Guarded(Dataset):
    """Returns a MaspError as a value: raised in a worker, its one line would arrive wrapped in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except MaspError as error:
            return error


class ReadAhead:
    """Iterator over `dataset[i]` for each `i` of `order`, in that order with any number of workers.

    Workers start at once. Use as a context manager: workers ignore the signals that stop a run, so the interpreter,
    which ends leftover workers by such a signal, would wait for them forever.

    Args:
        dataset: Dataset; its items, and a MaspError that it raises, reach the caller unchanged.
        order: Indices; taken when their turn to be prepared comes, in this process.
        num_workers: Number of worker processes; 0 prepares the items in this process.
        setting: Dotted name of the setting that `num_workers` comes from, for the error.
        prefetch: Items that each worker prepares ahead.
        pin_memory: Call `pin_memory` of each item, for transfers to a GPU.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Iterable[int],
        num_workers: int,
        setting: str,
        prefetch: int = 2,
        pin_memory: bool = False,
    ):
        self.num_workers, self.setting = num_workers, setting
        with warnings.catch_warnings(action="ignore"):  # about more workers than cores: they mostly wait for disks
            loader = DataLoader(
                _Guarded(dataset),
                batch_size=None,
                sampler=order,
                collate_fn=_unchanged,
                num_workers=num_workers,
                prefetch_factor=prefetch if num_workers else None,
                worker_init_fn=_start_worker,
                pin_memory=pin_memory,
            )
            self._items: Iterator = self._started(loader)

    def _started(self, loader: DataLoader) -> Iterator:
        before = signal.getsignal(signal.SIGCHLD)
        try:
            items: Any = iter(loader)
        except OSError as error:  # of fork
            raise InputError(
                f"{self.setting} = {self.num_workers}: a worker cannot be started: {reason(error)}; lower it and run "
                "the same command again"
            ) from None
        finally:
            # torch installs a handler that raises a RuntimeError wherever the main thread happens to be: within an
            # import, for one, or a collective, where it is taken for something else. `_listening` is in its place.
            if _in_main_thread() and signal.getsignal(signal.SIGCHLD) is not before:
                signal.signal(signal.SIGCHLD, before)
        if (
            self.num_workers
        ):  # another DataLoader of this process may have installed it for good: it shall not see these
            _remove_worker_pids(id(items))
            items._worker_pids_set = False
        return items

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Any:
        """Return the next item.

        Raises:
            InputError: A worker was killed from outside.
            MaspError: The dataset raised it.
        """
        self._check_workers()  # while nobody listened
        try:
            with self._listening():
                item = next(self._items)
        except (RuntimeError, _WorkerEnded):
            self._check_workers()
            raise  # a bug in the dataset, which arrives as the error that it raised in the worker
        if isinstance(item, MaspError):
            raise item
        return item

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Wake this thread if a worker is killed: it may have left half an item, whose rest would never come."""
        if not self.num_workers or not _in_main_thread():
            yield
            return
        before = signal.signal(signal.SIGCHLD, self._child_ended)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)

    def _child_ended(self, number: int, frame: FrameType | None) -> None:
        if self._killed() is not None:
            raise _WorkerEnded

    def _killed(self) -> tuple[int, int, int] | None:
        """Index, process id and signal of a worker that was killed; None if none was."""
        for index, worker in enumerate(getattr(self._items, "_workers", ())):
            if (worker.exitcode or 0) < 0:
                return index, worker.pid, -worker.exitcode
        return None

    def _check_workers(self) -> None:
        """Raise the one line about a worker that was killed; torch has no exception of its own for that."""
        killed = self._killed()
        if killed is None:
            return
        index, pid, number = killed
        name = signal_name(number)
        cause = _CAUSES.get(number, "from outside or by a crash")
        raise InputError(
            f"{self.setting} = {self.num_workers}: a worker was killed, {cause} (worker {index}, process {pid}, "
            f"{name}); what is finished is kept; lower {self.setting} and run the same command again"
        ) from None

    def close(self) -> None:
        """End the workers; the iterator is empty afterwards."""
        # Not left to the garbage collector: a traceback that is still held would keep the iterator alive.
        shutdown = getattr(self._items, "_shutdown_workers", None)
        if shutdown:
            shutdown()
        self._items = iter(())

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_main_thread() -> bool:
    """Whether signal handlers may be installed here."""
    return threading.current_thread() is threading.main_thread()


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    ignore_stop_signals()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
