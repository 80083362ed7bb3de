"""Finishing a cache: the sidecars of all shards, each read once, become index, quarantine list and manifest."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from masp.cache.fingerprint import FORMAT_VERSION, fingerprint_digest
from masp.cache.index import Columns, Index, join_columns, save_index, shard_columns
from masp.cache.layout import INDEX, MANIFEST, QUARANTINE, Layout, split_of
from masp.cache.manifest import (
    DatasetId,
    Fingerprint,
    IndexFile,
    Manifest,
    QuarantineFile,
    QuarantineLine,
    ShardFile,
    SplitCounts,
)
from masp.cache.shard_state import (
    Sidecar,
    SidecarFingerprint,
    absent_shards,
    digested_sidecar,
    fingerprint_of,
    map_shards,
    map_sidecars,
    unfinished,
)
from masp.data.answer_table import AnswerTable, save_answers
from masp.data.findings import Contents, Finding, content_findings
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.sealed import canonical_json, digest_file, sealed
from masp.files.typed import encode

E = TypeVar("E")
X = TypeVar("X")


@dataclass
class Summary:
    """Counts and digests over all shards."""

    splits: dict[str, SplitCounts]
    aspects: list[str]
    shards: list[ShardFile]
    dataset_digest: str
    hidden_size: int | None
    num_deep_maps: int | None


def finalize(directory: Path, layout: Layout, merged: Merged | None = None) -> Manifest:
    """Write `index.h5`, `answers.safetensors`, `quarantine.jsonl` and, last, `manifest.json`; returns the manifest.

    Each is a pure function of the sidecars and the layout. The caller holds the cache's lock.

    Args:
        directory: Directory of the cache.
        layout: Layout of the cache.
        merged: All its sidecars, if they have been merged already; its columns are used up.

    Raises:
        InputError: Shards are missing, named.
        DataError: No image at all could be read.
    """
    merged = merged or merge_sidecars(directory, layout)
    summary = merged.summary()
    if summary.hidden_size is None:
        raise DataError(f"cache.dir: {directory}: not one image could be read; see {directory / QUARANTINE}")
    index_path = directory / INDEX
    save_index(index_path, merged.index(summary.aspects))
    index = IndexFile(index_path.stat().st_size, digest_file(index_path))
    save_answers(directory, index.sha256, AnswerTable.join(merged.answers))
    quarantine = _write_quarantine(directory, merged.quarantine)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset=DatasetId(layout.dataset, summary.dataset_digest),
        fingerprint=Fingerprint(fingerprint_digest(layout.model), layout.model, layout.machine),
        dtype=layout.model["dtype"],
        hidden_size=summary.hidden_size,
        categories=layout.categories,
        aspects=tuple(summary.aspects),
        splits=summary.splits,
        generations=layout.generations,
        shards=tuple(summary.shards),
        index=index,
        quarantine=quarantine,
        num_deep_maps=summary.num_deep_maps,
    )
    write_bytes(directory / MANIFEST, sealed(manifest, omit_none=True))
    return manifest


@dataclass
class _Counting:
    """`SplitCounts` in the making."""

    num_shards: int = 0
    num_samples: int = 0
    num_quarantined: int = 0
    num_tokens: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    aspects: dict[str, int] = field(default_factory=dict)
    num_distributions: int = 0

    def add(self, other: _Counting) -> None:
        """Count those of a shard too."""
        self.num_shards += other.num_shards
        self.num_samples += other.num_samples
        self.num_quarantined += other.num_quarantined
        self.num_tokens += other.num_tokens
        self.num_distributions += other.num_distributions
        for mine, more in ((self.categories, other.categories), (self.aspects, other.aspects)):
            for name, number in more.items():
                mine[name] = mine.get(name, 0) + number

    def counts(self) -> SplitCounts:
        """As the manifest has them."""
        return SplitCounts(**{**vars(self), "num_distributions": self.num_distributions or None})


@dataclass
class _Summary:
    """What the merge needs of a shard, made in the process that reads its sidecar."""

    shard: ShardFile
    hidden_size: int | None
    """None where no image of the shard could be read."""
    num_deep_maps: int | None
    counts: _Counting
    aspects: list[str]
    """Those that the bits of its column stand for."""
    columns: Columns
    contents: list[bytes]
    """Per entry its key, a null byte, and the digest of its labels and image."""
    sources: np.ndarray
    """`[entries, 32]` uint8: the digest of each image file, zeros where it could not be read."""
    categories: list[str]
    """Of each entry."""
    quarantine: list[bytes]
    """Lines of the quarantine list."""
    answers: AnswerTable
    examined: Any
    """What `examine` returned."""


def _summarize(sidecar: Sidecar, digest: str, split: int, categories: Mapping[str, int]) -> _Summary:
    """Prepare the sidecar of a shard for merging.

    Raises:
        DataError: It has a category that the layout does not list.
    """
    samples, entries, tar = sidecar.samples, sidecar.entries, sidecar.tar
    counts = _Counting(1, len(samples), len(sidecar.quarantined), sum([sample.num_tokens for sample in samples]))
    counts.num_distributions = sum([sample.distribution is not None for sample in samples])
    counts.categories = dict(Counter([sample.category for sample in samples]))
    counts.aspects = dict(Counter([aspect for sample in samples for aspect in sample.answers]))
    bits = {aspect: 1 << number for number, aspect in enumerate(counts.aspects)}
    contents = [
        content_of(entry.key, entry.category, entry.answers, entry.source.sha256, entry.distribution)
        for entry in entries
    ]
    sources = bytes.fromhex("".join([entry.source.sha256 or _NO_DIGEST for entry in entries]))
    return _Summary(
        shard=ShardFile(sidecar.name, len(samples), tar.bytes, tar.sha256, digest),
        hidden_size=sidecar.hidden_size if samples else None,
        num_deep_maps=sidecar.num_deep_maps,
        counts=counts,
        aspects=list(bits),
        columns=shard_columns(sidecar, 0, split, categories, bits),
        contents=contents,
        sources=np.frombuffer(sources, dtype=np.uint8).reshape(-1, 32),
        categories=[entry.category for entry in entries],
        quarantine=quarantine_lines(sidecar),
        answers=shard_answers(sidecar),
        examined=None,
    )


def content_of(
    key: str,
    category: str,
    answers: Mapping[str, str],
    sha256: str | None,
    distribution: tuple[float, ...] | None,
) -> bytes:
    """A sample as the digest of its dataset sees it: its key, a null byte, and the digest of its labels and image.

    Args:
        key: Sample key.
        category: Its category.
        answers: Aspect -> answer.
        sha256: Digest of the image file; None if not a byte of it could be read.
        distribution: Probability of each category; None if it has only a label.
    """
    # only where there is one, so that the digest of a dataset with labels alone stays what it was
    votes = [] if distribution is None else [distribution]
    return key.encode() + b"\0" + hashlib.sha256(canonical_json([category, answers, sha256, *votes])).digest()


def dataset_digest(contents: list[bytes]) -> str:
    """Digest of a dataset, which its manifest holds; sorts what `content_of` made of its samples."""
    contents.sort()  # a key has no byte below that of its end, so this is the order of the keys
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


_NO_DIGEST = "0" * 64


class Merged:
    """Sidecars merged into what index, quarantine list and manifest hold, one after another.

    A sidecar's samples become arrays before the next one is read: millions of them would take gigabytes as objects.
    """

    def __init__(self, layout: Layout):
        """Nothing merged yet of the cache with this layout."""
        self._splits = {name: _Counting() for name in sorted({split_of(name) for name in layout.shard_names})}
        self.split_numbers = {name: number for number, name in enumerate(self._splits)}
        """Split -> its number."""
        self._categories = {category: number for number, category in enumerate(layout.categories)}
        self._aspects: list[list[str]] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._contents: list[bytes] = []
        self._sources: list[np.ndarray] = []
        self._entry_splits: list[np.ndarray] = []
        self._entry_categories: list[np.ndarray] = []
        self._shards: list[ShardFile] = []
        self._hidden_size: int | None = None
        self._num_deep_maps: int | None = None
        self.quarantine: list[bytes] = []
        """Lines of the quarantine list."""
        self.answers: list[AnswerTable] = []
        """Annotated answers of each shard's samples."""

    def add(self, shard: _Summary) -> None:
        """Merge the next shard, in the order of their numbers.

        Raises:
            DataError: It has another number of deep maps than others.
        """
        name = split_of(shard.shard.name)
        self._splits[name].add(shard.counts)
        self._contents += shard.contents
        self._sources.append(shard.sources)
        numbers = [self._categories.setdefault(category, len(self._categories)) for category in shard.categories]
        self._entry_categories.append(np.array(numbers, dtype=np.int32))
        self._entry_splits.append(np.full(len(numbers), self.split_numbers[name], dtype=np.uint8))
        self.quarantine += shard.quarantine
        self.answers.append(shard.answers)
        if shard.hidden_size is not None:
            if self._hidden_size is not None and shard.num_deep_maps != self._num_deep_maps:
                raise DataError(
                    f"sidecar {shard.shard.name}: num_deep_maps = {shard.num_deep_maps}, "
                    f"but {self._num_deep_maps} in the shards before it"
                )
            self._hidden_size, self._num_deep_maps = shard.hidden_size, shard.num_deep_maps
        shard.columns["shard"][:] = len(self._shards)
        self._shards.append(shard.shard)
        self._aspects.append(shard.aspects)
        for name, values in shard.columns.items():
            self._columns.setdefault(name, []).append(values)

    def content_findings(self) -> list[Finding]:
        """Images that are there twice, byte for byte; to be called once, before `summary`, which uses up the keys."""
        digests = np.concatenate(self._sources)
        self._sources.clear()
        known = np.flatnonzero(digests.any(1))
        contents = Contents(
            digests[known],
            np.concatenate(self._entry_splits)[known],
            np.concatenate(self._entry_categories)[known],
            list(self._splits),
            lambda place: self._contents[known[place]][:-33].decode(),
        )
        return content_findings(contents)

    def summary(self) -> Summary:
        """Counts and digests over all shards."""
        digest = dataset_digest(self._contents)
        self._contents.clear()
        return Summary(
            splits={name: counts.counts() for name, counts in self._splits.items()},
            aspects=sorted({aspect for aspects in self._aspects for aspect in aspects}),
            shards=self._shards,
            dataset_digest=digest,
            hidden_size=self._hidden_size,
            num_deep_maps=self._num_deep_maps,
        )

    def index(self, aspects: Sequence[str]) -> Index:
        """The index, whose bit `i` of `aspects` stands for `aspects[i]`; uses up the columns."""
        final = {aspect: np.uint64(1 << number) for number, aspect in enumerate(aspects)}
        for values, local in zip(self._columns["aspects"], self._aspects, strict=True):
            found, values[:] = values.copy(), 0
            for number, aspect in enumerate(local):
                values |= np.where(found & np.uint64(1 << number), final[aspect], np.uint64(0))
        return join_columns(self._columns)


