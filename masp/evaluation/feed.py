"""What evaluation scores: keys, labels, and features in batches, from the cache or from the encoder applied now."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from masp.artifacts.aspect_tokens import AspectTokens, open_aspect_tokens
from masp.artifacts.trained import load_trained_aspects
from masp.cache.annotations.reading import Origins
from masp.cache.findings import findings_of
from masp.cache.fingerprint import differences, machine_part, model_part
from masp.cache.layout import answer_forms
from masp.cache.manifest import quarantined_keys
from masp.cache.reader import Cache, open_matching_cache, stored_answers
from masp.config import Config, load_aspects
from masp.config.feature_source import evaluation_source
from masp.data.answer_table import AnswerTable
from masp.data.answers import AnswerForm
from masp.data.datasets import dataset_of
from masp.data.findings import DatasetRecord, Finding
from masp.data.image_files.stored import Location, image_status
from masp.data.images import UnreadableImage, read_image_file
from masp.data.sample import Sample
from masp.data.splits.subset import Subset, has_subset, subset_of
from masp.data.target.find_labels import label_dataset, with_a_label
from masp.errors import DataError, InputError
from masp.extraction.encoder import Encoder, check_finite_features
from masp.extraction.live.images import open_live
from masp.files.sealed import canonical_json, digest_of
from masp.files.text import shown
from masp.results.ledgers.table import RecordTable
from masp.results.records import DataDigests
from masp.runtime.prefetch import ReadAhead
from masp.vlm.families import family_of
from masp.vlm.features import Features, ImageLayout


@dataclass(frozen=True)
class Item:
    """One image to score."""

    key: str
    features: Features
    layout: ImageLayout
    answers: dict[str, str]
    """Aspect -> answer, where annotated."""
    aspect_tokens: Tensor | None = None
    """`[A, N, D]` where `cache.aspect_tokens` reads them."""
    source: tuple[int, int] | None = None
    """Bytes and modification time (ns) of the image file that was read live."""


@dataclass
class Feed(ABC):
    """The images of a split, in the order of their keys, and a way to their features."""

    keys: list[str]
    labels: list[str]
    """Category of each, one of `categories`."""
    categories: tuple[str, ...]
    model: dict[str, Any]
    """Model part of the fingerprint of the features."""
    machine: dict[str, Any]
    """Machine part."""
    hidden_size: int
    """D."""
    data_digest: str
    """Digest of keys, labels and, from the cache, of what the features are made of."""
    num_quarantined: int
    """Images of the split that extraction could not read, which are not evaluated."""
    aspects: tuple[str, ...]
    """Aspects that some image of the dataset is annotated with."""
    record: DatasetRecord | None = field(default=None, kw_only=True)
    """What is known of the dataset; None where its cache does not say."""
    label_findings: tuple[Finding, ...] = field(default=(), kw_only=True)
    """What is to be known of the target's labels, where they are not the dataset's."""
    distributions: np.ndarray | None = field(default=None, kw_only=True)
    """`[N, C]` fp64: the distribution of each image over `categories`, zeros where it has none; None if none has."""
    lists: frozenset[str] = field(default=frozenset(), kw_only=True)
    """Aspects whose answers are lists."""
    aspect_notes: Sequence[str] = field(default=(), kw_only=True)
    """What is to be known about the aspects in use before they are scored."""
    quarantined: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    """Split -> its images that cannot be read, of every split of the dataset."""
    dataset_digest: str | None = field(default=None, kw_only=True)
    """Digest of the dataset as the manifest of a cache has it; None where it is not known."""
    cache_digest: str | None = field(default=None, kw_only=True)
    """Digest of the cache's index; None where features are computed live."""
    subset: Subset | None = field(default=None, kw_only=True)
    """What training sees of the training split, with the settings of this run; None for all."""

    @abstractmethod
    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        """Features of some images, similar lengths together. Close it: it may hold worker processes."""

    @abstractmethod
    def different_answers(self) -> dict[str, set[str]]:
        """Aspect -> its different answers in the dataset, all splits; of every aspect that has any."""

    @abstractmethod
    def answers_of(self, key: str) -> Mapping[str, str]:
        """Aspect -> answer of an image of the split, where it is annotated."""

    @property
    @abstractmethod
    def live_machine(self) -> dict[str, Any] | None:
        """The machine part where features are made here and now, for the ledger; the cache has its own."""

    @abstractmethod
    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        """Refuse what was scored from another file than the one that is there now.

        Args:
            key: Sample key.
            source: `Item.source` when it was scored.

        Raises:
            InputError: the image has changed.
        """

    @abstractmethod
    def category_counts(self, split: str) -> dict[str, int]:
        """Category -> its readable images in a split, of the training split those that training sees; empty where the
        dataset has no such split."""

    @abstractmethod
    def annotations(self) -> AnswerTable:
        """Annotated answers of the images of the split, in the order of `keys`."""

    def digests(self) -> DataDigests:
        """By which two evaluations know whether they scored the same images."""
        is_live = self.live_machine is not None
        made_by = "" if is_live else digest_of({"model": self.model, "machine": self.machine})
        return DataDigests(self.data_digest, made_by)

    def notes(self) -> list[str]:
        """What whoever reads the results should know about the samples."""
        found = [str(finding) for finding in self.label_findings]
        if not self.num_quarantined:
            return found
        images = "image of the split is" if self.num_quarantined == 1 else "images of the split are"
        return [
            *found,
            f"{self.num_quarantined} {images} in quarantine, which extraction could not read: not evaluated",
        ]

    def warnings(self) -> list[str]:
        """What about the dataset makes results something else than they seem."""
        return [f"dataset: {finding}" for finding in (self.record.findings if self.record else ()) if finding.serious]


