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
from masp.cache.index import Columns, Index, IndexColumns, save_index, shard_columns
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
    QuarantineEntry,
    SampleEntry,
    Sidecar,
    SidecarFingerprint,
    absent_shards,
    digested_sidecar,
    fingerprint_of,
    map_shards,
    map_sidecars,
    unfinished,
)
from masp.data.answer_table import AnswerTable, JoinedAnswers, save_answers
from masp.data.findings import Contents, Finding, content_findings
from masp.data.keys import key_order
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.sealed import canonical_json, digest_file, sealed
from masp.files.typed import encode
from masp.runtime.growing_array import GrowingArray

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
    save_answers(directory, index.sha256, merged.answers.table())
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
        answer_forms=layout.answer_forms,
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


@dataclass(frozen=True)
class _Quarantined:
    """What the merge needs of an image that could not be read."""

    key: bytes
    category: str
    content: bytes
    """Digest of labels and image, 32 bytes."""
    source: bytes
    """Digest of the image file, 32 bytes: zeros where not even that could be read."""


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
    digests: np.ndarray
    """`[num_samples, 2, 32]` uint8: of each sample the digest of labels and image, and that of the image file."""
    quarantined: list[_Quarantined]
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
    samples, tar = sidecar.samples, sidecar.tar
    counts = _Counting(1, len(samples), len(sidecar.quarantined), sum([sample.num_tokens for sample in samples]))
    counts.num_distributions = sum([sample.distribution is not None for sample in samples])
    counts.categories = dict(Counter([sample.category for sample in samples]))
    counts.aspects = dict(Counter([aspect for sample in samples for aspect in sample.answers]))
    bits = {aspect: 1 << number for number, aspect in enumerate(counts.aspects)}
    digests = b"".join([part for sample in samples for part in _digests(sample)])
    return _Summary(
        shard=ShardFile(sidecar.name, len(samples), tar.bytes, tar.sha256, digest),
        hidden_size=sidecar.hidden_size if samples else None,
        num_deep_maps=sidecar.num_deep_maps,
        counts=counts,
        aspects=list(bits),
        columns=shard_columns(sidecar, 0, split, categories, bits),
        digests=np.frombuffer(digests, dtype=np.uint8).reshape(-1, 2, 32),
        quarantined=[_Quarantined(e.key.encode(), e.category, *_digests(e)) for e in sidecar.quarantined],
        quarantine=quarantine_lines(sidecar),
        answers=shard_answers(sidecar),
        examined=None,
    )


def content_of(
    category: str, answers: Mapping[str, str], sha256: str | None, distribution: tuple[float, ...] | None
) -> bytes:
    """A sample as the digest of its dataset sees it beside its key: the digest of its labels and image, 32 bytes.

    Args:
        category: Its category.
        answers: Aspect -> answer.
        sha256: Digest of the image file; None if not a byte of it could be read.
        distribution: Probability of each category; None if it has only a label.
    """
    # only where there is one, so that the digest of a dataset with labels alone stays what it was
    votes = [] if distribution is None else [distribution]
    return hashlib.sha256(canonical_json([category, answers, sha256, *votes])).digest()


def dataset_digest(text: np.ndarray, offsets: np.ndarray, contents: np.ndarray) -> str:
    """Digest of a dataset, which its manifest holds: over key, a null byte, and content, of all samples by their keys.

    Args:
        text: All sample keys as one run of bytes, uint8.
        offsets: Where each starts in it, int64 `[N + 1]`.
        contents: What `content_of` made of each sample, uint8 `[N, 32]`.
    """
    keys, dataset = np.ascontiguousarray(text).data, hashlib.sha256()
    order = key_order(text, offsets)
    for start in range(0, len(order), _DIGESTED_TOGETHER):
        rows = order[start : start + _DIGESTED_TOGETHER]
        starts, stops, found = offsets[rows].tolist(), offsets[rows + 1].tolist(), contents[rows].tobytes()
        parts = [
            part
            for n, (begin, end) in enumerate(zip(starts, stops, strict=True))
            for part in (keys[begin:end], b"\0", found[32 * n : 32 * n + 32])
        ]
        dataset.update(b"".join(parts))
    return dataset.hexdigest()


_DIGESTED_TOGETHER = 1 << 11
_NO_DIGEST = "0" * 64


def _digests(entry: SampleEntry | QuarantineEntry) -> tuple[bytes, bytes]:
    """Digest of an entry's labels and image, and that of its image file."""
    content = content_of(entry.category, entry.answers, entry.source.sha256, entry.distribution)
    return content, bytes.fromhex(entry.source.sha256 or _NO_DIGEST)


