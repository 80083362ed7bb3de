"""A feature cache as a torch `Dataset`, for whoever works with features and needs nothing else of MASP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from masp.cache.reader import Cache, CachedSample
from masp.cache.reader import open_cache as open_whole


class CacheDataset(Dataset):
    """The images of a split of a cache, or of all of it, each a `CachedSample`.

    Works in DataLoader workers: each opens its own files. Samples differ in their number of vision tokens, so a
    DataLoader needs a `collate_fn`, such as `list`.

    Args:
        cache: Cache.
        split: Name of a split; None for all images.
        dtype: Number format of the features; None for the cache's.

    Raises:
        InputError: The cache has no such split.
    """

    def __init__(self, cache: Cache, split: str | None = None, dtype: torch.dtype | None = None):
        self.cache, self.dtype = cache, dtype
        self.rows = np.arange(len(cache)) if split is None else cache.rows(split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> CachedSample:
        """Read a sample; its checksums are verified.

        Raises:
            IndexError: There are fewer.
            DataError: It is damaged.
        """
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        return self.cache.read(int(self.rows[position]), self.dtype)

    def __iter__(self) -> Iterator[CachedSample]:
        return (self[position] for position in range(len(self)))


def open_cache(directory: str | Path, split: str | None = None, dtype: torch.dtype | None = None) -> CacheDataset:
    """Open a finished cache as a dataset; `.cache` is what it is read from, with its splits and categories.

    Args:
        directory: `cache.dir` of a run.
        split, dtype: See `CacheDataset`.

    Raises:
        InputError: No such cache, extraction has not finished, or it has no such split.
        DataError: Manifest or index damaged.
    """
    return CacheDataset(open_whole(directory), split, dtype)