def open_feed(config: Config) -> Feed:
    """Open what `evaluate.source` names, or without a cache the images.

    Raises:
        InputError: no cache, a cache of another VLM, or no such split.
    """
    return _open_cached(config) if evaluation_source(config) == "cache" else _open_live(config)


def machines_of(feed: Feed, records: RecordTable) -> list[dict[str, Any]]:
    """The machine parts of the features that the records were made from: one from the cache, any number live."""
    return records.machines or [feed.machine]


def mixed_notes(machines: Sequence[dict[str, Any]]) -> list[str]:
    """How machines that made features of one evaluation differ; rounding, so it is a note and not an error."""
    found = {
        name: list(dict.fromkeys(repr(machine.get(name)) for machine in machines))
        for other in machines[1:]
        for name, _, _ in differences(machines[0], other)
    }
    return [f"features come from different machines: {name} was {', '.join(v)}" for name, v in found.items()]


def digest_of_data(rows: Iterable[Sequence[Any]], distributions: np.ndarray | None) -> str:
    """That of rows and, where there are any, their distributions `[N, C]`: without, it is what it was before."""
    digest = digest_of_rows(rows)
    if distributions is None:
        return digest
    whole = hashlib.sha256(f"{digest} {distributions.shape} ".encode())
    whole.update(np.ascontiguousarray(distributions, dtype="<f8").data)
    return whole.hexdigest()


def digest_of_rows(rows: Iterable[Sequence[Any]]) -> str:
    """That of the list of all rows, which come in the order of their keys: of millions, a few at a time."""
    digest, rest, separator = hashlib.sha256(b"["), iter(rows), b""
    while part := [list(row) for row in itertools.islice(rest, 4096)]:
        digest.update(separator + canonical_json(part)[1:-1])
        separator = b","
    digest.update(b"]")
    return digest.hexdigest()


class _CachedBatches(Dataset):
    def __init__(self, cache: Cache, batches: list[list[int]], tokens: AspectTokens | None):
        self.cache, self.rows, self.tokens = cache, batches, tokens

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> list[Item]:
        rows = self.rows[number]
        samples = [self.cache.read(row) for row in rows]
        tokens = [self.tokens.read(row) if self.tokens else None for row in rows]
        return [Item(s.key, s.features, s.layout, s.answers, t) for s, t in zip(samples, tokens, strict=True)]


@dataclass
class CachedFeed(Feed):
    """Features from the cache."""

    cache: Cache
    row_of: dict[str, int]
    num_workers: int
    tokens: AspectTokens | None

    @property
    def live_machine(self) -> None:
        return None

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        rows = sorted((self.row_of[key] for key in keys), key=lambda row: (self.cache.index.num_tokens[row], row))
        cut = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        dataset = _CachedBatches(self.cache, cut, self.tokens)
        with ReadAhead(dataset, range(len(cut)), self.num_workers, "evaluate.num_workers") as batches:
            yield from batches

    @cached_property
    def _answers(self) -> AnswerTable:
        """Those of all samples of the cache, in the order of its index."""
        return self.cache.answers()

    def different_answers(self) -> dict[str, set[str]]:
        return {aspect: set(column.texts) for aspect, column in self._answers.columns.items()}

    def answers_of(self, key: str) -> Mapping[str, str]:
        return self._answers[self.row_of[key]]

    def category_counts(self, split: str) -> dict[str, int]:
        if split not in self.cache.splits:
            return {}
        counts = np.bincount(self.cache.category[self.cache.rows(split)], minlength=len(self.categories))
        return {category: int(count) for category, count in zip(self.categories, counts, strict=True) if count}

    def annotations(self) -> AnswerTable:
        return self._answers.take(np.array([self.row_of[key] for key in self.keys], dtype=np.int64))

    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        """The digest of the features is part of `data_digest`, so they cannot change unnoticed."""


