"""Checking every byte of a cache and naming what is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masp.cache.codec import checksum, decode_features, decode_record
from masp.cache.fingerprint import fingerprint_digest
from masp.cache.index import Index, build_index, load_index
from masp.cache.layout import (
    INDEX,
    LAYOUT,
    MANIFEST,
    QUARANTINE,
    SHARDS,
    read_layout,
    shard_names,
    sidecar_path,
    tar_path,
)
from masp.cache.manifest import layout_of
from masp.cache.shard_state import read_manifest
from masp.errors import DataError
from masp.files.sealed import CHUNK, digest_file, read_sealed_object


@dataclass(frozen=True)
class Problem:
    """Something in a cache that is not as it was written."""

    file: str
    """Relative to the cache."""
    what: str
    shard: str | None = None
    """The shard that must be redone to mend it; None where merging the sidecars again is enough."""
    key: str | None = None
    """The sample that is damaged, where it can be told."""
    is_stranger: bool = False
    """A file that is not the cache's: only the user can say what it is."""

    def __str__(self) -> str:
        return f"{self.file}: {f'sample {self.key}: ' if self.key else ''}{self.what}"


_NAMED = {"json": "its JSON is", "features": "its features are"}


def verify_cache(folder: str | Path, advance: Callable[[int], object] | None = None) -> list[Problem]:
    """Check the manifest, the layout, every sidecar, every byte of every shard, the index and the quarantine list.

    Args:
        folder: a finished cache.
        advance: told the bytes of each shard that has been read.

    Returns:
        The problems, in the order of the shards; empty if there are none.

    Raises:
        InputError: no cache, or an unfinished one. DataError: layout and manifest are both damaged, so that nothing
            can be compared.
    """
    folder = Path(folder)
    problems: list[Problem] = []
    layout = manifest = None
    try:
        manifest = read_manifest(folder)
    except DataError:
        problems.append(Problem(MANIFEST, "damaged"))
    try:
        layout = read_layout(folder)
    except DataError:
        problems.append(Problem(LAYOUT, "damaged"))
    else:
        if layout is None:
            problems.append(Problem(LAYOUT, "missing"))
    if layout is None:
        if manifest is None:
            raise DataError(f"cache.dir: {folder}: manifest and layout are both damaged; extract into a new cache.dir")
        layout = layout_of(manifest)
    elif manifest is not None and layout_of(manifest) != layout:
        problems.append(Problem(MANIFEST, "does not agree with layout.json"))
        manifest = None
    sidecars = []
    for number, name in enumerate(shard_names(layout)):
        entry = manifest["shards"][number] if manifest else None
        sidecar, found = _check_shard(folder, name, entry, layout)
        sidecars.append(sidecar)
        problems += found
        if advance and sidecar:
            advance(sidecar["tar"]["bytes"])
    problems += _check_strangers(folder, layout)
    if manifest is not None:
        problems += _check_digest(folder, QUARANTINE, manifest["quarantine"]["sha256"])
        problems += _check_index(folder, manifest, sidecars)
    return problems


def _check_shard(folder: Path, name: str, entry: dict | None, layout: dict) -> tuple[dict | None, list[Problem]]:
    """Check one shard against its sidecar and the manifest's entry; returns the sidecar unless it is unusable."""
    side, tar = f"{SHARDS}/{name}.json", f"{SHARDS}/{name}.tar"
    try:
        sidecar = read_sealed_object(sidecar_path(folder, name))
    except DataError:
        return None, [Problem(side, "damaged", name)]
    if sidecar is None:
        return None, [Problem(side, "missing", name)]
    fingerprint = {"model": fingerprint_digest(layout["model"]), "machine": layout["machine"]}
    if sidecar["name"] != name or sidecar["fingerprint"] != fingerprint:
        return None, [Problem(side, "belongs to another cache", name)]
    if entry and digest_file(sidecar_path(folder, name)) != entry["sidecar_sha256"]:
        return None, [Problem(side, "is not the one that the manifest names", name)]
    try:
        with open(tar_path(folder, name), "rb") as file:
            return sidecar, _check_tar(file, tar, sidecar)
    except FileNotFoundError:
        return sidecar, [Problem(tar, "missing", name)]
    except OSError as error:
        return sidecar, [Problem(tar, f"cannot be read: {error.strerror}", name)]


