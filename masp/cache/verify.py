"""Checking every byte of a cache and naming what is damaged."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masp.cache.codec import checksum, decode_features, decode_record, is_finite
from masp.cache.findings import FILE, read_findings
from masp.cache.index import Columns, Index, load_index, shard_columns, widened
from masp.cache.layout import INDEX, LAYOUT, MANIFEST, QUARANTINE, SHARDS, Layout, read_layout, tar_path
from masp.cache.manifest import Manifest, ShardFile, read_manifest
from masp.cache.merge import shard_answers
from masp.cache.shard_state import SampleEntry, Sidecar, SidecarFingerprint, fingerprint_of, map_shards, read_digested
from masp.data.answer_table import FILE as ANSWERS
from masp.data.answer_table import AnswerTable, JoinedAnswers, answers_digest, load_answers
from masp.errors import DataError
from masp.files.regular import open_binary
from masp.files.sealed import CHUNK, digest_file
from masp.files.text import reason
from masp.vlm.features import Features


@dataclass(frozen=True)
class Problem:
    """Something in a cache that is not as it was written."""

    file: str
    """Relative to the cache."""
    what: str
    shard: str | None = None
    """The shard that must be redone to repair it; None where merging the sidecars again is enough."""
    key: str | None = None
    """The sample that is damaged, where it can be told."""
    is_stranger: bool = False
    """A file that is not the cache's: only the user can say what it is."""

    def __str__(self) -> str:
        return f"{self.file}: {f'sample {self.key}: ' if self.key else ''}{self.what}"


_NAMED = {"json": "its JSON is", "features": "its features are"}


def verify_cache(directory: str | Path, advance: Callable[[int], object] | None = None) -> list[Problem]:
    """Check the manifest, the layout, every sidecar, every byte of every shard, the index and the quarantine list.

    Args:
        directory: Directory of a finished cache.
        advance: Told the bytes of each shard that has been read.

    Returns:
        The problems, in the order of the shards; empty if there are none.

    Raises:
        InputError: No cache, or an unfinished one.
        DataError: Layout and manifest are both damaged, so that nothing
            can be compared.
    """
    directory = Path(directory)
    problems: list[Problem] = []
    manifest: Manifest | None = None
    try:
        manifest = read_manifest(directory)
    except DataError:
        problems.append(Problem(MANIFEST, "damaged"))
    layout: Layout | None = None
    try:
        layout = read_layout(directory)
    except DataError:
        problems.append(Problem(LAYOUT, "damaged"))
    else:
        if layout is None:
            problems.append(Problem(LAYOUT, "missing"))
    if layout is None:
        if manifest is None:
            raise DataError(
                f"cache.dir: {directory}: manifest and layout are both damaged; extract into a new cache.dir"
            )
        layout = manifest.layout
    elif manifest is not None and manifest.layout != layout:
        problems.append(Problem(MANIFEST, "does not agree with layout.json"))
        manifest = None
    index = _IndexCheck(directory, manifest) if manifest is not None else None
    entries = manifest.shards if manifest else [None] * len(layout.shard_names)
    check = functools.partial(_check_shard, directory, fingerprint_of(layout), index.numbers if index else None)
    num_maps = {manifest.num_deep_maps} if manifest else set()
    answers, num_answered = JoinedAnswers(sum(layout.num_samples.values())), 0
    for found in map_shards(check, list(zip(layout.shard_names, entries, strict=True))):
        problems += found.problems
        if found.answers is not None:
            answers.add(found.answers)
            num_answered += 1
        if found.num_deep_maps is not None:
            name, own = found.num_deep_maps
            num_maps = num_maps or {own}
            if own not in num_maps:
                what = "has another number of deep maps than the cache"
                problems.append(Problem(f"{SHARDS}/{name}.json", what, name))
        if index:
            index.compare(found)
        if advance and found.tar_bytes is not None:
            advance(found.tar_bytes)
    problems += _check_strangers(directory, layout)
    if manifest is not None and index is not None:
        problems += _check_digest(directory, QUARANTINE, manifest.quarantine.sha256)
        problems += _check_findings(directory, manifest)
        problems += index.problems()
        if num_answered == len(layout.shard_names):  # otherwise the file is made anew with the shard
            problems += _check_answers(directory, manifest, answers.table())
    return problems


@dataclass
class _Numbers:
    """What the numbers in the index stand for."""

    splits: dict[str, int]
    categories: dict[str, int]
    aspects: dict[str, int]
    """Aspect -> its bit, as an integer with this bit set."""


