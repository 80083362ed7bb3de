"""Which shards of a cache are finished, and what their sidecars say."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from masp.cache.fingerprint import FORMAT_VERSION, Machine
from masp.cache.layout import NAME, SHARDS, Layout, sidecar_path, tar_path
from masp.data.keys import SampleKey
from masp.errors import DataError, InputError
from masp.files.fields import OMIT_NONE, Count, Crc32, Distribution, Positive, Sha256, Size, SplitOf
from masp.files.regular import read_bytes
from masp.files.sealed import unseal
from masp.files.text import reason
from masp.runtime.process_pool import default_processes, map_ahead, process_pool

MAX_SIDECAR_BYTES = 4 << 30
"""Size limit; a sidecar has about 700 bytes per sample."""

_MANY = 300
"""So many sidecars are read faster by processes, although these take a second to start."""
_CHUNK = 16

A = TypeVar("A")
R = TypeVar("R")


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
    grid: tuple[Positive, Positive, Positive] | None
    """Patches in time, height and width, before the merge; None for VLMs that do not count positions by a grid."""
    num_tokens: Positive
    """T."""
    json: Member
    features: Member
    source: Source
    distribution: Annotated[Distribution | None, OMIT_NONE] = None
    """Probability of each of the cache's categories; None where the dataset has only labels."""


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
    distribution: Annotated[Distribution | None, OMIT_NONE] = None
    """See `SampleEntry`."""


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
    split: SplitOf
    generation: Count
    tar: TarFile
    fingerprint: SidecarFingerprint
    hidden_size: Positive | None
    """D; None if no image of the shard could be read."""
    samples: tuple[SampleEntry, ...]
    """In the order of the tar."""
    quarantined: tuple[QuarantineEntry, ...]
    num_deep_maps: Annotated[Positive | None, OMIT_NONE] = None
    """K; None if the VLM has no DeepStack, or no image of the shard could be read."""

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
    found = read_digested(directory, name)
    return found and found[0]


def read_digested(directory: Path, name: str) -> tuple[Sidecar, str] | None:
    """The sidecar of a shard and the SHA-256 of its file, which is read once; otherwise as `read_sidecar`."""
    path = sidecar_path(directory, name)
    data = read_bytes(path, max_bytes=MAX_SIDECAR_BYTES)
    return None if data is None else (unseal(Sidecar, data, str(path)), hashlib.sha256(data).hexdigest())


def finished_sidecar(directory: Path, name: str, layout: Layout) -> Sidecar | None:
    """The sidecar of a finished shard; None if the shard must be (re)done.

    Finished means that the sidecar is whole and has the layout's fingerprint, and that the tar has the size that it
    says. Bytes are `verify`'s to read.

    Raises:
        InputError: The file system gives no answer.
    """
    found = digested_sidecar(directory, name, fingerprint_of(layout))
    return found and found[0]


def digested_sidecar(directory: Path, name: str, fingerprint: SidecarFingerprint) -> tuple[Sidecar, str] | None:
    """The sidecar of a finished shard and the SHA-256 of its file, otherwise as `finished_sidecar`."""
    path = tar_path(directory, name)
    try:
        found = read_digested(directory, name)
        if found is None or os.stat(path).st_size != found[0].tar.bytes:
            return None
    except (DataError, FileNotFoundError):
        return None
    except OSError as error:
        raise InputError(f"cache.dir: {path} cannot be examined: {reason(error)}") from None
    return found if found[0].fingerprint == fingerprint else None


def finished_sidecars(directory: Path, layout: Layout) -> Iterator[Sidecar]:
    """Sidecars of the shards that are finished so far, in the order of their numbers."""
    for name in layout.shard_names:
        if sidecar := finished_sidecar(directory, name, layout):
            yield sidecar


def map_shards(function: Callable[[A], R], shards: Sequence[A]) -> Iterator[R]:
    """Call a function for each of many shards, in other processes where they are many.

    Args:
        function: Can be pickled, as can what it returns.
        shards: What it is called with.

    Yields:
        What it returns, in the order of the shards.
    """
    if len(shards) < _MANY:
        yield from map(function, shards)
        return
    num_processes = default_processes()
    with process_pool(num_processes, None, "reads the sidecars of a cache") as pool:
        yield from map_ahead(pool, num_processes, function, shards, _CHUNK)


def map_sidecars(
    function: Callable[[Sidecar], R], directory: Path, layout: Layout, names: Sequence[str] | None = None
) -> Iterator[R | None]:
    """Call a function with the sidecar of each finished shard; see `map_shards`.

    Args:
        function: Can be pickled, as can what it returns.
        directory: Directory of the cache.
        layout: Layout of the cache.
        names: Names of the shards; None for all, in the order of their numbers.

    Yields:
        What it returns; None for a shard that is not finished.
    """
    call = functools.partial(_call, function, directory, fingerprint_of(layout))
    yield from map_shards(call, layout.shard_names if names is None else names)


def _call(function: Callable[[Sidecar], R], directory: Path, fingerprint: SidecarFingerprint, name: str) -> R | None:
    found = digested_sidecar(directory, name, fingerprint)
    return None if found is None else function(found[0])


def missing_shards(directory: Path, layout: Layout) -> list[str]:
    """Names of the shards that are not finished."""
    found = map_sidecars(_is_there, directory, layout)
    return [name for name, there in zip(layout.shard_names, found, strict=True) if not there]


def _is_there(sidecar: Sidecar) -> bool:
    return True


def num_quarantined(sidecar: Sidecar) -> int:
    """How many images of a shard are in quarantine."""
    return len(sidecar.quarantined)


def keys_of(sidecar: Sidecar) -> list[str]:
    """Keys of all samples of a shard."""
    return [entry.key for entry in sidecar.entries]


def absent_shards(directory: Path, layout: Layout) -> list[str]:
    """Names of the shards that lack a file, from one listing of the directory; what is in the files is not looked at.

    Raises:
        InputError: The directory cannot be listed.
    """
    try:
        found = set(os.listdir(directory / SHARDS))
    except FileNotFoundError:
        found = set()
    except OSError as error:
        raise InputError(f"cache.dir: {directory / SHARDS} cannot be listed: {reason(error)}") from None
    return [name for name in layout.shard_names if not {f"{name}.json", f"{name}.tar"} <= found]


class UnfinishedCache(InputError):
    """Shards of a cache are missing."""

    missing: tuple[str, ...] = ()
    """Their names."""


def unfinished(directory: Path, missing: Sequence[str], total: int) -> UnfinishedCache:
    """The error for a cache that extraction has not completed."""
    named = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    error = UnfinishedCache(
        f"cache.dir: {directory} is unfinished: {len(missing)} of {total} shards are missing ({named}); "
        "run `masp extract` with its configuration again, it resumes; where it is fetched, `masp cache pull` again"
    )
    error.missing = tuple(missing)
    return error
