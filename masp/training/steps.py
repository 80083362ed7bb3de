"""What each optimizer step reads: rows of the cache in training order, as micro-batches of one rank.

Everything here is a function of (cache, configuration, step, rank): no state is carried from step to step, so a run
resumes anywhere, and DataLoader workers may prepare any step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from masp.artifacts.aspect_tokens import AspectTokens
from masp.artifacts.trained import used_aspects
from masp.cache.reader import CachedSample
from masp.config import Config, Stage2Config
from masp.config.schema import StageConfig
from masp.data.questions import Questions
from masp.errors import InputError
from masp.files.sealed import digest_of
from masp.models.sequence import Batch, build_sequence, make_batch
from masp.training.order import PADDING, epoch_order, plan_step
from masp.training.profiling import batch_flops
from masp.vlm.families import load_config, resolve_folder
from masp.vlm.flops import shapes
from masp.vlm.prompt import Prompt

WINDOW_SHARDS = 8
"""Shards whose samples are mixed; reading stays within so many files at a time."""
WORDS = 96
"""Generous number of text tokens of a sequence, for the token budget."""


class TrainingIndex(Protocol):
    """The columns of a cache's index that training looks at."""

    @property
    def num_tokens(self) -> np.ndarray:
        """`[N]` integers."""

    @property
    def shard(self) -> np.ndarray:
        """`[N]` integers."""

    @property
    def keys(self) -> Sequence[str]:
        """Sample keys."""


class TrainingCache(Protocol):
    """What training needs of a `Cache`."""

    @property
    def index(self) -> TrainingIndex:
        """One row per sample."""

    @property
    def categories(self) -> Sequence[str]:
        """Names of the categories."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits."""

    def rows(self, split: str) -> np.ndarray:
        """Rows of the index that belong to a split."""

    def has_answer(self, rows: np.ndarray, aspect: str) -> np.ndarray:
        """Which of the rows are annotated with an aspect."""

    def read(self, row: int) -> CachedSample:
        """One sample."""


@dataclass(frozen=True)
class Rows:
    """Images of the cache that have something to learn from."""

    rows: np.ndarray
    """Rows of the index, ascending."""
    weights: np.ndarray
    """Supervised sequences of each of `rows`: in stage 1 the annotated aspects, in stage 2 one."""
    lengths: np.ndarray
    """Tokens that each of `rows` costs, for the token budget."""

    def only(self, kept: np.ndarray) -> Rows:
        """Those where the mask `kept` is true."""
        return Rows(self.rows[kept], self.weights[kept], self.lengths[kept])


@dataclass(frozen=True)
class Schedule(Rows):
    """What takes part in training, and how many steps there are."""

    steps_per_epoch: int
    num_steps: int
    held_out: Rows | None
    """What validation looks at; None where there is no validation."""


def num_aspect_tokens(config: Config) -> int:
    """Aspect tokens in a prompt of stage 2."""
    return len(used_aspects(config)) * config.aspect_module.num_queries


def make_schedule(cache: TrainingCache, config: Config, stage: str) -> Schedule:
    """Plan a stage from the index alone.

    Raises:
        InputError: nothing to train on, or all of it is held out.
    """
    settings: StageConfig = getattr(config, stage)
    if not len(cache.rows("train")):
        raise InputError(f"cache.dir: {config.cache.dir} has no training image")
    trained = _rows(cache, config, stage, "train")
    if not len(trained.rows):
        raise InputError(
            f"cache.dir: {config.cache.dir}: no training image is annotated with any of "
            f"{', '.join(config.aspects)}; stage 1 has nothing to learn from: train stage 2 with given aspect "
            "modules, or with aspects=[]"
        )
    held_out = None
    if settings.validate_every is not None:
        own = _rows(cache, config, stage, "val")
        source = own if len(own.rows) else trained
        chosen = _draw(cache, source.rows, settings.validation_size, config.seed)
        if source is trained and chosen.all():
            raise InputError(
                f"{stage}.validation_size = {settings.validation_size}: without a val split it is taken out of the "
                f"{len(trained.rows)} training images, of which none would be left; must be below that"
            )
        held_out = source.only(chosen)
        trained = trained.only(~chosen) if source is trained else trained
    steps_per_epoch = -(-len(trained.rows) // settings.global_batch_size)
    num_steps = steps_per_epoch * settings.num_epochs
    return Schedule(trained.rows, trained.weights, trained.lengths, steps_per_epoch, num_steps, held_out)


def _rows(cache: TrainingCache, config: Config, stage: str, split: str) -> Rows:
    """The images of a split that the stage can use."""
    rows = cache.rows(split) if split in cache.splits else np.zeros(0, dtype=np.int64)
    tokens = cache.index.num_tokens[rows].astype(np.int64)
    if stage == "stage2":
        seen = tokens if config.stage2.vision_features else 0 * tokens
        lengths = seen + num_aspect_tokens(config) + config.stage2.num_soft_prompt_tokens + WORDS
        return Rows(rows, np.ones(len(rows), dtype=np.int64), lengths)
    weights = np.zeros(len(rows), dtype=np.int64)
    for aspect in config.aspects:
        weights += cache.has_answer(rows, aspect)
    lengths = tokens + weights * (config.aspect_module.num_queries + WORDS)
    return Rows(rows, weights, lengths).only(weights > 0)


def _draw(cache: TrainingCache, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A mask of `count` of the rows, chosen by key and seed: images added later change little."""
    ranked = sorted(range(len(rows)), key=lambda i: digest_of(["held out", seed, cache.index.keys[int(rows[i])]]))
    mask = np.zeros(len(rows), dtype=bool)
    mask[ranked[:count]] = True
    return mask


@dataclass(frozen=True)
class Step:
    """What one rank does in one optimizer step."""

    batches: list[Batch]
    total_weight: float
    """Sum of the weights over the whole global batch."""
    num_images: int
    """Images of the global batch."""
    num_tokens: int
    """Tokens that this rank runs through the language model, padding left out."""
    flops: float
    """What they cost, by `masp.training.profiling`."""
    epoch: int | None
    """From 0; None in validation."""
    keys: list[list[str | None]]
    """Sample key of each image of each of `batches`; None where it only pads."""

    def own_keys(self) -> list[str]:
        """Sample keys of this rank's part of the step."""
        return [key for keys in self.keys for key in keys if key is not None]

    def pin_memory(self) -> Step:
        """Page-locked copies of the batches, as `Batch.pin_memory`."""
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])


