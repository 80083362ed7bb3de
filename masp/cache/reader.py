"""Reading a finished cache: one `pread` per sample, its checksums verified every time."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masp.cache.annotations.manifest import read_stored
from masp.cache.annotations.reading import Completed, Origins, complete
from masp.cache.codec import SampleRecord, checksum, decode_features, decode_record
from masp.cache.fingerprint import Fields, compare, model_part
from masp.cache.index import Index, load_index
from masp.cache.layout import INDEX, cached_aspects, tar_path
from masp.cache.manifest import Manifest, read_manifest
from masp.cache.shard_state import remedy
from masp.config import Config, load_aspects
from masp.config.feature_source import cache_directory
from masp.data.answer_table import FILE as ANSWERS
from masp.data.answer_table import NONE, AnswerTable, load_answers
from masp.data.sample import Samples
from masp.data.splits.subset import Subset, choose_subset, has_subset
from masp.data.target.find_labels import DatasetImages, find_labels
from masp.data.target.labels import Labels
from masp.errors import DataError, InputError
from masp.files.regular import open_descriptor
from masp.files.sealed import digest_file
from masp.files.text import reason, shown
from masp.taxonomy import normalize_category
from masp.vlm.features import Features, ImageLayout

LOG = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 256
"""File descriptors that a `Cache` keeps; many systems allow a process 1024."""


@dataclass(frozen=True)
class CachedSample:
    """A sample as the cache holds it."""

    key: str
    split: str
    category: str
    """Empty where the target of the run gives the image no label."""
    answers: dict[str, str]
    """Aspect -> answer text, only where annotated."""
    features: Features
    """In the dtype of the cache unless another was asked for."""
    layout: ImageLayout
    """How the image lies in the prompt."""
    image_size: tuple[int, int]
    """Width and height of the image that was given to the image processor."""
    distribution: tuple[float, ...] | None = None
    """Probability of each of the cache's categories; None where the dataset has only labels."""


