"""How many tokens the language model reads: vision tokens by image sizes, text by template, question and answer."""

from __future__ import annotations

import functools
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from tqdm import tqdm

from masp.cache.codec import SampleRecord, encode_record
from masp.config import Config
from masp.data.image_files.stored import Location
from masp.data.questions import load_questions
from masp.data.sample import Sample
from masp.errors import InputError
from masp.models.candidates import candidate_tree
from masp.plan.headers.memory import Size
from masp.runtime.process_pool import process_pool
from masp.training.targets import weighs_answers
from masp.vlm.counting import encoder_amount
from masp.vlm.families import family_of
from masp.vlm.features import Grid, ImageLayout
from masp.vlm.preprocessor import Preprocessor, RefusedImage, load_preprocessor
from masp.vlm.prompt import load_prompt

_ALONE_S = 20.0
"""Seconds of counting tokens that one process does alone; others take half as long to start."""
_TRIAL_S = 1.0
"""Seconds after which it is known how long it takes."""
_CHUNK = 64
_DIGEST = "0" * 64
"""As long as the digest that the cache's record of an image will hold."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """A sample whose image has a readable header."""

    sample: Sample
    size: tuple[int, int]
    """Width and height as the image processor gets them, in pixels."""
    layout: ImageLayout
    """How the image will lie in a prompt."""
    record_bytes: int
    """Bytes of the image's record in the cache; all of it is known but a digest, whose length is."""

    @property
    def grid(self) -> Grid | None:
        """Patches in time, height and width; None for VLMs without a grid."""
        return self.layout.grid

    @property
    def amount(self) -> int:
        """How much the encoder gets of it: patches, or where they are not known, vision tokens."""
        return encoder_amount(self.layout)

    @property
    def block_length(self) -> int:
        """Tokens that the processor writes for it: placeholders and separators."""
        block = self.layout.block
        return self.num_tokens if block is None else sum(count for _, count in block)

    @property
    def num_tokens(self) -> int:
        """Vision tokens."""
        return self.layout.num_tokens


@dataclass(frozen=True)
class TokenStatistics:
    """Distribution of the vision tokens of images."""

    min: int
    median: int
    mean: float
    p95: int
    max: int
    total: int


def plan_images(
    samples: Sequence[Sample],
    sizes: Sequence[Size | None],
    preprocessor: Preprocessor,
    num_processes: int | None = None,
) -> tuple[list[PlannedImage], list[tuple[Location, str]]]:
    """Compute grid and tokens of every image whose header can be read, without decoding it.

    Args:
        samples: Samples of the dataset.
        sizes: Width and height of each image in pixels, None where the header is damaged.
        preprocessor: Image processor of the VLM.
        num_processes: See `layouts_of`.

    Returns:
        The images, and the files of those that the VLM's processor refuses by their size, each with the reason.
    """
    layouts = layouts_of((size for size in sizes if size is not None), preprocessor, num_processes)
    images: list[PlannedImage] = []
    refused: list[tuple[Location, str]] = []
    for sample, size in zip(samples, sizes, strict=True):
        if size is None:
            continue
        layout = layouts[size]
        if isinstance(layout, str):
            refused.append((sample.image, layout))
        else:
            images.append(PlannedImage(sample, size, layout, _record_bytes(sample, size, layout)))
    return images, refused


def plan_again(images: Sequence[PlannedImage], layouts: Mapping[Size, ImageLayout | str]) -> list[PlannedImage]:
    """The same images with another image processor, in a fraction of the time of `plan_images`.

    Args:
        images: Planned images.
        layouts: What `layouts_of` gives for their sizes; those that the other processor refuses are left out.
    """
    found = []
    for image in images:
        layout = layouts[image.size]
        if not isinstance(layout, str):
            record_bytes = image.record_bytes - _digits(image.grid) + _digits(layout.grid)
            found.append(PlannedImage(image.sample, image.size, layout, record_bytes))
    return found


