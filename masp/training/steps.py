"""What each optimizer step reads: rows of the cache in training order, as micro-batches of one rank.

Everything here is a function of (cache, configuration, step, rank): no state is carried from step to step, so a run
resumes anywhere, and DataLoader workers may prepare any step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from masp.cache.reader import CachedSample
from masp.extraction.image_stream import PreparedImage
from masp.extraction.live.images import LiveSample
from masp.models.sequence import IGNORED, Batch
from masp.training.schedule import PADDING, Rows, epoch_places, plan_step
from masp.training.stage import Stage
from masp.vlm.cost.counting import language_cost
from masp.vlm.cost.flops import Language, aspect_module_flops, language_flops
from masp.vlm.prompt import Prompt

WINDOW_SHARDS = 8
"""Shards whose samples are mixed; reading stays within so many files at a time."""


class Batches(Protocol):
    """Micro-batches, one after another."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Step:
    """What one rank does in one optimizer step."""

    batches: list[Batch]
    total_weight: float
    """Sum of the weights over the whole global batch."""
    num_images: int
    """Positions of the global batch."""
    num_tokens: int
    """Tokens that this rank runs through the language model, padding left out."""
    flops: float
    """Floating-point operations that they take."""
    keys: list[list[str | None]]
    """Sample key of each position of each of `batches`, followed by `#` and the aspect where it is a pair; None where
    it only pads."""
    absent: tuple[str, ...] = ()
    """Parts of the model that no sample of the global batch asks for."""
    images: Sequence[Sequence[PreparedImage]] = ()
    """Where features are computed live: the images of each of `batches`, whose features are still to come."""

    def own_keys(self) -> tuple[str, ...]:
        """Sample keys of this rank's part of the step."""
        return tuple(key for keys in self.keys for key in keys if key is not None)

    def finite_keys(self, row_losses: Sequence[Tensor]) -> list[tuple[str, bool]]:
        """Sample key of each row of this rank's part, and whether the row's loss is a finite number.

        Args:
            row_losses: Losses of the rows of each of `batches`.
        """
        found = [
            (self.keys[micro][int(image)], bool(loss.isfinite()))
            for micro, (batch, losses) in enumerate(zip(self.batches, row_losses, strict=True))
            for image, loss in zip(batch.row_image, losses, strict=True)
        ]
        return [(key, is_finite) for key, is_finite in found if key is not None]

    def pin_memory(self) -> Step:
        """Page-locked copies of the batches, as `Batch.pin_memory`."""
        images = [[image.pin_memory() for image in part] for part in self.images]
        return replace(self, batches=[batch.pin_memory() for batch in self.batches], images=images)


