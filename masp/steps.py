"""What each optimizer step reads: rows of the cache in training order, as micro-batches of one rank.

Everything here is a function of (cache, configuration, step, rank): no state is carried from step to step, so a run
resumes anywhere, and DataLoader workers may prepare any step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from masp.assemble import used_aspects
from masp.cache.order import PADDING, epoch_order, plan_step
from masp.cache.reader import Cache, CachedSample
from masp.config import Config, Stage2Config
from masp.config.schema import StageConfig
from masp.data.questions import Questions
from masp.errors import InputError
from masp.models.prompt import Prompt
from masp.models.sequence import Batch, build_sequence, make_batch

WINDOW_SHARDS = 8
"""Shards whose samples are mixed; reading stays within so many files at a time."""
WORDS = 96
"""Generous number of text tokens of a sequence, for the token budget."""


@dataclass(frozen=True)
class Schedule:
    """Which rows take part, and how many steps there are."""

    rows: np.ndarray
    """Rows of the training split that have something to learn from, ascending."""
    weights: np.ndarray
    """Supervised sequences of each of `rows`: in stage 1 the annotated aspects, in stage 2 one."""
    lengths: np.ndarray
    """Tokens that each of `rows` costs, for the token budget."""
    steps_per_epoch: int
    num_steps: int


def num_aspect_tokens(config: Config) -> int:
    """Aspect tokens in a prompt of stage 2."""
    return len(used_aspects(config)) * config.aspect_module.num_queries


def make_schedule(cache: Cache, config: Config, stage: str) -> Schedule:
    """Plan a stage from the index alone.

    Raises:
        InputError: nothing to train on.
    """
    settings: StageConfig = getattr(config, stage)
    rows = cache.rows("train")
    tokens = cache.index.num_tokens[rows].astype(np.int64)
    if stage == "stage1":
        answered = sum((cache.has_answer(rows, aspect).astype(np.int64) for aspect in config.aspects), np.zeros(1))
        if not np.any(answered):
            raise InputError(
                f"cache.dir: {config.cache.dir}: no training image is annotated with any of "
                f"{', '.join(config.aspects)}; stage 1 has nothing to learn from: train stage 2 with given aspect "
                "modules, or with aspects=[]"
            )
        kept = answered > 0
        rows, tokens, weights = rows[kept], tokens[kept], answered[kept].astype(np.int64)
        lengths = tokens + weights * (config.aspect_module.num_queries + WORDS)
    else:
        weights = np.ones(len(rows), dtype=np.int64)
        seen = tokens if config.stage2.vision_features else 0 * tokens
        lengths = seen + num_aspect_tokens(config) + config.stage2.num_soft_prompt_tokens + WORDS
    if not len(rows):
        raise InputError(f"cache.dir: {config.cache.dir} has no training image")
    steps_per_epoch = -(-len(rows) // settings.global_batch_size)
    return Schedule(rows, weights, lengths, steps_per_epoch, steps_per_epoch * settings.num_epochs)


@dataclass(frozen=True)
class Step:
    """What one rank does in one optimizer step."""

    batches: list[Batch]
    total_weight: float
    """Sum of the weights over the whole global batch."""
    num_images: int
    """Images of the global batch."""
    num_tokens: int
    """Tokens that this rank runs through the language model."""

    def pin_memory(self) -> Step:
        """Page-locked copies of the batches, as `Batch.pin_memory`."""
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])


class Steps(Dataset):
    """`steps[k]` is what this rank does in optimizer step `k`."""

    def __init__(
        self,
        cache: Cache,
        config: Config,
        stage: str,
        schedule: Schedule,
        prompt: Prompt,
        questions: Questions,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.cache, self.config, self.stage, self.schedule = cache, config, stage, schedule
        self.prompt, self.questions, self.rank, self.num_ranks = prompt, questions, rank, num_ranks
        self.settings: StageConfig = getattr(config, stage)
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)
        self._place = {int(row): i for i, row in enumerate(schedule.rows)}

    def __len__(self) -> int:
        return self.schedule.num_steps

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return epoch_order(self.cache.index, self.schedule.rows, self.config.seed, epoch, WINDOW_SHARDS)

    def rows_of(self, step: int) -> np.ndarray:
        """Rows of the whole global batch of a step, in the order of training."""
        epoch, within = divmod(step, self.schedule.steps_per_epoch)
        size = self.settings.global_batch_size
        return self._order(epoch)[within * size : (within + 1) * size]

    def __getitem__(self, step: int) -> Step:
        rows = self.rows_of(step)
        epoch = step // self.schedule.steps_per_epoch
        places = [self._place[int(row)] for row in rows]
        lengths = [int(self.schedule.lengths[p]) for p in places]
        plan = plan_step(lengths, self.num_ranks, self.settings.micro_batch_size, self.settings.micro_batch_tokens)
        batches = [self._batch([int(r) for r in rows], micro, epoch) for micro in plan[self.rank]]
        return Step(
            batches=batches,
            total_weight=float(self.schedule.weights[places].sum()),
            num_images=len(rows),
            num_tokens=sum(int(b.suffix.mask.sum()) + (int(b.prefix.mask.sum()) if b.prefix else 0) for b in batches),
        )

    def _batch(self, rows: Sequence[int], micro: Sequence[int], epoch: int) -> Batch:
        # padding repeats some sample of the step with weight zero: every rank runs the same number of micro-batches
        samples = [self.cache.read(rows[max(position, 0)]) for position in micro]
        weight = [0.0 if position == PADDING else 1.0 for position in micro]
        build = self._stage1 if self.stage == "stage1" else self._stage2
        return build(samples, weight, epoch)

    def _stage1(self, samples: Sequence[CachedSample], weight: Sequence[float], epoch: int) -> Batch:
        config = self.config
        asked = [
            (i, a) for i, s in enumerate(samples) for a, aspect in enumerate(config.aspects) if aspect in s.answers
        ]
        sequences = [
            build_sequence(
                self.prompt,
                self.questions.aspect(config.aspects[a], config.seed, epoch, samples[i].key),
                samples[i].answers[config.aspects[a]],
                num_aspect_tokens=config.aspect_module.num_queries,
                grid=None,
                num_soft_tokens=0,
                layout=config.stage1.layout,
            )
            for i, a in asked
        ]
        return make_batch(
            sequences,
            [s.features for s in samples],
            row_image=[i for i, _ in asked],
            row_aspect=[a for _, a in asked],
            weights=[weight[i] for i, _ in asked],
        )

    def _stage2(self, samples: Sequence[CachedSample], weight: Sequence[float], epoch: int) -> Batch:
        config = self.config
        settings: Stage2Config = config.stage2
        sequences = [
            build_sequence(
                self.prompt,
                self.questions.emotion(self.cache.categories, config.seed, epoch, sample.key),
                sample.category,
                num_aspect_tokens=num_aspect_tokens(config),
                grid=sample.grid if settings.vision_features else None,
                num_soft_tokens=settings.num_soft_prompt_tokens,
                layout=settings.layout,
            )
            for sample in samples
        ]
        return make_batch(
            sequences,
            [s.features for s in samples],
            row_image=range(len(samples)),
            weights=weight,
            frozen_prefix=settings.frozen_prefix,
        )
