"""What of a cache folder is finished: which shards, and whether they still fit the dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from masp.cache.fingerprint import FORMAT_VERSION, fingerprint_digest
from masp.cache.layout import MANIFEST, QUARANTINE, Shard, added_keys, read_layout, shard_names, sidecar_path, tar_path
from masp.data.images import UnreadableImage, read_image_file
from masp.errors import DataError, InputError
from masp.files.sealed import digest_file, read_sealed_object


def remedy(folder: Path) -> str:
    """The command that rebuilds damaged parts of a cache."""
    return f"rebuild it with `masp cache verify {folder} --repair --config CONFIG`"


def finished_sidecar(folder: Path, name: str, layout: dict) -> dict | None:
    """The sidecar of a finished shard; None if the shard must be (re)done.

    Finished means that the sidecar is whole and has the layout's fingerprint, and that the tar has the size that it
    says. Bytes are `verify`'s to read.
    """
    try:
        sidecar = read_sealed_object(sidecar_path(folder, name))
        if sidecar is None or os.stat(tar_path(folder, name)).st_size != sidecar["tar"]["bytes"]:
            return None
    except (DataError, FileNotFoundError):
        return None
    fingerprint = {"model": fingerprint_digest(layout["model"]), "machine": layout["machine"]}
    return sidecar if sidecar["fingerprint"] == fingerprint else None


def sidecars(folder: Path, layout: dict) -> Iterator[dict]:
    """Sidecars of all shards, in the order of their numbers.

    Raises:
        InputError: shards are missing; counts and names them.
    """
    names = shard_names(layout)
    missing = [name for name in names if not sidecar_path(folder, name).exists() or not tar_path(folder, name).exists()]
    if missing:
        raise unfinished(folder, missing, len(names))
    for name in names:
        sidecar = finished_sidecar(folder, name, layout)
        if sidecar is None:
            raise unfinished(folder, [name], len(names))
        yield sidecar


def unfinished(folder: Path, missing: Sequence[str], total: int) -> InputError:
    """The error for a cache that extraction has not completed."""
    named = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    return InputError(
        f"cache.dir: {folder} is unfinished: {len(missing)} of {total} shards are missing ({named}); "
        "run `masp extract` with its configuration again, it resumes"
    )


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished cache.

    Raises:
        InputError: no cache, or an unfinished one. DataError: damaged.
    """
    if not folder.is_dir():
        raise InputError(f"cache.dir: {folder} does not exist; make it with `masp extract`")
    try:
        manifest = read_sealed_object(folder / MANIFEST)
    except DataError as error:
        raise DataError(f"{error}; {remedy(folder)}") from None
    if manifest is not None:
        if manifest.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{folder / MANIFEST}: format_version is {manifest.get('format_version')!r}, this version of masp "
                f"reads {FORMAT_VERSION}; extract into a new cache.dir"
            )
        return manifest
    layout = read_layout(folder)
    if layout is None:
        raise InputError(f"cache.dir: {folder} is no feature cache; make one with `masp extract`")
    names = shard_names(layout)
    missing = [name for name in names if finished_sidecar(folder, name, layout) is None]
    if not missing:
        raise InputError(f"cache.dir: {folder} has all its shards but no manifest; `masp extract` again finishes it")
    raise unfinished(folder, missing, len(names))


START_ANEW = "the dataset has changed since the cache was begun; restore it or extract into a new cache.dir"
NAMED = 3
"""How many samples an error names."""


