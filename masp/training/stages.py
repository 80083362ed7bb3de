"""The two stages of the method: what each learns from, what it asks, what it trains, and the artifact it leaves.

Whatever differs between stage 1 and stage 2 is an attribute or a method here; the rest of training asks the stage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masp.artifacts.aspect_tokens import AspectTokens, open_aspect_tokens
from masp.artifacts.released_format import padding_rows
from masp.artifacts.store import Lineage, TargetLineage, save_aspects, save_soft_prompt
from masp.artifacts.trained import (
    default_aspect_path,
    default_soft_prompt_path,
    load_trained_aspects,
    prompt_aspects,
)
from masp.cache.findings import findings_of
from masp.cache.fingerprint import machine_part
from masp.cache.reader import Cache, CachedSample, open_matching_cache
from masp.config import Config
from masp.config.schema import Stage1Config, Stage2Config, StageName
from masp.data.findings import WITHOUT_STAGE_1, meant_by
from masp.data.questions import EMOTION, Questions, questions_of
from masp.data.target.find_labels import labels_source
from masp.errors import DataError, InputError
from masp.extraction.live.images import open_live
from masp.files.sealed import digest_of
from masp.models.forward import Stage1Model, Stage2Model, num_logits
from masp.models.restarts import HandedModule, RestartModel, restart_seed
from masp.models.sequence import Batch, build_sequence, make_batch
from masp.models.sequence import Sequence as TokenSequence
from masp.models.trainable import AspectModules, SoftPrompt, initial_soft_prompt
from masp.models.weighted import make_weighted_batch
from masp.runtime.stop import StopFlag
from masp.training.schedule import Rows, TrainingCache
from masp.training.stage import COURSE, Sources, Stage
from masp.training.supervision import (
    answer_of,
    check_supervision,
    more_tokens,
    supervision_notes,
    weighs_answers,
    weights_of,
)
from masp.vlm.families import family_of
from masp.vlm.language import LanguageHalf
from masp.vlm.loading import Partition
from masp.vlm.prompt import Prompt, load_prompt

TEXT_TOKENS = 96
"""Generous number of text tokens of a sequence, for the token budget."""


class AspectStage(Stage):
    """Stage 1: one aspect module per aspect learns to answer the question about its aspect."""

    name, kind = "stage1", "aspect"
    settings: Stage1Config

    def __init__(self, config: Config, cache: TrainingCache, questions: Questions):
        super().__init__(config, cache, questions)
        self.settings = config.stage1

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(self.config.aspects)

    @property
    def artifact(self) -> Path:
        return default_aspect_path(self.config)

    @classmethod
    def check_settings(cls, config: Config, device: str) -> None:
        if not config.aspects:
            raise InputError("aspects = []: stage 1 trains aspect modules; name at least one aspect, or train stage 2")
        super().check_settings(config, device)
        if config.stage1.restarts > 1 and config.engine.precision == "fp16":
            raise InputError(
                f"stage1.restarts = {config.stage1.restarts}: not with engine.precision=fp16, which scales the loss: "
                "one restart's overflow would skip the step of all; give bf16 or fp32, or stage1.restarts=1"
            )

    @property
    def init_seed(self) -> int:
        return self.config.seed if self.settings.init_seed is None else self.settings.init_seed

    @property
    def num_restarts(self) -> int:
        return self.settings.restarts

    @property
    def restart_seeds(self) -> list[int]:
        """Seed of the initial values of each restart."""
        return [restart_seed(self.init_seed, number) for number in range(self.num_restarts)]

    @property
    def holds_out(self) -> bool:
        return super().holds_out or self.num_restarts > 1

    def load_inputs(self, cache: Cache | None) -> None:
        for aspect in self.aspects:
            self.questions.templates(aspect)  # an aspect without questions is refused before anything is loaded

    def draw_inputs(self, hidden_size: int) -> None:
        """Draw nothing: stage 1 builds on the cache alone."""

    def _usable(self, rows: np.ndarray, num_tokens: np.ndarray) -> Rows:
        weights = np.zeros(len(rows), dtype=np.int64)
        for aspect in self.aspects:
            weights += self.cache.has_answer(rows, aspect)
        lengths = num_tokens + weights * self._tokens_per_answer
        return Rows(rows, weights, lengths).only(weights > 0)

    def _rows(self, split: str) -> Rows:
        found = super()._rows(split)
        if split == "train" and not len(found.rows):
            self._refuse_unknown(self.aspects)
            raise InputError(
                f"{self.where}: no training image is annotated with any of "
                f"{', '.join(self.aspects)}{self._of_subset}: stage 1 has nothing to learn from; {WITHOUT_STAGE_1}"
                f"{self._meant(self.aspects)}"
            )
        return found

    def _meant(self, aspects: Sequence[str]) -> str:
        """The annotation keys that were probably meant as one of some aspects; may be empty."""
        findings = self.record.findings if self.record else ()
        return "".join(meant_by(aspect, findings) for aspect in aspects)

    @property
    def _of_subset(self) -> str:
        """Which training images an error is about, where training does not see all."""
        return "" if self.cache.subset is None else f" (of the subset: {self.cache.subset.text})"

    @property
    def _by_vlm(self) -> str:
        """How the VLM does it, where there is a cache to read features from."""
        return " (`masp annotate` lets the VLM do it)" if isinstance(self.cache, Cache) else ""

    def _refuse_unknown(self, aspects: Sequence[str]) -> None:
        """Refuse aspects that no training image is annotated with, where the cache is why.

        Raises:
            InputError: Some were defined after the cache was begun.
        """
        if isinstance(self.cache, Cache) and (unknown := self.cache.unknown_aspects(aspects)):
            raise InputError(
                f"aspects: {self.where} holds no answers to {' or '.join(unknown)}, defined after it was begun; "
                "extract into a new cache.dir, or run `masp annotate`, which also reads the annotations of the dataset"
            )

    def check_samples(self) -> None:
        rows = self.schedule.rows
        empty = [aspect for aspect in self.aspects if not self.cache.has_answer(rows, aspect).any()]
        if empty:
            self._refuse_unknown(empty)
            rest = ",".join(aspect for aspect in self.aspects if aspect not in empty)
            raise InputError(
                f"aspects: no training image is annotated with {' or '.join(empty)}{self._meant(empty)}"
                f"{self._of_subset}, so that "
                f"{'its module' if len(empty) == 1 else 'their modules'} would keep random values; give "
                f"aspects=[{rest}] or annotate images with {'it' if len(empty) == 1 else 'them'}{self._by_vlm}"
            )

    def untrained(self, state: dict[str, Tensor]) -> tuple[str, ...]:
        return tuple(
            f"the module of aspect {aspect!r}"
            for aspect in self.aspects
            if self._never_moved(state, f"aspect_modules.by_aspect.{aspect}.")
        )

    def _positions(self, images: Rows) -> Rows:
        if self.settings.position == "image":
            return images
        asked = np.stack([self.cache.has_answer(images.rows, aspect) for aspect in self.aspects], axis=1)
        place, aspects = asked.nonzero()  # image by image
        rows = images.rows[place]
        lengths = self.cache.index.num_tokens[rows].astype(np.int64) + self._tokens_per_answer
        return Rows(rows, np.ones(len(rows), dtype=np.int64), lengths, aspects=aspects)

    @property
    def _tokens_per_answer(self) -> int:
        """Tokens of a sequence, for the token budget."""
        return self.config.aspect_module.num_queries + TEXT_TOKENS

    def absent_parts(self, positions: Rows) -> tuple[str, ...]:
        if positions.aspects is not None:
            asked = set(positions.aspects.tolist())
            return tuple(aspect for number, aspect in enumerate(self.aspects) if number not in asked)
        return tuple(aspect for aspect in self.aspects if not self.cache.has_answer(positions.rows, aspect).any())

    def batch(
        self,
        prompt: Prompt,
        rows: Sequence[int],
        samples: Sequence[CachedSample],
        weights: Sequence[float],
        epoch: int | None,
        aspects: Sequence[int] | None = None,
    ) -> Batch:
        asked = [
            (i, a)
            for i, sample in enumerate(samples)
            for a, aspect in enumerate(self.aspects)
            if aspect in sample.answers and (aspects is None or aspects[i] == a)
        ]
        sequences = [
            build_sequence(
                prompt,
                self._question(self.aspects[a], epoch, samples[i].key),
                samples[i].answers[self.aspects[a]],
                num_aspect_tokens=self.config.aspect_module.num_queries,
                image=None,
                num_soft_tokens=0,
                layout=self.settings.layout,
            )
            for i, a in asked
        ]
        return make_batch(
            prompt,
            sequences,
            [sample.features for sample in samples],
            row_image=[i for i, _ in asked],
            row_aspect=[a for _, a in asked],
            weights=[weights[i] for i, _ in asked],
        )

    def _question(self, aspect: str, epoch: int | None, key: str) -> str:
        if epoch is None:
            return self.questions.aspect_first(aspect)
        return self.questions.aspect(aspect, self.config.seed, epoch, key)

    def around(
        self, language: LanguageHalf, prompt: Prompt, device: str, partition: Partition | None = None
    ) -> Stage1Model | RestartModel:
        module = self.config.aspect_module
        sizes = self.aspects, language.hidden_size, module.num_queries, module.init_scale
        if self.num_restarts == 1:
            return Stage1Model(language, AspectModules(*sizes).to(device))
        restarts = []
        for seed in self.restart_seeds:
            torch.manual_seed(seed)
            restarts.append(AspectModules(*sizes, kind=HandedModule).to(device))
        return RestartModel(language, restarts)

    def _own_identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"aspect_module.init_scale": self.config.aspect_module.init_scale}
        if self.num_restarts > 1:
            identity["stage1.restarts"] = self.num_restarts
        if self.settings.init_seed is not None:
            identity["stage1.init_seed"] = self.settings.init_seed
        if self.settings.position != "image":  # only then: runs from before there was a choice resume
            identity["stage1.position"] = self.settings.position
        return identity

    def _save(self, state: dict[str, Tensor], lineage: Lineage) -> None:
        modules = AspectModules(self.aspects, self.sources.hidden_size, self.config.aspect_module.num_queries)
        modules.load_state_dict({n.removeprefix("aspect_modules."): t for n, t in state.items() if "#" not in n})
        save_aspects(modules, self.directory, lineage)


class SoftPromptStage(Stage):
    """Stage 2: the soft prompt learns to make the language model name the category; aspect modules are frozen."""

    name, kind, has_target = "stage2", "soft_prompt", True
    course = (*COURSE, "num_soft_prompt_tokens", "soft_prompt_init")
    settings: Stage2Config

    def __init__(self, config: Config, cache: TrainingCache, questions: Questions):
        super().__init__(config, cache, questions)
        self.settings = config.stage2
        self.aspect_modules: AspectModules | None = None
        self.aspect_lineage: Lineage | None = None
        self.aspect_tokens: AspectTokens | None = None
        """Computed before, where the configuration asks for that."""

    @property
    def aspects(self) -> tuple[str, ...]:
        return prompt_aspects(self.config)

    @property
    def artifact(self) -> Path:
        return default_soft_prompt_path(self.config)

    @property
    def num_aspect_tokens(self) -> int:
        """Aspect tokens in a prompt."""
        return len(self.aspects) * self.config.aspect_module.num_queries

    def check_prompt(self) -> None:
        """Refuse a soft prompt or questions that cannot be, before anything is loaded.

        Raises:
            InputError: The VLM has no room for such a soft prompt, or a template lacks a category.
        """
        if self.settings.soft_prompt_init == "padding_rows":
            path, count = self.config.vlm.path, self.settings.num_soft_prompt_tokens
            num_rows = family_of(path).vocab_size
            padding_rows(load_prompt(path).tokenizer, count, num_rows)
        self.questions.target_all(self.cache.categories)

    def load_inputs(self, cache: Cache | None) -> None:
        self.check_prompt()
        modules, lineage = load_trained_aspects(self.config, self.sources.hidden_size, self.sources.model)
        if modules is None or lineage is None:
            return
        num_queries = self.config.aspect_module.num_queries
        if modules.num_queries != num_queries:
            raise InputError(
                f"aspect_module.num_queries = {num_queries}: the aspect modules in checkpoint.aspect have "
                f"{modules.num_queries}; give the same"
            )
        self.aspect_modules, self.aspect_lineage, self.aspect_digest = modules, lineage, lineage.digest
        tokens = None if cache is None else open_aspect_tokens(self.config, cache, lineage.digest)
        if tokens is not None and tokens.num_queries != num_queries:
            raise DataError(f"{tokens.path} is damaged: {tokens.num_queries} tokens per aspect; must be {num_queries}")
        self.aspect_tokens = tokens

    def check_samples(self) -> None:
        cache, root = self.config.cache.dir, self.config.dataset.root
        place = f"dataset.root: {root}" if cache is None else f"cache.dir: {cache}"
        check_supervision(self.settings, self.cache, self.schedule.rows, place)

    def notes(self) -> list[str]:
        return [*super().notes(), *supervision_notes(self.settings, self.cache, self.schedule.rows)]

    @functools.cached_property
    def target(self) -> TargetLineage | None:
        target, labels = self.config.target, self.cache.labels
        if target.name == EMOTION and target.questions is None and labels is None:
            return None
        return TargetLineage(
            target.name,
            digest_of(list(self.questions.target_templates)),
            None if labels is None else labels.digest(self.cache.index.keys),
            labels_source(target),
        )

    def inputs(self) -> tuple[Lineage, ...]:
        return () if self.aspect_lineage is None else (self.aspect_lineage,)

    def draw_inputs(self, hidden_size: int) -> None:
        if self.aspects:
            modules = AspectModules(self.aspects, hidden_size, self.config.aspect_module.num_queries)
            self.aspect_modules = modules.requires_grad_(False)

    def _usable(self, rows: np.ndarray, num_tokens: np.ndarray) -> Rows:
        seen = num_tokens if self.settings.vision_features else 0 * num_tokens
        own = self.settings.num_soft_prompt_tokens + TEXT_TOKENS
        if weighs_answers(self.settings, 0 if self.settings.validate_every is None else None):
            own += self._more_tokens(own)
        lengths = seen + self.num_aspect_tokens + own
        return Rows(rows, np.ones(len(rows), dtype=np.int64), lengths)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a stage lives as long as its process
    def _more_tokens(self, own: int) -> int:
        return more_tokens(load_prompt(self.config.vlm.path), self.cache.categories, own)

    def absent_parts(self, positions: Rows) -> tuple[str, ...]:
        return ()

    def batch(
        self,
        prompt: Prompt,
        rows: Sequence[int],
        samples: Sequence[CachedSample],
        weights: Sequence[float],
        epoch: int | None,
        aspects: Sequence[int] | None = None,
    ) -> Batch:
        settings, categories = self.settings, self.cache.categories
        features = [sample.features for sample in samples]
        tokens = None if self.aspect_tokens is None else [self.aspect_tokens.read(row) for row in rows]

        def build(image: int, answer: str | None) -> TokenSequence:
            sample = samples[image]
            return build_sequence(
                prompt,
                self._question(epoch, sample.key),
                answer,
                num_aspect_tokens=self.num_aspect_tokens,
                image=sample.layout if settings.vision_features else None,
                num_soft_tokens=settings.num_soft_prompt_tokens,
                layout=settings.layout,
            )

        if weighs_answers(settings, epoch):
            answers = [weights_of(sample, categories) for sample in samples]
            return make_weighted_batch(
                prompt, build, answers, features, weights=weights, layout=settings.layout,
                frozen_prefix=settings.frozen_prefix, aspect_tokens=tokens,
            )  # fmt: skip
        asked = [answer_of(settings, sample, categories, self.config.seed, epoch) for sample in samples]
        return make_batch(
            prompt,
            [build(image, answer) for image, answer in enumerate(asked)],
            features,
            row_image=range(len(samples)),
            weights=weights,
            frozen_prefix=settings.frozen_prefix,
            aspect_tokens=tokens,
        )

    def _question(self, epoch: int | None, key: str) -> str:
        if epoch is None:
            return self.questions.target_first(self.cache.categories)
        return self.questions.target_question(self.cache.categories, self.config.seed, epoch, key)

    def around(
        self, language: LanguageHalf, prompt: Prompt, device: str, partition: Partition | None = None
    ) -> Stage2Model:
        settings = self.settings
        count = num_logits(settings.layout, prompt, language.vocab_size, settings.num_soft_prompt_tokens)
        table = language.table
        with partition.whole([table]) if partition else nullcontext():
            soft_prompt = SoftPrompt(self._initial(table, prompt) * language.embedding_scale).to(device)
        modules = None if self.aspect_modules is None else self.aspect_modules.to(device)
        return Stage2Model(language, modules, soft_prompt, count)

    def _initial(self, embeddings: Tensor, prompt: Prompt) -> Tensor:
        """Values of the soft prompt before the first step, from the word embeddings `[V, D]`."""
        kind, count = self.settings.soft_prompt_init, self.settings.num_soft_prompt_tokens
        if kind == "padding_rows":
            ids = padding_rows(prompt.tokenizer, count, len(embeddings))
        else:
            question = self.questions.target_first(self.cache.categories)
            ids = prompt.plain_ids(" ".join([*self.config.aspects, question]).replace("_", " "))
        return initial_soft_prompt(kind, count, embeddings, ids, torch.Generator().manual_seed(self.config.seed))

    def _own_identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"checkpoint.aspect": self.aspect_digest}
        if not self.settings.vision_features:  # only then: runs from before there was a choice resume
            identity["stage2.vision_features"] = False
        if self.target is not None:
            identity["target"] = asdict(self.target)
        if self.settings.supervision != "label":
            names = ("supervision", "distribution_loss")
            identity |= {f"stage2.{name}": getattr(self.settings, name) for name in names}
        return identity

    def untrained(self, state: dict[str, Tensor]) -> tuple[str, ...]:
        return ("the soft prompt",) if self._never_moved(state, "soft_prompt.") else ()

    def _save(self, state: dict[str, Tensor], lineage: Lineage) -> None:
        save_soft_prompt(SoftPrompt(state["soft_prompt.weight"]), self.directory, lineage)


STAGES: dict[StageName, type[Stage]] = {"stage1": AspectStage, "stage2": SoftPromptStage}


def open_stage(name: StageName, config: Config, device: str, stop: StopFlag | None = None) -> Stage:
    """A stage that can be trained.

    Args:
        name: Name of the stage.
        config: Run configuration.
        device: Where the model will be, `cpu` or `cuda`.
        stop: Looked at while images are examined, without a cache; None for no request to stop.

    Raises:
        InputError: Cache, questions, VLM or aspect modules are missing or do not fit, or there is nothing to learn.
        DataError: One of them is damaged, or without a cache too many images are.
        StoppedEarly: As `stop` asked.
    """
    STAGES[name].check_settings(config, device)
    questions = questions_of(config)
    stage, cache = (
        _of_images(name, config, questions, stop) if config.cache.dir is None else _of_cache(name, config, questions)
    )
    stage.check_samples()  # nothing to learn from is refused before anything is loaded
    stage.load_inputs(cache)
    return stage


def _of_cache(name: StageName, config: Config, questions: Questions) -> tuple[Stage, Cache]:
    """A stage that learns from a cache, and the cache."""
    cache, model = open_matching_cache(config, STAGES[name].has_target)
    stage, manifest = STAGES[name](config, cache, questions), cache.manifest
    stage.sources = Sources(
        model, manifest.fingerprint.machine.fields, manifest.index.sha256, cache.hidden_size,
        answers=cache.origins if stage.kind == "aspect" else {},
    )  # fmt: skip
    stage.record = findings_of(cache)
    stage.num_quarantined = manifest.splits["train"].num_quarantined if "train" in manifest.splits else 0
    return stage, cache


def _of_images(name: StageName, config: Config, questions: Questions, stop: StopFlag | None) -> tuple[Stage, None]:
    """A stage whose features are computed live, without a cache."""
    images = open_live(config, stop=stop, has_target=STAGES[name].has_target)
    stage = STAGES[name](config, images, questions)
    stage.sources = Sources(images.model, machine_part(config).fields, None, images.hidden_size, images.digest)
    stage.record, stage.num_quarantined = images.record, images.num_quarantined("train")
    stage.live = images
    _ = images.encoder_cost  # not in each of the workers that will be forked
    return stage, None