def _check_tar(file: BinaryIO, path: str, sidecar: dict) -> list[Problem]:
    """Read a tar once, from its first byte to its last: its digest, and every member against the sidecar."""
    digest, name, problems = hashlib.sha256(), sidecar["name"], []
    for sample in sidecar["samples"]:
        for member in ("json", "features"):
            entry = sample[member]
            _read(file, entry["offset"] - file.tell(), digest)  # the header, and what fills up the block before it
            data = _read(file, entry["bytes"], digest)
            if len(data) != entry["bytes"]:
                problems.append(Problem(path, f"{_NAMED[member]} cut off", name, sample["key"]))
            elif checksum(data) != entry["crc32"]:
                problems.append(Problem(path, f"{_NAMED[member]} damaged", name, sample["key"]))
            elif what := _disagrees(member, data, sample):
                problems.append(Problem(path, what, name, sample["key"]))
    while _read(file, CHUNK, digest):
        pass
    if file.tell() != sidecar["tar"]["bytes"]:
        problems.append(Problem(path, f"has {file.tell()} bytes instead of {sidecar['tar']['bytes']}", name))
    if digest.hexdigest() != sidecar["tar"]["sha256"] and not problems:
        problems.append(Problem(path, "damaged between its samples", name))
    return problems


def _read(file: BinaryIO, count: int, digest) -> bytes:
    """The next bytes of a file, added to a digest; fewer at its end."""
    data = file.read(count)
    digest.update(data)
    return data


def _disagrees(member: str, data: bytes, sample: dict) -> str | None:
    """In which way an undamaged member is not the one that the sidecar describes; None if it is."""
    if member == "features":
        try:
            shape = decode_features(memoryview(bytearray(data))).shape
        except ValueError as error:
            return str(error)
        return None if shape[0] == sample["num_tokens"] else f"has {shape[0]} tokens instead of {sample['num_tokens']}"
    record = decode_record(data)
    names = ("key", "category", "answers", "grid", "image_size")
    wrong = next((name for name in names if record.get(name) != sample[name]), None)
    return f"its {wrong} is not the sidecar's" if wrong else None


def _check_strangers(folder: Path, layout: dict) -> list[Problem]:
    """Tars that no layout names: stock WebDataset would read them."""
    known = {f"{name}.tar" for name in shard_names(layout)}
    return [
        Problem(f"{SHARDS}/{path.name}", "is no shard of this cache; remove it", is_stranger=True)
        for path in sorted((folder / SHARDS).glob("*.tar"))
        if path.name not in known and not path.name.startswith(".")
    ]


def _check_digest(folder: Path, name: str, expected: str) -> list[Problem]:
    try:
        return [] if digest_file(folder / name) == expected else [Problem(name, "damaged")]
    except FileNotFoundError:
        return [Problem(name, "missing")]


def _check_index(folder: Path, manifest: dict, sidecars: Sequence[dict | None]) -> list[Problem]:
    if problems := _check_digest(folder, INDEX, manifest["index"]["sha256"]):
        return problems
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if len(known) < len(sidecars):
        return []  # those shards are problems already, and the index is made anew with them
    index = load_index(folder / INDEX)
    expected = build_index(known, list(manifest["splits"]), manifest["categories"], manifest["aspects"])
    return [
        Problem(INDEX, f"column {field.name} does not agree with the sidecars")
        for field in fields(Index)
        if not np.array_equal(getattr(index, field.name), getattr(expected, field.name))
    ]