def shard_answers(sidecar: Sidecar) -> AnswerTable:
    """Annotated answers of one shard's samples."""
    return AnswerTable.of([sample.answers for sample in sidecar.samples])


def add_answers(directory: Path, layout: Layout, index_digest: str) -> None:
    """Write `answers.safetensors` of a finished cache that has none, as those of earlier versions."""
    tables = [table for table in map_sidecars(shard_answers, directory, layout) if table is not None]
    save_answers(directory, index_digest, AnswerTable.join(tables))


def merge_sidecars(
    directory: Path,
    layout: Layout,
    examine: Callable[[E, Sidecar], X] | None = None,
    shards: Sequence[E | None] = (),
    accept: Callable[[X], object] | None = None,
) -> Merged:
    """Read the sidecars of all shards, each once, and merge them; nothing is written.

    Args:
        directory: Directory of the cache.
        layout: Layout of the cache.
        examine: Called with the element of `shards` of a finished shard and its sidecar, maybe in another process.
        shards: Per shard what to examine it with; None where it is not examined.
        accept: Called with each result of `examine` before the shard is merged, in the order of the shards.

    Raises:
        UnfinishedCache: Shards are missing; counts and names them.
        DataError: A sidecar has a category that the layout does not list.
    """
    names = layout.shard_names
    missing = absent_shards(directory, layout)
    merged = Merged(layout)
    categories = {category: number for number, category in enumerate(layout.categories)}
    read = functools.partial(_read, directory, fingerprint_of(layout), merged.split_numbers, categories, examine)
    todo = list(zip(names, shards or [None] * len(names), strict=True)) if not missing else []
    for (name, shard), found in zip(todo, map_shards(read, todo), strict=True):
        if found is None:
            missing.append(name)
        elif not missing:
            if shard is not None and accept:
                accept(found.examined)
            merged.add(found)
    if missing:
        raise unfinished(directory, missing, len(names))
    return merged


