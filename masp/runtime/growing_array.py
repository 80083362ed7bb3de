"""Columns of a table that is read part by part: thousands of small arrays would take twice the memory to be joined."""

from __future__ import annotations

import numpy as np


class GrowingArray:
    """An array to whose end rows are added.

    Memory that was set aside and not filled yet is not used: the system gives it when it is written to.
    """

    def __init__(self, dtype: str | np.dtype | type, capacity: int, width: tuple[int, ...] = ()):
        """Nothing in it yet.

        Args:
            dtype: Its numbers.
            capacity: How many rows are expected; more are copied to a larger array.
            width: Shape of one row.
        """
        self._rows = np.empty((capacity, *width), dtype=dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, rows: np.ndarray) -> None:
        """Add rows at the end."""
        end = self._length + len(rows)
        if end > len(self._rows):
            grown = np.empty((max(end, len(self._rows) * 3 // 2), *self._rows.shape[1:]), dtype=self._rows.dtype)
            grown[: self._length] = self._rows[: self._length]
            self._rows = grown
        self._rows[self._length : end] = rows
        self._length = end

    @property
    def values(self) -> np.ndarray:
        """What it holds; a view, which a later `extend` may leave behind."""
        return self._rows[: self._length]