class Steps(Dataset):
    """`steps[k]` is what this rank does in optimizer step `k`."""

    def __init__(
        self,
        cache: TrainingCache,
        config: Config,
        stage: str,
        schedule: Schedule,
        prompt: Prompt,
        questions: Questions,
        rank: int = 0,
        num_ranks: int = 1,
        aspect_tokens: AspectTokens | None = None,
    ):
        self.aspect_tokens = aspect_tokens
        self.shape = shapes(load_config(resolve_folder(config.vlm.path)))[1]
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
        return self._step([int(r) for r in rows], plan[self.rank], float(self.schedule.weights[places].sum()), epoch)

    def _step(self, rows: Sequence[int], plan: Sequence[Sequence[int]], total_weight: float, epoch: int | None) -> Step:
        built = [self._batch(rows, micro, epoch) for micro in plan]
        batches = [batch for batch, _ in built]
        config, num_aspects = self.config, len(used_aspects(self.config, self.stage))
        return Step(
            batches=batches,
            total_weight=total_weight,
            num_images=len(rows),
            num_tokens=sum(int(b.suffix.mask.sum()) + (int(b.prefix.mask.sum()) if b.prefix else 0) for b in batches),
            flops=sum(batch_flops(self.shape, b, config.aspect_module.num_queries, num_aspects) for b in batches),
            epoch=epoch,
            keys=[keys for _, keys in built],
        )

    def _batch(self, rows: Sequence[int], micro: Sequence[int], epoch: int | None) -> tuple[Batch, list[str | None]]:
        # padding repeats some sample of the step with weight zero: every rank runs the same number of micro-batches
        read = [rows[max(position, 0)] for position in micro]
        samples = [self.cache.read(row) for row in read]
        weight = [0.0 if position == PADDING else 1.0 for position in micro]
        keys = [None if position == PADDING else s.key for position, s in zip(micro, samples, strict=True)]
        if self.stage == "stage1":
            return self._stage1(samples, weight, epoch), keys
        tokens = [self.aspect_tokens.read(row) for row in read] if self.aspect_tokens else None
        return self._stage2(samples, weight, epoch, tokens), keys

    def _ask(self, aspect: str | None, epoch: int | None, key: str) -> str:
        """The question about an aspect or, for None, the emotion: drawn anew each epoch, fixed in validation."""
        questions, categories, seed = self.questions, self.cache.categories, self.config.seed
        if epoch is None:
            return questions.aspect_first(aspect) if aspect else questions.emotion_first(categories)
        if aspect:
            return questions.aspect(aspect, seed, epoch, key)
        return questions.emotion(categories, seed, epoch, key)

    def _stage1(self, samples: Sequence[CachedSample], weight: Sequence[float], epoch: int | None) -> Batch:
        config = self.config
        asked = [
            (i, a) for i, s in enumerate(samples) for a, aspect in enumerate(config.aspects) if aspect in s.answers
        ]
        sequences = [
            build_sequence(
                self.prompt,
                self._ask(config.aspects[a], epoch, samples[i].key),
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

    def _stage2(
        self,
        samples: Sequence[CachedSample],
        weight: Sequence[float],
        epoch: int | None,
        tokens: Sequence[Tensor] | None,
    ) -> Batch:
        config = self.config
        settings: Stage2Config = config.stage2
        sequences = [
            build_sequence(
                self.prompt,
                self._ask(None, epoch, sample.key),
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
            aspect_tokens=tokens,
        )


class HeldOutSteps(Steps):
    """The held-out images in parts of `global_batch_size`, with the questions of evaluation."""

    @property
    def held_out(self) -> Rows:
        """What validation looks at."""
        assert self.schedule.held_out is not None, "these steps are made for validation alone"
        return self.schedule.held_out

    def __len__(self) -> int:
        return -(-len(self.held_out.rows) // self.settings.global_batch_size)

    def __getitem__(self, number: int) -> Step:
        held_out, size = self.held_out, self.settings.global_batch_size
        part = slice(number * size, (number + 1) * size)
        lengths = held_out.lengths[part].tolist()
        plan = plan_step(lengths, self.num_ranks, self.settings.micro_batch_size, self.settings.micro_batch_tokens)
        weight = float(held_out.weights[part].sum())
        return self._step(held_out.rows[part].tolist(), plan[self.rank], weight, None)