def layouts_of(
    sizes: Iterable[Size], preprocessor: Preprocessor, num_processes: int | None = None
) -> dict[Size, ImageLayout | str]:
    """How images lie in a prompt, by their size; the reason for those that the VLM's processor refuses.

    A processor that cannot count the tokens of an image has to be asked about every size (4 to 200 ms). Where that
    takes long, several processes do it.

    Args:
        sizes: Widths and heights in pixels, in any number.
        preprocessor: Image processor of the VLM.
        num_processes: How many processes at most; None for one per core.
    """
    different = list(dict.fromkeys(sizes))
    found: dict[Size, ImageLayout | str] = {}
    num_processes = (os.cpu_count() or 1) if num_processes is None else num_processes
    start = time.monotonic()
    with tqdm(total=len(different), desc="image sizes", unit="size", delay=1.0, leave=False, disable=None) as bar:
        for size in different:
            found[size] = _layout_of(size, preprocessor)
            bar.update()
            spent = time.monotonic() - start
            if num_processes > 1 and spent > _TRIAL_S and spent * (len(different) / len(found) - 1) > _ALONE_S:
                break
        rest = different[len(found) :]
        if rest:
            chunks = [rest[at : at + _CHUNK] for at in range(0, len(rest), _CHUNK)]
            with process_pool(num_processes, "--processes", "counts the tokens of images") as pool:
                parts = pool.map(_layouts_there, repeat(preprocessor.origin), chunks)
                for chunk, part in zip(chunks, parts, strict=True):
                    found.update(zip(chunk, part, strict=True))
                    bar.update(len(chunk))
    return found


def _layout_of(size: Size, preprocessor: Preprocessor) -> ImageLayout | str:
    try:
        return preprocessor.planned(*size)
    except RefusedImage as error:
        return str(error)


def _layouts_there(origin: tuple[str, int | None, int | None], sizes: Sequence[Size]) -> list[ImageLayout | str]:
    """The layouts of some sizes, in a process of its own."""
    return [_layout_of(size, _loaded(*origin)) for size in sizes]


@functools.cache
def _loaded(path: str, min_pixels: int | None, max_pixels: int | None) -> Preprocessor:
    torch.set_num_threads(1)
    return load_preprocessor(path, min_pixels, max_pixels)


def _record_bytes(sample: Sample, size: tuple[int, int], layout: ImageLayout) -> int:
    record = SampleRecord(
        sample.key, sample.split, sample.category, dict(sample.answers), size, layout.grid, _DIGEST, layout.block,
        sample.distribution,
    )  # fmt: skip
    return len(encode_record(record))


@functools.lru_cache(maxsize=1 << 16)
def _digits(grid: Grid | None) -> int:
    """What of a record's length depends on the grid."""
    return 0 if grid is None else sum(len(str(number)) for number in grid)


def token_statistics(images: Sequence[PlannedImage]) -> TokenStatistics:
    """Compute the distribution of vision tokens over at least one image."""
    counts = Counter(image.num_tokens for image in images)
    total, ordered = len(images), sorted(counts)

    def quantile(share: float) -> int:
        """The smallest number of tokens that this share of the images does not exceed."""
        seen = 0
        for tokens in ordered:
            seen += counts[tokens]
            if seen >= share * total:
                return tokens
        return ordered[-1]

    num_tokens = sum(tokens * count for tokens, count in counts.items())
    return TokenStatistics(
        min=ordered[0],
        median=quantile(0.5),
        mean=num_tokens / total,
        p95=quantile(0.95),
        max=ordered[-1],
        total=num_tokens,
    )


_PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TextTokens:
    """How a VLM turns text into tokens, or where its directory has no tokenizer, about how."""

    question: Callable[[str], int]
    """Number of tokens of a question's text."""
    answer: Callable[[str], tuple[int, ...]]
    """Token ids of an answer."""
    counted: bool
    """Whether the VLM's own tokenizer counts; otherwise a word or a punctuation mark is one token."""
    opening: int = 14
    """System turn and the start of the user turn; this and the next are those of the Qwen family."""
    image_start: int = 1
    image_end: int = 1
    closing: int = 5
    """From the end of the question to the start of the answer."""
    lead: int = 0
    """What the processor writes for an image before its first placeholder."""
    trail: int = 0
    """And behind its last."""


def text_tokens(path: str) -> TextTokens:
    """Load the tokenizer of the VLM in a directory; one without a tokenizer is enough for a plan."""
    try:
        prompt = load_prompt(path)
    except InputError:
        numbers: dict[str, int] = {}

        def pieces(text: str) -> tuple[int, ...]:
            return tuple(numbers.setdefault(piece, len(numbers)) for piece in _PIECE.findall(text))

        return TextTokens(lambda text: len(pieces(text)), pieces, counted=False)
    closing = len(prompt.question(""))
    return TextTokens(
        question=lambda text: len(prompt.question(text)) - closing,
        answer=prompt.answer,
        counted=True,
        opening=len(prompt.opening),
        image_start=len(prompt.image_start),
        image_end=len(prompt.image_end),
        closing=closing,
        lead=len(prompt.lead),
        trail=len(prompt.trail),
    )


