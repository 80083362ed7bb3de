"""What extraction and both stages compute: tokens and FLOP, and when the cache has paid for itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from masp.artifacts.trained import prompt_aspects
from masp.config import Config
from masp.config.schema import Stage1Config, Stage2Config
from masp.plan.rates import Rate
from masp.plan.tokens import PlannedImage, Words, tally
from masp.vlm.cost.counting import image_flops
from masp.vlm.cost.flops import Encoder, Language, aspect_module_flops, language_flops
from masp.vlm.features import ImageLayout


@dataclass(frozen=True)
class Lengths:
    """Lengths of one sequence in the language model, in tokens."""

    prefix: float
    """Tokens that run without gradient."""
    shared: bool
    """Whether the prefix is the same for all rows of a micro-batch and runs once for them."""
    suffix: float
    """Tokens that run with gradient."""
    num_logits: float
    """Supervised positions."""
    num_suffixes: float = 1.0
    """Suffixes that run behind one prefix: more than one where each answer has its own."""

    @property
    def total(self) -> float:
        """Length of the prefix and all its suffixes."""
        return self.prefix + self.num_suffixes * self.suffix


@dataclass(frozen=True)
class StageWork:
    """The work of one stage of training."""

    num_epochs: int
    num_images: int
    """Images of an epoch, each as often as its features are read: with `stage1.position: pair` once per answer."""
    num_rows: int
    """Sequences of an epoch."""
    tokens_per_epoch: float
    """Tokens that the language model reads in an epoch."""
    flops_per_epoch: float
    num_restarts: int = 1
    """Initial values that are trained in the same pass, contained in tokens and FLOP."""
    state_bytes: float = 0.0
    """What they keep in fp32: values, gradients and moments. 0 without restarts."""

    @property
    def flops(self) -> float:
        """FLOP of the whole stage."""
        return self.flops_per_epoch * self.num_epochs

    @property
    def tokens(self) -> float:
        """Tokens that the language model reads in the whole stage."""
        return self.tokens_per_epoch * self.num_epochs


@dataclass(frozen=True)
class StageEstimate:
    """The work of a stage of training, and how long it takes at some rate."""

    num_images: int
    """Images of an epoch."""
    num_sequences: int
    """Sequences of an epoch."""
    num_epochs: int
    tokens_per_image: float
    """Tokens that the language model reads per image."""
    flops_per_image: float
    flops: float
    """FLOP of the whole stage."""
    hours: float
    images_per_s: float
    reads_bytes_per_s: float
    """What the cache must deliver; 0 without one."""
    rate: Rate
    encoder_flops: float = 0.0
    """FLOP of the encoder, contained in `flops`; 0 with a cache."""
    encoder_hours: float = 0.0
    """How long it takes, contained in `hours`."""
    num_restarts: int = 1
    """Initial values that are trained in the same pass, contained in all of the above."""
    state_bytes: float = 0.0
    """What they keep in fp32, over all ranks: values, gradients and moments. 0 without restarts."""


@dataclass(frozen=True)
class ExtractionEstimate:
    """The work of extraction, and how long it takes at some rate."""

    flops_per_image: float
    flops: float
    hours: float
    images_per_s: float
    rate: Rate


def estimate_stage(work: StageWork, rate: Rate, bytes_per_image: float) -> StageEstimate:
    """Combine the work of a stage with a rate.

    Args:
        work: Work of the stage; it may have no images.
        rate: How fast it is done.
        bytes_per_image: Mean bytes that the cache holds of an image.
    """
    hours = rate.hours(work.flops, work.tokens)
    images_per_s = work.num_images * work.num_epochs / (hours * 3600) if hours else 0.0
    return StageEstimate(
        num_images=work.num_images,
        num_sequences=work.num_rows,
        num_epochs=work.num_epochs,
        tokens_per_image=work.tokens_per_epoch / work.num_images if work.num_images else 0.0,
        flops_per_image=work.flops_per_epoch / work.num_images if work.num_images else 0.0,
        flops=work.flops,
        hours=hours,
        images_per_s=images_per_s,
        reads_bytes_per_s=images_per_s * bytes_per_image,
        rate=rate,
        num_restarts=work.num_restarts,
        state_bytes=work.state_bytes,
    )


def estimate_live_stage(
    work: StageWork, rate: Rate, encoder_flops: float, num_images: int, encoder_rate: Rate
) -> StageEstimate:
    """Estimate a stage that runs the encoder itself, without a cache.

    Args:
        work: Work of the stage beside the encoder's; it may have no images.
        rate: How fast it is done.
        encoder_flops: FLOP of the encoder for each of the stage's images once.
        num_images: Number of these images; with `stage1.position: pair` an image is encoded for each of its pairs.
        encoder_rate: How fast the encoder's are done.
    """
    runs = work.num_epochs * work.num_images / num_images if num_images else 0.0
    flops = encoder_flops * runs
    base, encoder_hours = estimate_stage(work, rate, 0.0), encoder_rate.hours(flops, 0.0)
    hours = base.hours if rate.includes_encoder else base.hours + encoder_hours
    seen = work.num_images * work.num_epochs
    return replace(
        base,
        flops_per_image=(base.flops + flops) / seen if seen else 0.0,
        flops=base.flops + flops,
        hours=hours,
        images_per_s=seen / (hours * 3600) if hours else 0.0,
        encoder_flops=flops,
        encoder_hours=encoder_hours,
    )


def estimate_extraction(flops: float, num_images: int, rate: Rate) -> ExtractionEstimate:
    """Combine the work of extraction with a rate.

    Args:
        flops: FLOP of the encoder over all images.
        num_images: Number of images, at least one.
        rate: How fast it is done.
    """
    hours = rate.hours(flops, 0.0)
    return ExtractionEstimate(flops / num_images, flops, hours, num_images / (hours * 3600), rate)


def stage1_lengths(config: Config, words: Words, aspect: str) -> Lengths:
    """Compute the lengths of a row of stage 1, where the tokens of one aspect replace the image."""
    released = config.stage1.layout == "released"
    answer = words.answers[aspect] + 1  # its end token, or in `released` the newline before it
    text = (
        words.trail + words.image_end + words.questions[aspect] + words.closing + words.answers[aspect] + (not released)
    )
    prefix, suffix = words.opening + words.image_start + words.lead, config.aspect_module.num_queries + text
    if words.runs_whole:
        prefix, suffix = 0, prefix + suffix
    return Lengths(prefix, True, suffix, answer)


def stage2_lengths(config: Config, words: Words, block_length: int) -> Lengths:
    """Compute the lengths of a row of stage 2: all aspects, an image with its separators and the soft prompt."""
    settings = config.stage2
    aspect_tokens = len(prompt_aspects(config)) * config.aspect_module.num_queries
    image = block_length if settings.vision_features else words.lead + words.trail
    visual = words.image_start + aspect_tokens + image + words.image_end
    text = words.target_question + words.closing
    released, weighted = settings.layout == "released", words.weighted
    if released:
        prefix, before = words.opening, 2 * settings.num_soft_prompt_tokens + visual + text
    else:
        prefix, before = words.opening + visual, settings.num_soft_prompt_tokens + text
    if words.runs_whole or not settings.frozen_prefix:
        prefix, before = 0, prefix + before
    if weighted is None:
        return Lengths(prefix, released, before + words.target_answer + (not released), words.target_answer + 1)
    if weighted.is_tree:  # each token of the tree predicts what follows it, and the question's last one the first
        return Lengths(prefix, released, before + weighted.tokens, weighted.tokens + 1)
    answer = weighted.tokens / weighted.answers
    return Lengths(prefix, released, before + answer + (not released), answer + 1, weighted.answers)


def row_flops(language: Language, lengths: Lengths, rows_together: float) -> float:
    """Compute the FLOP of one row of training.

    Args:
        language: Sizes of the language model.
        lengths: Lengths of the row.
        rows_together: Rows of a micro-batch, over which a shared prefix is divided.
    """
    whole = lengths.num_suffixes * language_flops(
        language, prefix=lengths.prefix, suffix=lengths.suffix, num_logits=lengths.num_logits, gradient=True
    )
    num_prefixes = 1 / max(1.0, rows_together) if lengths.shared else 1.0
    again = lengths.num_suffixes - num_prefixes
    return whole - again * language_flops(language, suffix=lengths.prefix, gradient=False)


def stage1_work(config: Config, language: Language, words: Words, train: Sequence[PlannedImage]) -> StageWork:
    """Compute the work of stage 1, on the training images that have an answer to any configured aspect."""
    settings, num_queries = config.stage1, config.aspect_module.num_queries
    asked: Counter[str] = Counter()
    num_tokens_of: Counter[int] = Counter()
    for p, count in tally(train):
        found = [aspect for aspect in p.sample.answers if aspect in config.aspects]
        asked.update(dict.fromkeys(found, count))
        num_tokens_of[p.num_tokens] += count if found else 0
    num_images = sum(num_tokens_of.values())
    if not num_images:
        return StageWork(settings.num_epochs, 0, 0, 0.0, 0.0)
    num_rows = sum(asked.values())
    num_positions = num_rows if settings.position == "pair" else num_images
    mean_tokens = sum(tokens * count for tokens, count in num_tokens_of.items()) / num_images
    together = _images_together(settings, mean_tokens) * num_rows / num_positions
    tokens = flops = 0.0
    restarts = settings.restarts
    for aspect, count in asked.items():
        lengths = replace(stage1_lengths(config, words, aspect), num_suffixes=restarts)
        tokens += count * (restarts * lengths.suffix + lengths.prefix / max(1.0, together))
        flops += count * row_flops(language, lengths, together)
    # every module runs on every image that is read, also where the aspect has no answer, so that ranks agree
    modules = len(config.aspects) * sum(
        count * aspect_module_flops(language.width, num_queries, num_tokens, gradient=True)
        for num_tokens, count in num_tokens_of.items()
    )
    flops += restarts * modules * num_positions / num_images
    state_bytes = 0.0
    if restarts > 1:
        width = language.width
        numbers = num_queries * width + 4 * width * width + 4 * width  # of an aspect module
        state_bytes = 16.0 * restarts * len(config.aspects) * numbers
    return StageWork(settings.num_epochs, num_positions, num_rows, tokens, flops, restarts, state_bytes)


def _kinds(images: Sequence[PlannedImage]) -> Counter[tuple[int, int]]:
    """How many images have so many vision tokens, and so many tokens in a prompt."""
    kinds: Counter[tuple[int, int]] = Counter()
    for p, count in tally(images):
        kinds[p.num_tokens, p.block_length] += count
    return kinds


def stage2_prefix_flops(config: Config, language: Language, words: Words, train: Sequence[PlannedImage]) -> float:
    """Compute the FLOP per epoch of what soft prompts that are trained together share.

    That is the prefix, forward, and the aspect modules; contained in what `stage2_work` counts of one of them.
    """
    num_aspects, num_queries = len(prompt_aspects(config)), config.aspect_module.num_queries
    total = 0.0
    for (num_tokens, length), count in _kinds(train).items():
        prefix = stage2_lengths(config, words, length).prefix
        modules = aspect_module_flops(language.width, num_queries, num_tokens, gradient=False)
        total += count * language_flops(language, suffix=prefix, gradient=False)
        total += 0 if config.cache.aspect_tokens else count * num_aspects * modules
    return total


def stage2_work(config: Config, language: Language, words: Words, train: Sequence[PlannedImage]) -> StageWork:
    """Compute the work of stage 2, on all training images."""
    num_aspects, num_queries = len(prompt_aspects(config)), config.aspect_module.num_queries
    tokens = flops = 0.0
    for (num_tokens, length), count in _kinds(train).items():
        lengths = stage2_lengths(config, words, length)
        together = _images_together(config.stage2, lengths.total)
        prefix = lengths.prefix / (max(1.0, together) if lengths.shared else 1)
        tokens += count * (lengths.num_suffixes * lengths.suffix + prefix)
        flops += count * row_flops(language, lengths, together)
        modules = aspect_module_flops(language.width, num_queries, num_tokens, gradient=False)
        flops += 0 if config.cache.aspect_tokens else count * num_aspects * modules
    return StageWork(config.stage2.num_epochs, len(train), len(train), tokens, flops)


def _images_together(settings: Stage1Config | Stage2Config, tokens: float) -> float:
    """Estimate the number of images in a micro-batch: those of a step are about as large as each other."""
    size = settings.global_batch_size
    largest = max(1, min(settings.micro_batch_size, size, settings.micro_batch_tokens // tokens))
    return size / math.ceil(size / largest)


def extraction_flops(vision: Encoder, images: Sequence[PlannedImage]) -> float:
    """Compute the FLOP of the encoder over these images, each once."""
    return groups_flops(vision, tally(images))


def groups_flops(vision: Encoder, groups: Iterable[tuple[PlannedImage, int]]) -> float:
    """The same of images that are given with how many there are like each, as `masp.plan.tokens.tally` returns them."""
    layouts: Counter[ImageLayout] = Counter()
    for p, count in groups:
        layouts[p.layout] += count
    return sum(image_flops(vision, layout) * count for layout, count in layouts.items())


@dataclass(frozen=True)
class Alternative:
    """Training that runs the encoder instead of reading a cache."""

    encoder_flops: float
    """FLOP of the encoder in both stages."""
    encoder_hours: float
    pays_after_epochs: float | None
    """Epochs of training, stage 1 first, after which the cache has saved what it cost; None: not in this run."""


def without_cache(
    config: Config,
    vision: Encoder,
    train: Sequence[PlannedImage],
    extraction: float,
    rate: Rate,
    *,
    per_aspect: bool,
) -> Alternative:
    """Compute what training would cost if it ran the encoder.

    Args:
        config: Run configuration.
        vision: Sizes of the encoder.
        train: Training images.
        extraction: FLOP of filling the cache, all splits.
        rate: Rate of the encoder.
        per_aspect: Whether the encoder runs for every aspect and epoch, as in the published procedure, rather than once
            per image and epoch.
    """

    def asked(p: PlannedImage) -> int:
        return sum(aspect in p.sample.answers for aspect in config.aspects)

    runs: Counter[ImageLayout] = Counter()
    for p, count in tally(train):
        runs[p.layout] += count * (asked(p) if per_aspect else min(1, asked(p)))
    stage1 = sum(image_flops(vision, layout) * count for layout, count in runs.items())
    epochs = [stage1] * (config.stage1.num_epochs if stage1 else 0)
    epochs += [extraction_flops(vision, train)] * config.stage2.num_epochs
    spent, pays = 0.0, None
    for number, flops in enumerate(epochs):
        if pays is None and flops and spent + flops >= extraction:
            pays = number + (extraction - spent) / flops
        spent += flops
    return Alternative(spent, rate.hours(spent, 0.0), pays)
