"""What extraction and both stages compute: tokens and FLOP, and when the cache has paid for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from masp.config import Config
from masp.plan.disk import Planned
from masp.plan.text_tokens import Words
from masp.vlm.flops import LanguageShape, VisionShape, aspect_module_flops, encoder_flops, language_flops


@dataclass(frozen=True)
class Lengths:
    """One sequence in the language model, in tokens."""

    prefix: float
    """Runs without gradient."""
    shared: bool
    """The prefix is the same for all rows of a micro-batch and runs once for them."""
    suffix: float
    num_logits: float
    """Supervised positions."""

    @property
    def total(self) -> float:
        """Prefix and suffix."""
        return self.prefix + self.suffix


@dataclass(frozen=True)
class StageWork:
    """One stage of training."""

    num_epochs: int
    num_images: int
    """That are seen in an epoch."""
    num_rows: int
    """Sequences of an epoch."""
    tokens_per_epoch: float
    """Through the language model."""
    flops_per_epoch: float

    @property
    def flops(self) -> float:
        """Of the whole stage."""
        return self.flops_per_epoch * self.num_epochs

    @property
    def tokens(self) -> float:
        """Of the whole stage, through the language model."""
        return self.tokens_per_epoch * self.num_epochs


def stage1_lengths(config: Config, words: Words, aspect: str) -> Lengths:
    """A row of stage 1: the asked aspect's tokens stand for the image."""
    released = config.stage1.layout == "released"
    answer = words.answers[aspect] + 1  # its end token, or in `released` the newline before it
    text = words.image_end + words.questions[aspect] + words.closing + words.answers[aspect] + (not released)
    return Lengths(words.opening + words.image_start, True, config.aspect_module.num_queries + text, answer)


def stage2_lengths(config: Config, words: Words, num_tokens: int) -> Lengths:
    """A row of stage 2 for an image of so many vision tokens: all aspects, the features and the soft prompt."""
    settings = config.stage2
    visual = words.image_start + len(config.aspects) * config.aspect_module.num_queries + num_tokens + words.image_end
    text = words.emotion_question + words.closing + words.emotion_answer
    if settings.layout == "released":
        prefix, suffix = words.opening, 2 * settings.num_soft_prompt_tokens + visual + text
    else:
        prefix, suffix = words.opening + visual, settings.num_soft_prompt_tokens + text + 1
    if not settings.frozen_prefix:
        prefix, suffix = 0, prefix + suffix
    return Lengths(prefix, settings.layout == "released", suffix, words.emotion_answer + 1)


def row_flops(language: LanguageShape, lengths: Lengths, rows_together: float) -> float:
    """FLOP of one row of training.

    Args:
        language: the language model.
        lengths: of the row.
        rows_together: rows of a micro-batch, over which a shared prefix is divided.
    """
    whole = language_flops(
        language, prefix=lengths.prefix, suffix=lengths.suffix, num_logits=lengths.num_logits, gradient=True
    )
    if not lengths.shared:
        return whole
    return whole - language_flops(language, suffix=lengths.prefix, gradient=False) * (1 - 1 / max(1.0, rows_together))


def stage1_work(config: Config, language: LanguageShape, words: Words, train: Sequence[Planned]) -> StageWork:
    """Stage 1, over the training images that have an answer to any configured aspect."""
    settings, num_queries = config.stage1, config.aspect_module.num_queries
    asked = Counter(aspect for p in train for aspect in p.sample.answers if aspect in config.aspects)
    images = [p for p in train if any(aspect in p.sample.answers for aspect in config.aspects)]
    if not images:
        return StageWork(settings.num_epochs, 0, 0, 0.0, 0.0)
    num_rows = sum(asked.values())
    together = _images_together(settings, sum(p.num_tokens for p in images) / len(images)) * num_rows / len(images)
    tokens = flops = 0.0
    for aspect, count in asked.items():
        lengths = stage1_lengths(config, words, aspect)
        tokens += count * (lengths.suffix + lengths.prefix / max(1.0, together))
        flops += count * row_flops(language, lengths, together)
    # every module runs on every image, also where the aspect has no answer, so that ranks agree
    flops += len(config.aspects) * sum(
        count * aspect_module_flops(language.width, num_queries, num_tokens, gradient=True)
        for num_tokens, count in Counter(p.num_tokens for p in images).items()
    )
    return StageWork(settings.num_epochs, len(images), num_rows, tokens, flops)


def stage2_work(config: Config, language: LanguageShape, words: Words, train: Sequence[Planned]) -> StageWork:
    """Stage 2, over all training images."""
    num_aspects, num_queries = len(config.aspects), config.aspect_module.num_queries
    tokens = flops = 0.0
    for num_tokens, count in Counter(p.num_tokens for p in train).items():
        lengths = stage2_lengths(config, words, num_tokens)
        together = _images_together(config.stage2, lengths.total)
        tokens += count * (lengths.suffix + lengths.prefix / (max(1.0, together) if lengths.shared else 1))
        flops += count * row_flops(language, lengths, together)
        modules = aspect_module_flops(language.width, num_queries, num_tokens, gradient=False)
        flops += count * num_aspects * modules
    return StageWork(config.stage2.num_epochs, len(train), len(train), tokens, flops)


def _images_together(settings, tokens: float) -> float:
    """Images of a micro-batch, about."""
    return max(1.0, min(settings.micro_batch_size, settings.global_batch_size, settings.micro_batch_tokens // tokens))


def extraction_flops(vision: VisionShape, images: Iterable[Planned]) -> float:
    """FLOP of the encoder over these images, each once."""
    return sum(encoder_flops(vision, grid) * count for grid, count in Counter(p.grid for p in images).items())


@dataclass(frozen=True)
class Alternative:
    """Training that runs the encoder instead of reading a cache."""

    flops: float
    """Of the encoder, in both stages."""
    pays_after_epochs: float | None
    """Epochs of training, stage 1 first, after which the cache has saved what it cost; None: not in this run."""


def without_cache(
    config: Config, vision: VisionShape, train: Sequence[Planned], extraction: float, per_aspect: bool
) -> Alternative:
    """Compare with running the encoder in training.

    Args:
        config: of the run.
        vision: the encoder.
        train: the training images.
        extraction: FLOP of filling the cache, all splits.
        per_aspect: the encoder runs for every aspect and epoch, as in the published procedure; otherwise once per image
            and epoch.
    """

    def asked(p: Planned) -> int:
        return sum(aspect in p.sample.answers for aspect in config.aspects)

    runs: Counter[tuple[int, int, int]] = Counter()
    for p in train:
        runs[p.grid] += asked(p) if per_aspect else min(1, asked(p))
    stage1 = sum(encoder_flops(vision, grid) * count for grid, count in runs.items())
    epochs = [stage1] * (config.stage1.num_epochs if stage1 else 0)
    epochs += [extraction_flops(vision, train)] * config.stage2.num_epochs
    spent, pays = 0.0, None
    for number, flops in enumerate(epochs):
        if pays is None and flops and spent + flops >= extraction:
            pays = number + (extraction - spent) / flops
        spent += flops
    return Alternative(spent, pays)