@dataclass
class _Checked:
    """What checking a shard found."""

    problems: list[Problem]
    tar_bytes: int | None = None
    """Bytes of the tar as the sidecar says; None if the sidecar is unusable."""
    columns: Columns | None = None
    """What its rows in the index should be, but for the shard's number."""
    mismatch: str = ""
    """Why it cannot be in the index at all."""
    answers: AnswerTable | None = None
    num_deep_maps: tuple[str, int | None] | None = None
    """Name of the shard and its number of deep maps; None if it has no samples."""


def _check_shard(
    directory: Path, fingerprint: SidecarFingerprint, numbers: _Numbers | None, shard: tuple[str, ShardFile | None]
) -> _Checked:
    """Check one shard against its sidecar and the manifest's entry."""
    name, entry = shard
    side, tar = f"{SHARDS}/{name}.json", f"{SHARDS}/{name}.tar"
    try:
        read = read_digested(directory, name)
    except DataError:
        return _Checked([Problem(side, "damaged", name)])
    if read is None:
        return _Checked([Problem(side, "missing", name)])
    sidecar, digest = read
    if sidecar.name != name or sidecar.fingerprint != fingerprint:
        return _Checked([Problem(side, "belongs to another cache", name)])
    if entry and digest != entry.sidecar_sha256:
        return _Checked([Problem(side, "is not the one that the manifest names", name)])
    found = _Checked([], sidecar.tar.bytes)
    found.answers = shard_answers(sidecar)
    if sidecar.samples:
        found.num_deep_maps = name, sidecar.num_deep_maps
    try:
        with open_binary(tar_path(directory, name)) as file:
            found.problems = _check_tar(file, tar, sidecar)
    except FileNotFoundError:
        found.problems = [Problem(tar, "missing", name)]
    except OSError as error:
        found.problems = [Problem(tar, f"cannot be read: {reason(error)}", name)]
    if numbers:
        try:
            if sidecar.split not in numbers.splits:
                raise DataError(f"sidecar {name}: {sidecar.split!r} is not a split of the cache")
            split = numbers.splits[sidecar.split]
            found.columns = shard_columns(sidecar, 0, split, numbers.categories, numbers.aspects)
        except DataError as error:
            found.mismatch = str(error)
    return found


def _check_tar(file: BinaryIO, path: str, sidecar: Sidecar) -> list[Problem]:
    """Read a tar once, from its first byte to its last: its digest, and every member against the sidecar."""
    name, problems, tar = sidecar.name, [], _Bytes(file)
    for sample in sidecar.samples:
        for kind, member in (("json", sample.json), ("features", sample.features)):
            tar.read(member.offset - tar.position)  # the header, and what fills up the block before it
            data = tar.read(member.bytes)
            if len(data) != member.bytes:
                problems.append(Problem(path, f"{_NAMED[kind]} cut off", name, sample.key))
            elif checksum(data) != member.crc32:
                problems.append(Problem(path, f"{_NAMED[kind]} damaged", name, sample.key))
            elif what := _disagrees(kind, data, sample, sidecar):
                problems.append(Problem(path, what, name, sample.key))
    while tar.read(min(CHUNK, sidecar.tar.bytes - tar.position)):
        pass
    if tar.size != sidecar.tar.bytes:  # what is too much is not read: it could be without end
        problems.append(Problem(path, f"has {tar.size} bytes instead of {sidecar.tar.bytes}", name))
    if tar.sha256.hexdigest() != sidecar.tar.sha256 and not problems:
        problems.append(Problem(path, "damaged between its samples", name))
    return problems