class Steps(Dataset):
    """`steps[k]` is what this rank does in optimizer step `k`.

    Args:
        stage: Stage that is trained.
        prompt: Chat template of the VLM.
        rank: Rank of this process.
        num_ranks: World size.
    """

    def __init__(self, stage: Stage, prompt: Prompt, rank: int = 0, num_ranks: int = 1):
        self.stage, self.prompt, self.rank, self.num_ranks = stage, prompt, rank, num_ranks
        self.schedule, self.settings = stage.schedule, stage.settings
        self.shape = language_cost(stage.config.vlm.path)
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        return self.schedule.num_steps

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return epoch_places(self.stage.cache.index, self.schedule.rows, self.stage.order_seed, epoch, WINDOW_SHARDS)

    def positions_of(self, step: int) -> Rows:
        """The whole global batch of a step, in the order of training."""
        epoch, within = divmod(step, self.schedule.steps_per_epoch)
        size = self.settings.global_batch_size
        return self.schedule.only(self._order(epoch)[within * size : (within + 1) * size])

    def rows_of(self, step: int) -> np.ndarray:
        """Rows of the whole global batch of a step, in the order of training."""
        return self.positions_of(step).rows

    def __getitem__(self, step: int) -> Step:
        return self._read(self.positions_of(step), step // self.schedule.steps_per_epoch)

    def _read(self, part: Rows, epoch: int | None) -> Step:
        """Read this rank's share of some images."""
        lengths = [int(length) for length in part.lengths]
        plan = plan_step(lengths, self.num_ranks, self.settings.micro_batch_size, self.settings.micro_batch_tokens)
        built = [self._batch(part, positions, epoch) for positions in plan[self.rank]]
        batches = [batch for batch, _, _ in built]
        live = [[sample for sample in samples if isinstance(sample, LiveSample)] for _, _, samples in built]
        return Step(
            batches=batches,
            total_weight=float(part.weights.sum()),
            num_images=len(part.rows),
            num_tokens=sum(self._num_tokens(batch) for batch in batches),
            flops=sum(self._flops(batch) for batch in batches)
            + sum(sample.encoder_flops for samples in live for sample in samples),
            keys=[keys for _, keys, _ in built],
            absent=self.stage.absent_parts(part),
            images=[[sample.image for sample in samples] for samples in live] if any(live) else (),
        )

    def _batch(
        self, part: Rows, positions: Sequence[int], epoch: int | None
    ) -> tuple[Batch, list[str | None], list[CachedSample]]:
        """A micro-batch, the key of each of its positions, and their samples."""
        # padding repeats some sample of the step with weight zero: every rank runs the same number of micro-batches
        read = part.only(np.maximum(positions, 0))
        rows = [int(row) for row in read.rows]
        aspects = None if read.aspects is None else [int(aspect) for aspect in read.aspects]
        samples = [self.stage.cache.read(row, epoch=epoch) for row in rows]
        weights = [0.0 if position == PADDING else 1.0 for position in positions]
        names = [""] * len(rows) if aspects is None else [f"#{self.stage.aspects[aspect]}" for aspect in aspects]
        keys = [
            None if position == PADDING else f"{sample.key}{name}"
            for position, sample, name in zip(positions, samples, names, strict=True)
        ]
        return self.stage.batch(self.prompt, rows, samples, weights, epoch, aspects), keys, samples

    def _num_tokens(self, batch: Batch) -> int:
        again = self.stage.num_restarts - 1  # which run behind the same prefix
        return batch.num_tokens + again * int(batch.suffix.mask.sum())

    def _flops(self, batch: Batch) -> float:
        num_queries, num_aspects = self.stage.config.aspect_module.num_queries, len(self.stage.aspects)
        return batch_flops(self.shape, batch, num_queries, num_aspects, self.stage.num_restarts)


class HeldOutSteps(Steps):
    """The held-out images in parts of `global_batch_size`, with the questions of evaluation.

    Args:
        stage: Stage that is trained; its schedule holds images out.
        prompt, rank, num_ranks: As for `Steps`.
    """

    @property
    def held_out(self) -> Rows:
        """What validation measures."""
        assert self.schedule.held_out is not None, "only a schedule with validation has these steps"
        return self.schedule.held_out

    def __len__(self) -> int:
        return -(-len(self.held_out.rows) // self.settings.global_batch_size)

    def __getitem__(self, number: int) -> Step:
        held_out, size = self.held_out, self.settings.global_batch_size
        part = slice(number * size, (number + 1) * size)
        return self._read(held_out.only(part), None)


class PausedSteps(HeldOutSteps):
    """The images by which paused runs are compared, in the same way; arguments as of `HeldOutSteps`."""

    @property
    def held_out(self) -> Rows:
        return self.stage.compared_rows


def batch_flops(language: Language, batch: Batch, num_queries: int, num_aspects: int, num_restarts: int = 1) -> float:
    """FLOP of forward and backward pass of a batch; padding counts nothing.

    Args:
        language: Sizes of the language model.
        batch: Batch of either stage.
        num_queries: Number of queries of each aspect module.
        num_aspects: Number of aspect modules that run per image in stage 2; in stage 1 one per row.
        num_restarts: How often all that follows the prefix runs behind it.
    """
    real = batch.weights > 0
    suffix = batch.suffix.mask.sum(1)[real].double()
    labels = (batch.labels != IGNORED).sum(1)[real].double()
    if batch.answers is not None:
        suffix += batch.answers.mask.sum(1)[real]
        labels += torch.bincount(batch.answers.rows, minlength=len(real))[real]
    prefix, prefixes = suffix * 0, suffix[:0]
    if batch.prefix is not None:
        lengths = batch.prefix.mask.sum(1).double()
        of_row = torch.arange(len(real)) if batch.prefix_row is None else batch.prefix_row
        prefix, prefixes = lengths[of_row[real]], lengths[of_row[real].unique()]
    total = language_flops(language, prefix=prefix, suffix=suffix, num_logits=labels, gradient=True).sum()
    total -= _prefix_flops(language, prefix)
    trained = batch.row_aspect is not None
    # stage 1 trains a module per row; in stage 2 all modules run once per image
    images = batch.row_image[real] if trained else batch.row_image[real].unique()
    tokens = batch.feature_mask.sum(1)[images].double()
    per_row = 1 if trained else num_aspects * (batch.aspect_tokens is None)
    total += (per_row * aspect_module_flops(language.width, num_queries, tokens, gradient=trained)).sum()
    return float(num_restarts * total + _prefix_flops(language, prefixes))  # which runs once for rows that share it


def _prefix_flops(language: Language, lengths: Tensor) -> Tensor:
    """FLOP of prefixes `[n]`, without anything behind them."""
    nothing = torch.zeros_like(lengths)
    return language_flops(language, prefix=lengths, suffix=nothing, num_logits=nothing, gradient=False).sum()
