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
from typing import overload

import numpy as np
import torch
from tqdm import tqdm

from masp.cache.codec import SampleRecord, encode_record
from masp.config import Config
from masp.config.schema import DatasetConfig
from masp.data.image_files.stored import Location
from masp.data.questions import questions_of
from masp.data.sample import Label, Sample, Samples
from masp.data.splits.subset import subset_of
from masp.data.target.labels import Labels, relabeled
from masp.errors import InputError
from masp.files.typed import canonical_json
from masp.models.candidates import candidate_tree
from masp.runtime.process_pool import process_pool
from masp.training.supervision import weighs_answers
from masp.vlm.cost.counting import encoder_amount
from masp.vlm.families import family_of
from masp.vlm.features import Grid, ImageLayout
from masp.vlm.preprocessor import Preprocessor, RefusedImage, load_preprocessor
from masp.vlm.prompt import load_prompt

_ALONE_S = 20.0
"""Seconds of counting tokens that one process does alone; others take half as long to start."""
_TRIAL_S = 1.0
"""Seconds after which it is known how long it takes."""
_CHUNK = 64
Size = tuple[int, int]
"""Width and height in pixels."""

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


class PlannedImages(Sequence[PlannedImage]):
    """Images with readable headers in columns: millions of them would take gigabytes as objects.

    Sums over them take their `groups`, of which there are few.
    """

    def __init__(
        self,
        samples: Samples,
        kind: np.ndarray,
        kinds: Sequence[tuple[tuple[int, int], ImageLayout]],
        record_bytes: np.ndarray,
    ):
        """Samples, of each the place of its size and layout in `kinds` (int32 `[N]`), and its record's bytes `[N]`."""
        self.samples, self.kind, self.kinds, self.record_bytes = samples, kind, kinds, record_bytes

    def __len__(self) -> int:
        return len(self.kind)

    @overload
    def __getitem__(self, place: int) -> PlannedImage: ...
    @overload
    def __getitem__(self, place: slice | np.ndarray) -> PlannedImages: ...
    def __getitem__(self, place: int | slice | np.ndarray) -> PlannedImage | PlannedImages:
        """An image; with a slice, a mask or an array of places, some of them."""
        if isinstance(place, (slice, np.ndarray)):
            return PlannedImages(self.samples[place], self.kind[place], self.kinds, self.record_bytes[place])
        size, layout = self.kinds[self.kind[place]]
        return PlannedImage(self.samples[place], size, layout, int(self.record_bytes[place]))

    def in_split(self, split: str) -> PlannedImages:
        """Those of one split."""
        return self[self.samples.is_in(split)]

    def for_training(self, settings: DatasetConfig) -> PlannedImages:
        """Those that training sees."""
        subset = subset_of(settings, self.samples)
        return self.in_split("train") if subset is None else self[subset.is_in]

    def with_answers(self, aspects: Iterable[str]) -> PlannedImages:
        """Those that are annotated with any of these aspects."""
        table, asked = self.samples.table, set(aspects)
        is_asked = np.array([bool(asked.intersection(label.aspects or ())) for label in table.labels], dtype=bool)
        return self[is_asked[table.label[self.samples.rows]]]

    def labeled(self) -> PlannedImages:
        """Those that the target of the run gives a label."""
        table = self.samples.table
        is_labeled = np.array([bool(label.category) for label in table.labels], dtype=bool)
        return self[is_labeled[table.label[self.samples.rows]]]

    def with_labels(self, labels: Labels | None) -> PlannedImages:
        """The same images with the labels of the target, if it has others than the dataset.

        Args:
            labels: Labels of all images of the dataset, in the order of its table.
        """
        if labels is None:
            return self
        samples = relabeled(self.samples, labels.take(self.samples.rows))
        return PlannedImages(samples, self.kind, self.kinds, self.record_bytes)

    @property
    def num_tokens(self) -> np.ndarray:
        """Vision tokens of each, int64 `[N]`."""
        return np.array([layout.num_tokens for _, layout in self.kinds], dtype=np.int64)[self.kind]

    @functools.cached_property
    def key_lengths(self) -> np.ndarray:
        """Characters of each sample key, int32 `[N]`."""
        return np.fromiter(map(len, self.samples.keys), dtype=np.int32, count=len(self))

    @functools.cached_property
    def groups(self) -> list[tuple[PlannedImage, int]]:
        """One image of each layout, split, category and set of annotated aspects, and how many there are like it."""
        table, rows = self.samples.table, self.samples.rows
        layouts: dict[ImageLayout, int] = {}
        of_kind = np.array([layouts.setdefault(layout, len(layouts)) for _, layout in self.kinds], dtype=np.int64)
        labels: dict[tuple[str, tuple[str, ...] | None], int] = {}
        of_label = np.array(
            [labels.setdefault((label.category, label.aspects), len(labels)) for label in table.labels], dtype=np.int64
        )
        codes = (of_label[table.label[rows]] * len(table.splits) + table.split[rows]) * len(layouts)
        _, first, counts = np.unique(codes + of_kind[self.kind], return_index=True, return_counts=True)
        return [(self[place], count) for place, count in zip(first.tolist(), counts.tolist(), strict=True)]

    def again(self, layouts: Mapping[Size, ImageLayout | str]) -> PlannedImages:
        """The same images with another image processor, in a fraction of the time of `plan_images`.

        Args:
            layouts: What `layouts_of` gives for their sizes. Images that the other processor refuses stay as they are;
                `is_planned` says which these are not.
        """
        kinds, more = [], []
        for size, old in self.kinds:
            layout = layouts[size]
            kinds.append((size, old if isinstance(layout, str) else layout))
            more.append(_kind_bytes(*kinds[-1]) - _kind_bytes(size, old))
        record_bytes = self.record_bytes + np.array(more, dtype=np.int32)[self.kind]
        return PlannedImages(self.samples, self.kind, kinds, record_bytes)

    def is_planned(self, layouts: Mapping[Size, ImageLayout | str]) -> np.ndarray:
        """Which images another processor does not refuse, bool `[N]`; `layouts` is what `layouts_of` gives."""
        return np.array([not isinstance(layouts[size], str) for size, _ in self.kinds], dtype=bool)[self.kind]


