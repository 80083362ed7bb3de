"""What the members of a group read in a step: the same images, each with its own question and soft prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from masp.files.sealed import digest_of
from masp.models.sequence import Batch
from masp.training.schedule import PADDING, Rows, epoch_places, plan_step
from masp.training.stages import SoftPromptStage
from masp.training.steps import WINDOW_SHARDS, batch_flops
from masp.vlm.cost.counting import language_cost
from masp.vlm.prompt import Prompt


@dataclass(frozen=True)
class GroupBatch:
    """A micro-batch as each member is asked about it."""

    variants: list[Batch]
    """Different forms of it; all but the first are without features, which only the prefix needs."""
    variant_of: list[int]
    """Form of each member."""
    keys: list[str | None]
    """Sample key of each position; None where it only pads."""
    at_once: int
    """Members that run together: their graphs are in memory at the same time. The same on all ranks."""

    def pin_memory(self) -> GroupBatch:
        """Page-locked copies, as `Batch.pin_memory`."""
        return replace(self, variants=[batch.pin_memory() for batch in self.variants])


@dataclass(frozen=True)
class GroupStep:
    """What one rank does in one optimizer step of a group."""

    batches: list[GroupBatch]
    total_weight: float
    """Sum of the weights over the whole global batch."""
    num_images: int
    num_tokens: list[int]
    """Tokens that a member alone would run through the language model on this rank, of each form."""
    flops: list[float]
    """Floating-point operations that a member alone would take on this rank, of each form."""
    variant_of: list[int]

    def pin_memory(self) -> GroupStep:
        """Page-locked copies of the batches."""
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])

    def own_keys(self) -> tuple[str, ...]:
        """Sample keys of this rank's part of the step."""
        return tuple(key for batch in self.batches for key in batch.keys if key is not None)


class GroupSteps(Dataset):
    """`steps[k]` is what this rank does in optimizer step `k`, for all members.

    Args:
        stages: The members.
        prompt: Chat template of the VLM.
        rank: Rank of this process.
        num_ranks: World size.
        held_out: Images that are measured, with the questions of evaluation, instead of steps of training.
    """

    def __init__(
        self,
        stages: Sequence[SoftPromptStage],
        prompt: Prompt,
        rank: int = 0,
        num_ranks: int = 1,
        held_out: Rows | None = None,
    ):
        self.stages, self.prompt, self.rank, self.num_ranks = list(stages), prompt, rank, num_ranks
        first = self.stages[0]
        self.settings, self.schedule = first.settings, first.schedule
        self.held_out = held_out
        self.shape = language_cost(first.config.vlm.path)
        forms = [_form(stage) for stage in self.stages]
        unique = list(dict.fromkeys(forms))
        self.variant_of = [unique.index(form) for form in forms]
        self.variants = [self.stages[forms.index(form)] for form in unique]

    def __len__(self) -> int:
        size = self.settings.global_batch_size
        if self.held_out is not None:
            return -(-len(self.held_out.rows) // size)
        return max(stage.schedule.num_steps for stage in self.stages)

    def __getitem__(self, step: int) -> GroupStep:
        size = self.settings.global_batch_size
        if self.held_out is not None:
            return self._read(self.held_out.only(slice(step * size, (step + 1) * size)), None)
        epoch, within = divmod(step, self.schedule.steps_per_epoch)
        first = self.stages[0]
        order = epoch_places(first.cache.index, self.schedule.rows, first.order_seed, epoch, WINDOW_SHARDS)
        return self._read(self.schedule.only(order[within * size : (within + 1) * size]), epoch)

    def _read(self, part: Rows, epoch: int | None) -> GroupStep:
        lengths = [int(length) for length in part.lengths]
        plan = plan_step(lengths, self.num_ranks, self.settings.micro_batch_size, self.settings.micro_batch_tokens)
        batches = [self._batch(part, positions, epoch) for positions in plan[self.rank]]
        queries, aspects = self.stages[0].config.aspect_module.num_queries, len(self.stages[0].aspects)
        return GroupStep(
            batches=[
                GroupBatch([whole[0], *map(_light, whole[1:])], self.variant_of, keys, count)
                for (whole, keys), count in zip(batches, self._at_once(plan, lengths), strict=True)
            ],
            total_weight=float(part.weights.sum()),
            num_images=len(part.rows),
            num_tokens=[sum(whole[n].num_tokens for whole, _ in batches) for n in range(len(self.variants))],
            flops=[
                sum(batch_flops(self.shape, whole[n], queries, aspects) for whole, _ in batches)
                for n in range(len(self.variants))
            ],
            variant_of=self.variant_of,
        )

    def _at_once(self, plan: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int]) -> list[int]:
        """How many members run together in each micro-batch of a plan; several where one of them leaves room.

        Their rows together are at most `micro_batch_size`. Each needs a copy of the prefix's keys and values. Together,
        these have at most twice as many tokens as a micro-batch may have: keys and values are small beside the
        activations that `micro_batch_tokens` limits.
        """
        settings, found = self.settings, []
        for turn in zip(*plan, strict=True):  # the same on all ranks, which gather a partitioned VLM together
            rows = max(map(len, turn))
            tokens = max(len(positions) * max(lengths[max(p, 0)] for p in positions) for positions in turn)
            found.append(max(1, min(settings.micro_batch_size // rows, 2 * settings.micro_batch_tokens // tokens)))
        return found

    def _batch(self, part: Rows, positions: Sequence[int], epoch: int | None) -> tuple[list[Batch], list[str | None]]:
        rows = [int(row) for row in part.only(np.maximum(positions, 0)).rows]
        samples = [self.stages[0].cache.read(row, epoch=epoch) for row in rows]
        weights = [0.0 if position == PADDING else 1.0 for position in positions]
        keys = [None if p == PADDING else sample.key for p, sample in zip(positions, samples, strict=True)]
        # only the shape of features is looked at beside the prefix, which is that of the first
        light = [replace(sample, features=sample.features.moved(_shape_only)) for sample in samples]
        given = [samples, *([light] * (len(self.variants) - 1))]
        whole = [
            stage.batch(self.prompt, rows, own, weights, epoch) for stage, own in zip(self.variants, given, strict=True)
        ]
        return whole, keys


def _form(stage: SoftPromptStage) -> str:
    """What a member's batches depend on, beside what all members share."""
    config = stage.config
    asked = [list(stage.questions.target_templates), config.stage2.num_soft_prompt_tokens, config.seed]
    return digest_of(asked)


def _shape_only(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _light(batch: Batch) -> Batch:
    count, _, width = batch.features.shape
    return replace(batch, features=torch.empty(count, 0, width), deep=None, aspect_tokens=None)
