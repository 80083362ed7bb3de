"""Items of a dataset, prepared ahead by DataLoader workers that neither hang the process nor garble an error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from masp.errors import InputError, MaspError
from masp.runtime.stop import ignore_stop_signals


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
        order: Indices.
        num_workers: Number of worker processes; 0 prepares the items in this process.
        setting: Dotted name of the setting that `num_workers` comes from, for the error.
        prefetch: Items that each worker prepares ahead.
        pin_memory: Call `pin_memory` of each item, for transfers to a GPU.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Sequence[int],
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
            self._items: Iterator = iter(loader)

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Any:
        """Return the next item.

        Raises:
            InputError: A worker was killed from outside.
            MaspError: The dataset raised it.
        """
        try:
            item = next(self._items)
        except RuntimeError:
            if not self._a_worker_died():  # a bug in the dataset arrives as the error that it raised in the worker
                raise
            raise InputError(
                f"{self.setting} = {self.num_workers}: a worker was killed, most often because memory ran out; what is "
                "finished is kept; lower it and run the same command again"
            ) from None
        if isinstance(item, MaspError):
            raise item
        return item

    def _a_worker_died(self) -> bool:
        """Whether a worker has ended with an exit code other than 0; torch has no exception of its own for that."""
        return any(worker.exitcode for worker in getattr(self._items, "_workers", ()))

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


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    ignore_stop_signals()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