def tally(images: Sequence[PlannedImage]) -> Iterable[tuple[PlannedImage, int]]:
    """Images, each with how many there are like it in layout, split, category and annotated aspects."""
    return images.groups if isinstance(images, PlannedImages) else ((image, 1) for image in images)


def answers_of(images: Sequence[PlannedImage], aspects: Iterable[str]) -> dict[str, set[str]]:
    """Aspect -> the different answers that images are annotated with."""
    samples = images.samples if isinstance(images, PlannedImages) else Samples.of(image.sample for image in images)
    found: dict[str, set[str]] = {aspect: set() for aspect in aspects}
    for _, label in samples.kinds():
        for aspect, answer in label.items():
            if aspect in found:
                found[aspect].add(answer)
    return found


def plan_images(
    samples: Samples, sizes: np.ndarray, preprocessor: Preprocessor, num_processes: int | None = None
) -> tuple[PlannedImages, list[tuple[Location, str]]]:
    """Compute grid and tokens of every image whose header can be read, without decoding it.

    Args:
        samples: Samples of the dataset.
        sizes: Width and height of each image in pixels, int32 `[N, 2]`, zeros where the header is damaged.
        preprocessor: Image processor of the VLM.
        num_processes: See `layouts_of`.

    Returns:
        The images, and the files of those that the VLM's processor refuses by their size, each with the reason.
    """
    codes = sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1]
    different, kind = np.unique(codes, return_inverse=True)
    pairs = [(code >> 32, code & 0xFFFFFFFF) for code in different.tolist()]
    layouts = layouts_of([size for size in pairs if size[0]], preprocessor, num_processes)
    found = [layouts.get(size, "") for size in pairs]
    kinds = [(size, layout) for size, layout in zip(pairs, found, strict=True) if not isinstance(layout, str)]
    is_kept = np.array([not isinstance(layout, str) for layout in found], dtype=bool)
    number_of = (np.cumsum(is_kept) - 1).astype(np.int32)
    is_refused = np.array([bool(size[0]) for size in pairs], dtype=bool) & ~is_kept
    refused: list[tuple[Location, str]] = [
        (samples.images[place], str(found[kind[place]])) for place in np.flatnonzero(is_refused[kind]).tolist()
    ]
    planned = np.flatnonzero(is_kept[kind])
    images = PlannedImages(samples[planned], number_of[kind[planned]], kinds, np.zeros(len(planned), dtype=np.int32))
    return PlannedImages(images.samples, images.kind, kinds, _record_bytes(images)), refused


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


