"""Which files a cache consists of, in the order in which they travel: all names, sizes and digests are the manifest's.

The layout comes first, so that what has arrived of a cache is an unfinished one for every reader; each shard's sidecar
comes after its tar; the manifest comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from masp.cache.findings import FILE as FINDINGS
from masp.cache.findings import read_findings
from masp.cache.layout import INDEX, LAYOUT, MANIFEST, QUARANTINE, SHARDS, layout_bytes, sidecar_path, tar_path
from masp.cache.manifest import Manifest
from masp.cache.remote.place import CacheFile
from masp.cache.shard_state import MAX_SIDECAR_BYTES, remedy
from masp.data.answer_table import FILE as ANSWERS
from masp.data.answer_table import load_answers
from masp.errors import DataError
from masp.files.regular import is_file, read_bytes
from masp.files.sealed import digest_file
from masp.files.text import reason

MAX_ENTRY_BYTES = 64 << 10
"""Most bytes of a sidecar per sample; it usually has 700."""

DERIVED = (QUARANTINE, ANSWERS)
"""Files that follow from the sidecars: made where a cache arrives, not fetched."""


def shard_parcels(manifest: Manifest, directory: Path | None = None) -> list[list[CacheFile]]:
    """Tar and sidecar of every shard.

    Args:
        manifest: Manifest of the cache.
        directory: Directory that they are sent from; None if they are fetched.

    Raises:
        DataError: One that is sent is missing.
    """
    counts = manifest.layout.num_samples
    parcels = []
    for shard in manifest.shards:
        side = CacheFile(
            name=f"{SHARDS}/{shard.name}.json",
            sha256=shard.sidecar_sha256,
            max_bytes=min(MAX_SIDECAR_BYTES, MAX_ENTRY_BYTES * (1 + counts[shard.name])),
            num_bytes=_size(sidecar_path(directory, shard.name)) if directory else None,
            source=sidecar_path(directory, shard.name) if directory else None,
        )
        tar = CacheFile(
            name=f"{SHARDS}/{shard.name}.tar",
            sha256=shard.sha256,
            max_bytes=shard.bytes,
            num_bytes=shard.bytes,
            source=tar_path(directory, shard.name) if directory else None,
            receipt=side,
        )
        parcels.append([tar, side])
    return parcels


def index_file(manifest: Manifest, directory: Path | None = None) -> CacheFile:
    """The index."""
    index = manifest.index
    return CacheFile(INDEX, index.sha256, index.bytes, index.bytes, directory / INDEX if directory else None)


def layout_file(manifest: Manifest) -> CacheFile:
    """The layout, which follows from the manifest."""
    return of_bytes(LAYOUT, layout_bytes(manifest.layout))


def manifest_file(data: bytes) -> CacheFile:
    """The manifest."""
    return of_bytes(MANIFEST, data)


def more_files(manifest: Manifest, directory: Path) -> list[CacheFile]:
    """The other files that are sent: quarantine list, answers, findings, the last two where there are any.

    Raises:
        DataError: One of them is damaged.
    """
    data = read_bytes(directory / QUARANTINE, key="cache.dir")
    if data is None or hashlib.sha256(data).hexdigest() != manifest.quarantine.sha256:
        raise DataError(f"{directory / QUARANTINE} is missing or damaged; {remedy(directory)}")
    found = [of_bytes(QUARANTINE, data)]
    if load_answers(directory, manifest.index.sha256, remedy(directory)) is not None:
        found.append(_of_path(directory, ANSWERS))
    if read_findings(directory, manifest) is not None:
        found.append(_of_path(directory, FINDINGS))
    return found


def of_bytes(name: str, data: bytes) -> CacheFile:
    """A file with this content."""
    return CacheFile(name, hashlib.sha256(data).hexdigest(), len(data), len(data), data)


def total_bytes(files: Sequence[CacheFile], sizes: dict[str, int] | None = None) -> int:
    """Bytes of files; `sizes` says those that the manifest does not."""
    return sum(f.num_bytes if f.num_bytes is not None else (sizes or {}).get(f.name, 0) for f in files)


def _of_path(directory: Path, name: str) -> CacheFile:
    path = directory / name
    size = _size(path)
    return CacheFile(name, digest_file(path), size, size, path)


def _size(path: Path) -> int:
    try:
        if not is_file(path):
            raise DataError(f"{path} is missing; `masp cache verify` says what else is and how to repair it")
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be examined: {reason(error)}") from None
