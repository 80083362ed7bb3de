"""Which shards of a cache are finished, what their sidecars say, and whether they still fit the dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.cache.fingerprint import FORMAT_VERSION, Machine
from masp.cache.layout import NAME, QUARANTINE, Layout, Shard, sidecar_path, tar_path
from masp.data.images import UnreadableImage, read_image_file
from masp.data.keys import SampleKey
from masp.errors import DataError, InputError
from masp.files.fields import Count, Crc32, Positive, Sha256, Size
from masp.files.regular import exists
from masp.files.sealed import digest_file, read_sealed
from masp.files.text import reason

MAX_SIDECAR_BYTES = 4 << 30
"""Size limit; a sidecar has about 700 bytes per sample."""


@dataclass(frozen=True, slots=True)
class Source:
    """An image file as extraction found it; each field is None if it could not be read."""

    bytes: Size | None
    mtime_ns: int | None
    sha256: Sha256 | None

    @property
    def size_and_time(self) -> tuple[int, int]:
        """Bytes and modification time (ns) of a file that was read."""
        assert self.bytes is not None and self.mtime_ns is not None
        return self.bytes, self.mtime_ns


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's data is in the tar."""

    offset: Size
    bytes: Size
    crc32: Crc32


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """A sample in a tar."""

    key: SampleKey
    category: str
    answers: dict[str, str]
    """Aspect -> answer text, only where annotated."""
    image_size: tuple[Positive, Positive]
    """Width and height of the image that was given to the image processor."""
    grid: tuple[Positive, Positive, Positive]
    """Patches in time, height and width, before the merge."""
    num_tokens: Positive
    """T."""
    json: Member
    features: Member
    source: Source


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """A sample whose image cannot be read."""

    key: SampleKey
    category: str
    answers: dict[str, str]
    path: str
    """As the user knows it: relative to the dataset's root where the image is inside."""
    reason: str
    source: Source


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar as it was written."""

    bytes: Size
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class SidecarFingerprint:
    """What the features of a shard depend on."""

    model: Sha256
    """`fingerprint_digest` of the model part."""
    machine: Machine


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of a finished shard: `shards/<name>.json`, written after the tar."""

    format_version: int
    name: str
    split: str
    generation: Count
    tar: TarFile
    fingerprint: SidecarFingerprint
    hidden_size: Positive | None
    """D; None if no image of the shard could be read."""
    samples: tuple[SampleEntry, ...]
    """In the order of the tar."""
    quarantined: tuple[QuarantineEntry, ...]

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"must have format_version {FORMAT_VERSION}")
        parts = NAME.fullmatch(self.name)
        if not parts or (parts["split"], int(parts["generation"] or 0)) != (self.split, self.generation):
            raise ValueError("must have a name made of its split and generation")
        if self.samples and self.hidden_size is None:
            raise ValueError("must have a hidden_size")
        end = 0
        for sample in self.samples:
            if sample.features.offset - sample.json.offset >= 1 << 31:
                raise ValueError("must have each sample's features right after its JSON")
            for member in (sample.json, sample.features):
                if member.offset < end:
                    raise ValueError("must list the members in the order of the tar")
                end = member.offset + member.bytes
        if end > self.tar.bytes:
            raise ValueError("must list members inside the tar")
        if len({entry.key for entry in self.entries}) != len(self.entries):
            raise ValueError("must list each sample once")

    @property
    def entries(self) -> tuple[SampleEntry | QuarantineEntry, ...]:
        """All samples of the shard, those in quarantine last."""
        return (*self.samples, *self.quarantined)


def remedy(directory: Path) -> str:
    """The command that rebuilds damaged parts of a cache."""
    return f"rebuild it with `masp cache verify {directory} --repair --config CONFIG`"


def fingerprint_of(layout: Layout) -> SidecarFingerprint:
    """The fingerprint that the sidecars of a cache have."""
    return SidecarFingerprint(layout.model_digest, layout.machine)


def read_sidecar(directory: Path, name: str) -> Sidecar | None:
    """The sidecar of a shard; None if there is none.

    Raises:
        DataError: Damaged.
        InputError: It may not be read.
    """
    return read_sealed(Sidecar, sidecar_path(directory, name), max_bytes=MAX_SIDECAR_BYTES)


def finished_sidecar(directory: Path, name: str, layout: Layout) -> Sidecar | None:
    """The sidecar of a finished shard; None if the shard must be (re)done.

    Finished means that the sidecar is whole and has the layout's fingerprint, and that the tar has the size that it
    says. Bytes are `verify`'s to read.

    Raises:
        InputError: The file system gives no answer.
    """
    path = tar_path(directory, name)
    try:
        sidecar = read_sidecar(directory, name)
        if sidecar is None or os.stat(path).st_size != sidecar.tar.bytes:
            return None
    except (DataError, FileNotFoundError):
        return None
    except OSError as error:
        raise InputError(f"cache.dir: {path} cannot be examined: {reason(error)}") from None
    return sidecar if sidecar.fingerprint == fingerprint_of(layout) else None


def finished_sidecars(directory: Path, layout: Layout) -> Iterator[Sidecar]:
    """Sidecars of the shards that are finished so far, in the order of their numbers."""
    for name in layout.shard_names:
        if sidecar := finished_sidecar(directory, name, layout):
            yield sidecar


