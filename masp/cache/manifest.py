"""The manifest of a finished cache, and finishing one: sidecars merged into index, quarantine list and manifest."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from masp.cache.fingerprint import FORMAT_VERSION, CacheDtype, Machine, ModelPart, fingerprint_digest
from masp.cache.index import build_index, save_index
from masp.cache.layout import (
    INDEX,
    MANIFEST,
    QUARANTINE,
    Generation,
    Layout,
    check_version,
    read_layout,
    refuse_other_versions,
    sidecar_path,
)
from masp.cache.shard_state import (
    MAX_SIDECAR_BYTES,
    Sidecar,
    missing_shards,
    remedy,
    sidecars,
    unfinished,
)
from masp.data.keys import SampleKey
from masp.errors import DataError, InputError
from masp.files.atomic import write_bytes
from masp.files.fields import Count, Positive, Sha256, Size
from masp.files.jsonl import decode_lines
from masp.files.regular import exists, is_directory, read_bytes
from masp.files.sealed import canonical_json, digest_file, read_sealed, sealed
from masp.files.typed import encode


@dataclass(frozen=True)
class DatasetId:
    """Which dataset was cached."""

    name: str
    """`dataset.name` of the configuration."""
    digest: Sha256
    """Over key, labels and image digest of every sample."""


@dataclass(frozen=True)
class Fingerprint:
    """What the features depend on."""

    digest: Sha256
    """`fingerprint_digest` of the model part."""
    model: ModelPart
    machine: Machine


@dataclass(frozen=True)
class SplitCounts:
    """How much a split holds."""

    num_shards: Positive
    num_samples: Count
    """Without those in quarantine."""
    num_quarantined: Count
    num_tokens: Size
    categories: dict[str, Positive]
    """Category -> number of samples."""
    aspects: dict[str, Positive]
    """Aspect -> number of samples with an answer."""


@dataclass(frozen=True)
class ShardFile:
    """A shard's files as they were when the cache was finished."""

    name: str
    num_samples: Count
    bytes: Size
    """Size of the tar."""
    sha256: Sha256
    """Digest of the tar."""
    sidecar_sha256: Sha256


@dataclass(frozen=True)
class IndexFile:
    """The index as it was when the cache was finished."""

    bytes: Size
    sha256: Sha256


@dataclass(frozen=True)
class QuarantineFile:
    """The quarantine list as it was when the cache was finished."""

    num_samples: Count
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    """What a finished cache holds and what it was made from: `manifest.json`."""

    format_version: int
    dataset: DatasetId
    fingerprint: Fingerprint
    dtype: CacheDtype
    hidden_size: Positive
    """D."""
    categories: tuple[str, ...]
    """In the order that the dataset gives them."""
    aspects: tuple[str, ...]
    """Those that any sample has an answer for, sorted."""
    splits: dict[str, SplitCounts]
    """Sorted by name."""
    generations: tuple[Generation, ...]
    shards: tuple[ShardFile, ...]
    """In the order of their numbers."""
    index: IndexFile
    quarantine: QuarantineFile

    def __post_init__(self) -> None:
        if self.fingerprint.digest != fingerprint_digest(self.fingerprint.model):
            raise ValueError("must have the digest of its model part")
        if self.dtype != self.fingerprint.model["dtype"]:
            raise ValueError("must have the dtype of its model part")
        if [shard.name for shard in self.shards] != self.layout.shard_names:
            raise ValueError("must list the shards of its generations")
        if not self.num_samples or self.num_samples != sum(shard.num_samples for shard in self.shards):
            raise ValueError("must count as many samples in its splits as in its shards")

    @property
    def layout(self) -> Layout:
        """The layout that the cache was written under."""
        return Layout(
            format_version=self.format_version,
            dataset=self.dataset.name,
            categories=self.categories,
            model=self.fingerprint.model,
            machine=self.fingerprint.machine,
            generations=self.generations,
        )

    @property
    def num_samples(self) -> int:
        """Samples of all splits, without those in quarantine."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def num_tokens(self) -> int:
        """Tokens of all splits."""
        return sum(split.num_tokens for split in self.splits.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class QuarantineLine:
    """A line of the quarantine list: an image that could not be read."""

    key: SampleKey
    path: str
    reason: str


@dataclass
class Summary:
    """Counts and digests over all shards."""

    splits: dict[str, SplitCounts]
    aspects: list[str]
    shards: list[ShardFile]
    dataset_digest: str
    hidden_size: int | None


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished cache.

    Raises:
        InputError: No cache, or an unfinished one.
        DataError: Damaged.
    """
    if not is_directory(directory, key="cache.dir"):
        raise InputError(f"cache.dir: {directory} does not exist; make it with `masp extract`")
    path = directory / MANIFEST
    try:
        manifest = read_sealed(Manifest, path, max_bytes=MAX_SIDECAR_BYTES)
    except DataError as error:
        with contextlib.suppress(DataError):
            refuse_other_versions(path)
        raise DataError(f"{error}; {remedy(directory)}") from None
    if manifest is not None:
        check_version(path, manifest.format_version)
        return manifest
    layout = read_layout(directory)
    if layout is None:
        raise InputError(f"cache.dir: {directory} is not a feature cache; make one with `masp extract`")
    missing = missing_shards(directory, layout)
    if not missing:
        raise InputError(f"cache.dir: {directory} has all its shards but no manifest; `masp extract` again finishes it")
    raise unfinished(directory, missing, len(layout.shard_names))