def _record_bytes(images: PlannedImages) -> np.ndarray:
    """Bytes of each image's record, int32 `[N]`: JSON is as long as its parts, of which many images share most."""
    table, rows = images.samples.table, images.samples.rows
    labels = list(map(_label_bytes, table.labels))
    splits = list(map(len, table.splits))
    found = np.array([_kind_bytes(*kind) for kind in images.kinds], dtype=np.int32)[images.kind]
    found += np.array(labels, dtype=np.int32)[table.label[rows]]
    found += np.array(splits, dtype=np.int32)[table.split[rows]]
    return found + images.key_lengths


def _label_bytes(label: Label) -> int:
    """What category, answers and distribution add to the bytes of a record."""
    found = len(canonical_json([label.category, dict(label.items())])) - len('["",{}]')
    if label.distribution is not None:
        found += len(',"distribution":') + len(canonical_json(label.distribution))
    return found


def _kind_bytes(size: tuple[int, int], layout: ImageLayout) -> int:
    """Bytes of the record of an image without key, split, category and answers."""
    return len(encode_record(SampleRecord("", "", "", {}, size, layout.grid, _DIGEST, layout.block)))


def token_statistics(images: Sequence[PlannedImage]) -> TokenStatistics:
    """Compute the distribution of vision tokens over at least one image."""
    counts: Counter[int] = Counter()
    for image, number in tally(images):
        counts[image.num_tokens] += number
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
    target_question: float
    target_answer: float
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
        categories: Categories that the question about the target lists.

    Raises:
        InputError: The questions file is unusable or lacks an aspect.
    """
    questions = questions_of(config)
    text = text_tokens(config.vlm.path)
    by_aspect: dict[str, dict[str, int]] = {aspect: {} for aspect in config.aspects}
    emotions: dict[str, int] = {}
    for (_, label), count in Samples.of(samples).kinds().items():
        if label.category:  # the target gives the others no label
            emotions[label.category] = emotions.get(label.category, 0) + count
        for aspect, answer in label.items():
            if aspect in by_aspect:
                by_aspect[aspect][answer] = by_aspect[aspect].get(answer, 0) + count
    return Words(
        opening=text.opening,
        image_start=text.image_start,
        image_end=text.image_end,
        closing=text.closing,
        questions={a: statistics.mean(map(text.question, questions.templates(a))) for a in config.aspects},
        answers={aspect: _mean(answers, text) for aspect, answers in by_aspect.items()},
        target_question=statistics.mean(map(text.question, questions.target_all(categories))),
        target_answer=_mean(emotions, text),
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
    if not weighs_answers(config.stage2, 0):
        return None
    kinds: Counter[tuple[str, ...]] = Counter()
    for (_, label), count in Samples.of(samples).kinds().items():
        if not label.category:
            continue
        if label.distribution is None:
            kinds[(label.category,)] += count
        else:
            kinds[tuple(c for c, p in zip(categories, label.distribution, strict=True) if p > 0)] += count
    if not kinds:
        return None
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