class Merged:
    """Sidecars merged into what index, quarantine list and manifest hold, one after another.

    A sidecar's samples become rows of arrays before the next one is read: millions of them would take gigabytes as
    objects.
    """

    def __init__(self, layout: Layout):
        """Nothing merged yet of the cache with this layout."""
        self._splits = {name: _Counting() for name in sorted({split_of(name) for name in layout.shard_names})}
        self.split_numbers = {name: number for number, name in enumerate(self._splits)}
        """Split -> its number."""
        self._categories = {category: number for number, category in enumerate(layout.categories)}
        num_samples = sum(layout.num_samples.values())
        self._columns = IndexColumns(num_samples)
        self._bits: dict[str, int] = {}
        """Aspect -> the number of its bit in the columns, in order of appearance."""
        self._contents = GrowingArray(np.uint8, num_samples, (32,))
        self._sources: GrowingArray | None = GrowingArray(np.uint8, num_samples, (32,))
        self._quarantined: list[_Quarantined] = []
        self._quarantined_splits: list[int] = []
        self._shards: list[ShardFile] = []
        self._hidden_size: int | None = None
        self._num_deep_maps: int | None = None
        self.quarantine: list[bytes] = []
        """Lines of the quarantine list."""
        self.answers = JoinedAnswers(num_samples)
        """Annotated answers of the samples."""

    def add(self, shard: _Summary) -> None:
        """Merge the next shard, in the order of their numbers.

        Raises:
            DataError: It has another number of deep maps than others.
        """
        name = split_of(shard.shard.name)
        self._splits[name].add(shard.counts)
        assert self._sources is not None, "the digests of image files have been used up"
        self._contents.extend(shard.digests[:, 0])
        self._sources.extend(shard.digests[:, 1])
        self._quarantined += shard.quarantined
        self._quarantined_splits += [self.split_numbers[name]] * len(shard.quarantined)
        self.quarantine += shard.quarantine
        self.answers.add(shard.answers)
        if shard.hidden_size is not None:
            if self._hidden_size is not None and shard.num_deep_maps != self._num_deep_maps:
                raise DataError(
                    f"sidecar {shard.shard.name}: num_deep_maps = {shard.num_deep_maps}, "
                    f"but {self._num_deep_maps} in the shards before it"
                )
            self._hidden_size, self._num_deep_maps = shard.hidden_size, shard.num_deep_maps
        shard.columns["shard"][:] = len(self._shards)
        bits = [self._bits.setdefault(aspect, len(self._bits)) for aspect in shard.aspects]
        shard.columns["aspects"] = _moved_bits(shard.columns["aspects"], bits)
        self._shards.append(shard.shard)
        self._columns.add(shard.columns)

    def content_findings(self) -> list[Finding]:
        """Images that are there twice, byte for byte; to be called once, as it frees the digests of image files."""
        assert self._sources is not None, "the digests of image files have been used up"
        index, more, sources = self._columns.index(), self._quarantined, self._sources.values
        self._sources = None
        numbers = [self._categories.setdefault(each.category, len(self._categories)) for each in more]
        contents = Contents(
            _with(sources, np.frombuffer(b"".join([e.source for e in more]), dtype=np.uint8)),
            _with(index.split, np.array(self._quarantined_splits, dtype=np.uint8)),
            _with(index.category, np.array(numbers, dtype=np.int32)),
            list(self._splits),
            lambda place: index.keys[place] if place < len(index) else more[place - len(index)].key.decode(),
        )
        return content_findings(contents)

    def summary(self) -> Summary:
        """Counts and digests over all shards."""
        return Summary(
            splits={name: counts.counts() for name, counts in self._splits.items()},
            aspects=sorted(self._bits),
            shards=self._shards,
            dataset_digest=self._dataset_digest(),
            hidden_size=self._hidden_size,
            num_deep_maps=self._num_deep_maps,
        )

    def _dataset_digest(self) -> str:
        """Digest over key, a null byte, and digest of labels and image, of all samples in the order of their keys."""
        index, more = self._columns.index(), self._quarantined
        text = _with(index.key_text, np.frombuffer(b"".join([e.key for e in more]), dtype=np.uint8))
        ends = len(index.key_text) + np.cumsum([len(e.key) for e in more], dtype=np.int64)
        offsets = _with(index.key_offsets, ends)
        contents = _with(self._contents.values, np.frombuffer(b"".join([e.content for e in more]), dtype=np.uint8))
        return dataset_digest(text, offsets, contents)

    def index(self, aspects: Sequence[str]) -> Index:
        """The index, whose bit `i` of `aspects` stands for `aspects[i]`; to be called once, in the end."""
        index = self._columns.index()
        index.aspects[:] = _moved_bits(index.aspects, [aspects.index(aspect) for aspect in self._bits])
        return index


def _with(values: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Values of all samples with those of the images in quarantine behind them; mostly there are none."""
    return np.concatenate([values, more.reshape(-1, *values.shape[1:])]) if len(more) else values


def _moved_bits(values: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """Bit fields, uint64, whose bit `i` becomes bit `bits[i]`."""
    found = np.zeros_like(values)
    for number, bit in enumerate(bits):
        found |= (values >> np.uint64(number) & np.uint64(1)) << np.uint64(bit)
    return found


def shard_answers(sidecar: Sidecar) -> AnswerTable:
    """Annotated answers of one shard's samples."""
    return AnswerTable.of([sample.answers for sample in sidecar.samples])


def add_answers(directory: Path, layout: Layout, index_digest: str) -> None:
    """Write `answers.safetensors` of a finished cache that has none, as those of earlier versions."""
    joined = JoinedAnswers(sum(layout.num_samples.values()))
    for table in map_sidecars(shard_answers, directory, layout):
        if table is not None:
            joined.add(table)
    save_answers(directory, index_digest, joined.table())


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