@dataclass(frozen=True)
class Words:
    """Mean numbers of text tokens."""

    opening: int
    """System turn and the start of the user turn."""
    image_start: int
    image_end: int
    closing: int
    """From the end of the question to the start of the answer."""
    questions: dict[str, float]
    """Aspect -> tokens of its question, mean over the templates."""
    answers: dict[str, float]
    """Aspect -> tokens of its answer, mean over the training images that have one."""
    emotion_question: float
    emotion_answer: float
    counted: bool
    """Whether they were counted with the VLM's own tokenizer; otherwise a word or a punctuation mark counts as one."""
    lead: int = 0
    """What the processor writes for an image before its first placeholder."""
    trail: int = 0
    """And behind its last."""
    runs_whole: bool = False
    """Whether nothing of a prompt can run before all of it is known, so that no prefix is kept apart."""
    weighted: WeightedWords | None = None
    """Where every category of an image is an answer (`stage2.distribution_loss: weighted`)."""


@dataclass(frozen=True)
class WeightedWords:
    """Mean numbers of a training image whose categories are all its answers, each with its probability."""

    answers: float
    """Categories with a probability above 0."""
    tokens: float
    """Text tokens of these answers, without their end; those that several begin with count once in a tree."""
    is_tree: bool
    """Whether all run behind one question; otherwise each has a row of its own."""


def count_words(config: Config, samples: Sequence[Sample], categories: Sequence[str]) -> Words:
    """Count the text tokens of a run.

    Args:
        config: Run configuration.
        samples: Training samples.
        categories: Categories that the emotion question lists.

    Raises:
        InputError: The questions file is unusable or lacks an aspect.
    """
    questions = load_questions(config.questions)
    text = text_tokens(config.vlm.path)
    by_aspect: dict[str, dict[str, int]] = {aspect: {} for aspect in config.aspects}
    emotions: dict[str, int] = {}
    for sample in samples:
        emotions[sample.category] = emotions.get(sample.category, 0) + 1
        for aspect, answer in sample.answers.items():
            if aspect in by_aspect:
                by_aspect[aspect][answer] = by_aspect[aspect].get(answer, 0) + 1
    return Words(
        opening=text.opening,
        image_start=text.image_start,
        image_end=text.image_end,
        closing=text.closing,
        questions={a: statistics.mean(map(text.question, questions.templates(a))) for a in config.aspects},
        answers={aspect: _mean(answers, text) for aspect, answers in by_aspect.items()},
        emotion_question=statistics.mean(map(text.question, questions.every_emotion(categories))),
        emotion_answer=_mean(emotions, text),
        counted=text.counted,
        lead=text.lead,
        trail=text.trail,
        runs_whole=family_of(config.vlm.path).runs_whole,
        weighted=_weighted_words(config, text, samples, categories),
    )


def _weighted_words(
    config: Config, text: TextTokens, samples: Sequence[Sample], categories: Sequence[str]
) -> WeightedWords | None:
    """Count the answers of images whose categories are all answers; None where one is."""
    if not weighs_answers(config.stage2, 0) or not samples:
        return None
    kinds = Counter(
        (sample.category,)
        if sample.distribution is None
        else tuple(c for c, p in zip(categories, sample.distribution, strict=True) if p > 0)
        for sample in samples
    )
    is_tree = family_of(config.vlm.path).has_tree
    ids = {category: text.answer(category) for category in categories}

    def tokens(kind: tuple[str, ...]) -> int:
        answers = [ids[category] for category in kind]
        return len(candidate_tree(answers).ids) if is_tree else sum(map(len, answers))

    total = sum(kinds.values())
    num_answers = sum(len(kind) * count for kind, count in kinds.items())
    num_tokens = sum(tokens(kind) * count for kind, count in kinds.items())
    return WeightedWords(num_answers / total, num_tokens / total, is_tree)


def _mean(answers: dict[str, int], text: TextTokens) -> float:
    """Compute the mean tokens of answers, each weighted by how often it occurs."""
    total = sum(answers.values())
    return sum(len(text.answer(answer)) * times for answer, times in answers.items()) / total if total else 0.0
