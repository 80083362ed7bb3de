"""The order of training: which sample stands at each position, and how a step is cut into micro-batches.

Pure functions of their arguments, so that any number of ranks and workers and any point of resumption agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

PADDING = -1
"""Stands in a micro-batch for a sample of weight zero."""


class ShardColumn(Protocol):
    """What the order of training needs of a cache's index."""

    @property
    def shard(self) -> np.ndarray:
        """`[N]` integers: the shard of each row."""


def epoch_order(index: ShardColumn, rows: np.ndarray, seed: int, epoch: int, window_shards: int) -> np.ndarray:
    """Rows in the order of one epoch: entry `i` is what position `i` sees.

    Shards are permuted; then samples are permuted within each window of shards, so that reading stays within a few
    files at a time.

    Args:
        index: of the cache.
        rows: what takes part, each once; their order does not matter.
        seed: of the run.
        epoch: from 0.
        window_shards: shards whose samples are mixed; 0 mixes all.

    Returns:
        int64 `[len(rows)]`, a permutation of `rows`.
    """
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    shard = index.shard[rows]
    present = np.unique(shard)
    random = _random(seed, epoch)
    place = np.empty(len(present), dtype=np.int64)
    place[_permutation(random, len(present))] = np.arange(len(present))
    window = place[np.searchsorted(present, shard)] // (window_shards or max(1, len(present)))
    return rows[np.lexsort((random.random_raw(len(rows)), window))]


def _random(seed: int, epoch: int) -> np.random.Philox:
    """Random bits of (seed, epoch). Only raw bits are used: numpy promises their stream, not that of `permutation`."""
    digest = hashlib.sha256(f"epoch_order {seed} {epoch}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def _permutation(random: np.random.Philox, count: int) -> np.ndarray:
    return np.argsort(random.random_raw(count), kind="stable")


def plan_step(
    lengths: Sequence[int], num_ranks: int, micro_batch_size: int, micro_batch_tokens: int | None
) -> list[list[list[int]]]:
    """Divide a step's positions over ranks and cut them into micro-batches.

    Similar lengths stand together. A micro-batch holds at most `micro_batch_size` positions, and its longest length
    times its positions is at most `micro_batch_tokens`; a position that is longer stands alone. Where the number of
    micro-batches does not divide by the number of ranks, the costliest are halved, and only when every one holds a
    single position is a rank given padding.

    Args:
        lengths: tokens of each position of the step, at least one.
        num_ranks: world size.
        micro_batch_size: largest number of positions of a micro-batch.
        micro_batch_tokens: largest number of padded tokens of a micro-batch; None for any.

    Returns:
        Per rank, per micro-batch, the positions (indices into `lengths`); `PADDING` stands for a sample of weight
        zero. All ranks have the same number of micro-batches and none is empty; each position occurs exactly once.

    Raises:
        ValueError: an empty step, or a size below one.
    """
    if not len(lengths) or min(num_ranks, micro_batch_size) < 1:
        raise ValueError("a step needs a position, a rank and a micro-batch size of at least one")
    groups = _groups(lengths, micro_batch_size, micro_batch_tokens)
    missing = -len(groups) % num_ranks
    while missing and any(len(group) > 1 for group in groups):
        # halve the one with the most padded tokens; ties go to the first
        costs = [len(g) * lengths[g[0]] if len(g) > 1 else -1 for g in groups]
        worst = costs.index(max(costs))
        group, half = groups[worst], (len(groups[worst]) + 1) // 2
        groups[worst : worst + 1] = [group[:half], group[half:]]
        missing -= 1
    groups += [[PADDING]] * missing
    # costliest first: ranks then work on similar micro-batches at the same time
    groups.sort(key=lambda g: 0 if g[0] == PADDING else -len(g) * lengths[g[0]])
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for turn in range(len(groups) // num_ranks):
        dealt = groups[turn * num_ranks : (turn + 1) * num_ranks]
        for rank, group in enumerate(dealt if turn % 2 == 0 else reversed(dealt)):  # back and forth evens the sums
            ranks[rank].append(list(group))
    return ranks


def _groups(lengths: Sequence[int], size: int, tokens: int | None) -> list[list[int]]:
    """Positions by falling length, cut where a micro-batch would grow beyond its size or tokens."""
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        group = groups[-1] if groups else []
        fits = 0 < len(group) < size
        if fits and tokens is not None:
            fits = lengths[group[0]] * (len(group) + 1) <= tokens
        if fits:
            group.append(position)
        else:
            groups.append([position])
    return groups