def open_cache(directory: str | Path) -> Cache:
    """Open a finished cache.

    Raises:
        InputError: No such cache, or extraction has not finished.
        DataError: Manifest or index damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    path = directory / INDEX
    try:
        digest = digest_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)}); {remedy(directory)}") from None
    if digest != manifest.index.sha256:
        raise DataError(f"{path} is damaged: its digest is not the manifest's; {remedy(directory)}")
    index = load_index(path)
    if not _fits(index, manifest):
        raise DataError(f"{path} is damaged: it does not agree with the manifest; {remedy(directory)}")
    return Cache(directory, manifest, index)


def _fits(index: Index, manifest: Manifest) -> bool:
    """Whether the numbers in an index stand for something in the manifest."""
    if len(index) != manifest.num_samples:
        return False
    if index.distribution is not None and index.distribution.shape[1] != len(manifest.categories):
        return False
    limits = ((index.shard, manifest.shards), (index.split, manifest.splits), (index.category, manifest.categories))
    return all(int(column.max(initial=0)) < len(names) for column, names in limits)


def open_matching_cache(config: Config, has_target: bool = True) -> tuple[Cache, Fields]:
    """Open the cache as a run sees it, and refuse one of another VLM, another dataset or other settings.

    Args:
        config: Run configuration.
        has_target: Whether the labels of `config.target` count; False for stage 1, which has no target.

    Returns:
        The cache, and the model part of its fingerprint.

    Raises:
        InputError: The cache is none, or not of these settings, or see `masp.data.target.find_labels`.
        DataError: It is damaged.
    """
    cache = open_cache(cache_directory(config))
    model = model_part(config)
    cache.check_model(model)
    cache.check_aspects(config)
    cache.check_dataset(config)
    return _as_configured(cache, config, has_target), model


def _as_configured(cache: Cache, config: Config, has_target: bool) -> Cache:
    """A cache with the labels and answers that the configuration gives its images.

    Labels are made of what people annotated; `answers` are those that stage 1 learns and is scored by.
    """
    labels, index = None, cache.index
    if has_target or has_subset(config.dataset):  # a subset is chosen by the categories of the target, for both stages
        where = f"cache.dir: {cache.directory}"
        own = DatasetImages(index.keys, cache.categories, index.category, index.distribution, cache.answers, where)
        labels = find_labels(config, own)
    index_digest, model = cache.manifest.index.sha256, cache.manifest.fingerprint.model
    found = complete(cache.answers, index.keys, cache.directory, index_digest, model, config)
    seen = cache.seen_with(labels if has_target else None, None if found is None else found.table)
    seen.origins = {} if found is None else found.origins
    names, category = (cache.categories, cache.category) if labels is None else (labels.categories, labels.category)
    seen.subset = choose_subset(config.dataset, index.keys, names, category, cache.is_in("train"))
    return seen


@dataclass(frozen=True)
class StoredAnswers:
    """Annotations of images that are read from their files, completed by the answers stored beside a cache of them."""

    completed: Completed
    row_of: Mapping[str, int]
    """Sample key -> row of the index."""

    @property
    def origins(self) -> Mapping[str, Origins]:
        """Aspect -> who gave its answers, of every aspect with stored answers that is in use."""
        return self.completed.origins

    def answers_of(self, key: str) -> Mapping[str, str] | None:
        """Aspect -> answer of an image; None of one that the cache does not hold."""
        row = self.row_of.get(key)
        return None if row is None else self.completed.table[row]


def stored_answers(config: Config, samples: Samples) -> StoredAnswers | None:
    """The answers that a run sees in the cache of its configuration, for images that are read from their files instead.

    What people annotated is what the images' own dataset says now.

    Args:
        config: Run configuration.
        samples: Images of the dataset.

    Returns:
        None if no answers are stored.

    Raises:
        InputError: The answers are to another question, or belong to another cache.
        DataError: A file is damaged.
    """
    directory = cache_directory(config)
    if not read_stored(directory):
        return None
    cache = open_cache(directory)
    keys, fingerprint = cache.index.keys, cache.manifest.fingerprint
    given = {sample.key: sample.answers for sample in samples}
    found = complete(
        lambda: AnswerTable.of([given.get(key, {}) for key in keys]),
        keys, directory, cache.manifest.index.sha256, fingerprint.model, config,
    )  # fmt: skip
    return None if found is None else StoredAnswers(found, {key: row for row, key in enumerate(keys)})


class Cache:
    """A finished cache, read-only. Picklable; a process opens its own files on first use. One thread at a time.

    Args:
        directory: Directory of the cache.
        manifest: Its manifest.
        index: Its index.
        labels: Labels of its images, in the order of the index, instead of those that it holds; None for these.
        answers: Annotated answers, in the order of the index, instead of those that it holds; None for these.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        index: Index,
        labels: Labels | None = None,
        answers: AnswerTable | None = None,
    ):
        self.directory, self.manifest, self.index = directory, manifest, index
        self.labels, self._answers = labels, answers
        self.subset: Subset | None = None
        """What training sees of the training split; None for all."""
        self.origins: Mapping[str, Origins] = {}
        """Aspect -> who gave its answers, where some are not of people; see `masp.cache.annotations.reading`."""
        self._files: dict[int, int] = {}

    def seen_with(self, labels: Labels | None, answers: AnswerTable | None) -> Cache:
        """The same cache with other labels or answers; see the arguments of the class."""
        return Cache(self.directory, self.manifest, self.index, labels, answers)

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self):
        self.close()

    def close(self) -> None:
        """Close the tars that this process has opened; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, in the order in which questions list them."""
        return self.manifest.categories if self.labels is None else self.labels.categories

    @property
    def category(self) -> np.ndarray:
        """Category of each image, `[N]` integers into `categories`; -1 for one without a label."""
        return self.index.category if self.labels is None else self.labels.category

    @property
    def aspects(self) -> tuple[str, ...]:
        """Aspects that any image has an answer for, sorted."""
        if self._answers is None:
            return self.manifest.aspects
        return tuple(sorted(a for a, column in self._answers.columns.items() if (column.numbers != NONE).any()))

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.manifest.hidden_size

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest.splits)

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split that have a label, ascending, int64; of the training split those that training sees.

        Raises:
            InputError: The cache has no such split.
        """
        if split not in self.splits:
            raise InputError(f"cache.dir: {self.directory} has no split {split!r}; it has {', '.join(self.splits)}")
        is_seen = self.is_in(split) & (self.category >= 0)
        if split == "train" and self.subset is not None:
            is_seen &= self.subset.is_in
        return np.flatnonzero(is_seen)

    def is_in(self, split: str) -> np.ndarray:
        """Which rows are of a split, `[N]` bool."""
        return self.index.split == (self.splits.index(split) if split in self.splits else -1)

    def row_of(self, key: str) -> int:
        """The row of a sample key.

        Raises:
            KeyError: The cache does not hold it.
        """
        return self._row_of[key]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.index.keys)}

    def has_answer(self, rows: np.ndarray, aspect: str) -> np.ndarray:
        """Which of these rows have an answer for an aspect, bool, without reading a shard."""
        if self._answers is not None:
            column = self._answers.columns.get(aspect)
            return np.zeros(len(rows), dtype=bool) if column is None else column.numbers[rows] != NONE
        if aspect not in self.manifest.aspects:
            return np.zeros(len(rows), dtype=bool)
        bit = np.uint64(1 << self.manifest.aspects.index(aspect))
        return (self.index.aspects[rows] & bit) != 0

    def has_distribution(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows have a distribution over the categories, bool, without reading a shard."""
        return (self.distributions(rows) > 0).sum(axis=1) > 0

    def distributions(self, rows: np.ndarray) -> np.ndarray:
        """Distributions of some rows over `categories`, `[n, C]` fp64, zeros where one has none; `[n, 0]` if no row of
        the cache has one."""
        if self.labels is None:
            return self.index.distributions(rows)
        found = self.labels.distribution
        return np.zeros((len(rows), 0)) if found is None else found[rows]

    def check_dataset(self, config: Config) -> None:
        """Refuse settings of a dataset other than the cached one: what is read is the cache, whatever they say.

        Raises:
            InputError: Names the setting and both values.
        """
        found: dict[str, Any] = {"dataset.name": self.manifest.dataset.name}
        given: dict[str, Any] = {"dataset.name": config.dataset.name}
        if config.dataset.categories:
            found["dataset.categories"] = list(self.manifest.categories)
            given["dataset.categories"] = [normalize_category(name) for name in config.dataset.categories]
        compare(found, given, f"cache.dir: {self.directory}", "give the value of the cache or another cache.dir")

    def check_model(self, fields: Fields) -> None:
        """Refuse this cache unless its features are those of the given VLM and settings.

        Args:
            fields: `model_fields` of the configuration, see `masp.cache.fingerprint`.

        Raises:
            InputError: Names the field and both values.
        """
        found = self.manifest.fingerprint.model
        compare(found, fields, f"cache.dir: {self.directory}", "extract into a new cache.dir or give the old value")

    def check_aspects(self, config: Config) -> None:
        """Refuse this cache if its answers to an aspect in use are in other words than the aspect now has.

        Raises:
            InputError: Names the aspect and both definitions.
        """
        aspects = load_aspects(config.aspect_definitions)
        used = {name: aspect for name, aspect in aspects.items() if name in config.aspects}
        forms = self.manifest.answer_forms
        if forms is not None:
            cached_aspects(self.directory, {name: forms[name] for name in forms if name in used}, used)
            return
        # a cache from before the forms were recorded: one answer tells other words
        for name, aspect in used.items():
            has_answer = self.has_answer(np.arange(len(self)), name)
            if aspect.kind == "level" and has_answer.any():
                answer = self.read_record(int(has_answer.argmax())).answers[name]
                if answer not in aspect.vocabulary:
                    raise InputError(
                        f"cache.dir: {self.directory} holds the answer {shown(answer)} to {name}, whose words are "
                        f"{', '.join(aspect.vocabulary)} in {config.aspect_definitions}; define it as before, or "
                        "extract into a new cache.dir"
                    )

    def unknown_aspects(self, aspects: Sequence[str]) -> list[str]:
        """Which of these aspects were defined after this cache was begun, so that it holds no answers to them."""
        forms = self.manifest.answer_forms
        has = self.aspects
        return [aspect for aspect in aspects if forms is not None and aspect not in forms and aspect not in has]

    def read(self, row: int, dtype: torch.dtype | None = None, *, epoch: int | None = None) -> CachedSample:
        """Read a sample.

        Args:
            row: Row of the index.
            dtype: Number format of the features; None for the cache's.
            epoch: Epoch of training, which makes no difference: only images that are read live can be changed.

        Raises:
            DataError: A byte of it is damaged or missing; names shard, key and the command that rebuilds the shard.
        """
        index = self.index
        data = self._span(row, int(index.length[row]))
        start = int(index.features_start[row])
        tensor = data[start:]
        if checksum(tensor) != index.features_crc32[row]:
            raise self._damaged(row, "the features do not match their checksum")
        record = self._record(row, data)
        try:
            features = decode_features(tensor)
        except DataError as error:
            raise self._damaged(row, str(error)) from None
        labels, answers = self.labels, self._answers
        return CachedSample(
            key=record.key,
            split=record.split,
            category=record.category if labels is None else labels.name(row),
            answers=record.answers if answers is None else answers[row],
            features=features if dtype is None else features.moved(lambda tensor: tensor.to(dtype)),
            layout=ImageLayout(len(features.tokens), record.grid, record.block),
            image_size=record.image_size,
            distribution=record.distribution if labels is None else labels.shares(row),
        )

    def read_record(self, row: int) -> SampleRecord:
        """Only the JSON member of a sample, with the label and the answers of the dataset.

        Raises:
            DataError: As `read`.
        """
        return self._record(row, self._span(row, int(self.index.json_length[row])))

    def answers(self) -> AnswerTable:
        """The annotated answers of all samples, in the order of the index: from their file, or else out of the tars.

        Raises:
            DataError: Damaged.
        """
        if self._answers is not None:
            return self._answers
        directory = self.directory
        table = load_answers(directory, self.manifest.index.sha256, remedy(directory))
        if table is None:
            LOG.info(
                "%s has no %s for its index (a cache of an earlier version has none): the annotations of %s images "
                "are read out of its shards; `masp extract` again writes the file",
                *(directory, ANSWERS, f"{len(self):,}"),
            )
            return AnswerTable.of([self.read_record(row).answers for row in range(len(self))])
        if len(table) != len(self):
            raise DataError(f"{directory / ANSWERS} is damaged: it does not agree with the index; {remedy(directory)}")
        return table

    def _record(self, row: int, data: memoryview) -> SampleRecord:
        text = data[: int(self.index.json_length[row])]
        if checksum(text) != self.index.json_crc32[row]:
            raise self._damaged(row, "the JSON member does not match its checksum")
        try:
            record = decode_record(text)
        except DataError as error:
            raise self._damaged(row, str(error)) from None
        num_categories = len(self.manifest.categories)
        if record.distribution is not None and len(record.distribution) != num_categories:
            count = len(record.distribution)
            raise self._damaged(row, f"its distribution has {count} numbers, for {num_categories} categories")
        return record

    def _span(self, row: int, length: int) -> memoryview:
        """The first `length` bytes of a sample in its tar, writable."""
        buffer = np.empty(length, dtype=np.uint8).data  # a bytearray would be filled with zeros first
        offset, done = int(self.index.offset[row]), 0
        try:
            file = self._file(int(self.index.shard[row]))
            while done < length:
                count = os.preadv(file, [buffer[done:]], offset + done)
                if not count:
                    raise self._damaged(row, "the shard is cut short")
                done += count
        except FileNotFoundError:
            raise self._damaged(row, "the shard is missing") from None
        except OSError as error:
            raise self._damaged(row, f"the shard cannot be read ({reason(error)})") from None
        return buffer

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))  # the one opened first
            self._files[shard] = open_descriptor(tar_path(self.directory, self.shard_name(shard)))
        return self._files[shard]

    def shard_name(self, shard: int) -> str:
        """The name of a shard that the index numbers."""
        return self.manifest.shards[shard].name

    def _damaged(self, row: int, what: str) -> DataError:
        shard, key = self.shard_name(int(self.index.shard[row])), self.index.keys[row]
        return DataError(f"{tar_path(self.directory, shard)}: sample {key}: {what}; {remedy(self.directory)}")
