"""Fetching a cache from the hub, a bucket or another directory. Nothing that arrives is believed before its digest."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from pathlib import Path

from masp.cache.layout import LAYOUT, MANIFEST, plain_write_errors
from masp.cache.remote.address import open_place
from masp.cache.remote.cache_files import index_file, layout_file, manifest_file, shard_parcels, total_bytes
from masp.cache.remote.derived import store_derived, store_findings
from masp.cache.remote.directory import DirectoryPlace, store_file
from masp.cache.remote.place import ArrivedDamaged, CacheFile, Place
from masp.cache.remote.present import missing_files
from masp.cache.remote.same_cache import examine_target, read_remote_manifest
from masp.cache.remote.transfers import Transfers, patiently, size_text
from masp.cache.shard_state import MAX_SIDECAR_BYTES
from masp.errors import DataError, InputError
from masp.runtime.log import show
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)


def pull(source: str, directory: Path, *, num_threads: int) -> None:
    """Fetch a cache; interrupted, the same call goes on.

    Which files are fetched, their sizes and their digests are what the manifest says, and their names are made from
    it. What follows from the sidecars (the answers, the quarantine list) is made here.

    Args:
        source: `hf://owner/name`, a URL that fsspec knows, or a directory.
        directory: Directory of the cache, which is made; or one in which the same cache has arrived in part.
        num_threads: Files that are fetched at the same time.

    Raises:
        InputError: Not a valid source, no finished cache is there, another cache is in the directory, or it cannot be
            written.
        DataError: What is there is damaged; the file is named.
        StoppedEarly: On request.
    """
    place, local = open_place(source, "SOURCE"), DirectoryPlace(directory, "CACHE")
    if isinstance(place, DirectoryPlace) and os.path.realpath(source) == os.path.realpath(directory):
        raise InputError(f"CACHE: {directory} is the source itself; give another directory")
    with StopFlag() as stop:
        patiently(place.look)
        data = _manifest_data(place)
        manifest = read_remote_manifest(data, place.where(MANIFEST))
        parcels = [*shard_parcels(manifest), [index_file(manifest)]]
        _check_listing(place, parcels)
        local.look()
        state = examine_target(local, manifest, data, [file.name for parcel in parcels for file in parcel])
        local.prepare()
        with local.exclusive():
            missing = missing_files(local, parcels, state.is_known, num_threads, stop)
            files = [file for parcel in missing for file in parcel]
            _check_space(directory, total_bytes(files, place.sizes))
            if state.has_manifest and (missing or not state.is_finished):
                local.remove(MANIFEST)
            _store_bytes(directory, local, layout_file(manifest))
            _fetch(place, directory, missing, num_threads, stop)
            store_derived(directory, manifest)
            store_findings(place, directory, manifest)
            _store_bytes(directory, local, manifest_file(data))
    fetched = f"{len(files):,} files fetched" if files else "all of it was here already"
    show(
        f"cache: {directory}: {len(manifest.shards):,} shards, {manifest.num_samples:,} images, "
        f"{size_text(manifest.num_bytes)}; {fetched}, every digest is the manifest's"
    )


def _manifest_data(place: Place) -> bytes:
    """The manifest's file, which says that the cache is whole."""
    if place.absent:
        raise InputError(f"SOURCE: {place.address}: {place.absent}")
    data = patiently(functools.partial(place.read_small, MANIFEST, MAX_SIDECAR_BYTES))
    if data is None:
        begun = LAYOUT in place.sizes
        what = "is a cache that is not finished" if begun else "is not a feature cache"
        then = "; run the `masp cache push` again that sends it" if begun else ""
        raise InputError(f"SOURCE: {place.address} {what}: it has no {MANIFEST}{then}")
    return data


def _check_listing(place: Place, parcels: list[list[CacheFile]]) -> None:
    """Compare the sizes of what is there with the manifest, before anything is fetched.

    Raises:
        DataError: Names the first file that is missing or has another size, and counts the others.
    """
    problems = []
    for file in (file for parcel in parcels for file in parcel):
        size = place.sizes.get(file.name)
        if size is None:
            problems.append(f"{place.where(file.name)} is missing")
        elif not file.fits(size):
            limit = f"at most {file.max_bytes:,}" if file.num_bytes is None else f"{file.num_bytes:,}"
            problems.append(f"{place.where(file.name)} has {size:,} bytes, but the manifest says {limit}")
    if problems:
        more = f" ({len(problems) - 1:,} other files do not fit either)" if problems[1:] else ""
        raise DataError(f"{problems[0]}{more}; run the `masp cache push` again that sent it")


def _check_space(directory: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk has no room for."""
    with plain_write_errors(directory, "CACHE"):
        free = shutil.disk_usage(directory).free
    if num_bytes > free:
        raise InputError(
            f"CACHE: {directory}: {size_text(num_bytes)} are to be fetched, but {size_text(free)} are free; free "
            "some space or give another directory"
        )


def _fetch(place: Place, directory: Path, parcels: list[list[CacheFile]], num_threads: int, stop: StopFlag) -> None:
    """Fetch files, of each parcel in its order."""
    if not parcels:
        return
    num_bytes = total_bytes([file for parcel in parcels for file in parcel], place.sizes)
    with Transfers("pull", num_bytes, num_threads, stop) as transfers:

        def fetch_one(file: CacheFile) -> None:
            with transfers.counting() as advance:
                try:
                    store_file(directory, "CACHE", file, place.chunks(file.name), advance)
                except ArrivedDamaged as error:
                    raise ArrivedDamaged(f"{place.address}: {error}") from None

        def fetch(parcel: list[CacheFile]) -> None:
            for file in parcel:
                patiently(functools.partial(fetch_one, file))

        for _ in transfers.each(fetch, parcels):
            pass


def _store_bytes(directory: Path, local: DirectoryPlace, file: CacheFile) -> None:
    """Write a file that is in memory, unless it is there."""
    if not local.holds(file):
        local.send([file], lambda _: None)
