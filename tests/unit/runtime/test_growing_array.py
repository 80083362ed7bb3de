"""Rows that are added at the end."""

import numpy as np

from masp.runtime.growing_array import GrowingArray


def test_it_holds_what_was_added_also_beyond_what_was_expected():
    for capacity in (0, 3, 100):
        column, pairs = GrowingArray(np.int32, capacity), GrowingArray("u1", capacity, (2,))
        for count in (2, 0, 1, 9):
            column.extend(np.arange(count))
            pairs.extend(np.full((count, 2), count))
        assert column.values.tolist() == [0, 1, 0, *range(9)] and column.values.dtype == np.int32
        assert pairs.values.tolist() == [[2, 2], [2, 2], [1, 1], *[[9, 9]] * 9] and len(pairs) == 12
