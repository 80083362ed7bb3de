"""Sending a finished cache to the hub, a bucket or another directory."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from masp.cache.layout import MANIFEST
from masp.cache.manifest import Manifest, read_manifest
from masp.cache.remote.address import open_place
from masp.cache.remote.cache_files import (
    index_file,
    layout_file,
    manifest_file,
    more_files,
    shard_parcels,
    total_bytes,
)
from masp.cache.remote.directory import DirectoryPlace
from masp.cache.remote.place import CacheFile, Place
from masp.cache.remote.present import missing_files
from masp.cache.remote.same_cache import examine_target, read_remote_manifest
from masp.cache.remote.transfers import Transfers, patiently, size_text
from masp.cache.shard_state import MAX_SIDECAR_BYTES
from masp.errors import DataError, InputError
from masp.files.regular import read_bytes
from masp.runtime.log import show
from masp.runtime.stop import StopFlag


def push(directory: Path, target: str, *, num_threads: int, public: bool = False) -> None:
    """Send a cache; interrupted, the same call goes on.

    Args:
        directory: Directory of a finished cache.
        target: `hf://owner/name`, a URL that fsspec knows, or a directory.
        num_threads: Files that are sent at the same time.
        public: Whether a repository of the hub that is made is public; one that is there stays as it is.

    Raises:
        InputError: No finished cache, not a valid target, another cache is there, or it cannot be written.
        DataError: The cache is damaged; the file is named.
        StoppedEarly: On request.
    """
    manifest, data = _read(directory)
    place = open_place(target, "TARGET", public=public)
    if isinstance(place, DirectoryPlace) and os.path.realpath(target) == os.path.realpath(directory):
        raise InputError(f"TARGET: {target} is the cache itself; give another place")
    parcels = shard_parcels(manifest, directory)
    for file in (index_file(manifest, directory), *more_files(manifest, directory)):
        parcels.append([file])
    with StopFlag() as stop:
        patiently(place.look)
        state = examine_target(place, manifest, data, [file.name for parcel in parcels for file in parcel])
        patiently(place.prepare)
        with place.exclusive():
            missing = missing_files(place, parcels, state.is_known, num_threads, stop)
            first, last = layout_file(manifest), manifest_file(data)
            if state.has_manifest and not state.is_finished:
                patiently(functools.partial(place.remove, MANIFEST))
            begun = [] if patiently(functools.partial(place.holds, first)) else [first]
            _send(place, begun, missing, [] if state.is_finished and not missing else [last], num_threads, stop)
    num_missing = sum(map(len, missing))
    sent = f"{num_missing:,} files sent" if num_missing or not state.is_finished else "all of it was there already"
    show(
        f"cache: {target}: {len(manifest.shards):,} shards, {manifest.num_samples:,} images, "
        f"{size_text(manifest.num_bytes)}; {sent}; `masp cache pull {target} DIR` fetches it"
    )


def _read(directory: Path) -> tuple[Manifest, bytes]:
    """The manifest and its file."""
    read_manifest(directory)  # whose errors say what a directory lacks
    data = read_bytes(directory / MANIFEST, max_bytes=MAX_SIDECAR_BYTES, key="CACHE")
    if data is None:
        raise DataError(f"{directory / MANIFEST} went away; is another process extending this cache?")
    return read_remote_manifest(data, str(directory / MANIFEST)), data


def _send(
    place: Place,
    begun: list[CacheFile],
    parcels: list[list[CacheFile]],
    last: list[CacheFile],
    num_threads: int,
    stop: StopFlag,
) -> None:
    """Send the layout, then everything else in any order, then the manifest."""
    everything = [*begun, *_flat(parcels), *last]
    if not everything:
        return
    with Transfers("push", total_bytes(everything), num_threads, stop) as transfers:

        def send(files: list[CacheFile]) -> None:
            def attempt() -> None:
                with transfers.counting() as advance:
                    place.send(files, advance)

            patiently(attempt)

        for stage in ([begun] if begun else [], parcels, [last] if last else []):
            for _ in transfers.each(send, stage):
                patiently(place.settle)
            patiently(functools.partial(place.settle, last=True))
            if stage is parcels and parcels:
                patiently(place.look)
                _check_arrived(place, parcels)


def _check_arrived(place: Place, parcels: list[list[CacheFile]]) -> None:
    """Compare what a target lists with what was sent, before the manifest says that it is whole.

    Raises:
        InputError: A file is not there, although sending it did not fail: a hub ignores what a `.gitignore` names.
    """
    lost = [
        f.name for parcel in parcels for f in parcel if f.name not in place.sizes or not f.fits(place.sizes[f.name])
    ]
    if lost:
        raise InputError(
            f"{place.where(lost[0])} did not arrive, and {len(lost) - 1:,} other files, although nothing failed; does "
            "a .gitignore there leave them out, or does another process write there?"
        )


def _flat(parcels: Iterable[Iterable[CacheFile]]) -> list[CacheFile]:
    return [file for parcel in parcels for file in parcel]
