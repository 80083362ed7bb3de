"""Checking every byte of a cache and naming what is damaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masp.cache.codec import checksum, decode_features, decode_record
from masp.cache.findings import FILE, read_findings
from masp.cache.index import Index, build_index, load_index
from masp.cache.layout import INDEX, LAYOUT, MANIFEST, QUARANTINE, SHARDS, Layout, read_layout, sidecar_path, tar_path
from masp.cache.manifest import Manifest, ShardFile, read_manifest
from masp.cache.shard_state import SampleEntry, Sidecar, fingerprint_of, read_sidecar
from masp.errors import DataError
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
    sidecars: list[Sidecar | None] = []
    for number, name in enumerate(layout.shard_names):
        entry = manifest.shards[number] if manifest else None
        sidecar, found = _check_shard(directory, name, entry, layout)
        sidecars.append(sidecar)
        problems += found
        if advance and sidecar:
            advance(sidecar.tar.bytes)
    problems += _check_strangers(directory, layout)
    if manifest is not None:
        problems += _check_digest(directory, QUARANTINE, manifest.quarantine.sha256)
        problems += _check_findings(directory, manifest)
        problems += _check_index(directory, manifest, sidecars)
    return problems


def _check_shard(
    directory: Path, name: str, entry: ShardFile | None, layout: Layout
) -> tuple[Sidecar | None, list[Problem]]:
    """Check one shard against its sidecar and the manifest's entry; returns the sidecar unless it is unusable."""
    side, tar = f"{SHARDS}/{name}.json", f"{SHARDS}/{name}.tar"
    try:
        sidecar = read_sidecar(directory, name)
    except DataError:
        return None, [Problem(side, "damaged", name)]
    if sidecar is None:
        return None, [Problem(side, "missing", name)]
    if sidecar.name != name or sidecar.fingerprint != fingerprint_of(layout):
        return None, [Problem(side, "belongs to another cache", name)]
    if entry and digest_file(sidecar_path(directory, name)) != entry.sidecar_sha256:
        return None, [Problem(side, "is not the one that the manifest names", name)]
    try:
        with open(tar_path(directory, name), "rb") as file:
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
    while _read(file, CHUNK, digest):
        pass
    if file.tell() != sidecar.tar.bytes:
        problems.append(Problem(path, f"has {file.tell()} bytes instead of {sidecar.tar.bytes}", name))
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


def _check_index(directory: Path, manifest: Manifest, sidecars: Sequence[Sidecar | None]) -> list[Problem]:
    if problems := _check_digest(directory, INDEX, manifest.index.sha256):
        return problems
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if len(known) < len(sidecars):
        return []  # those shards are problems already, and the index is made anew with them
    try:
        index = load_index(directory / INDEX)
        expected = build_index(known, list(manifest.splits), manifest.categories, manifest.aspects)
    except DataError as error:
        return [Problem(INDEX, str(error))]
    return [
        Problem(INDEX, f"column {field.name} does not agree with the sidecars")
        for field in fields(Index)
        if not np.array_equal(getattr(index, field.name), getattr(expected, field.name))
    ]