def _open_cached(config: Config) -> CachedFeed:
    cache, model = open_matching_cache(config, has_target=config.evaluate.stage == "stage2")
    rows = cache.rows(config.evaluate.split)
    if not len(rows):
        raise InputError(no_image(config, f"cache.dir: {cache.directory}"))
    rows = rows[sorted(range(len(rows)), key=lambda i: cache.index.keys[rows[i]])]
    keys = [cache.index.keys[row] for row in rows]
    labels = [cache.categories[cache.category[row]] for row in rows]
    distributions = cache.distributions(rows) if cache.has_distribution(rows).any() else None
    crc = cache.index.features_crc32[rows].tolist()
    tokens = None
    if config.cache.aspect_tokens and config.evaluate.stage == "stage2":
        _, lineage = load_trained_aspects(config, cache.hidden_size, model)
        tokens = open_aspect_tokens(config, cache, lineage.digest if lineage else None)
    return CachedFeed(
        keys=keys,
        labels=labels,
        categories=cache.categories,
        model=model,
        machine=cache.manifest.fingerprint.machine.fields,
        hidden_size=cache.hidden_size,
        data_digest=digest_of_data(zip(keys, labels, crc, strict=True), distributions),
        num_quarantined=cache.manifest.splits[config.evaluate.split].num_quarantined,
        aspects=cache.aspects,
        record=findings_of(cache),
        label_findings=cache.labels.findings if cache.labels else (),
        distributions=distributions,
        lists=_lists(cache.manifest.answer_forms or answer_forms(load_aspects(config.aspect_definitions))),
        quarantined={name: split.num_quarantined for name, split in cache.manifest.splits.items()},
        dataset_digest=cache.manifest.dataset.digest,
        cache_digest=cache.manifest.index.sha256,
        subset=cache.subset,
        aspect_notes=[
            f"the cache holds no answers to {aspect}, which was defined after it was begun"
            for aspect in cache.unknown_aspects(config.aspects)
        ]
        + _who_answered(cache.origins),
        cache=cache,
        row_of=dict(zip(keys, rows.tolist(), strict=True)),
        num_workers=config.evaluate.num_workers,
        tokens=tokens,
    )


