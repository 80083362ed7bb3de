"""Checking every byte of a cache and naming what is damaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masp.cache.codec import checksum, decode_features, decode_record
from masp.cache.findings import FILE, read_findings
from masp.cache.index import Index, load_index, shard_columns
from masp.cache.layout import INDEX, LAYOUT, MANIFEST, QUARANTINE, SHARDS, Layout, read_layout, tar_path
from masp.cache.manifest import Manifest, ShardFile, read_manifest
from masp.cache.merge import shard_answers
from masp.cache.shard_state import SampleEntry, Sidecar, fingerprint_of, read_digested
from masp.data.answer_table import FILE as ANSWERS
from masp.data.answer_table import AnswerTable, answers_digest, load_answers
from masp.errors import DataError
from masp.files.regular import open_binary
from masp.files.sealed import CHUNK, digest_file
from masp.files.text import reason


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
    answers: list[AnswerTable] = []
    for number, name in enumerate(layout.shard_names):
        entry = manifest.shards[number] if manifest else None
        sidecar, found = _check_shard(directory, name, entry, layout)
        problems += found
        if sidecar:
            answers.append(shard_answers(sidecar))
        if index:
            index.compare(number, sidecar)
        if advance and sidecar:
            advance(sidecar.tar.bytes)
    problems += _check_strangers(directory, layout)
    if manifest is not None and index is not None:
        problems += _check_digest(directory, QUARANTINE, manifest.quarantine.sha256)
        problems += _check_findings(directory, manifest)
        problems += index.problems()
        if len(answers) == len(layout.shard_names):  # otherwise the file is made anew with the shard
            problems += _check_answers(directory, manifest, AnswerTable.join(answers))
    return problems


def _check_shard(
    directory: Path, name: str, entry: ShardFile | None, layout: Layout
) -> tuple[Sidecar | None, list[Problem]]:
    """Check one shard against its sidecar and the manifest's entry; returns the sidecar unless it is unusable."""
    side, tar = f"{SHARDS}/{name}.json", f"{SHARDS}/{name}.tar"
    try:
        read = read_digested(directory, name)
    except DataError:
        return None, [Problem(side, "damaged", name)]
    if read is None:
        return None, [Problem(side, "missing", name)]
    sidecar, digest = read
    if sidecar.name != name or sidecar.fingerprint != fingerprint_of(layout):
        return None, [Problem(side, "belongs to another cache", name)]
    if entry and digest != entry.sidecar_sha256:
        return None, [Problem(side, "is not the one that the manifest names", name)]
    try:
        with open_binary(tar_path(directory, name)) as file:
            return sidecar, _check_tar(file, tar, sidecar)
    except FileNotFoundError:
        return sidecar, [Problem(tar, "missing", name)]
    except OSError as error:
        return sidecar, [Problem(tar, f"cannot be read: {reason(error)}", name)]


def _check_tar(file: BinaryIO, path: str, sidecar: Sidecar) -> list[Problem]:
    """Read a tar once, from its first byte to its last: its digest, and every member against the sidecar."""
    digest, name, problems = hashlib.sha256(), sidecar.name, []
    for sample in sidecar.samples:
        for kind, member in (("json", sample.json), ("features", sample.features)):
            _read(file, member.offset - file.tell(), digest)  # the header, and what fills up the block before it
            data = _read(file, member.bytes, digest)
            if len(data) != member.bytes:
                problems.append(Problem(path, f"{_NAMED[kind]} cut off", name, sample.key))
            elif checksum(data) != member.crc32:
                problems.append(Problem(path, f"{_NAMED[kind]} damaged", name, sample.key))
            elif what := _disagrees(kind, data, sample):
                problems.append(Problem(path, what, name, sample.key))
    while _read(file, min(CHUNK, sidecar.tar.bytes - file.tell()), digest):
        pass
    size = os.fstat(file.fileno()).st_size
    if size != sidecar.tar.bytes:  # what is too much is not read: it could be without end
        problems.append(Problem(path, f"has {size} bytes instead of {sidecar.tar.bytes}", name))
    if digest.hexdigest() != sidecar.tar.sha256 and not problems:
        problems.append(Problem(path, "damaged between its samples", name))
    return problems


def _read(file: BinaryIO, count: int, digest: hashlib._Hash) -> bytes:
    """The next bytes of a file, added to a digest; fewer at its end, however many a sidecar promises."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    data = file.read(max(0, min(count, left)))
    digest.update(data)
    return data


def _disagrees(kind: str, data: bytes, sample: SampleEntry) -> str | None:
    """In which way an undamaged member is not the one that the sidecar describes; None if it is."""
    try:
        if kind == "features":
            num_tokens = decode_features(memoryview(bytearray(data))).shape[0]
            if num_tokens == sample.num_tokens:
                return None
            return f"has {num_tokens} tokens instead of {sample.num_tokens}"
        record = decode_record(data)
    except DataError as error:
        return str(error)
    names = ("key", "category", "answers", "grid", "image_size")
    wrong = next((name for name in names if getattr(record, name) != getattr(sample, name)), None)
    return f"its {wrong} is not the sidecar's" if wrong else None


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
        self._manifest = manifest
        self._index: Index | None = None
        self._damaged = _check_digest(directory, INDEX, manifest.index.sha256)
        self._problems: list[Problem] = []
        self._wrong: set[str] = set()
        self._row = self._key_byte = 0
        self._comparable = True
        if not self._damaged:
            try:
                self._index = load_index(directory / INDEX)
            except DataError as error:
                self._problems = [Problem(INDEX, str(error))]

    def compare(self, number: int, sidecar: Sidecar | None) -> None:
        """Compare the rows of the next shard with its sidecar, None where that is a problem already."""
        self._comparable = self._comparable and sidecar is not None
        if self._index is None or sidecar is None or not self._comparable:
            return
        splits, manifest = list(self._manifest.splits), self._manifest
        try:
            if sidecar.split not in splits:
                raise DataError(f"sidecar {sidecar.name}: {sidecar.split!r} is not a split of the cache")
            expected = shard_columns(
                sidecar,
                number,
                splits.index(sidecar.split),
                {category: i for i, category in enumerate(manifest.categories)},
                {aspect: 1 << i for i, aspect in enumerate(manifest.aspects)},
            )
        except DataError as error:
            self._problems.append(Problem(INDEX, str(error)))
            self._index = None
            return
        start, end = self._row, self._row + len(sidecar.samples)
        key_end = self._key_byte + len(expected["key_text"])
        for name, values in expected.items():
            if name == "key_offsets":
                found = np.diff(self._index.key_offsets[start : end + 1])
            elif name == "key_text":
                found = self._index.key_text[self._key_byte : key_end]
            else:
                found = getattr(self._index, name)[start:end]
            if not np.array_equal(found, values):
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
            if differs or field.name in self._wrong
        ]