class _Bytes:
    """The bytes of a file from its first on, which are digested while they are read."""

    def __init__(self, file: BinaryIO):
        self._file, self.size, self.position = file, os.fstat(file.fileno()).st_size, 0
        self.sha256 = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end, however many a sidecar promises."""
        data = self._file.read(max(0, min(count, self.size - self.position)))
        self.sha256.update(data)
        self.position += len(data)
        return data


def _disagrees(kind: str, data: bytes, sample: SampleEntry, sidecar: Sidecar) -> str | None:
    """In which way an undamaged member is not the one that the sidecar describes; None if it is."""
    try:
        if kind == "features":
            return _other_features(decode_features(memoryview(bytearray(data))), sample, sidecar)
        record = decode_record(data)
    except DataError as error:
        return str(error)
    names = ("key", "category", "answers", "grid", "image_size", "distribution")
    wrong = next((name for name in names if getattr(record, name) != getattr(sample, name)), None)
    if wrong:
        return f"its {wrong} is not the sidecar's"
    if not record.has_room_for(sample.num_tokens):
        return f"no token of its block is there {sample.num_tokens} times"
    return None


def _other_features(features: Features, sample: SampleEntry, sidecar: Sidecar) -> str | None:
    """In which way features are not those that the sidecar describes; None if they are."""
    num_tokens, hidden_size = features.tokens.shape
    num_maps, wanted = 0 if features.deep is None else len(features.deep), sidecar.num_deep_maps or 0
    if num_tokens != sample.num_tokens:
        return f"has {num_tokens} tokens instead of {sample.num_tokens}"
    if hidden_size != sidecar.hidden_size:
        return f"has features of {hidden_size} numbers instead of {sidecar.hidden_size}"
    if num_maps != wanted:
        return f"has {num_maps} deep maps instead of {wanted}"
    if not is_finite(features):
        return "its features are not finite"
    return None


def _check_strangers(directory: Path, layout: Layout) -> list[Problem]:
    """Tars that no layout names: stock WebDataset would read them."""
    known = {f"{name}.tar" for name in layout.shard_names}
    return [
        Problem(f"{SHARDS}/{path.name}", "is not a shard of this cache; remove it", is_stranger=True)
        for path in sorted((directory / SHARDS).glob("*.tar"))
        if path.name not in known and not path.name.startswith(".")
    ]


def _check_digest(directory: Path, name: str, expected: str) -> list[Problem]:
    try:
        return [] if digest_file(directory / name) == expected else [Problem(name, "damaged")]
    except FileNotFoundError:
        return [Problem(name, "missing")]
    except OSError as error:
        return [Problem(name, f"cannot be read: {reason(error)}")]


def _check_findings(directory: Path, manifest: Manifest) -> list[Problem]:
    """What is recorded of the dataset; caches from before it was recorded have no such file."""
    try:
        read_findings(directory, manifest)
    except DataError:
        return [Problem(FILE, "damaged")]
    return []


def _check_answers(directory: Path, manifest: Manifest, expected: AnswerTable) -> list[Problem]:
    """The answers against those of all sidecars; a cache of an earlier version has no such file."""
    digest = manifest.index.sha256
    try:
        found = load_answers(directory, digest, "")
    except DataError:
        return [Problem(ANSWERS, "damaged")]
    if found is None or answers_digest(digest, found) == answers_digest(digest, expected):
        return []
    return [Problem(ANSWERS, "does not agree with the sidecars")]


class _IndexCheck:
    """The index against the sidecars, one after another: all of them together would take gigabytes."""

    def __init__(self, directory: Path, manifest: Manifest):
        """Read the index, if its digest is the manifest's."""
        self.numbers = _Numbers(
            {split: number for number, split in enumerate(manifest.splits)},
            {category: number for number, category in enumerate(manifest.categories)},
            {aspect: 1 << number for number, aspect in enumerate(manifest.aspects)},
        )
        """What its numbers stand for."""
        self._num_categories = len(manifest.categories)
        self._index: Index | None = None
        self._damaged = _check_digest(directory, INDEX, manifest.index.sha256)
        self._problems: list[Problem] = []
        self._wrong: set[str] = set()
        self._row = self._key_byte = self._num_shards = 0
        self._comparable = True
        if not self._damaged:
            try:
                self._index = load_index(directory / INDEX)
            except DataError as error:
                self._problems = [Problem(INDEX, str(error))]

    def compare(self, found: _Checked) -> None:
        """Compare the rows of the next shard with its sidecar, unless that is a problem already."""
        number, self._num_shards = self._num_shards, self._num_shards + 1
        self._comparable = self._comparable and found.tar_bytes is not None
        if self._index is None or not self._comparable:
            return
        if found.columns is None:
            self._problems.append(Problem(INDEX, found.mismatch))
            self._index = None
            return
        expected = {**found.columns, "shard": np.full_like(found.columns["shard"], number)}
        start, end = self._row, self._row + len(expected["shard"])
        key_end = self._key_byte + len(expected["key_text"])
        for name, values in expected.items():
            if name == "key_offsets":
                rows = np.diff(self._index.key_offsets[start : end + 1])
            elif name == "key_text":
                rows = self._index.key_text[self._key_byte : key_end]
            elif name == "distribution":
                found_rows = self._index.distributions(np.arange(start, end))
                rows, values = (widened(column, self._num_categories) for column in (found_rows, values))
            else:
                rows = getattr(self._index, name)[start:end]
            if not np.array_equal(rows, values):
                self._wrong.add(name)
        self._row, self._key_byte = end, key_end

    def problems(self) -> list[Problem]:
        """What was found; of its content nothing where a sidecar is a problem: then it is made anew with the shard."""
        if self._damaged or not self._comparable:
            return self._damaged
        if self._index is None:
            return self._problems
        differs = len(self._index) != self._row
        return [
            Problem(INDEX, f"column {field.name} does not agree with the sidecars")
            for field in fields(Index)
            if field.name in self._wrong or (differs and getattr(self._index, field.name) is not None)
        ]