def changes_in(shard: Shard, sidecar: dict) -> tuple[list[str], bool]:
    """Compare the samples of a finished shard with the dataset as it is now.

    Args:
        shard: as the dataset now has it; holds the same keys as the sidecar.
        sidecar: of the finished shard.

    Returns:
        What was relabelled or has another image, one text per change; and whether the shard can stay, which it cannot
        if an image in quarantine has changed.
    """
    changes, keeps = [], True
    entries = {entry["key"]: (entry, False) for entry in sidecar["samples"]}
    entries |= {entry["key"]: (entry, True) for entry in sidecar["quarantined"]}
    for sample in shard.samples:
        entry, quarantined = entries[sample.key]
        for name, value in (("category", sample.category), ("answers", dict(sample.answers))):
            if entry[name] != value:
                changes.append(f"sample {sample.key} was cached with {name} {entry[name]!r}, now it is {value!r}")
        if source_changed(sample.image_path, entry["source"]):
            if not quarantined:
                changes.append(f"sample {sample.key}: {sample.image_path} has changed")
            keeps = False
    return changes, keeps


def dataset_changed(folder: Path, changes: Sequence[str], remedy: str = START_ANEW) -> InputError:
    """The error for a dataset that is not the one that was cached; names the first changes and counts the others."""
    more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return InputError(f"cache.dir: {folder}: {'; '.join(changes[:NAMED])}{more}; {remedy}")


def same_keys(shard: Shard, sidecar: dict) -> bool:
    """Whether a finished shard holds exactly the samples that the dataset now puts there."""
    entries = (*sidecar["samples"], *sidecar["quarantined"])
    return {entry["key"] for entry in entries} == {sample.key for sample in shard.samples}


def cached_keys(folder: Path, layout: dict) -> set[str]:
    """Keys of all samples, quarantined ones too, as far as sidecars of finished shards and the layout name them."""
    keys = set(added_keys(layout))
    for name in shard_names(layout):
        if sidecar := finished_sidecar(folder, name, layout):
            keys.update(entry["key"] for entry in (*sidecar["samples"], *sidecar["quarantined"]))
    return keys


def samples_changed(folder: Path, layout: dict, keys: Iterable[str]) -> InputError:
    """The error for a dataset that lost or gained samples; names the first ones if they can be told.

    Args:
        folder: the cache.
        layout: of the cache.
        keys: of all samples that the dataset has now.
    """
    now, before = set(keys), cached_keys(folder, layout)
    total = sum(sum(g["shards"].values()) for g in layout["generations"])
    if gone := sorted(before - now):
        return dataset_changed(folder, [f"sample {key} is no longer in the dataset" for key in gone])
    if len(before) == total and (new := sorted(now - before)):
        remedy = "`masp cache extend` adds new images to a finished cache"
        return dataset_changed(folder, [f"sample {key} is new in the dataset" for key in new], remedy)
    return dataset_changed(folder, [f"the dataset has {len(now):,} images, {total:,} when the cache was begun"])


def source_changed(path: Path, source: dict) -> bool:
    """Whether an image file is another than the one that was read, or can be read where it could not.

    Size and modification time decide; where only the time differs, the content does.

    Raises:
        InputError: the file system gives no answer.
    """
    try:
        if source["sha256"] is None:  # not a byte of it could be read
            read_image_file(path)
            return True
        status = os.stat(path)
        if status.st_size != source["bytes"]:
            return True
        return status.st_mtime_ns != source["mtime_ns"] and digest_file(path) != source["sha256"]
    except UnreadableImage:
        return False
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; run the same command again later") from None


class BadImages:
    """Counts images in quarantine and ends the job when they are too many, whatever the remaining ones are like."""

    def __init__(self, folder: Path, total: int, limit: float):
        """Nothing counted yet, of `total` images in the dataset; `limit` is `extract.max_bad_fraction`."""
        self.folder, self.total, self.limit, self.count = folder, total, limit, 0

    def add(self, count: int) -> None:
        """Count more.

        Raises:
            DataError: more than `extract.max_bad_fraction` of all images.
        """
        self.count += count
        if self.count > self.limit * self.total:
            raise DataError(
                f"{self.count} of {self.total} images cannot be read, more than extract.max_bad_fraction = {self.limit}"
                f" allows; {self.folder / QUARANTINE} names them; finished shards are kept: repair the images, or allow"
                " more, and run the same command again"
            )