def finalize(directory: Path, layout: Layout) -> Manifest:
    """Write `index.h5`, `quarantine.jsonl` and, last, `manifest.json`; returns the manifest.

    Each is a pure function of the sidecars and the layout. The caller holds the cache's lock.

    Raises:
        InputError: Shards are missing, named.
        DataError: No image at all could be read.
    """
    summary = summarize(directory, layout)
    if summary.hidden_size is None:
        raise DataError(f"cache.dir: {directory}: not one image could be read; see {directory / QUARANTINE}")
    index_path = directory / INDEX
    index = build_index(sidecars(directory, layout), list(summary.splits), layout.categories, summary.aspects)
    save_index(index_path, index)
    quarantine = write_quarantine(directory, sidecars(directory, layout))
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
        index=IndexFile(index_path.stat().st_size, digest_file(index_path)),
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


def summarize(directory: Path, layout: Layout) -> Summary:
    """Counts and digests over all shards, read one sidecar at a time.

    Raises:
        InputError: Shards are missing, named.
    """
    splits: dict[str, _Counting] = {}
    shards: list[ShardFile] = []
    hidden_size = None
    contents: list[tuple[str, bytes]] = []
    for sidecar in sidecars(directory, layout):
        split = splits.setdefault(sidecar.split, _Counting())
        split.num_shards += 1
        split.num_samples += len(sidecar.samples)
        split.num_quarantined += len(sidecar.quarantined)
        for sample in sidecar.samples:
            split.num_tokens += sample.num_tokens
            split.categories[sample.category] = split.categories.get(sample.category, 0) + 1
            for aspect in sample.answers:
                split.aspects[aspect] = split.aspects.get(aspect, 0) + 1
        for entry in sidecar.entries:
            content = [entry.category, entry.answers, entry.source.sha256]
            contents.append((entry.key, hashlib.sha256(canonical_json(content)).digest()))
        if sidecar.samples:
            hidden_size = sidecar.hidden_size
        digest = digest_file(sidecar_path(directory, sidecar.name))
        shards.append(ShardFile(sidecar.name, len(sidecar.samples), sidecar.tar.bytes, sidecar.tar.sha256, digest))
    dataset = hashlib.sha256()
    for key, content_digest in sorted(contents):
        dataset.update(key.encode() + b"\0" + content_digest)
    return Summary(
        splits={name: SplitCounts(**vars(splits[name])) for name in sorted(splits)},
        aspects=sorted({aspect for split in splits.values() for aspect in split.aspects}),
        shards=shards,
        dataset_digest=dataset.hexdigest(),
        hidden_size=hidden_size,
    )


def write_quarantine(directory: Path, sidecars: Iterable[Sidecar]) -> QuarantineFile:
    """Write `quarantine.jsonl`, one line per image that could not be read; returns its count and digest."""
    lines = [
        encode(QuarantineLine(entry.key, entry.path, entry.reason)) + b"\n"
        for sidecar in sidecars
        for entry in sidecar.quarantined
    ]
    text = b"".join(lines)
    write_bytes(directory / QUARANTINE, text)
    return QuarantineFile(len(lines), hashlib.sha256(text).hexdigest())


def quarantined_keys(directory: Path) -> set[str]:
    """Keys that extraction put into quarantine, if there was one: what cannot be read is not evaluated either.

    Raises:
        DataError: The list is damaged.
        InputError: It cannot be read.
    """
    path = directory / QUARANTINE
    data = read_bytes(path, key="cache.dir")
    if data is None:
        return set()
    damaged = "; `masp cache verify` says what else is damaged"
    if exists(directory / MANIFEST):
        if hashlib.sha256(data).hexdigest() != read_manifest(directory).quarantine.sha256:
            raise DataError(f"{path} is damaged: its digest is not the manifest's{damaged}")
    elif data and not data.endswith(b"\n"):
        raise DataError(f"{path} is damaged: it is cut short{damaged}")
    return {line.key for line in decode_lines(QuarantineLine, data, str(path), surrogates=True)}
