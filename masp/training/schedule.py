"""The schedule of training: which samples take part, in which order, and how a step is cut into micro-batches.

Pure functions of their arguments, so that any number of ranks and workers and any point of resumption agree.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from masp.cache.reader import CachedSample
from masp.config.schema import StageConfig
from masp.data.splits.subset import Subset
from masp.data.target.labels import Labels
from masp.errors import InputError
from masp.files.sealed import digest_of

PADDING = -1
"""Position of a sample of weight zero in a micro-batch."""


class TrainingIndex(Protocol):
    """The columns of a cache's index that a schedule is made from; a cache of `N` samples."""

    @property
    def num_tokens(self) -> np.ndarray:
        """`[N]` integers: vision tokens of each sample."""

    @property
    def shard(self) -> np.ndarray:
        """`[N]` integers: number of each sample's shard."""

    @property
    def keys(self) -> Sequence[str]:
        """Sample keys."""


class TrainingCache(Protocol):
    """What training reads of a feature cache, or of images where there is none."""

    @property
    def index(self) -> TrainingIndex:
        """One row per sample."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories."""

    @property
    def labels(self) -> Labels | None:
        """Labels of the target, where they are not those of the dataset."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""

    @property
    def subset(self) -> Subset | None:
        """What training sees of the training split; None for all."""

    def rows(self, split: str) -> np.ndarray:
        """Rows of the index that belong to a split, ascending; of the training split those that training sees."""

    def has_answer(self, rows: np.ndarray, aspect: str) -> np.ndarray:
        """Which of these rows are annotated with an aspect."""

    def has_distribution(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows have a distribution over the categories."""

    def read(self, row: int, *, epoch: int | None = None) -> CachedSample:
        """One sample, in an epoch of training; None: as validation sees it."""


@dataclass(frozen=True)
class Rows:
    """Positions: images of the cache that have something to learn from."""

    rows: np.ndarray
    """Rows of the index, ascending."""
    weights: np.ndarray
    """Supervised sequences of each of `rows`: in stage 1 the annotated aspects, in stage 2 one."""
    lengths: np.ndarray
    """Tokens that each of `rows` costs, for the token budget."""
    aspects: np.ndarray | None = field(default=None, kw_only=True)
    """Where a position is an image with one aspect: the number of the aspect of each of `rows`; None: it has all."""

    def only(self, kept: np.ndarray | slice) -> Rows:
        """Those where the mask `kept` is true, or those at indices `kept`, in their order."""
        aspects = None if self.aspects is None else self.aspects[kept]
        return Rows(self.rows[kept], self.weights[kept], self.lengths[kept], aspects=aspects)


@dataclass(frozen=True)
class Schedule(Rows):
    """What takes part in training, and how many steps there are."""

    steps_per_epoch: int
    num_steps: int
    held_out: Rows | None
    """What validation measures; None without validation."""


