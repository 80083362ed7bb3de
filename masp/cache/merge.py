"""Finishing a cache: the sidecars of all shards, each read once, become index, quarantine list and manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from masp.cache.fingerprint import FORMAT_VERSION, fingerprint_digest
from masp.cache.index import Index, join_columns, save_index, shard_columns
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
from masp.cache.shard_state import Sidecar, absent_shards, digested_sidecar, finished_sidecars, unfinished
from masp.data.answer_table import AnswerTable, save_answers
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.sealed import canonical_json, digest_file, sealed
from masp.files.typed import encode


@dataclass
class Summary:
    """Counts and digests over all shards."""

    splits: dict[str, SplitCounts]
    aspects: list[str]
    shards: list[ShardFile]
    dataset_digest: str
    hidden_size: int | None


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


class Merged:
    """Sidecars merged into what index, quarantine list and manifest hold, one after another.

    A sidecar's samples become arrays before the next one is read: millions of them would take gigabytes as objects.
    """

    def __init__(self, layout: Layout):
        """Nothing merged yet of the cache with this layout."""
        self._splits = {name: _Counting() for name in sorted({split_of(name) for name in layout.shard_names})}
        self._split_numbers = {name: number for number, name in enumerate(self._splits)}
        self._categories = {category: number for number, category in enumerate(layout.categories)}
        self._bits: dict[str, int] = {}
        self._columns: dict[str, list[np.ndarray]] = {}
        self._contents: list[bytes] = []
        self._shards: list[ShardFile] = []
        self._hidden_size: int | None = None
        self.quarantine: list[bytes] = []
        """Lines of the quarantine list."""
        self.answers: list[AnswerTable] = []
        """Annotated answers of each shard's samples."""

    def add(self, sidecar: Sidecar, digest: str) -> None:
        """Merge the sidecar of the next shard, in the order of their numbers; `digest` is the SHA-256 of its file.

        Raises:
            DataError: It has a category that the layout does not list.
        """
        split = self._splits[sidecar.split]
        split.num_shards += 1
        split.num_samples += len(sidecar.samples)
        split.num_quarantined += len(sidecar.quarantined)
        split.num_tokens += sum([sample.num_tokens for sample in sidecar.samples])
        _count(split.categories, [sample.category for sample in sidecar.samples])
        _count(split.aspects, [aspect for sample in sidecar.samples for aspect in sample.answers])
        for aspect in split.aspects:
            self._bits.setdefault(aspect, 1 << len(self._bits))
        for entry in sidecar.entries:
            content = canonical_json([entry.category, entry.answers, entry.source.sha256])
            self._contents.append(entry.key.encode() + b"\0" + hashlib.sha256(content).digest())
        self.quarantine += quarantine_lines(sidecar)
        self.answers.append(shard_answers(sidecar))
        if sidecar.samples:
            self._hidden_size = sidecar.hidden_size
        tar, number = sidecar.tar, len(self._shards)
        self._shards.append(ShardFile(sidecar.name, len(sidecar.samples), tar.bytes, tar.sha256, digest))
        columns = shard_columns(sidecar, number, self._split_numbers[sidecar.split], self._categories, self._bits)
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def summary(self) -> Summary:
        """Counts and digests over all shards."""
        # a key has no byte below that of its end, so this is the order of the keys
        self._contents.sort()
        dataset = hashlib.sha256()
        for content in self._contents:
            dataset.update(content)
        self._contents.clear()
        return Summary(
            splits={name: SplitCounts(**vars(counts)) for name, counts in self._splits.items()},
            aspects=sorted(self._bits),
            shards=self._shards,
            dataset_digest=dataset.hexdigest(),
            hidden_size=self._hidden_size,
        )

    def index(self, aspects: Sequence[str]) -> Index:
        """The index, whose bit `i` of `aspects` stands for `aspects[i]`; uses up the columns."""
        for values in self._columns["aspects"]:
            found, values[:] = values.copy(), 0
            for number, aspect in enumerate(aspects):
                values |= np.where(found & np.uint64(self._bits[aspect]), np.uint64(1 << number), np.uint64(0))
        return join_columns(self._columns)


def shard_answers(sidecar: Sidecar) -> AnswerTable:
    """Annotated answers of one shard's samples."""
    return AnswerTable.of([sample.answers for sample in sidecar.samples])


def add_answers(directory: Path, layout: Layout, index_digest: str) -> None:
    """Write `answers.safetensors` of a finished cache that has none, as those of earlier versions."""
    tables = [shard_answers(sidecar) for sidecar in finished_sidecars(directory, layout)]
    save_answers(directory, index_digest, AnswerTable.join(tables))


def _count(counts: dict[str, int], names: list[str]) -> None:
    for name, number in Counter(names).items():
        counts[name] = counts.get(name, 0) + number


def merge_sidecars(directory: Path, layout: Layout, examine: Callable[[int, Sidecar], object] | None = None) -> Merged:
    """Read the sidecars of all shards, each once, and merge them; nothing is written.

    Args:
        directory: Directory of the cache.
        layout: Layout of the cache.
        examine: Called with the number and sidecar of each shard before it is merged.

    Raises:
        UnfinishedCache: Shards are missing; counts and names them.
        DataError: A sidecar has a category that the layout does not list.
    """
    names = layout.shard_names
    missing = absent_shards(directory, layout)
    merged = Merged(layout)
    for number, name in enumerate(names if not missing else ()):
        found = digested_sidecar(directory, name, layout)
        if found is None:
            missing.append(name)
        elif not missing:
            if examine:
                examine(number, found[0])
            merged.add(*found)
    if missing:
        raise unfinished(directory, missing, len(names))
    return merged


def quarantine_lines(sidecar: Sidecar) -> list[bytes]:
    """Lines of the quarantine list, one per image of a shard that could not be read."""
    return [encode(QuarantineLine(entry.key, entry.path, entry.reason)) + b"\n" for entry in sidecar.quarantined]


def write_quarantine(directory: Path, sidecars: Iterable[Sidecar]) -> QuarantineFile:
    """Write `quarantine.jsonl`, one line per image that could not be read; returns its count and digest."""
    return _write_quarantine(directory, [line for sidecar in sidecars for line in quarantine_lines(sidecar)])


def _write_quarantine(directory: Path, lines: list[bytes]) -> QuarantineFile:
    text = b"".join(lines)
    write_bytes(directory / QUARANTINE, text)
    return QuarantineFile(len(lines), hashlib.sha256(text).hexdigest())