def _read(
    directory: Path,
    fingerprint: SidecarFingerprint,
    splits: Mapping[str, int],
    categories: Mapping[str, int],
    examine: Callable[[Any, Sidecar], Any] | None,
    todo: tuple[str, Any],
) -> _Summary | None:
    """Read the sidecar of a shard; None if the shard is not finished."""
    name, shard = todo
    found = digested_sidecar(directory, name, fingerprint)
    if found is None:
        return None
    examined = examine(shard, found[0]) if examine and shard is not None else None
    summary = _summarize(*found, splits[found[0].split], categories)
    summary.examined = examined
    return summary


def quarantine_lines(sidecar: Sidecar) -> list[bytes]:
    """Lines of the quarantine list, one per image of a shard that could not be read."""
    return [encode(QuarantineLine(entry.key, entry.path, entry.reason)) + b"\n" for entry in sidecar.quarantined]


def write_quarantine(directory: Path, layout: Layout) -> QuarantineFile:
    """Write `quarantine.jsonl`, one line per image that could not be read so far; returns its count and digest."""
    found = map_sidecars(quarantine_lines, directory, layout)
    return _write_quarantine(directory, [line for lines in found for line in lines or ()])


def _write_quarantine(directory: Path, lines: list[bytes]) -> QuarantineFile:
    text = b"".join(lines)
    write_bytes(directory / QUARANTINE, text)
    return QuarantineFile(len(lines), hashlib.sha256(text).hexdigest())