@dataclass
class LiveFeed(Feed):
    """Features from the encoder, applied to the image files now."""

    config: Config
    samples: dict[str, Sample]
    """Those of the split, by key."""
    everything: list[Sample]
    """Those of all splits."""
    trained: frozenset[str] | None = None
    """Keys of the training images that training sees; None for all."""
    now: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    """Bytes and modification time of image files, asked once each; None where there is none."""

    @property
    def live_machine(self) -> dict[str, Any]:
        return self.machine

    def notes(self) -> list[str]:
        if self.config.cache.dir is not None or not self.num_quarantined:
            return super().notes()
        images = "image of the split" if self.num_quarantined == 1 else "images of the split"
        found = [str(finding) for finding in self.label_findings]
        return [*found, f"{self.num_quarantined} {images} cannot be read: not evaluated"]

    def different_answers(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for sample in self.everything:
            for aspect, answer in sample.answers.items():
                found.setdefault(aspect, set()).add(answer)
        return found

    def answers_of(self, key: str) -> Mapping[str, str]:
        return self.samples[key].answers

    def category_counts(self, split: str) -> dict[str, int]:
        images = (sample for sample in self.everything if sample.split == split)
        if split == "train" and (trained := self.trained) is not None:
            images = (sample for sample in images if sample.key in trained)
        return dict(Counter(sample.category for sample in images))

    def annotations(self) -> AnswerTable:
        return AnswerTable.of([self.samples[key].answers for key in self.keys])

    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        image = self.samples[key].image
        if key not in self.now:
            self.now[key] = _source_now(image)
        if source is None or self.now[key] != tuple(source):
            raise InputError(
                f"{image} has changed since it was scored; choose another evaluate.output_dir, or delete the ledgers"
            )

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        """Features of the images that can be read.

        Raises:
            DataError: some cannot; in the end, when all others have been yielded. Or features are not finite; at once.
        """
        samples = [self.samples[key] for key in sorted(keys)]
        bad: list[str] = []
        encoder = Encoder(self.config)
        with encoder.stream(samples, self.config.evaluate.num_workers) as stream:
            for start in range(0, len(samples), batch_size):
                part = [(sample, next(stream)) for sample in samples[start : start + batch_size]]
                good = [(s, image) for s, image in part if not (image.reason or image.failure)]
                bad += [
                    f"{s.image} cannot be read: {reason}"
                    for s, image in part
                    if (reason := image.reason or image.failure)
                ]
                if not good:
                    continue
                features = encoder.encode([image for _, image in good])
                check_finite_features(features, [str(s.image) for s, _ in good], self.config.cache.dtype)
                yield [
                    Item(s.key, f, image.layout, dict(s.answers), None, image.source.size_and_time)
                    for (s, image), f in zip(good, features, strict=True)
                ]
        if bad:
            more = f"; {len(bad)} of {len(samples)} images cannot be read" if bad[1:] else ""
            raise DataError(
                f"{bad[0]}{more}; the others are scored: mend it and run the same command again, or run "
                "`masp extract`, which puts such images into quarantine, and evaluate into another directory"
            )


def _open_live(config: Config) -> LiveFeed:
    model, has_target, stored = model_part(config), config.evaluate.stage == "stage2", None
    if config.cache.dir is None:
        images = open_live(config, model, has_target=has_target)
        dataset, labels, record = images.dataset, images.labels, images.record
        everything, categories, broken = images.samples, images.categories, images.unreadable_keys()
        digest: str | None = images.digest
        subset, chosen_of = images.subset, images.samples
    else:
        digest = None
        dataset = dataset_of(config)
        broken = quarantined_keys(Path(config.cache.dir))
        good = dataset.samples[np.array([key not in broken for key in dataset.samples.keys], dtype=bool)]
        readable = replace(dataset, samples=good)
        seen, labels = label_dataset(config, readable) if has_target else (readable, None)
        everything, categories, record = seen.samples, seen.categories, (dataset if labels is None else seen).record()
        chosen_of = seen.samples
        if has_subset(config.dataset) and not has_target:  # chosen by the categories of the target all the same
            chosen_of = label_dataset(config, readable)[0].samples
        subset = subset_of(config.dataset, chosen_of)
        record = record if subset is None else subset.record(record)
        stored = stored_answers(config, dataset.samples)
    labeled = sorted((s for s in everything if s.category), key=lambda s: s.key)
    if stored is not None:
        labeled = [s.annotated_with(stored.answers_of(s.key) or s.answers) for s in labeled]
    samples = {s.key: s for s in labeled if s.split == config.evaluate.split}
    if not samples:
        raise InputError(no_image(config, str(dataset.root)))
    keys = sorted(samples)
    names = dataset.samples.table.splits
    quarantined = dict.fromkeys(names, 0)
    if broken:
        for key, number in zip(dataset.samples.keys, dataset.samples.split.tolist(), strict=True):
            quarantined[names[number]] += key in broken
    labels_of_keys = [samples[key].category for key in keys]
    distributions = _distributions([samples[key] for key in keys], len(categories))
    return LiveFeed(
        keys=keys,
        labels=labels_of_keys,
        categories=categories,
        model=model,
        machine=machine_part(config).fields,
        hidden_size=family_of(config.vlm.path).hidden_size,
        # not what the files hold: each record says that of its own, so that mending one leaves the others
        data_digest=digest_of_data(zip(keys, labels_of_keys, strict=True), distributions),
        num_quarantined=quarantined[config.evaluate.split],
        aspects=tuple(sorted({aspect for s in (*dataset.samples, *labeled) for aspect in s.answers})),
        record=record,
        label_findings=labels.findings if labels else (),
        distributions=distributions,
        lists=_lists(answer_forms(load_aspects(config.aspect_definitions))),
        quarantined=quarantined,
        dataset_digest=digest,
        aspect_notes=[] if stored is None else _who_answered(stored.origins),
        subset=subset,
        config=config,
        samples=samples,
        everything=labeled,
        trained=None if subset is None else frozenset(chosen_of[subset.is_in].keys),
    )


def no_image(config: Config, where: str) -> str:
    """What is wrong where a split has no image to score."""
    split = shown(config.evaluate.split)
    return f"evaluate.split = {split}: {where} has no image in this split{with_a_label(config.target)}"


def _who_answered(origins: Mapping[str, Origins]) -> list[str]:
    return [f"answers to {aspect}: {found.text}" for aspect, found in origins.items()]


def _lists(forms: Mapping[str, AnswerForm]) -> frozenset[str]:
    """Aspects whose answers are lists."""
    return frozenset(name for name, form in forms.items() if form.kind == "list")


def _distributions(samples: Sequence[Sample], width: int) -> np.ndarray | None:
    """Distributions of samples as the rows of an array, zeros where there is none; None if no sample has one."""
    if all(sample.distribution is None for sample in samples):
        return None
    return np.array([sample.distribution or (0.0,) * width for sample in samples])


def _source_now(image: Location) -> tuple[int, int] | None:
    try:
        status = image_status(image)
        num_bytes = len(read_image_file(image)) if status.num_bytes is None else status.num_bytes
    except (OSError, UnreadableImage):
        return None
    return num_bytes, status.mtime_ns