def missing_shards(directory: Path, layout: Layout) -> list[str]:
    """Names of the shards that are not finished."""
    return [name for name in layout.shard_names if finished_sidecar(directory, name, layout) is None]


def sidecars(directory: Path, layout: Layout) -> Iterator[Sidecar]:
    """Sidecars of all shards, in the order of their numbers.

    Raises:
        InputError: Shards are missing; counts and names them.
    """
    names = layout.shard_names
    missing = [n for n in names if not exists(sidecar_path(directory, n)) or not exists(tar_path(directory, n))]
    if missing:
        raise unfinished(directory, missing, len(names))
    for name in names:
        sidecar = finished_sidecar(directory, name, layout)
        if sidecar is None:
            raise unfinished(directory, [name], len(names))
        yield sidecar


def unfinished(directory: Path, missing: Sequence[str], total: int) -> InputError:
    """The error for a cache that extraction has not completed."""
    named = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    return InputError(
        f"cache.dir: {directory} is unfinished: {len(missing)} of {total} shards are missing ({named}); "
        "run `masp extract` with its configuration again, it resumes"
    )


START_ANEW = "the dataset has changed since the cache was begun; restore it or extract into a new cache.dir"
NAMED = 3
"""How many samples an error names."""


def changes_in(shard: Shard, sidecar: Sidecar) -> tuple[list[str], bool]:
    """Compare the samples of a finished shard with the dataset as it is now.

    Args:
        shard: Shard as the dataset now has it; holds the same keys as the sidecar.
        sidecar: Sidecar of the finished shard.

    Returns:
        What was relabeled or has another image, one text per change; and whether the shard can stay, which it cannot
        if an image in quarantine has changed.
    """
    changes, keeps = [], True
    entries = {entry.key: entry for entry in sidecar.entries}
    for sample in shard.samples:
        entry = entries[sample.key]
        for name, old, new in (
            ("category", entry.category, sample.category),
            ("answers", entry.answers, dict(sample.answers)),
        ):
            if old != new:
                changes.append(f"sample {sample.key} was cached with {name} {old!r}, now it is {new!r}")
        if source_changed(sample.image_path, entry.source):
            if isinstance(entry, SampleEntry):
                changes.append(f"sample {sample.key}: {sample.image_path} has changed")
            keeps = False
    return changes, keeps


def dataset_changed(directory: Path, changes: Sequence[str], remedy: str = START_ANEW) -> InputError:
    """The error for a dataset that is not the one that was cached; names the first changes and counts the others."""
    more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return InputError(f"cache.dir: {directory}: {'; '.join(changes[:NAMED])}{more}; {remedy}")


def same_keys(shard: Shard, sidecar: Sidecar) -> bool:
    """Whether a finished shard holds exactly the samples that the dataset now puts there."""
    return {entry.key for entry in sidecar.entries} == {sample.key for sample in shard.samples}


def cached_keys(directory: Path, layout: Layout) -> set[str]:
    """Keys of all samples, quarantined ones too, as far as sidecars of finished shards and the layout name them."""
    keys = set(layout.added_keys)
    for sidecar in finished_sidecars(directory, layout):
        keys.update(entry.key for entry in sidecar.entries)
    return keys


def samples_changed(directory: Path, layout: Layout, keys: Iterable[str]) -> InputError:
    """The error for a dataset that lost or gained samples; names the first ones if they can be told.

    Args:
        directory: Directory of the cache.
        layout: Layout of the cache.
        keys: Keys of all samples that the dataset has now.
    """
    now, before = set(keys), cached_keys(directory, layout)
    total = sum(layout.num_samples.values())
    if gone := sorted(before - now):
        return dataset_changed(directory, [f"sample {key} is no longer in the dataset" for key in gone])
    if len(before) == total and (new := sorted(now - before)):
        remedy = "`masp cache extend` adds new images to a finished cache"
        return dataset_changed(directory, [f"sample {key} is new in the dataset" for key in new], remedy)
    return dataset_changed(directory, [f"the dataset has {len(now):,} images, {total:,} when the cache was begun"])


def source_changed(path: Path, source: Source) -> bool:
    """Whether an image file is another than the one that was read, or can be read where it could not.

    Size and modification time decide; where only the time differs, the content does.

    Raises:
        InputError: The file system gives no answer.
    """
    try:
        if source.sha256 is None:  # not a byte of it could be read
            read_image_file(path)
            return True
        status = os.stat(path)
        if status.st_size != source.bytes:
            return True
        return status.st_mtime_ns != source.mtime_ns and digest_file(path) != source.sha256
    except UnreadableImage:
        return False
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; run the same command again later") from None


class BadImages:
    """Counts images in quarantine and ends the job when they are too many, whatever the remaining ones are like."""

    def __init__(self, directory: Path, total: int, limit: float):
        """Nothing counted yet, of `total` images in the dataset; `limit` is `extract.max_bad_fraction`."""
        self.directory, self.total, self.limit, self.count = directory, total, limit, 0

    def add(self, count: int) -> None:
        """Count more.

        Raises:
            DataError: More than `extract.max_bad_fraction` of all images.
        """
        self.count += count
        if self.count > self.limit * self.total:
            raise DataError(
                f"{self.count} of {self.total} images cannot be read, more than extract.max_bad_fraction = {self.limit}"
                f" allows; {self.directory / QUARANTINE} names them; finished shards are kept: repair the images, or"
                " allow more, and run the same command again"
            )