def make_schedule(
    index: TrainingIndex,
    train: Rows,
    val: Rows | None,
    settings: StageConfig,
    stage: str,
    seed: int,
    divided: Callable[[Rows], Rows] = lambda images: images,
) -> Schedule:
    """Plan the steps of a stage, and hold images out for validation where it is on.

    Args:
        index: Index of the cache.
        train: Images of the `train` split that the stage can use.
        val: Images of the `val` split that it can use; where there are none, `train` is divided. None where there is no
            validation.
        settings: Settings of the stage.
        stage: Name of the stage, for errors.
        seed: Seed of the run.
        divided: Makes the positions of training out of its images.

    Raises:
        InputError: All training images would be held out.
    """
    held_out = None
    if val is not None:
        source = val if len(val.rows) else train
        chosen = draw_held_out(index, source.rows, settings.validation_size, seed)
        if source is train and chosen.all():
            raise InputError(
                f"{stage}.validation_size = {settings.validation_size}: no image of a val split can be used, and it "
                f"would leave none of the {len(train.rows)} training images; must be below that"
            )
        held_out = source.only(chosen)
        train = train.only(~chosen) if source is train else train
    train = divided(train)
    steps_per_epoch = -(-len(train.rows) // settings.global_batch_size)
    num_steps = steps_per_epoch * settings.num_epochs
    return Schedule(
        train.rows, train.weights, train.lengths, steps_per_epoch, num_steps, held_out, aspects=train.aspects
    )


def draw_held_out(index: TrainingIndex, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A mask of `count` of the rows, chosen by key and seed: images added later change little."""
    ranked = sorted(range(len(rows)), key=lambda i: digest_of(["held out", seed, index.keys[int(rows[i])]]))
    mask = np.zeros(len(rows), dtype=bool)
    mask[ranked[:count]] = True
    return mask


def learning_rate(step: int, num_steps: int, stage: StageConfig) -> float:
    """Linear warmup from zero, then linear decay to zero; the step `num_steps` would be at zero.

    `linear` counts the warmup from the step before the first, so that no step is taken at zero; `published` is the rule
    of transformers' trainer.

    Args:
        step: Number of the step, from 0.
        num_steps: Number of steps of the whole run.
        stage: Settings of the stage.
    """
    if stage.schedule == "published":
        warmup = math.ceil(stage.warmup_ratio * num_steps)
        if step < warmup:
            return stage.learning_rate * (step / warmup)
        return stage.learning_rate * ((num_steps - step) / max(1, num_steps - warmup))
    warmup = min(num_steps - 1, round(stage.warmup_ratio * num_steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / (warmup + 1)
    return stage.learning_rate * (num_steps - step) / (num_steps - warmup)


LITTLE = 0.002
"""Sum of the learning rates of a run below which its values have hardly left their start."""


def num_steps_of(num_images: int, settings: StageConfig) -> int:
    """Optimizer steps of a stage that learns from so many images."""
    return -(-num_images // settings.global_batch_size) * settings.num_epochs


def too_little(stage: str, num_steps: int, settings: StageConfig) -> str | None:
    """What to say of a run that cannot move its values noticeably; None where it can.

    AdamW moves a value by about the learning rate in each step, whatever the gradient, so that all steps together move
    it by at most about the sum of the learning rates.
    """
    reach = settings.learning_rate * (num_steps + 1) / 2  # of a linear schedule
    if not num_steps or reach >= LITTLE:
        return None
    return (
        f"{stage}: {num_steps:,} steps at {stage}.learning_rate = {settings.learning_rate:g} move a value by at most "
        f"about {reach:.1g} in all, which hardly changes anything; raise {stage}.learning_rate or {stage}.num_epochs, "
        f"or lower {stage}.global_batch_size, which is {settings.global_batch_size}"
    )


def epoch_order(index: TrainingIndex, rows: np.ndarray, seed: int, epoch: int, window_shards: int) -> np.ndarray:
    """Rows in the order of one epoch: entry `i` is what position `i` sees.

    Shards are permuted; then samples are permuted within each window of shards, so that reading stays within a few
    files at a time.

    Args:
        index: Index of the cache.
        rows: Rows that take part, each once; their order does not matter.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        window_shards: Number of shards whose samples are mixed; 0 mixes all.

    Returns:
        int64 `[len(rows)]`, a permutation of `rows`.
    """
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    return rows[epoch_places(index, rows, seed, epoch, window_shards)]


def epoch_places(index: TrainingIndex, rows: np.ndarray, seed: int, epoch: int, window_shards: int) -> np.ndarray:
    """The same as places in `rows`, which are ascending and in which a row may occur several times."""
    shard = index.shard[rows]
    present = np.unique(shard)
    random = _random(seed, epoch)
    place = np.empty(len(present), dtype=np.int64)
    place[_permutation(random, len(present))] = np.arange(len(present))
    window = place[np.searchsorted(present, shard)] // (window_shards or max(1, len(present)))
    return np.lexsort((random.random_raw(len(rows)), window))


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

    Similar lengths come together. A micro-batch holds at most `micro_batch_size` positions, and its longest length
    times its positions is at most `micro_batch_tokens`; a position that is longer is alone. There are no
    more micro-batches per rank than these limits need, and the largest is as small as it can then be: it decides about
    memory, and the ranks wait for it. Where their number does not divide by the number of ranks, the costliest are
    halved, and only when every one holds a single position is a rank given padding.

    Args:
        lengths: Tokens of each position of the step, at least one.
        num_ranks: World size.
        micro_batch_size: Largest number of positions of a micro-batch.
        micro_batch_tokens: Largest number of padded tokens of a micro-batch; None for any.

    Returns:
        Per rank, per micro-batch, the positions (indices into `lengths`); `PADDING` is a sample of weight
        zero. All ranks have the same number of micro-batches and none is empty; each position occurs exactly once.

    Raises:
        ValueError: The step is empty, or a length, size or number is below one.
    """
    limits = num_ranks, micro_batch_size, 1 if micro_batch_tokens is None else micro_batch_tokens
    if not len(lengths) or min(*lengths, *limits) < 1:
        raise ValueError("a step needs positions with tokens, a rank, and micro-batches of at least one token")
    groups = _even_groups(lengths, num_ranks, micro_batch_size, micro_batch_tokens)
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


def _even_groups(lengths: Sequence[int], num_ranks: int, size: int, tokens: int | None) -> list[list[int]]:
    """Positions by falling length, cut by the smallest budget that takes as few micro-batches per rank as `tokens`."""
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    falling = [lengths[position] for position in order]
    largest = falling[0] * min(size, len(falling))
    largest = largest if tokens is None else min(largest, tokens)
    count = -(-len(_cuts(falling, size, largest)) // num_ranks) * num_ranks
    budgets = range(1, largest + 1)
    least = bisect_left(budgets, True, key=lambda budget: len(_cuts(falling, size, budget)) <= count)
    return [order[cut] for cut in _cuts(falling, size, budgets[least])]


def _cuts(falling: Sequence[int], size: int, tokens: int) -> list[slice]:
    """Micro-batches of positions of falling length, each as large as its size and tokens let it be."""
    cuts: list[slice] = []
    start = 0
    while start < len(falling):
        end = min(start + max(1, min(size, tokens // falling[start])), len(falling))
        cuts.append(slice(start, end))
        start = end
    return cuts
