"""The manifest of a finished cache: what the cache holds and what it was made from."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from masp.cache.fingerprint import CacheDtype, Machine, ModelPart, fingerprint_digest
from masp.cache.layout import (
    MANIFEST,
    QUARANTINE,
    Generation,
    Layout,
    check_version,
    read_layout,
    refuse_other_versions,
)
from masp.cache.shard_state import MAX_SIDECAR_BYTES, absent_shards, missing_shards, remedy, unfinished
from masp.data.answers import AnswerForm
from masp.data.keys import SampleKey
from masp.errors import DataError, InputError
from masp.files.fields import OMIT_NONE, Count, DatasetOf, Positive, Sha256, Size, SplitOf
from masp.files.jsonl import decode_lines
from masp.files.regular import exists, is_directory, is_file, read_bytes
from masp.files.sealed import read_sealed


@dataclass(frozen=True)
class DatasetId:
    """Which dataset was cached."""

    name: DatasetOf
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
    num_distributions: Annotated[Positive | None, OMIT_NONE] = None
    """Samples with a distribution over the categories; None if there are none."""


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
    splits: dict[SplitOf, SplitCounts]
    """Sorted by name."""
    generations: tuple[Generation, ...]
    shards: tuple[ShardFile, ...]
    """In the order of their numbers."""
    index: IndexFile
    quarantine: QuarantineFile
    num_deep_maps: Annotated[Positive | None, OMIT_NONE] = None
    """K; None if the VLM has no DeepStack."""
    answer_forms: Annotated[dict[str, AnswerForm] | None, OMIT_NONE] = None
    """See `Layout.answer_forms`."""

    def __post_init__(self) -> None:
        if self.fingerprint.digest != fingerprint_digest(self.fingerprint.model):
            raise ValueError("must have the digest of its model part")
        if self.dtype != self.fingerprint.model["dtype"]:
            raise ValueError("must have the dtype of its model part")
        if [shard.name for shard in self.shards] != self.layout.shard_names:
            raise ValueError("must list the shards of its generations")
        if not self.num_samples or self.num_samples != sum(shard.num_samples for shard in self.shards):
            raise ValueError("must count as many samples in its splits as in its shards")
        if self.answer_forms is not None and not self.answer_forms.keys() >= set(self.aspects):
            raise ValueError("must have the form of the answers to each of its aspects")

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
            answer_forms=self.answer_forms,
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


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished cache.

    Raises:
        InputError: No cache, or an unfinished one.
        DataError: Damaged.
    """
    if not is_directory(directory, key="cache.dir"):
        if is_file(directory):
            raise InputError(f"cache.dir: {directory} is a file; name the directory that `masp extract` made")
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
    missing = absent_shards(directory, layout) or missing_shards(directory, layout)
    if not missing:
        raise InputError(
            f"cache.dir: {directory} has all its shards but no manifest; `masp extract` again finishes it; where it is "
            "fetched, `masp cache pull` again"
        )
    raise unfinished(directory, missing, len(layout.shard_names))


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
